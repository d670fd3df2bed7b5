package xvm

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"imgmaint/formats"
	"imgmaint/formats/formatstest"
	"imgmaint/formats/internal/tarindex"
	"imgmaint/internal/testimg"
)

// small is a signed package of few bytes.
func small(t testing.TB, release string) []byte {
	t.Helper()
	doc := &Document{Name: "small", Release: release,
		Disks: []formats.PackageDisk{{ID: "root", Member: "imagefile", Format: "raw", Compression: "gzip", Size: 20_000, Role: "partition"},
			{ID: "data", Member: "imagefile2", Format: "raw", Compression: "none", Size: 5_000}}}
	return packed(t, doc, &WriterOptions{Sign: sign(t), ModTime: when})
}

// A package with any byte changed is not verified, and a change of a member
// is told as one.
func TestAnyByteFlipped(t *testing.T) {
	b := small(t, "1")
	p := mustOpen(t, b)
	check := checker(t)
	opts := &VerifyOptions{CheckSignature: check}
	if r := verify(t, p, opts); r.Verdict != Verified {
		t.Fatalf("%s %q", r.Verdict, r.Reasons)
	}
	members := p.Descriptor().Members
	data := int64(0)
	for i := 0; i < len(b); i++ {
		where := int64(i)
		m := members[max(0, slices.IndexFunc(members, func(m formats.Member) bool { return where < m.Off+m.Size }))]
		// All of headers and seals, every 17th byte of disks.
		if strings.HasPrefix(m.Name, "imagefile") && where >= m.Off && i%17 != 0 {
			continue
		}
		x := byte(1) << (i % 8)
		if i%16 >= 8 {
			x = 0xff
		}
		b[i] ^= x
		p, err := open(b)
		if err == nil {
			r, err := p.Verify(opts)
			if err == nil && r.Verdict != Damaged && r.Verdict != Intact && r.Verdict != Incomplete {
				t.Fatalf("byte %d (%s+%d) ^ %#x: %s", i, m.Name, where-m.Off, x, r.Verdict)
			}
			if where >= m.Off && strings.HasPrefix(m.Name, "imagefile") {
				if data++; err == nil && stateOf(r, m.Name).State != MemberMismatch {
					t.Fatalf("byte %d of %s: %s", where-m.Off, m.Name, stateOf(r, m.Name).State)
				}
			}
		}
		b[i] ^= x
	}
	if data < 300 {
		t.Errorf("%d bytes of disks changed", data)
	}
}

