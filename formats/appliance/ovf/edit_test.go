package ovf

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"imgmaint/formats"
	"imgmaint/internal/testimg"
)

var descriptors = []string{"vmware.ovf", "vapp.ovf", "virtualbox.ovf", "xenserver.ovf", "aws.ovf", "ovirt.ovf", "ovf2.ovf", "strings.ovf"}

// changedRange is the part of a and b between what they have in common at
// either end.
func changedRange(a, b []byte) (da, db string) {
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	j := 0
	for j < len(a)-i && j < len(b)-i && a[len(a)-1-j] == b[len(b)-1-j] {
		j++
	}
	return string(a[i : len(a)-j]), string(b[i : len(b)-j])
}

func ptr[T any](v T) *T { return &v }

// TestEdit makes one edit in one descriptor each, and says which bytes go and
// which come.
func TestEdit(t *testing.T) {
	for _, c := range []struct {
		name, file string
		edit       func(ed *Editor) error
		gone, come string
	}{
		{"size", "vmware.ovf", func(ed *Editor) error {
			return ed.SetFile(File{ID: "file1", Href: "app-disk1.vmdk", Size: 99})
		}, "70656", "99"},
		{"size in odd spacing", "vmware.ovf", func(ed *Editor) error {
			return ed.SetFile(File{ID: "file2", Href: "app-disk2.vmdk", Size: 5})
		}, "1024", "5"},
		{"nothing", "vmware.ovf", func(ed *Editor) error {
			return ed.SetFile(File{ID: "file2", Href: "app-disk2.vmdk", Size: 1024})
		}, "", ""},
		{"size removed", "vmware.ovf", func(ed *Editor) error {
			return ed.SetFile(File{ID: "file2", Href: "app-disk2.vmdk", Size: -1})
		}, `ovf:size = "1024" `, ""},
		{"size added", "virtualbox.ovf", func(ed *Editor) error {
			return ed.SetFile(File{ID: "file1", Href: "box%20one-disk001.vmdk", Size: 7})
		}, "", ` ovf:size="7"`},
		{"size added to a closed element", "vapp.ovf", func(ed *Editor) error {
			return ed.SetFile(File{ID: "icon", Href: "icon.png", Size: 7, Compression: "gzip"})
		}, "", ` ovf:size="7" ovf:compression="gzip"`},
		{"href", "xenserver.ovf", func(ed *Editor) error {
			return ed.SetFile(File{ID: "7c2d8f4e", Href: "a&b.vhd", Size: 2100224})
		}, "7c2d8f4e", "a&amp;b"},
		{"capacity in units", "vmware.ovf", func(ed *Editor) error {
			d := *ed.env.Disk("vmdisk1")
			d.Capacity, d.PopulatedSize = 32<<30, 1234567168
			return ed.SetDisk(d)
		}, "16", "32"},
		{"capacity out of units", "vmware.ovf", func(ed *Editor) error {
			d := *ed.env.Disk("vmdisk2")
			d.Capacity = 8<<20 + 512
			return ed.SetDisk(d)
		}, `" ovf:capacityAllocationUnits="byte * 2^20`, `389120" ovf:capacityAllocationUnits="byte`},
		{"populated", "xenserver.ovf", func(ed *Editor) error {
			d := *ed.env.Disk("7c2d8f4e")
			d.PopulatedSize = -1
			return ed.SetDisk(d)
		}, `populatedSize="2100224" ovf:`, ""},
		{"format", "aws.ovf", func(ed *Editor) error {
			d := *ed.env.Disk("vmdisk1")
			d.FormatURI = FormatURI("qcow2")
			return ed.SetDisk(d)
		}, "vmware.com/interfaces/specifications/vmdk.html#streamOptimized", "gnome.org/~markmc/qcow-image-format.html"},
		{"add file", "vmware.ovf", func(ed *Editor) error {
			return ed.AddFile(File{ID: "sbom", Href: "s.json", Size: 3})
		}, "", "  <File ovf:href=\"s.json\" ovf:id=\"sbom\" ovf:size=\"3\"/>\n  "},
		{"add file, prefixed, CRLF", "xenserver.ovf", func(ed *Editor) error {
			return ed.AddFile(File{ID: "sbom", Href: "s.json", Size: -1})
		}, "", "  <ovf:File ovf:href=\"s.json\" ovf:id=\"sbom\"/>\r\n  "},
		{"add file on one line", "aws.ovf", func(ed *Editor) error {
			return ed.AddFile(File{ID: "sbom", Href: "s.json", Size: 3})
		}, "", ""},
		{"remove file", "vmware.ovf", func(ed *Editor) error { return ed.RemoveFile("file2") },
			"  <File ovf:href=\"app&#45;disk2.vmdk\" ovf:id='file2' ovf:size = \"1024\" />\n  ", ""},
		{"remove disk", "vapp.ovf", func(ed *Editor) error { return ed.RemoveDisk("delta") },
			"\t<ovf:Disk ovf:diskId=\"delta\" ovf:parentRef=\"base\" ovf:capacity=\"1048576\" ovf:format=\"http://www.vmware.com/specifications/vmdk.html#sparse\"/>\n\t", ""},
		{"add disk", "vapp.ovf", func(ed *Editor) error {
			return ed.AddDisk(Disk{ID: "n", FileRef: "web", Capacity: 5, FormatURI: "u", PopulatedSize: -1})
		}, "", "\t<ovf:Disk ovf:capacity=\"5\" ovf:capacityAllocationUnits=\"byte\" ovf:diskId=\"n\" ovf:fileRef=\"web\" ovf:format=\"u\"/>\n\t"},
		{"version", "vmware.ovf", func(ed *Editor) error {
			return ed.SetProduct("app", "com.example", "1", ProductChange{Version: ptr("1.3")})
		}, "2", "3"},
		{"full version added", "vmware.ovf", func(ed *Editor) error {
			return ed.SetProduct("app", "com.example", "1", ProductChange{FullVersion: ptr("1.2 <b>")})
		}, "", "FullVersion>1.2 &lt;b&gt;</FullVersion>\n      <"},
		{"product added", "xenserver.ovf", func(ed *Editor) error {
			return ed.SetProduct("", "", "", ProductChange{Product: ptr("P"), Version: ptr("1")})
		}, "", "  <ovf:ProductSection>\r\n      <ovf:Info>Information about the installed software</ovf:Info>\r\n      <ovf:Product>P</ovf:Product>\r\n      <ovf:Version>1</ovf:Version>\r\n    </ovf:ProductSection>\r\n  "},
		{"property", "vmware.ovf", func(ed *Editor) error {
			return ed.SetProperty("app", "com.example.hostname.1", `it's "x"`, "")
		}, `ap"p`, `it&#39;s &quot;x&quot;`},
		{"property in a configuration", "vapp.ovf", func(ed *Editor) error {
			return ed.SetProperty("vapp", "users", "3", "small")
		}, "2", "3"},
		{"property in a new configuration", "vapp.ovf", func(ed *Editor) error {
			return ed.SetProperty("vapp", "domain", "x", "large")
		}, "/", ">\n\t\t\t\t<ovf:Value ovf:configuration=\"large\" ovf:value=\"x\"/>\n\t\t\t</ovf:Property"},
		{"uuid", "virtualbox.ovf", func(ed *Editor) error {
			n, err := ed.SetDiskUUID("vmdisk1", "11111111-2222-3333-4444-555555555555")
			if n != 3 {
				err = fmt.Errorf("%d places", n)
			}
			return err
		}, "*", "*"},
		{"os", "vmware.ovf", func(ed *Editor) error {
			return ed.SetOS("app", 96, "13", "Debian GNU/Linux 12 (64-bit)")
		}, "2", "3"},
		{"os added", "strings.ovf", func(ed *Editor) error { return ed.SetOS("", 96, "", "Debian") },
			"", "  <OperatingSystemSection ovf:id=\"96\">\n      <Info>The installed operating system</Info>\n      <Description>Debian</Description>\n    </OperatingSystemSection>\n  "},
		{"file of oVirt", "ovirt.ovf", func(ed *Editor) error {
			return ed.SetFile(File{ID: "9f9b", Href: "5b1ab52e/9f9b", Size: 65537})
		}, "6", "7"},
	} {
		text := load(t, c.file)
		e := mustParse(t, text)
		ed := NewEditor(e)
		if err := c.edit(ed); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got, err := ed.Bytes()
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		gone, come := changedRange(text, got)
		if c.gone != "*" && (gone != c.gone || come != c.come) && c.name != "add file on one line" {
			t.Errorf("%s: %q became %q, want %q, %q", c.name, gone, come, c.gone, c.come)
		}
		if !bytes.Equal(text, e.Bytes()) {
			t.Errorf("%s: the original changed", c.name)
		}
		name := testimg.WriteFile(t, "edited.ovf", got)
		testimg.Run(t, "xmllint", "--noout", name)
		for _, f := range mustParse(t, got).Validate(nil) {
			if f.Level == Fault && c.file != "ovirt.ovf" && !strings.HasPrefix(c.name, "remove") {
				t.Errorf("%s: %v", c.name, f)
			}
		}
		switch c.name {
		case "uuid":
			if bytes.Contains(bytes.ToLower(got), []byte("0e5c1d3a")) || bytes.Count(got, []byte("{11111111-2222-3333-4444-555555555555}")) != 2 {
				t.Errorf("uuid: %s", got)
			}
		case "add file on one line":
			if f := mustParse(t, got).File("sbom"); f == nil || f.Size != 3 {
				t.Errorf("%s: %+v", c.name, f)
			}
		}
	}
}

