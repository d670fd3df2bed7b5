package xvm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"imgmaint/formats"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

func TestRoundTrip(t *testing.T) {
	for _, signed := range []bool{true, false} {
		opts := &WriterOptions{ModTime: when}
		if signed {
			opts.Sign = sign(t)
		}
		b := packed(t, group(), opts)
		if !bytes.Equal(b, packed(t, group(), opts)) {
			t.Fatal("two runs wrote different packages")
		}
		p := mustOpen(t, b)
		if len(p.Descriptor().Problems) > 0 || p.Format() != Name {
			t.Errorf("problems: %q", p.Descriptor().Problems)
		}
		doc := group()
		for i := range doc.Disks {
			doc.Disks[i].SHA256 = p.Document().Disks[i].SHA256
		}
		if !reflect.DeepEqual(p.Document(), doc) {
			t.Errorf("got %+v\nwant %+v", p.Document(), doc)
		}
		if err := fstest.TestFS(p, "xvm.xml", "imagefile", "dir/disk.qcow2"); err != nil {
			t.Error(err)
		}
		for i, k := range doc.Disks[:2] {
			img, err := p.OpenDisk(k.ID, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := formatstest.TestImage(img, testimg.Disk(k.Size, uint64(i))); err != nil {
				t.Errorf("%s: %v", k.ID, err)
			}
		}
		if _, err := p.OpenDisk("empty", nil); class(err) != "unsupported" {
			t.Errorf("a disk without member: %v", err)
		}

		// Copied from what was read, with all digests known: the same bytes.
		var again formatstest.Buffer
		w, err := NewWriter(&again, p.Document(), opts)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range doc.Disks {
			if k.Member != "" {
				copyMember(t, w, p, k.Member)
			}
		}
		for _, s := range doc.Documents {
			copyMember(t, w, p, s.Member)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again.Bytes(), b) {
			t.Error("write, read, write gave other bytes")
		}

		r := verify(t, p, &VerifyOptions{CheckSignature: checker(t), Content: true})
		want := Intact
		if signed {
			want = Verified
		}
		if r.Verdict != want || !r.DescriptorBound {
			t.Errorf("signed %v: %s, %q", signed, r.Verdict, r.Reasons)
		}
		for _, d := range r.Disks {
			if want := map[string]string{"cow": "unchecked"}[d.ID]; d.State != cmpOr(want, "matches") {
				t.Errorf("disk %s: %s", d.ID, d.State)
			}
		}
	}
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func copyMember(t testing.TB, w *Writer, p *Package, name string) {
	t.Helper()
	f, err := p.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	m, err := w.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(m, f); err != nil {
		t.Fatal(err)
	}
}

// The tools of everybody accept what we write.
func TestTools(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "p.xvm")
	if err := os.WriteFile(p, packed(t, group(), &WriterOptions{Sign: sign(t)}), 0o600); err != nil {
		t.Fatal(err)
	}
	order := "xvm.xml\nmanifest.txt\nmf-signature.asc\nsignature.asc\nmanifest.sha256\nmanifest.sha256.asc\n" +
		"imagefile\nimagefile2\ndir/disk.qcow2\nsbom.cdx.json\nNOTICE\n"
	if got := testimg.Run(t, "tar", "tf", p); got != order {
		t.Errorf("tar t: %s", got)
	}
	testimg.Run(t, "tar", "-C", dir, "-xf", p)
	t.Chdir(dir)
	testimg.Run(t, "sha1sum", "--strict", "-c", "manifest.txt")
	testimg.Run(t, "sha256sum", "--strict", "-c", "manifest.sha256")
	testimg.Run(t, "xmllint", "--noout", "xvm.xml")
	if err := os.Rename("imagefile", "imagefile.gz"); err != nil {
		t.Fatal(err)
	}
	testimg.Run(t, "gzip", "-t", "imagefile.gz")

	home := t.TempDir()
	t.Setenv("GNUPGHOME", home)
	_, public := key()
	if err := os.WriteFile("key.asc", public, 0o600); err != nil {
		t.Fatal(err)
	}
	testimg.Run(t, "gpg", "--batch", "--quiet", "--import", "key.asc")
	for sig, over := range map[string]string{"mf-signature.asc": "manifest.txt", "signature.asc": "xvm.xml", "manifest.sha256.asc": "manifest.sha256"} {
		testimg.Run(t, "gpg", "--batch", "--quiet", "--verify", sig, over)
	}
}

// Signatures that come out shorter are filled with line feeds; longer ones
// than there is room for are an error.
func TestSignatureRoom(t *testing.T) {
	for _, c := range []struct {
		announced int
		ok        bool
	}{{0, true}, {100, true}, {400, true}, {5000, true}, {1 << 20, false}} {
		for _, grow := range []int{0, 700} {
			n := 0
			opts := &WriterOptions{SignatureSize: c.announced, Sign: func(b []byte) ([]byte, error) {
				if n++; n > 1 {
					return fakeSignature(200 + grow), nil
				}
				return fakeSignature(200), nil
			}}
			var buf formatstest.Buffer
			err := write(t, &buf, &Document{}, opts)
			want := c.ok && (grow == 0 || c.announced == 5000)
			if (err == nil) != want {
				t.Errorf("announced %d, grown by %d: %v", c.announced, grow, err)
				continue
			}
			if err != nil {
				continue
			}
			for _, s := range mustOpen(t, buf.Bytes()).Signatures() {
				if s.Form != Detached || !s.Bare {
					t.Errorf("announced %d: %q", c.announced, s.Data)
				}
			}
		}
	}
	opts := &WriterOptions{Sign: func([]byte) ([]byte, error) { return []byte("nonsense"), nil }}
	if err := write(t, &formatstest.Buffer{}, &Document{}, opts); err == nil {
		t.Error("nonsense was taken for a signature")
	}
	opts.Sign = func([]byte) ([]byte, error) { return nil, testimg.ErrInjected }
	if err := write(t, &formatstest.Buffer{}, &Document{}, opts); !errors.Is(err, testimg.ErrInjected) {
		t.Errorf("Sign fails: %v", err)
	}
	// Header lines are left out: nothing signs them.
	s := signer(t)
	opts.Sign = func(b []byte) ([]byte, error) {
		sig, err := s.DetachSign(context.Background(), bytes.NewReader(b))
		return bytes.Replace(sig, []byte("\n"), []byte("\r\nVersion: 1\r\nComment: x\r\n"), 1), err
	}
	p := mustOpen(t, packed(t, &Document{}, opts))
	if r := verify(t, p, &VerifyOptions{CheckSignature: checker(t)}); r.Verdict != Verified {
		t.Errorf("header lines: %s %q", r.Verdict, r.Reasons)
	}
}

func fakeSignature(n int) []byte {
	return []byte(sigBegin + "\n\n" + strings.Repeat("A", n) + "\n" + sigEnd + "\n")
}

func TestWriterRefuses(t *testing.T) {
	doc := &Document{Disks: []formats.PackageDisk{{ID: "d", Member: "d", Format: "raw", Compression: "none", Size: 10}}}
	begin := func() *Writer {
		w, err := NewWriter(&formatstest.Buffer{}, doc, nil)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	if err := begin().Close(); err == nil {
		t.Error("a package without its member was closed")
	}
	w := begin()
	if _, err := w.Create("other"); err == nil {
		t.Error("an undeclared member was written")
	}
	m, err := w.Create("d")
	if err != nil {
		t.Fatal(err)
	}
	m.Write(make([]byte, 10))
	if err := w.Close(); err == nil {
		t.Error("a disk without a digest was closed")
	}
	if err := begin().WriteDisk("d", rawImage(t, make([]byte, 11))); err == nil {
		t.Error("a disk of another size was written")
	}
	doc.Disks[0].SHA256 = strings.Repeat("a", 64)
	if err := begin().WriteDisk("d", rawImage(t, make([]byte, 10))); class(err) != "corrupt" {
		t.Errorf("another digest than declared: %v", err)
	}
	for _, name := range []string{"xvm.xml", "manifest.sha256.asc", "description.xml", "../d", "/d", `a\b`, "", "a\nb", strings.Repeat("n", 101)} {
		doc := &Document{Documents: []SideCar{{Member: name, Type: "text/plain"}}}
		if _, err := NewWriter(&formatstest.Buffer{}, doc, nil); err == nil {
			t.Errorf("member %q was accepted", name)
		}
	}
}

func TestFaultyWriter(t *testing.T) {
	var buf formatstest.Buffer
	count := &testimg.FaultyWriter{W: &buf, FailAt: 1 << 40}
	opts := &WriterOptions{Sign: sign(t)}
	if err := write(t, count, group(), opts); err != nil {
		t.Fatal(err)
	}
	for n := range count.Writes() {
		var buf formatstest.Buffer
		if err := write(t, &testimg.FaultyWriter{W: &buf, FailAt: n}, group(), opts); !errors.Is(err, testimg.ErrInjected) {
			t.Fatalf("write %d of %d fails: %v", n, count.Writes(), err)
		}
	}
	stop := errors.New("stop")
	opts.Progress = func(done, total int64) error { return stop }
	if err := write(t, &buf, group(), opts); !errors.Is(err, stop) {
		t.Errorf("Progress stops: %v", err)
	}
}

// sink forgets.
type sink struct{}

func (sink) WriteAt(p []byte, off int64) (int, error) { return len(p), nil }

// vast is a disk of zeros but for a word in each MiB.
type vast int64

func (v vast) Size() int64 { return int64(v) }
func (v vast) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	p[0] = 1
	return len(p), nil
}
func (v vast) ExtentAt(off int64) (formats.Extent, error) {
	return formats.Extent{Off: off, Len: int64(v) - off, Kind: formats.Data}, nil
}

func TestWriterMemory(t *testing.T) {
	doc := &Document{Disks: []formats.PackageDisk{{ID: "d", Member: "d", Format: "raw", Compression: "gzip", Size: 128 << 20}}}
	w, err := NewWriter(sink{}, doc, &WriterOptions{Level: 1})
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := w.WriteDisk("d", vast(128<<20)); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
		t.Errorf("%d MiB allocated", n>>20)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestDocument(t *testing.T) {
	b, err := group().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	d, err := ParseDocument(b)
	if err != nil || !reflect.DeepEqual(d, group()) {
		t.Errorf("%v: %+v", err, d)
	}
	p := testimg.WriteFile(t, "xvm.xml", b)
	testimg.Run(t, "xmllint", "--noout", p)

	change := func(old, new string) []byte {
		if !bytes.Contains(b, []byte(old)) {
			t.Fatalf("%q is not in the document", old)
		}
		return bytes.Replace(b, []byte(old), []byte(new), 1)
	}
	for _, c := range []struct{ old, new, want string }{
		{"<name>", "<!-- a comment --><name>", "ok"},
		{"<name>", `<x xmlns="urn:other"><name>z</name></x><name>`, "ok"},
		{` version="1"`, ` version="1" xmlns:o="urn:other" o:x="y"`, "ok"},
		{"<release>", "<novelty/><release>", "unsupported"},
		{` version="1"`, ` version="2"`, "unsupported"},
		{` version="1"`, ` version="1" hue="red"`, "unsupported"},
		{Namespace, "urn:imgmaint:xvm:2", "unknown"},
		{"<release>", "<release>0</release><release>", "corrupt"},
		{"<release>", "text<release>", "corrupt"},
		{`id="db"`, `id="web"`, "corrupt"},
		{`<use-disk id="root"/>`, `<use-disk id="none"/>`, "corrupt"},
		{`<use-disk id="empty"/>`, `<use-disk id="root"/>`, "corrupt"},
		{`parent="root"`, `parent="data"`, "corrupt"},
		{`parent="root"`, `parent="lost"`, "corrupt"},
		{`member="imagefile2"`, `member="imagefile"`, "corrupt"},
		{`member="imagefile2"`, `member="../imagefile"`, "corrupt"},
		{`member="imagefile2"`, `member="/imagefile"`, "corrupt"},
		{`member="imagefile2"`, `member="manifest.txt"`, "corrupt"},
		{`compression="gzip"`, `compression="lzma"`, "unsupported"},
		{`role="disk"`, `role="floppy"`, "corrupt"},
		{`size="300000"`, `size="-1"`, "corrupt"},
		{`size="300000"`, `size="+1"`, "corrupt"},
		{`size="300000"`, `size="0300000"`, "corrupt"},
		{`size="300000"`, `size="9223372036854775807"`, "corrupt"},
		{`format="raw"`, ``, "corrupt"},
		{`settable="true"`, `settable="yes"`, "corrupt"},
		{`key="pw"`, `key="web.host"`, "corrupt"},
		{`machine="web"`, `machine="mail"`, "corrupt"},
		{"<vcpus>2", "<vcpus>2.5", "corrupt"},
		{"<memory>", "<memory>9", "ok"},
		{"<memory>", "<memory>999999999", "corrupt"},
		{"<package", "<!DOCTYPE package><package", "unsupported"},
		{"</package>", "</package><package/>", "corrupt"},
		{"</package>", "</package>text", "corrupt"},
		{"</package>", "", "corrupt"},
		{"two machines", "two &machines;", "corrupt"},
		{`encoding="UTF-8"`, `encoding="UTF-16"`, "corrupt"},
	} {
		if _, err := ParseDocument(change(c.old, c.new)); class(err) != c.want {
			t.Errorf("%s -> %s: %v, want %s", c.old, c.new, err, c.want)
		}
	}
	bad := group()
	bad.Description = "a\x00b"
	if _, err := bad.Marshal(); class(err) != "corrupt" {
		t.Errorf("NUL in a text: %v", err)
	}
}

func TestXMLBombs(t *testing.T) {
	entities := `<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c SYSTEM "file:///etc/passwd">]><x>&b;&c;</x>`
	cases := map[string]struct{ text, want string }{
		"entities":        {entities, "unsupported"},
		"external":        {`<!DOCTYPE x SYSTEM "http://localhost/x.dtd"><x/>`, "unsupported"},
		"unknown entity":  {"<x>&c;</x>", "corrupt"},
		"deep":            {strings.Repeat("<a>", 100000), "limit"},
		"wide":            {"<x>" + strings.Repeat("<a/>", 100000) + "</x>", "limit"},
		"long":            {"<x>" + strings.Repeat("a", MaxDescriptor) + "</x>", "limit"},
		"long attribute":  {`<x y="` + strings.Repeat("a", MaxDescriptor) + `"/>`, "limit"},
		"many attributes": {"<x " + strings.Join(slices.Repeat([]string{`a="b"`}, 1000), " ") + "/>", "limit"},
		"attribute twice": {`<x a="b" a="c"/>`, "corrupt"},
		"nul":             {"<x>\x00</x>", "corrupt"},
		"empty":           {"", "corrupt"},
		"not xml":         {"hello", "corrupt"},
		"not utf-8":       {"<x>\xff</x>", "corrupt"},
		"odd encoding":    {`<?xml version="1.0" encoding="IBM037"?><x/>`, "corrupt"},
	}
	for name, c := range cases {
		for _, name2 := range []string{"xvm.xml", "description.xml"} {
			b := tarOf(t, file{name2, []byte(c.text)})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			p, err := open(b)
			runtime.ReadMemStats(&after)
			if class(err) != c.want || p != nil {
				t.Errorf("%s in %s: %v, want %s", name, name2, err, c.want)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
				t.Errorf("%s: %d MiB allocated", name, n>>20)
			}
		}
	}
}

var _ fs.FS = (*Package)(nil)

func FuzzDocument(f *testing.F) {
	b, err := group().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		d, err := ParseDocument(b)
		if err != nil {
			if d != nil {
				t.Fatal("document with an error")
			}
			return
		}
		text, err := d.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseDocument(text)
		if err != nil || !reflect.DeepEqual(d, again) {
			t.Fatalf("%v\n%s", err, text)
		}
	})
}