func TestTruncated(t *testing.T) {
	b := packed(t, group(), &WriterOptions{Sign: sign(t)})
	p := mustOpen(t, b)
	for n := 0; n < int(p.archive.End())+1024; n += 4096 {
		if _, err := open(b[:n]); err == nil {
			t.Errorf("%d of %d bytes were accepted", n, len(b))
		}
	}
	if _, err := Open(bytes.NewReader(b[:len(b)/2]), int64(len(b)), nil); class(err) != "corrupt" {
		t.Errorf("a file shorter than it was said to be: %v", err)
	}
	for _, bad := range []int64{0, 700, p.Descriptor().Members[1].Off} {
		if _, err := Open(testimg.FaultyReader{R: bytes.NewReader(b), Bad: bad}, int64(len(b)), nil); !errors.Is(err, testimg.ErrInjected) {
			t.Errorf("fault at %d: %v", bad, err)
		}
	}
	m, _ := p.archive.Member("imagefile")
	p, err := Open(testimg.FaultyReader{R: bytes.NewReader(b), Bad: m.Off + m.Size/2}, int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Verify(nil); !errors.Is(err, testimg.ErrInjected) {
		t.Errorf("fault in a disk: %v", err)
	}
	if _, err := p.OpenDisk("root", nil); !errors.Is(err, testimg.ErrInjected) {
		t.Errorf("fault in a disk: %v", err)
	}
	stop := errors.New("stop")
	if _, err := mustOpen(t, b).Verify(&VerifyOptions{Progress: func(done, total int64) error { return stop }}); err != stop {
		t.Errorf("Progress stops: %v", err)
	}
}

// remake is a package with some members replaced, dropped (nil) or added.
func remake(t testing.TB, b []byte, change map[string][]byte) []byte {
	t.Helper()
	p := mustOpen(t, b)
	var buf formatstest.Buffer
	w := tarindex.NewWriterAt(&buf, &tarindex.WriterOptions{ModTime: when})
	put := func(name string, b []byte) {
		if b == nil {
			return
		}
		if err := w.WriteFile(name, b); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range p.archive.Members() {
		if c, ok := change[m.Name]; ok {
			put(m.Name, c)
			delete(change, m.Name)
			continue
		}
		c, err := p.readMember(m.Name, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		put(m.Name, c)
	}
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range change {
			if !yield(name) {
				return
			}
		}
	}) {
		put(name, change[name])
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func memberOf(t testing.TB, b []byte, name string) []byte {
	t.Helper()
	c, err := mustOpen(t, b).readMember(name, 1<<30)
	if err != nil || c == nil {
		t.Fatalf("%s: %v", name, err)
	}
	return c
}

// Parts of two packages, each signed, and lesser tricks.
func TestMixAndMatch(t *testing.T) {
	one, two := small(t, "1"), small(t, "2")
	from := func(names ...string) map[string][]byte {
		m := map[string][]byte{}
		for _, n := range names {
			m[n] = memberOf(t, two, n)
		}
		return m
	}
	foreign := func(b []byte) []byte { // by somebody else
		secret, _, err := generate()
		if err != nil {
			t.Fatal(err)
		}
		sig, err := secret.DetachSign(context.Background(), bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	for _, c := range []struct {
		name   string
		change map[string][]byte
		want   Verdict
		reason string
	}{
		{"descriptor with its signature", from("xvm.xml", "signature.asc"), Damaged, "xvm.xml: mismatch"},
		{"descriptor alone", from("xvm.xml"), Damaged, "signature.asc: bad"},
		{"sha1 manifest with its signature", from("manifest.txt", "mf-signature.asc"), Damaged, "mismatch"},
		{"sha256 manifest with its signature", from("manifest.sha256", "manifest.sha256.asc"), Damaged, "mismatch"},
		{"all but the sha256 list", from("xvm.xml", "signature.asc", "manifest.txt", "mf-signature.asc"), Damaged, "mismatch"},
		{"all from the other", from("xvm.xml", "signature.asc", "manifest.txt", "mf-signature.asc", "manifest.sha256", "manifest.sha256.asc"), Verified, ""},
		{"signature from the other", from("manifest.sha256.asc"), Damaged, "manifest.sha256.asc: bad"},
		{"no sha256 list", map[string][]byte{"manifest.sha256": nil, "manifest.sha256.asc": nil}, Intact, "only sha1"},
		{"sha256 list not signed", map[string][]byte{"manifest.sha256.asc": nil}, Intact, ""},
		{"no signatures", map[string][]byte{"manifest.sha256.asc": nil, "mf-signature.asc": nil, "signature.asc": nil}, Intact, "unsigned"},
		{"no lists", map[string][]byte{"manifest.sha256.asc": nil, "mf-signature.asc": nil, "manifest.sha256": nil, "manifest.txt": nil}, Unverifiable, "no list"},
		{"list lost, signature there", map[string][]byte{"manifest.sha256": nil}, Damaged, "no member manifest.sha256"},
		{"member added", map[string][]byte{"extra": []byte("x")}, Incomplete, "extra: not listed"},
		{"list of nonsense", map[string][]byte{"manifest.txt": []byte("nonsense\n")}, Damaged, "no known form"},
		{"signature of nonsense", map[string][]byte{"signature.asc": []byte("nonsense\n")}, Damaged, "signature.asc: bad"},
		{"empty signature", map[string][]byte{"signature.asc": {}}, Damaged, "signature.asc: bad"},
		{"disk changed", map[string][]byte{"imagefile2": make([]byte, 5000)}, Damaged, "imagefile2: mismatch"},
		{"signed by another", map[string][]byte{"manifest.sha256.asc": foreign(memberOf(t, one, "manifest.sha256"))}, Intact, "untrusted"},
		{"text before the armor", map[string][]byte{"signature.asc": append([]byte("trust me\n"), memberOf(t, one, "signature.asc")...)}, Intact, "does not cover"},
		{"text behind the armor", map[string][]byte{"signature.asc": append(memberOf(t, one, "signature.asc"), "trust me\n"...)}, Intact, "does not cover"},
		{"entry without a member", map[string][]byte{"manifest.txt": append(memberOf(t, one, "manifest.txt"), sha1hex(nil)+"  ghost\n"...)}, Damaged, "ghost: missing"},
	} {
		p, err := open(remake(t, one, c.change))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		r := verify(t, p, &VerifyOptions{CheckSignature: checker(t)})
		reasons := strings.Join(r.Reasons, "; ")
		ok := r.Verdict == c.want && strings.Contains(reasons, c.reason)
		// What an OpenPGP reader thinks of text around armor is its own matter.
		ok = ok || strings.Contains(c.name, "the armor") && r.Verdict == Damaged
		if !ok {
			t.Errorf("%s: %s (%s), want %s (%s)", c.name, r.Verdict, reasons, c.want, c.reason)
		}
		if r := verify(t, p, nil); r.Verdict == Verified {
			t.Errorf("%s: verified without keys", c.name)
		}
	}
	// A disk that is lost is an error at once: the descriptor needs it.
	if _, err := open(remake(t, one, map[string][]byte{"imagefile": nil})); class(err) != "corrupt" {
		t.Errorf("disk lost: %v", err)
	}
}

// Packages as they were made in 2007, by what is documented of them.
func TestXVM1(t *testing.T) {
	disk := testimg.Disk(100_000, 3)
	image := gz(disk)
	swap := testimg.Disk(9000, 4)
	xvm := []byte(`<?xml version="1.0" encoding="iso-8859-1"?>
<xvm><name>Debian 3.1 Base Image</name><description>Sarge, f` + "\xfc" + `r alle</description><arch>i386</arch><memory>256</memory><vcpus>1</vcpus>
<disks><disk device="sda1"><image>imagefile</image></disk><disk file="./imagefile2" target="sda2"/></disks></xvm>`)
	forms := map[string]func(name string, b []byte) string{
		"gnu":    func(name string, b []byte) string { return sha1hex(b) + "  " + name },
		"binary": func(name string, b []byte) string { return sha1hex(b) + " *" + name },
		"bsd":    func(name string, b []byte) string { return "SHA1 (" + name + ") = " + sha1hex(b) },
		"ovf":    func(name string, b []byte) string { return "SHA1(" + name + ")= " + sha1hex(b) },
		"xvm2":   func(name string, b []byte) string { return fmt.Sprint(name, " ", len(b), " ", sha1hex(b)) },
	}
	s := signer(t)
	for form, line := range forms {
		for _, of := range []string{"stored", "decoded"} {
			first := image
			if of == "decoded" {
				first = disk
			}
			for _, bound := range []bool{true, false} {
				list := line("imagefile", first) + "\r\n" + line("imagefile2", swap) + "\n"
				if bound {
					list += line("xvm.xml", xvm) + "\n"
				}
				for _, how := range []string{"detached", "clear", "inline", "none"} {
					mf := []byte(list)
					files := []file{{"xvm.xml", xvm}, {"manifest.txt", mf}}
					detached, _ := s.DetachSign(context.Background(), bytes.NewReader(mf))
					clear, _ := s.ClearSign(context.Background(), mf)
					sigX, _ := s.DetachSign(context.Background(), bytes.NewReader(xvm))
					switch how {
					case "detached":
						files = append(files, file{"mf-signature.asc", detached}, file{"signature.asc", sigX})
					case "clear":
						files = append(files, file{"mf-signature.asc", clear}, file{"signature.asc", sigX})
					case "inline":
						files[1].b = clear
					}
					files = append(files, file{"imagefile", image}, file{"imagefile2", swap})
					name := strings.Join([]string{form, of, how, fmt.Sprint(bound)}, " ")
					p, err := open(tarOf(t, files...))
					if err != nil {
						t.Errorf("%s: %v", name, err)
						continue
					}
					r := verify(t, p, &VerifyOptions{CheckSignature: checker(t), Legacy: true})
					want, state := Verified, MemberVerified
					if how == "none" {
						want, state = Intact, MemberUnsigned
					}
					if !bound {
						want = Incomplete
					}
					m := stateOf(r, "imagefile")
					if r.Verdict != want || m.State != state || m.Of != of || !m.Weak || r.DescriptorBound != bound {
						t.Errorf("%s: %s %q, imagefile %+v", name, r.Verdict, r.Reasons, m)
					}
					if !bound && !slices.Contains(r.Reasons, "descriptor not bound by the manifest") {
						t.Errorf("%s: %q", name, r.Reasons)
					}
					if r := verify(t, p, &VerifyOptions{CheckSignature: checker(t)}); r.Verdict == Verified {
						t.Errorf("%s: verified by SHA-1", name)
					}
					want1 := map[string]int{"detached": 2, "clear": 2, "inline": 1}[how]
					if sigs := p.Signatures(); len(sigs) != want1 || want1 > 0 && (sigs[0].Over != "manifest.txt" || (sigs[0].Form == Detached) != (how == "detached")) {
						t.Errorf("%s: %d signatures", name, len(sigs))
					}
				}
			}
		}
	}

	p := mustOpen(t, tarOf(t, file{"xvm.xml", xvm}, file{"manifest.txt", nil}, file{"imagefile", image}, file{"imagefile2", swap}, file{"imagefile3", swap}))
	d := p.Descriptor()
	m := d.Machines[0]
	if d.Format != Name || d.Version != "1" || d.Name != "Debian 3.1 Base Image" || d.Description != "Sarge, für alle" || m.Arch != "i386" ||
		m.CPUs != 1 || m.Memory != 0 || len(m.Properties) != 1 || len(d.Members) != 5 {
		t.Errorf("%+v", d)
	}
	if len(d.Disks) != 3 || d.Disks[0].Compression != "gzip" || d.Disks[1].Compression != "none" || d.Disks[1].Device != "sda2" || d.Disks[2].Member != "imagefile3" {
		t.Errorf("%+v", d.Disks)
	}
	var tee bytes.Buffer
	img, err := p.OpenDisk("imagefile", &tee)
	if err != nil {
		t.Fatal(err)
	}
	if err := formatstest.TestImage(img, disk); err != nil {
		t.Error(err)
	}
	if again, err := p.OpenDisk("imagefile", &tee); again != img || err != nil || !bytes.Equal(tee.Bytes(), disk) {
		t.Errorf("opened again: %v, tee has %d bytes", err, tee.Len())
	}

	// A clear-signed copy of another text does not vouch for the list.
	other, _ := s.ClearSign(context.Background(), []byte("another list\n"))
	p = mustOpen(t, tarOf(t, file{"xvm.xml", xvm}, file{"manifest.txt", []byte(sha1hex(xvm) + "  xvm.xml\n")}, file{"mf-signature.asc", other}))
	if r := verify(t, p, &VerifyOptions{CheckSignature: checker(t), Legacy: true}); r.Verdict != Damaged || r.Signatures[0].State != SignatureBad {
		t.Errorf("clear-signed other text: %s %q", r.Verdict, r.Reasons)
	}
}

const enomaly = `<domain type="xen"><name>web01</name><uuid>0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0</uuid><memory>524288</memory><vcpu>2</vcpu>
<os><type arch="i686">hvm</type><boot dev="hd"/></os><features><acpi/><pae/></features>
<devices><disk type="file" device="disk"><source file="hda.gz"/><target dev="hda"/></disk>
<disk type="file" device="cdrom"><target dev="hdc"/></disk>
<interface type="bridge"><source bridge="br0"/></interface></devices></domain>`

func TestXVM2Enomaly(t *testing.T) {
	disk := testimg.Disk(3<<20, 7)
	list := func(size int, sum []byte) []byte { return fmt.Appendf(nil, "hda %d %s\n", size, md5hex(sum)) }
	changed := bytes.Clone(disk)
	changed[2<<20] ^= 1
	early := bytes.Clone(disk)
	early[100] ^= 1
	for _, c := range []struct {
		name  string
		list  []byte
		disk  []byte
		state MemberState
		want  Verdict
	}{
		{"first MiB", list(len(disk), disk[:1<<20]), disk, MemberFirstMiB, Incomplete},
		{"first MiB, the rest changed", list(len(disk), disk[:1<<20]), changed, MemberFirstMiB, Incomplete},
		{"first MiB changed", list(len(disk), disk[:1<<20]), early, MemberMismatch, Damaged},
		{"size", list(len(disk)-1, disk[:1<<20]), disk, MemberMismatch, Damaged},
		{"whole", list(len(disk), disk), disk, MemberUnsigned, Incomplete},
	} {
		p := mustOpen(t, tarOf(t, file{"description.xml", []byte(enomaly)}, file{"manifest.txt", c.list}, file{"hda.gz", gz(c.disk)}))
		r := verify(t, p, &VerifyOptions{CheckSignature: checker(t), Legacy: true})
		if m := stateOf(r, "hda.gz"); m.State != c.state || r.Verdict != c.want || r.DescriptorBound {
			t.Errorf("%s: %s %q %+v", c.name, r.Verdict, r.Reasons, m)
		}
		if p.Format() != Name2 || p.Boot != "hd" || !slices.Equal(p.Features, []string{"acpi", "pae"}) {
			t.Errorf("%s, boot %q, features %q", p.Format(), p.Boot, p.Features)
		}
		d := p.Descriptor()
		m := d.Machines[0]
		if d.Name != "web01" || m.ID != "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0" || m.Memory != 512<<20 || m.CPUs != 2 || m.Arch != "i686" ||
			!slices.Equal(m.Networks, []string{"br0"}) || len(d.Disks) != 1 || d.Disks[0] != (formats.PackageDisk{ID: "hda.gz", Member: "hda.gz",
			Compression: "gzip", Role: "disk", Device: "hda"}) {
			t.Errorf("%+v", d)
		}
	}
}

func TestXVM2Archipel(t *testing.T) {
	desc := `<domain type="kvm"><name>vm</name><uuid>x</uuid><memory unit="GiB">2</memory><devices>
<disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="/vm/drives/../x/disk0.qcow2"/><target dev="vda"/></disk>
<disk type="file"><source file="/etc/passwd"/><target dev="vdb"/></disk>
<disk type="file"><source file="/vm/data.img"/><target dev="vdc"/></disk>
<disk type="block"><source dev="/dev/sda"/><target dev="vdd"/></disk></devices></domain>`
	content := testimg.Disk(5000, 1)
	b := tarOf(t, file{"/description.xml", []byte(desc)}, file{"disk0.qcow2", content}, file{"data.img.gz", gz(content)}, file{"snapshot-1.xml", []byte("<domain/>")})
	p := mustOpen(t, b)
	d := p.Descriptor()
	if len(d.Disks) != 2 || d.Disks[0].Member != "disk0.qcow2" || d.Disks[0].Format != "qcow2" || d.Disks[1].Member != "data.img.gz" ||
		d.Disks[1].Compression != "gzip" || d.Machines[0].Memory != 2<<30 {
		t.Errorf("%+v", d)
	}
	if !slices.Equal(p.Snapshots(), []string{"snapshot-1.xml"}) {
		t.Errorf("snapshots %q", p.Snapshots())
	}
	problems := strings.Join(d.Problems, "\n")
	for _, s := range []string{"leading slash", `"/etc/passwd", which is no member`, `taken for the member "disk0.qcow2"`, `"vdd"`} {
		if !strings.Contains(problems, s) {
			t.Errorf("problems lack %s: %s", s, problems)
		}
	}
	if r := verify(t, p, nil); r.Verdict != Unverifiable {
		t.Errorf("%s %q", r.Verdict, r.Reasons)
	}
	for _, c := range []struct {
		b    []byte
		want string
	}{
		{tarOf(t, file{"/description.xml", []byte(desc)}, file{"/etc/passwd", nil}), "corrupt"},
		{tarOf(t, file{"/xvm.xml", []byte("<x/>")}), "corrupt"},
		{tarOf(t, file{"description.xml", []byte("<x/>")}), "unknown"},
		{tarOf(t, file{"description.xml", []byte(desc)}, file{"xvm.xml", []byte("<x/>")}), "corrupt"},
		{tarOf(t, file{"other", nil}), "unknown"},
		{[]byte("not a tar"), "unknown"},
	} {
		if _, err := open(c.b); class(err) != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

// measured runs f and fails when it allocates or takes too much.
func measured(t *testing.T, name string, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	f()
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 || took > 20*time.Second {
		t.Errorf("%s: %d MiB allocated in %v", name, n>>20, took)
	}
}

// bomb inflates to n bytes of zeros.
func bomb(n int64) []byte {
	var buf bytes.Buffer
	w, _ := gzip.NewWriterLevel(&buf, 9)
	io.CopyN(w, zeroes{}, n)
	w.Close()
	return buf.Bytes()
}

func TestHostile(t *testing.T) {
	big := bomb(64 << 20)
	doc := &Document{Disks: []formats.PackageDisk{{ID: "d", Member: "d", Format: "raw", Compression: "gzip", Size: 1000, SHA256: strings.Repeat("a", 64)}}}
	text, err := doc.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	measured(t, "gzip bomb, declared size", func() {
		p := mustOpen(t, tarOf(t, file{"xvm.xml", text}, file{"d", big}))
		if _, err := p.OpenDisk("d", nil); class(err) != "limit" {
			t.Errorf("gzip bomb: %v", err)
		}
		if r := verify(t, p, &VerifyOptions{Content: true}); r.Verdict != Damaged {
			t.Errorf("gzip bomb: %s", r.Verdict)
		}
	})
	measured(t, "gzip bomb in a foreign package", func() {
		b := tarOf(t, file{"xvm.xml", []byte("<x/>")}, file{"manifest.txt", []byte(sha1hex(nil) + "  d\n")}, file{"d", big})
		p, err := Open(bytes.NewReader(b), int64(len(b)), &Options{MaxDisk: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.OpenDisk("d", nil); class(err) != "limit" {
			t.Errorf("gzip bomb: %v", err)
		}
		if r := verify(t, p, nil); r.Verdict != Damaged {
			t.Errorf("gzip bomb: %s", r.Verdict)
		}
	})
	measured(t, "wrong sizes", func() {
		for _, b := range [][]byte{gz(make([]byte, 999)), gz(nil), []byte("no gzip"), gz(make([]byte, 1000))[:20], append(gz(make([]byte, 1000)), 0)} {
			p := mustOpen(t, tarOf(t, file{"xvm.xml", text}, file{"d", b}))
			if _, err := p.OpenDisk("d", nil); err == nil || strings.HasPrefix(class(err), "other") {
				t.Errorf("%d bytes: %v", len(b), err)
			}
		}
	})
	measured(t, "many disks", func() {
		var buf formatstest.Buffer
		w := tarindex.NewWriterAt(&buf, nil)
		w.WriteFile("xvm.xml", []byte("<x/>"))
		for i := range maxDisks + 1 {
			w.WriteFile(fmt.Sprint("d", i), nil)
		}
		w.Close()
		if _, err := open(buf.Bytes()); class(err) != "limit" {
			t.Errorf("many disks: %v", err)
		}
	})
	measured(t, "large members that are read whole", func() {
		for name, limit := range map[string]int64{"xvm.xml": MaxDescriptor, "manifest.txt": 16 << 20, "signature.asc": 16 << 20, "mf-signature.asc": maxSignature} {
			var buf formatstest.Buffer
			w := tarindex.NewWriterAt(&buf, nil)
			if name != "xvm.xml" {
				w.WriteFile("xvm.xml", []byte("<x/>"))
			}
			e, err := w.Create(name, limit+1)
			if err != nil {
				t.Fatal(err)
			}
			e.WriteAt([]byte(sigBegin), 0)
			e.WriteAt([]byte{'x'}, limit)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := open(buf.Bytes()); class(err) != "limit" {
				t.Errorf("%s of %d bytes: %v", name, limit+1, err)
			}
		}
	})
	measured(t, "odd names in lists", func() {
		list := sha1hex(nil) + "  ../../etc/passwd\n" + sha1hex(nil) + "  /etc/shadow\n" + sha1hex(nil) + "  .\n"
		p := mustOpen(t, tarOf(t, file{"xvm.xml", []byte("<x/>")}, file{"manifest.txt", []byte(list)}))
		r := verify(t, p, nil)
		if r.Verdict != Damaged || stateOf(r, "/etc/shadow").State != MemberMissing {
			t.Errorf("%s %q", r.Verdict, r.Reasons)
		}
	})
	for _, name := range []string{"../d", "/d", "a/../../d", "a\x1bb"} {
		if _, err := open(tarOf(t, file{"xvm.xml", []byte("<x/>")}, file{name, nil})); class(err) != "corrupt" {
			t.Errorf("member %q: %v", name, err)
		}
	}
	if _, err := open(tarOf(t, file{"xvm.xml", []byte("<x/>")}, file{"d", nil}, file{"d", nil})); class(err) != "corrupt" {
		t.Errorf("duplicate member: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(small(f, "1"))
	f.Add(tarOf(f, file{"/description.xml", []byte(enomaly)}, file{"manifest.txt", []byte("hda 3 " + md5hex(nil) + "\n")}, file{"hda.gz", gz([]byte("abc"))}))
	f.Add(tarOf(f, file{"xvm.xml", []byte(`<x name="n"><d>imagefile</d></x>`)}, file{"manifest.txt", []byte(clearBegin + "\nHash: x\n\n- a\n" + sigBegin + "\n")}, file{"imagefile", nil}))
	check := func(s *Signature) (SignatureResult, error) {
		return SignatureResult{State: SignatureGood, Text: s.Text}, nil
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		p, err := Open(bytes.NewReader(b), int64(len(b)), &Options{MaxDisk: 1 << 22})
		if err != nil {
			if p != nil || strings.HasPrefix(class(err), "other") {
				t.Fatalf("%v, %v", p, err)
			}
			return
		}
		if _, err := p.Verify(&VerifyOptions{CheckSignature: check, Content: true}); err != nil {
			t.Fatal(err)
		}
		for _, k := range p.Descriptor().Disks {
			if k.Member == "" {
				continue
			}
			if img, err := p.OpenDisk(k.ID, nil); err == nil {
				if _, err := img.ReadAt(make([]byte, 1000), 0); err != nil && err != io.EOF {
					t.Fatal(err)
				}
			}
		}
	})
}