// TestEditPrefixes edits where prefixes are not what they mostly are.
func TestEditPrefixes(t *testing.T) {
	for _, c := range []struct{ name, refs, want string }{
		{"shadowed", `<References xmlns:ovf="urn:other" xmlns:o="` + nsEnvelope1 + `"><File o:id="f" o:href="h" ovf:size="9"/></References>`,
			`<File o:id="f" o:href="h" ovf:size="9" o:size="5"/><File o:href="h2" o:id="g"/>`},
		{"none in scope", `<References xmlns:ovf="urn:other"><File id="f" href="h"/></References>`,
			`<File id="f" href="h" size="5"/><File xmlns:ovf1="` + nsEnvelope1 + `" ovf1:href="h2" ovf1:id="g"/>`},
	} {
		text := `<Envelope xmlns="` + nsEnvelope1 + `" xmlns:ovf="` + nsEnvelope1 + `">` + c.refs + `<VirtualSystem ovf:id="s"><Info/></VirtualSystem></Envelope>`
		ed := NewEditor(mustParse(t, []byte(text)))
		if err := ed.SetFile(File{ID: "f", Href: "h", Size: 5}); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err := ed.AddFile(File{ID: "g", Href: "h2", Size: -1}); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got, err := ed.Bytes(); err != nil || !strings.Contains(string(got), c.want) {
			t.Errorf("%s: %v\n%s", c.name, err, got)
		}
	}
}

