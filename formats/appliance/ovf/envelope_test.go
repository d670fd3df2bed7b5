package ovf

import (
	"encoding/json"
	"errors"
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

func load(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustParse(t testing.TB, text []byte) *Envelope {
	t.Helper()
	e, err := Parse(text, nil)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestParseExporters(t *testing.T) {
	type machine struct {
		id, name, os string
		cpus         int
		memory       int64
		disks, nets  []string
	}
	for _, c := range []struct {
		file, version string
		disks         []Disk
		machines      []machine
		unknown       []string
	}{
		{"vmware.ovf", "1", []Disk{
			{ID: "vmdisk1", FileRef: "file1", Capacity: 16 << 30, Format: "vmdk", PopulatedSize: 1234567168},
			{ID: "vmdisk2", FileRef: "file2", Capacity: 8 << 20, Format: "vmdk", PopulatedSize: -1},
			{ID: "vmdisk3", Capacity: -1, CapacityProperty: "data.size", Format: "vmdk", PopulatedSize: -1}},
			[]machine{{"app", "app", "Debian 64-Bit", 2, 4 << 30, []string{"vmdisk1", "vmdisk2", "vmdisk3"}, []string{"VM Network"}}},
			[]string{"StorageSection"}},
		{"vapp.ovf", "1", []Disk{
			{ID: "base", FileRef: "web", Capacity: 1 << 20, Format: "vmdk", PopulatedSize: -1},
			{ID: "delta", ParentRef: "base", Capacity: 1 << 20, Format: "vmdk", PopulatedSize: -1}},
			[]machine{{"db", "", "", 8, 2 << 30, []string{"delta"}, []string{"back"}}, {"web1", "", "Linux 64-Bit", 0, 0, nil, nil}},
			[]string{"Custom"}},
		{"virtualbox.ovf", "1", []Disk{
			{ID: "vmdisk1", FileRef: "file1", Capacity: 8 << 30, Format: "vmdk", PopulatedSize: -1, UUID: "0e5c1d3a-56b4-4e0c-9a55-0d7a58e0f001"}},
			[]machine{{"box one", "", "Debian 64-Bit", 1, 1 << 30, []string{"vmdisk1"}, []string{"NAT"}}}, []string{"Machine"}},
		{"xenserver.ovf", "1", []Disk{
			{ID: "7c2d8f4e", FileRef: "7c2d8f4e", Capacity: 4 << 20, Format: "vhd", PopulatedSize: 2100224}},
			[]machine{{"xs1", "guest", "LINUX", 4, 2 << 30, []string{"7c2d8f4e"}, []string{"Network 0"}}}, nil},
		{"aws.ovf", "1", []Disk{{ID: "vmdisk1", FileRef: "file1", Capacity: 8 << 30, Format: "vmdk", PopulatedSize: -1}},
			[]machine{{"export-i-0", "export-i-0", "Linux 64-Bit", 1, 1 << 30, []string{"vmdisk1"}, nil}}, nil},
		{"ovirt.ovf", "1", []Disk{{ID: "9f9b", FileRef: "9f9b", Capacity: 1 << 30, Format: "qcow2", PopulatedSize: -1}},
			[]machine{{"out", "node", "Debian 64-Bit", 2, 1 << 30, []string{"9f9b"}, nil}},
			[]string{"Description", "CreationDate", "IsSmartcardEnabled"}},
		{"ovf2.ovf", "2", []Disk{
			{ID: "d1", FileRef: "sys", Capacity: 1 << 30, Format: "qcow2", PopulatedSize: -1},
			{ID: "d2", FileRef: "shared", Capacity: 1 << 20, Format: "qcow2", PopulatedSize: -1, Shared: true}},
			[]machine{{"vm", "vm", "Linux 64-Bit", 3, 512 << 20, []string{"d1", "d2"}, []string{"net"}}}, nil},
	} {
		e := mustParse(t, load(t, c.file))
		if e.Version != c.version {
			t.Errorf("%s: version %q", c.file, e.Version)
		}
		var disks []Disk
		for _, d := range e.Disks {
			d.Units, d.FormatURI, d.unit, d.off = "", "", 0, 0
			disks = append(disks, d)
		}
		if !reflect.DeepEqual(disks, c.disks) {
			t.Errorf("%s: disks\n%+v, want\n%+v", c.file, disks, c.disks)
		}
		var machines []machine
		var unknown []string
		for _, s := range e.Unknown {
			unknown = append(unknown, s.Name)
		}
		config := e.DefaultConfiguration()
		for _, s := range e.Machines() {
			m := machine{id: s.ID, name: s.Name.Value}
			if s.OS != nil {
				m.os = OSName(s.OS.ID)
			}
			if len(s.Hardware) > 0 {
				h := &s.Hardware[0]
				m.cpus, m.memory, m.disks, m.nets = h.CPUs(config), h.Memory(config), h.DiskIDs(config), h.NetworkNames(config)
			}
			machines = append(machines, m)
			for _, u := range s.Unknown {
				unknown = append(unknown, u.Name)
			}
		}
		if !reflect.DeepEqual(machines, c.machines) {
			t.Errorf("%s: machines\n%+v, want\n%+v", c.file, machines, c.machines)
		}
		if !slices.Equal(unknown, c.unknown) {
			t.Errorf("%s: unknown sections %q, want %q", c.file, unknown, c.unknown)
		}
		for _, f := range e.Validate(nil) {
			if f.Level == Fault && !(c.file == "ovirt.ovf" && f.Rule == "info-first") {
				t.Errorf("%s: %v at %d", c.file, f, f.Off)
			}
		}
		if _, err := json.Marshal(e); err != nil {
			t.Errorf("%s: %v", c.file, err)
		}
	}
}

func TestParseDetails(t *testing.T) {
	e := mustParse(t, load(t, "vapp.ovf"))
	s := e.Content
	if !s.Collection || s.Licences[0].Value != "Terms <& conditions>" || s.Annotations[0].Value != "Two tiers" {
		t.Errorf("collection: %+v", s)
	}
	want := []StartupItem{{"db", 1, 30, true, "powerOn", 60, "guestShutdown"}, {ID: "tier", Order: 2}}
	if !reflect.DeepEqual(s.Startup, want) {
		t.Errorf("startup %+v", s.Startup)
	}
	if r := s.Resources[0]; *r.Limit != 4096 || *r.Reservation != 1024 || r.Type != TypeMemory {
		t.Errorf("resources %+v", r)
	}
	db := e.System("db")
	if db.Install == nil || db.Install.StopDelay != 300 || !db.Install.InitialBoot {
		t.Errorf("install %+v", db.Install)
	}
	for config, cpus := range map[string]int{"": 1, "small": 1, "large": 8} {
		if n := db.Hardware[0].CPUs(config); n != cpus {
			t.Errorf("CPUs(%q) = %d, want %d", config, n, cpus)
		}
	}
	users := s.Products[0].Properties[1]
	for config, v := range map[string]string{"": "10", "small": "2", "large": "1000"} {
		if got := users.Default(config); got != v {
			t.Errorf("Default(%q) = %q, want %q", config, got, v)
		}
	}
	x := e.System("web1").Unknown[0]
	if got := string(e.Bytes()[x.Off:x.End]); !strings.HasPrefix(got, "<x:Custom ") || !strings.HasSuffix(got, "</x:Custom>") || !strings.Contains(got, `a="1"   b='2'><!-- kept -->`) {
		t.Errorf("unknown section %q", got)
	}

	e = mustParse(t, load(t, "vmware.ovf"))
	p := e.Content.Products[0]
	if p.FullKey("port") != "com.example.port.1" || p.Properties[0].Value != `ap"p` || p.Properties[0].Category.Value != "Network" ||
		!p.Properties[2].Password || p.Properties[3].Configurable || e.Files[1].Href != "app-disk2.vmdk" {
		t.Errorf("product %+v", p)
	}
	if l := e.Content.Licences[0].Value; l != "You may & you must.\n\nSecond paragraph." {
		t.Errorf("licence %q", l)
	}
	if o := e.Content.OS; o.VMware != "debian12_64Guest" || o.Version != "12" {
		t.Errorf("os %+v", o)
	}

	e = mustParse(t, load(t, "ovf2.ovf"))
	vm := e.Content
	if len(vm.Hardware) != 2 || vm.ScaleOut.Max != 8 || vm.Placement != "apart" || vm.Files[0].Path != "setup/cfg.xml" ||
		len(vm.Boot) != 2 || vm.Boot[1].Source != "CIM:Network:1" || e.Groups[0].Policy != "availability" ||
		!slices.Equal(e.Encryption.References, []string{"secret.bin"}) {
		t.Errorf("2.x: %+v %+v %+v", vm, e.Groups, e.Encryption)
	}
	if mustParse(t, load(t, "virtualbox.ovf")).Content.OS.VBox != "Debian_64" {
		t.Error("vbox:OSType")
	}
}

func TestLocalise(t *testing.T) {
	e := mustParse(t, load(t, "strings.ovf"))
	for lang, want := range map[string]string{"": "A note", "de": `Eine "Notiz"`, "de-AT": `Eine "Notiz"`, "DE-de": `Eine "Notiz"`, "nl": "A note"} {
		if got := e.Localise(e.Content.Annotations[0], lang); got != want {
			t.Errorf("Localise(%q) = %q, want %q", lang, got, want)
		}
	}
}

// minimal is a descriptor with places to put things.
func minimal(refs, sections, system string) string {
	return `<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="` + nsRASD + `" xmlns:v="urn:v">` +
		`<References>` + refs + `</References>` + sections + `<VirtualSystem ovf:id="s"><Info/>` + system + `</VirtualSystem></Envelope>`
}

func TestParseRefuses(t *testing.T) {
	many := func(n int, s string) string { return strings.Repeat(s, n) }
	for _, c := range []struct {
		name, text string
		class      error
		says       string
	}{
		{"other root", `<a/>`, formats.ErrUnknown, "root element"},
		{"other namespace", `<Envelope xmlns="urn:x"/>`, formats.ErrUnknown, "urn:x"},
		{"0.9", `<Envelope xmlns="` + nsEnvelope09 + `"/>`, errors.ErrUnsupported, "0.9"},
		{"version 3", `<Envelope xmlns="` + nsEnvelope + `3"/>`, errors.ErrUnsupported, "version"},
		{"required section", minimal("", `<v:S><Info/></v:S>`, ""), errors.ErrUnsupported, "v:S"},
		{"required section said so", minimal("", `<v:S ovf:required="true"><Info/></v:S>`, ""), errors.ErrUnsupported, "v:S"},
		{"required section in system", minimal("", "", `<v:S ovf:required="1"><Info/></v:S>`), errors.ErrUnsupported, "v:S"},
		{"unknown section of OVF", minimal("", "", `<NewSection><Info/></NewSection>`), errors.ErrUnsupported, "NewSection"},
		{"required neither", minimal("", `<v:S ovf:required="maybe"><Info/></v:S>`, ""), formats.ErrCorrupt, "boolean"},
		{"file without id", minimal(`<File ovf:href="a"/>`, "", ""), formats.ErrCorrupt, "id"},
		{"file without href", minimal(`<File ovf:id="a"/>`, "", ""), formats.ErrCorrupt, "href"},
		{"file size", minimal(`<File ovf:id="a" ovf:href="a" ovf:size="-1"/>`, "", ""), formats.ErrCorrupt, "size"},
		{"file size placeholder", minimal(`<File ovf:id="a" ovf:href="a" ovf:size="@@SIZE@@"/>`, "", ""), formats.ErrCorrupt, "@@SIZE@@"},
		{"file size of 65 bits", minimal(`<File ovf:id="a" ovf:href="a" ovf:size="36893488147419103232"/>`, "", ""), formats.ErrCorrupt, "size"},
		{"chunk size", minimal(`<File ovf:id="a" ovf:href="a" ovf:chunkSize="0"/>`, "", ""), formats.ErrCorrupt, "chunkSize"},
		{"capacity", minimal("", `<DiskSection><Info/><Disk ovf:diskId="d"/></DiskSection>`, ""), formats.ErrCorrupt, "capacity"},
		{"capacity overflows", minimal("", `<DiskSection><Info/><Disk ovf:diskId="d" ovf:capacity="9007199254740993" ovf:capacityAllocationUnits="byte * 2^20"/></DiskSection>`, ""), formats.ErrLimit, "capacity"},
		{"units", minimal("", `<DiskSection><Info/><Disk ovf:diskId="d" ovf:capacity="1" ovf:capacityAllocationUnits="hertz"/></DiskSection>`, ""), formats.ErrCorrupt, "capacityAllocationUnits"},
		{"resource type", minimal("", "", `<VirtualHardwareSection><Info/><Item><rasd:ResourceType>x</rasd:ResourceType></Item></VirtualHardwareSection>`), formats.ErrCorrupt, "ResourceType"},
		{"quantity", minimal("", "", `<VirtualHardwareSection><Info/><Item><rasd:VirtualQuantity>1.5</rasd:VirtualQuantity></Item></VirtualHardwareSection>`), formats.ErrCorrupt, "VirtualQuantity"},
		{"bound", minimal("", "", `<VirtualHardwareSection><Info/><Item ovf:bound="x"/></VirtualHardwareSection>`), formats.ErrCorrupt, "bound"},
		{"os", minimal("", "", `<OperatingSystemSection><Info/></OperatingSystemSection>`), formats.ErrCorrupt, "id"},
		{"nested system", minimal("", "", `<VirtualSystem ovf:id="t"/>`), formats.ErrCorrupt, "VirtualSystem"},
		{"two contents", minimal("", `<VirtualSystem ovf:id="t"/>`, ""), formats.ErrCorrupt, "second content"},
		{"files", minimal(many(maxFiles+1, `<File ovf:id="a" ovf:href="a"/>`), "", ""), formats.ErrLimit, "files"},
		{"disks", minimal("", `<DiskSection><Info/>`+many(maxDisks+1, `<Disk ovf:diskId="d" ovf:capacity="1"/>`)+`</DiskSection>`, ""), formats.ErrLimit, "disks"},
		{"items", minimal("", "", `<VirtualHardwareSection><Info/>`+many(maxItems+1, `<Item/>`)+`</VirtualHardwareSection>`), formats.ErrLimit, "items"},
		{"properties", minimal("", "", `<ProductSection><Info/>`+many(maxProperties+1, `<Property ovf:key="k"/>`)+`</ProductSection>`), formats.ErrLimit, "properties"},
		{"collections", `<Envelope xmlns="` + nsEnvelope1 + `" xmlns:ovf="` + nsEnvelope1 + `">` + many(maxNest+2, `<VirtualSystemCollection ovf:id="c">`) + many(maxNest+2, `</VirtualSystemCollection>`) + `</Envelope>`, formats.ErrLimit, "nested"},
		{"text", minimal("", "", `<AnnotationSection><Info/><Annotation>`+many(maxValue+1, "x")+`</Annotation></AnnotationSection>`), formats.ErrLimit, "text"},
	} {
		start := time.Now()
		e, err := Parse([]byte(c.text), nil)
		if !errors.Is(err, c.class) || err == nil || !strings.Contains(err.Error(), c.says) || e != nil {
			t.Errorf("%s: Parse = %v, want %v with %q", c.name, err, c.class, c.says)
		}
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("%s: took %v", c.name, d)
		}
	}
	e, err := Parse([]byte(minimal("", `<v:S><Info/></v:S>`, "")), &ParseOptions{AllowRequired: true})
	if err != nil || len(e.Unknown) != 1 || !e.Unknown[0].Required || e.Notes[0].Level != Fault {
		t.Errorf("AllowRequired: %+v, %v", e, err)
	}
}

func TestValidate(t *testing.T) {
	disk := func(s string) string { return `<DiskSection><Info/>` + s + `</DiskSection>` }
	d := `<Disk ovf:diskId="d" ovf:capacity="100" ovf:fileRef="f" ovf:format="` + FormatURI("vmdk") + `"/>`
	f := `<File ovf:id="f" ovf:href="f.vmdk" ovf:size="10"/>`
	hw := func(s string) string {
		return `<VirtualHardwareSection><Info/>` + s + `</VirtualHardwareSection>`
	}
	item := func(s string) string {
		return `<Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>17</rasd:ResourceType>` + s + `</Item>`
	}
	sizes := &ValidateOptions{
		VirtualSize: func(*Disk) (int64, bool) { return 100, true },
		FileSize:    func(*File) (int64, int64, bool) { return 10, -1, true },
	}
	for _, c := range []struct {
		name, text string
		opts       *ValidateOptions
		level      Level
		rule       string // "" for none
	}{
		{"right", minimal(f, disk(d), hw(item(""))), sizes, 0, ""},
		{"file id twice", minimal(f+f, "", ""), nil, Fault, "unique-id"},
		{"disk id twice", minimal(f, disk(d+d), ""), nil, Fault, "unique-id"},
		{"item id twice", minimal("", "", hw(item("")+item(""))), nil, Fault, "unique-id"},
		{"no file", minimal("", disk(d), ""), nil, Fault, "references"},
		{"no disk", minimal("", "", hw(`<Item><rasd:HostResource>ovf:/disk/x</rasd:HostResource><rasd:InstanceID>1</rasd:InstanceID></Item>`)), nil, Fault, "references"},
		{"no parent item", minimal("", "", hw(`<Item><rasd:InstanceID>1</rasd:InstanceID><rasd:Parent>9</rasd:Parent></Item>`)), nil, Fault, "references"},
		{"no network", minimal("", "", hw(`<Item><rasd:Connection>n</rasd:Connection><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>10</rasd:ResourceType></Item>`)), nil, Fault, "references"},
		{"no parent disk", minimal("", disk(`<Disk ovf:diskId="d" ovf:capacity="1" ovf:parentRef="e" ovf:format="x"/>`), ""), nil, Fault, "references"},
		{"disks in a circle", minimal("", disk(`<Disk ovf:diskId="d" ovf:capacity="1" ovf:parentRef="e" ovf:format="x"/><Disk ovf:diskId="e" ovf:capacity="1" ovf:parentRef="d" ovf:format="x"/>`), ""), nil, Fault, "references"},
		{"disk its own parent", minimal("", disk(`<Disk ovf:diskId="d" ovf:capacity="1" ovf:parentRef="d" ovf:format="x"/>`), ""), nil, Fault, "references"},
		{"no configuration", minimal("", "", hw(`<Item ovf:configuration="c"><rasd:InstanceID>1</rasd:InstanceID></Item>`)), nil, Fault, "references"},
		{"no property", minimal("", disk(`<Disk ovf:diskId="d" ovf:capacity="${p}" ovf:format="x"/>`), ""), nil, Fault, "references"},
		{"property twice", minimal("", "", `<ProductSection><Info/><Property ovf:key="k"/><Property ovf:key="k"/></ProductSection>`), nil, Fault, "unique-id"},
		{"product twice", minimal("", "", `<ProductSection><Info/></ProductSection><ProductSection><Info/></ProductSection>`), nil, Fault, "unique-id"},
		{"info missing", minimal("", "", `<ProductSection><Product>p</Product></ProductSection>`), nil, Fault, "info-first"},
		{"info second", minimal("", "", `<ProductSection><Product>p</Product><Info/></ProductSection>`), nil, Fault, "info-first"},
		{"info missing in a vendor's", minimal("", `<v:XSection ovf:required="false"/>`, ""), nil, Fault, "info-first"},
		{"rasd order", minimal("", "", hw(`<Item><rasd:ResourceType>1</rasd:ResourceType><rasd:InstanceID>1</rasd:InstanceID></Item>`)), nil, Warning, "rasd-order"},
		{"capacity", minimal(f, disk(d), ""), &ValidateOptions{VirtualSize: func(*Disk) (int64, bool) { return 99, true }}, Fault, "capacity"},
		{"capacity below", minimal(f, disk(d), ""), &ValidateOptions{VirtualSize: func(*Disk) (int64, bool) { return 101, true }}, Fault, "capacity"},
		{"capacity in units", minimal(f, disk(strings.Replace(d, `"100"`, `"1" ovf:capacityAllocationUnits="byte * 2^20"`, 1)), ""),
			&ValidateOptions{VirtualSize: func(*Disk) (int64, bool) { return 1<<20 - 512, true }}, 0, ""},
		{"size", minimal(f, "", ""), &ValidateOptions{FileSize: func(*File) (int64, int64, bool) { return 11, -1, true }}, Fault, "size"},
		{"not there", minimal(f, "", ""), &ValidateOptions{FileSize: func(*File) (int64, int64, bool) { return 0, 0, false }}, Fault, "missing"},
		{"url", minimal(`<File ovf:id="f" ovf:href="http://host/f"/>`, "", ""), nil, Fault, "href"},
		{"outside", minimal(`<File ovf:id="f" ovf:href="../f"/>`, "", ""), nil, Fault, "href"},
		{"absolute", minimal(`<File ovf:id="f" ovf:href="/etc/passwd"/>`, "", ""), nil, Fault, "href"},
		{"outside escaped", minimal(`<File ovf:id="f" ovf:href="a/%2e%2e/%2e%2e/f"/>`, "", ""), nil, 0, ""}, // a literal name; decoded it is refused
		{"compression", minimal(`<File ovf:id="f" ovf:href="f" ovf:compression="bzip2"/>`, "", ""), nil, Fault, "compression"},
		{"content missing", `<Envelope xmlns="` + nsEnvelope1 + `"/>`, nil, Fault, "schema"},
	} {
		e, err := Parse([]byte(c.text), nil)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		found := false
		var all []string
		for _, x := range e.Validate(c.opts) {
			all = append(all, x.String())
			found = found || x.Rule == c.rule && x.Level == c.level
			if c.rule == "" && x.Level == Fault {
				t.Errorf("%s: %v", c.name, x)
			}
		}
		if c.rule != "" && !found {
			t.Errorf("%s: found %q, want %s", c.name, all, c.rule)
		}
	}
	if l, d := HrefName("a/%2e%2e/%2e%2e/f"); l == "" || d != "" {
		t.Errorf("HrefName = %q, %q", l, d)
	}
}

func TestSamples(t *testing.T) {
	for _, name := range []string{"openvmdk-template-hw21.ovf", "openvmdk-template-hw7.ovf"} {
		text, err := os.ReadFile(testimg.Sample(t, name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(text, nil); !errors.Is(err, formats.ErrCorrupt) || !strings.Contains(err.Error(), "@@VMDK_FILE_SIZE@@") {
			t.Errorf("%s with placeholders: %v", name, err)
		}
		filled := strings.NewReplacer("@@NAME@@", "box", "@@VMDK_FILE_SIZE@@", "65536", "@@VMDK_CAPACITY@@", "1073741824",
			"@@NUM_CPUS@@", "2", "@@MEM_SIZE@@", "512", "@@FIRMWARE@@", "efi").Replace(string(text))
		e := mustParse(t, []byte(filled))
		for _, f := range e.Validate(nil) {
			t.Errorf("%s: %v at %d", name, f, f.Off)
		}
		h := e.Content.Hardware[0]
		if h.CPUs("") != 2 || h.Memory("") != 512<<20 || !slices.Equal(h.DiskIDs(""), []string{"vmdisk1"}) || e.Disks[0].Capacity != 1<<30 {
			t.Errorf("%s: %+v", name, h)
		}
		ed := NewEditor(e)
		f := e.Files[0]
		f.Size = 4711
		if err := ed.SetFile(f); err != nil {
			t.Fatal(err)
		}
		got, err := ed.Bytes()
		if want := strings.Replace(filled, `"65536"`, `"4711"`, 1); err != nil || string(got) != want {
			t.Errorf("%s: the edit changed more than the size: %v", name, err)
		}
	}
}

func TestUnits(t *testing.T) {
	for s, want := range map[string]Units{
		"byte": {"byte", 1}, "byte * 2^20": {"byte", 1 << 20}, "byte*2^30": {"byte", 1 << 30}, " byte * 1024 * 1024 ": {"byte", 1 << 20},
		"byte * 10^9": {"byte", 1e9}, "MegaBytes": {"byte", 1 << 20}, "GB": {"byte", 1 << 30}, "hertz * 10^6": {"hertz", 1e6}, "MHz": {"hertz", 1e6},
		"byte * 2^+10": {"byte", 1024}, "count": {"count", 1},
		"byte * 2^63": {}, "byte * 2^99": {}, "byte * 0": {}, "byte / 8": {}, "": {}, "byte * 2^62 * 2": {}, "byte * x": {}, "byte * -1": {}, "2^20": {},
	} {
		if got, err := ParseUnits(s); got != want || (err == nil) != (want != Units{}) {
			t.Errorf("ParseUnits(%q) = %+v, %v, want %+v", s, got, err, want)
		}
	}
}

func TestOSType(t *testing.T) {
	for _, c := range []struct {
		name, arch string
		id         int
	}{{"Debian GNU/Linux 12", "amd64", 96}, {"debian", "i386", 95}, {"Debian 64-Bit", "", 96}, {"Ubuntu", "x86_64", 94}, {"LINUX", "", 36},
		{"Microsoft Windows 7", "", 105}, {"", "amd64", 102}, {"x", "", 1}} {
		if got := OSType(c.name, c.arch); got != c.id {
			t.Errorf("OSType(%q, %q) = %d, want %d", c.name, c.arch, got, c.id)
		}
	}
	if OSName(-1) != "" || OSName(1000) != "" || OSName(96) != "Debian 64-Bit" {
		t.Error("OSName")
	}
}

func FuzzEnvelope(f *testing.F) {
	names, _ := filepath.Glob("testdata/*.ovf")
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 1<<17 {
			return
		}
		e, err := Parse(text, &ParseOptions{AllowRequired: true})
		if err != nil {
			if e != nil {
				t.Fatal("an envelope with an error")
			}
			var fe *formats.Error
			if !errors.As(err, &fe) {
				t.Fatalf("error without a place: %v", err)
			}
			return
		}
		e.Validate(&ValidateOptions{VirtualSize: func(d *Disk) (int64, bool) { return 0, true }, FileSize: func(*File) (int64, int64, bool) { return 0, 0, true }})
		d := e.Describe()
		if _, err := json.Marshal(d); err != nil {
			t.Fatal(err)
		}
		for _, s := range e.Machines() {
			e.Inventory(s.ID)
			e.EnvironmentFor(s.ID, e.DefaultConfiguration(), nil)
		}
	})
}