func TestEditRefuses(t *testing.T) {
	text := load(t, "vmware.ovf")
	for name, edit := range map[string]func(ed *Editor) error{
		"no file":         func(ed *Editor) error { return ed.SetFile(File{ID: "x", Href: "x"}) },
		"no href":         func(ed *Editor) error { return ed.SetFile(File{ID: "file1"}) },
		"file twice":      func(ed *Editor) error { return ed.AddFile(File{ID: "file1", Href: "x"}) },
		"no disk":         func(ed *Editor) error { return ed.RemoveDisk("x") },
		"no capacity":     func(ed *Editor) error { return ed.SetDisk(Disk{ID: "vmdisk1", Capacity: -1}) },
		"no system":       func(ed *Editor) error { return ed.SetProduct("x", "", "", ProductChange{}) },
		"no property":     func(ed *Editor) error { return ed.SetProperty("app", "x", "", "") },
		"no config":       func(ed *Editor) error { return ed.SetProperty("app", "data.size", "1", "x") },
		"control":         func(ed *Editor) error { return ed.SetFile(File{ID: "file1", Href: "a\x01"}) },
		"not utf-8":       func(ed *Editor) error { return ed.SetProperty("app", "data.size", "\xff", "") },
		"value too large": func(ed *Editor) error { return ed.SetProperty("app", "data.size", strings.Repeat("x", maxValue+1), "") },
		"not a uuid":      func(ed *Editor) error { _, err := ed.SetDiskUUID("vmdisk1", "x"); return err },
		"os id":           func(ed *Editor) error { return ed.SetOS("app", 1<<20, "", "") },
	} {
		ed := NewEditor(mustParse(t, text))
		if err := edit(ed); err == nil {
			t.Errorf("%s: no error", name)
		}
		if got, err := ed.Bytes(); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%s: the text changed, %v", name, err)
		}
	}
}

// TestEditProperty makes random sequences of edits, checks after each that
// the envelope says what was asked and nothing else changed, and takes all
// back: then the bytes are those of the beginning.
func TestEditProperty(t *testing.T) {
	for _, file := range descriptors {
		text := load(t, file)
		for seed := range uint64(8) {
			rnd := rand.New(rand.NewPCG(seed, 5))
			orig := mustParse(t, text)
			ed := NewEditor(orig)
			want := *orig
			files, disks := slices.Clone(orig.Files), slices.Clone(orig.Disks)
			for range 25 {
				if i := rnd.IntN(len(files) + len(disks)); i < len(files) {
					f := &files[i]
					if rnd.IntN(3) == 0 {
						f.Size = rnd.Int64N(1 << 40)
					} else {
						f.Href = fmt.Sprintf("a<%d>&'\"ü.vmdk", rnd.IntN(5))
					}
					if err := ed.SetFile(*f); err != nil {
						t.Fatal(file, err)
					}
				} else if d := &disks[i-len(files)]; d.Capacity >= 0 {
					switch rnd.IntN(3) {
					case 0:
						d.Capacity = d.unit * (1 + rnd.Int64N(1<<20))
					case 1:
						d.PopulatedSize = rnd.Int64N(1 << 40)
					case 2:
						d.FormatURI = FormatURI([]string{"vmdk", "vhd", "qcow2"}[rnd.IntN(3)])
						d.Format = diskFormat(d.FormatURI)
						if file == "ovirt.ovf" {
							d.Format = "qcow2" // by its volume-format
						}
					}
					if err := ed.SetDisk(*d); err != nil {
						t.Fatal(file, err)
					}
				}
				if rnd.IntN(4) > 0 {
					continue // several edits before a look
				}
				got, err := ed.Envelope()
				if err != nil {
					t.Fatal(file, err)
				}
				if err := sameButOffsets(got, &want, files, disks); err != nil {
					t.Fatalf("%s, seed %d: %v", file, seed, err)
				}
			}
			for _, f := range orig.Files {
				if err := ed.SetFile(f); err != nil {
					t.Fatal(err)
				}
			}
			for _, d := range orig.Disks {
				if err := ed.SetDisk(d); err != nil {
					t.Fatal(err)
				}
			}
			got, err := ed.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			// Values come back in our spelling: one that used references of its
			// own (app&#45;disk2) is the same value in other letters.
			norm := func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("&#45;"), []byte("-")) }
			if !bytes.Equal(norm(got), norm(text)) {
				gone, come := changedRange(norm(text), norm(got))
				t.Fatalf("%s, seed %d: %q stayed as %q", file, seed, gone, come)
			}
		}
	}
}

// sameButOffsets compares an edited envelope with what it should say.
func sameButOffsets(got, want *Envelope, files []File, disks []Disk) error {
	clean := func(e *Envelope, files []File, disks []Disk) (string, error) {
		c := *e
		c.Files, c.Disks = slices.Clone(files), slices.Clone(disks)
		for i := range c.Files {
			c.Files[i].off = 0
		}
		for i := range c.Disks {
			c.Disks[i].off = 0
		}
		c.Notes = nil
		b := fmt.Sprintf("%+v %+v %+v %+v %+v %+v", c.Version, c.Lang, c.Files, c.Disks, c.Strings, c.Encryption)
		c.Content.Walk(func(s *System) {
			b += fmt.Sprintf("%q %v %v %v %d %d %d", s.ID, s.Name, s.Info, s.Licences, len(s.Hardware), len(s.Products), len(s.Unknown))
			for _, u := range s.Unknown {
				b += string(e.Bytes()[u.Off:u.End])
			}
		})
		return b, nil
	}
	a, _ := clean(got, got.Files, got.Disks)
	b, _ := clean(want, files, disks)
	if a != b {
		da, db := changedRange([]byte(a), []byte(b))
		return fmt.Errorf("envelope says %q, want %q", da, db)
	}
	return nil
}

func testInventory() *Inventory {
	at := time.Date(2026, 11, 20, 18, 0, 0, 0, time.UTC)
	return &Inventory{
		Schema: 1, Generated: at, GeneratedBy: "imgmaint/1.0", Method: "offline-inspection",
		OS:          &InventoryOS{"debian", "12", "12.15", "x86_64", "cpe:2.3:o:debian:debian_linux:12:*", "2028-06-30"},
		Volumes:     []Volume{{"vmdisk1", 1, 1048576, "ext4", "u-u", "/", "read"}, {DiskRef: "vmdisk1", Index: 5, Offset: 1 << 40, State: "encrypted"}},
		Contents:    []Content{{"vmdisk1", "sha256", "00ff"}},
		PackageSets: []PackageSet{{"dpkg", 116, "sha256:aa", "/var/lib/dpkg/status"}},
		Documents:   []Document{{"im-sbom-1", "application/vnd.cyclonedx+json;version=1.6", "sha256:bb"}},
		Sources:     []UpdateSource{{"apt", "MIRROR/<debian>", "bookworm", "main contrib", "ABCD"}},
		Assessment:  &Assessment{at, "sha256:cc", 3, 1},
		Maintenance: &Maintenance{"direct", "none"},
		Patched:     []PatchedPackage{{at, "openssl 3.0.20", `openssl "3.0.22" & 'x'`, "direct", "DSA-1"}},
	}
}

func TestInventory(t *testing.T) {
	for _, file := range descriptors {
		text := load(t, file)
		e := mustParse(t, text)
		id := e.Machines()[0].ID
		ed := NewEditor(e)
		inv := testInventory()
		if err := ed.SetInventory(id, inv); err != nil {
			t.Fatal(file, err)
		}
		once, err := ed.Bytes()
		if err != nil {
			t.Fatal(file, err)
		}
		testimg.Run(t, "xmllint", "--noout", testimg.WriteFile(t, "inv.ovf", once))
		got, err := ed.env.Inventory(id)
		if err != nil || !reflect.DeepEqual(got, inv) {
			t.Errorf("%s: Inventory = %+v, %v", file, got, err)
		}
		if gone, come := changedRange(text, once); gone != "" || !strings.Contains(come, `required="false"`) {
			t.Errorf("%s: %q went", file, gone)
		}
		s := ed.env.System(id)
		if !s.HasInv || !slices.ContainsFunc(s.Unknown, func(x Section) bool { return x.Name == "InventorySection" && !x.Required }) {
			t.Errorf("%s: section %+v", file, s.Unknown)
		}
		// The same again changes nothing; another one changes only the section.
		if err := ed.SetInventory(id, inv); err != nil {
			t.Fatal(err)
		}
		if again, _ := ed.Bytes(); !bytes.Equal(again, once) {
			gone, come := changedRange(once, again)
			t.Errorf("%s: set again, %q became %q", file, gone, come)
		}
		inv.Assessment.Pending = 4
		if err := ed.SetInventory(id, inv); err != nil {
			t.Fatal(err)
		}
		twice, _ := ed.Bytes()
		if gone, come := changedRange(once, twice); gone != "3" || come != "4" {
			t.Errorf("%s: %q became %q", file, gone, come)
		}
		if err := ed.SetInventory(id, nil); err != nil {
			t.Fatal(err)
		}
		if back, _ := ed.Bytes(); !bytes.Equal(back, text) {
			gone, come := changedRange(text, back)
			t.Errorf("%s: removed, %q stayed as %q", file, gone, come)
		}
	}
	e := mustParse(t, []byte(minimal("", "", `<i:InventorySection xmlns:i="`+NSInventory+`" ovf:required="false" i:schema="1"><Info/><i:PackageSet i:count="x"/></i:InventorySection>`)))
	if _, err := e.Inventory("s"); !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("count x: %v", err)
	}
	e = mustParse(t, []byte(minimal("", "", `<i:InventorySection xmlns:i="`+NSInventory+`" ovf:required="false"><Info/></i:InventorySection>`)))
	if _, err := e.Inventory("s"); !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("no schema: %v", err)
	}
	if inv, err := mustParse(t, load(t, "aws.ovf")).Inventory(""); inv != nil || err != nil {
		t.Errorf("none: %v, %v", inv, err)
	}
}

func testDescriptor() *formats.Descriptor {
	return &formats.Descriptor{
		Name: "box & co", Description: "A box\nwith <two> lines",
		Machines: []formats.Machine{{ID: "box", Name: "Box", Description: "d", Product: "P", Vendor: "V", Version: "1", FullVersion: "1.0",
			OS: "Debian GNU/Linux 12", Arch: "amd64", CPUs: 2, Memory: 1 << 30, Networks: []string{"front", "back"},
			Properties: []formats.MachineProperty{{Key: "com.x.host.1", Type: "string", Value: "h", Label: "Host", Settable: true}, {Key: "plain", Password: true}},
			Licences:   []string{"Terms & <conditions>\nline two"}}},
		Disks: []formats.PackageDisk{
			{ID: "d1", Member: "box-1.vmdk", Format: "vmdk", Size: 1 << 30},
			{ID: "d2", Member: "dir/data 100%.qcow2", Format: "qcow2", Size: 12345, Compression: "gzip"},
			{ID: "d3", Size: 1 << 20},
			{ID: "d4", Member: "big.vhd", Format: "vhd", Size: 10000, ChunkSize: 4096}},
		Members: []formats.Member{{Name: "old.ovf", Size: 1}, {Name: "box-1.vmdk", Size: 777}, {Name: "dir/data 100%.qcow2", Size: 5},
			{Name: "sbom.json", Size: 9}, {Name: "old.mf", Size: 2}, {Name: "big.vhd.000000000", Size: 4096}, {Name: "big.vhd.000000001", Size: 10}},
	}
}

func TestNew(t *testing.T) {
	d := testDescriptor()
	inv := testInventory()
	opts := &CreateOptions{Populated: map[string]int64{"d1": 4096}, Inventories: map[string]*Inventory{"box": inv}}
	text, err := New(d, opts)
	if err != nil {
		t.Fatal(err)
	}
	again, _ := New(d, opts)
	if !bytes.Equal(text, again) {
		t.Error("two runs, two descriptors")
	}
	testimg.Run(t, "xmllint", "--noout", testimg.WriteFile(t, "new.ovf", text))
	e := mustParse(t, text)
	for _, f := range e.Validate(nil) {
		t.Errorf("%v", f)
	}
	got := e.Describe()
	m, w := got.Machines[0], d.Machines[0]
	w.Disks = []string{"d1", "d2", "d3", "d4"}
	w.Properties = slices.Clone(w.Properties)
	w.Properties[1].Type = "string"
	// ProductSections go by class; the order within stays.
	slices.SortFunc(m.Properties, func(a, b formats.MachineProperty) int { return strings.Compare(a.Key, b.Key) })
	if !reflect.DeepEqual(m, w) {
		t.Errorf("machine\n%+v, want\n%+v", m, w)
	}
	if len(got.Disks) != 4 || got.Disks[1].Member != "dir/data 100%.qcow2" || got.Disks[1].Compression != "gzip" || got.Disks[0].Size != 1<<30 || got.Disks[3].ChunkSize != 4096 {
		t.Errorf("disks %+v", got.Disks)
	}
	var names []string
	for _, f := range e.Files {
		names = append(names, fmt.Sprint(f.Href, " ", f.Size))
	}
	if want := []string{"box-1.vmdk 777", "dir/data 100%25.qcow2 5", "big.vhd 4106", "sbom.json 9"}; !slices.Equal(names, want) {
		t.Errorf("files %q, want %q", names, want)
	}
	if e.Disks[0].PopulatedSize != 4096 {
		t.Errorf("disk %+v", e.Disks[0])
	}
	if got, err := e.Inventory("box"); err != nil || !reflect.DeepEqual(got, inv) {
		t.Errorf("inventory %+v, %v", got, err)
	}
	two := *d
	two.Machines = []formats.Machine{{ID: "a", Disks: []string{"d1"}}, {ID: "b", Disks: []string{"d2", "d3"}}}
	text, err = New(&two, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e := mustParse(t, text); !e.Content.Collection || len(e.Machines()) != 2 || e.Content.Annotations[0].Value != "A box\nwith <two> lines" {
		t.Errorf("collection %+v", e.Content)
	}
	for name, bad := range map[string]*formats.Descriptor{
		"no size":   {Disks: []formats.PackageDisk{{ID: "d", Member: "m", Format: "vmdk"}}},
		"no format": {Disks: []formats.PackageDisk{{ID: "d", Member: "m", Format: "raw", Size: 1}}},
		"outside":   {Disks: []formats.PackageDisk{{ID: "d", Member: "../m", Format: "vmdk", Size: 1}}},
		"control":   {Machines: []formats.Machine{{ID: "a\x01"}}},
		"machine":   {Machines: []formats.Machine{{Name: "a"}}},
		"no disk":   {Machines: []formats.Machine{{ID: "a", Disks: []string{"x"}}}},
		"nics":      {Machines: []formats.Machine{{ID: "a", Networks: make([]string, 99)}}},
		"xz":        {Disks: []formats.PackageDisk{{ID: "d", Member: "m", Format: "vmdk", Size: 1, Compression: "xz"}}},
	} {
		if _, err := New(bad, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestEnvironment(t *testing.T) {
	e := mustParse(t, load(t, "vapp.ovf"))
	doc, err := e.EnvironmentFor("db", "large", map[string]string{"db.port": "99", "domain": `a"<b>`})
	if err != nil {
		t.Fatal(err)
	}
	doc.Platform = &Platform{Kind: "k", Version: "1", Vendor: "v", Locale: "en", Timezone: "60"}
	text, err := Environment(doc)
	if err != nil {
		t.Fatal(err)
	}
	testimg.Run(t, "xmllint", "--noout", testimg.WriteFile(t, "ovf-env.xml", text))
	back, err := ParseEnvironment(text)
	if err != nil || !reflect.DeepEqual(back, doc) {
		t.Errorf("ParseEnvironment = %+v, %v, want %+v", back, err, doc)
	}
	want := []EnvironmentValue{{"domain", `a"<b>`}, {"users", "1000"}, {"db.port", "99"}}
	if !reflect.DeepEqual(doc.Properties, want) || doc.ID != "db" {
		t.Errorf("properties %+v", doc.Properties)
	}
	for name, given := range map[string]map[string]string{
		"unknown":          {"x": "1"},
		"not configurable": {"users": "1"},
		"type":             {"db.port": "65536"},
	} {
		if _, err := e.EnvironmentFor("db", "", given); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := e.EnvironmentFor("vapp", "", nil); err == nil {
		t.Error("a collection has an environment")
	}
	for _, c := range []struct {
		kind, quals, value string
		ok                 bool
	}{
		{"string", "MinLen(1), MaxLen(3)", "abc", true}, {"string", "MaxLen(3)", "äöü", true}, {"string", "MinLen(1)", "", false}, {"string", "MaxLen(3)", "abcd", false},
		{"string", `ValueMap{"a", "b"}`, "b", true}, {"string", `ValueMap{"a", "b"}`, "c", false}, {"string(1..2)", "", "abc", false},
		{"boolean", "", "True", true}, {"boolean", "", "yes", false}, {"uint8", "", "256", false}, {"sint8", "", "-128", true}, {"uint16", "MinValue(5)", "4", false},
		{"real32", "", "1e3", true}, {"real64", "", "x", false}, {"vendor.Type", "", "anything", true},
	} {
		p := Property{Type: c.kind, Qualifiers: c.quals}
		if err := p.Check(c.value); (err == nil) != c.ok {
			t.Errorf("%s %s: Check(%q) = %v", c.kind, c.quals, c.value, err)
		}
	}
}

// FuzzEdit edits whatever parses: the edit must parse again, say what was
// asked, and be undone to the byte.
func FuzzEdit(f *testing.F) {
	names, _ := filepath.Glob("testdata/*.ovf")
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, "x\"<>'&\n", int64(5))
	}
	f.Fuzz(func(t *testing.T, text []byte, s string, n int64) {
		if len(text) > 1<<16 || len(s) > 1000 || n < 0 {
			return
		}
		e, err := Parse(text, &ParseOptions{AllowRequired: true})
		if err != nil {
			return
		}
		ed := NewEditor(e)
		if len(e.Files) > 0 {
			old := e.Files[0]
			f := old
			f.Size, f.Href = n, s
			if err := ed.SetFile(f); err == nil {
				got, err := ed.Envelope()
				if err != nil {
					t.Fatalf("%v\n%s", err, text)
				}
				if g := got.Files[0]; g.Size != n || g.Href != s || len(got.Files) != len(e.Files) {
					t.Fatalf("SetFile: %+v, want %+v", g, f)
				}
				if err := ed.SetFile(old); err != nil {
					t.Fatal(err)
				}
				if got, err := ed.Envelope(); err != nil || got.Files[0].Href != old.Href || got.Files[0].Size != old.Size {
					t.Fatalf("back: %+v, %v", got, err)
				}
			}
		}
		for i, m := range e.Machines() {
			if i > 2 {
				break
			}
			before, err := ed.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			if e.System(m.ID) != m || m.HasInv {
				continue
			}
			inv := testInventory()
			if err := ed.SetInventory(m.ID, inv); err != nil {
				continue // at a limit
			}
			got, err := ed.env.Inventory(m.ID)
			if err != nil || !reflect.DeepEqual(got, inv) {
				t.Fatalf("inventory %+v, %v", got, err)
			}
			if err := ed.SetInventory(m.ID, nil); err != nil {
				t.Fatal(err)
			}
			after, _ := ed.Bytes()
			if mustParse2(t, after).System(m.ID) == nil || len(after) < len(before) {
				t.Fatalf("removed: %d bytes, were %d", len(after), len(before))
			}
		}
	})
}

func mustParse2(t *testing.T, text []byte) *Envelope {
	e, err := Parse(text, &ParseOptions{AllowRequired: true})
	if err != nil {
		t.Fatal(err)
	}
	return e
}
