package ovf

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"imgmaint/formats"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

// A tarFile is a member for rawTar.
type tarFile struct {
	name string
	b    []byte
}

// rawTar makes a tar as another tool would, in any order.
func rawTar(t testing.TB, files ...tarFile) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.b)), Format: tar.FormatUSTAR}); err != nil {
			t.Fatal(err)
		}
		w.Write(f.b)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func openOVA(t testing.TB, b []byte) *Package {
	t.Helper()
	p, err := OpenOVA(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// smallText is a descriptor with a disk of two members' worth.
func smallText(t testing.TB, sizes ...int64) []byte {
	t.Helper()
	text, err := New(&formats.Descriptor{Name: "small", Machines: []formats.Machine{{ID: "small", OS: "Debian", Arch: "amd64"}},
		Disks:   []formats.PackageDisk{{ID: "d1", Member: "small-1.vmdk", Format: "vmdk", Size: 1 << 20}},
		Members: []formats.Member{{Name: "small-1.vmdk", Size: sizes[0]}, {Name: "sbom.json", Size: sizes[1]}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// smallOVA writes a package with a disk and a document, signed when sign is
// not nil.
func smallOVA(t testing.TB, disk, sbom []byte, opts *WriterOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, "small.ovf", opts)
	if err == nil {
		err = w.WriteDescriptor(smallText(t, int64(len(disk)), int64(len(sbom))))
	}
	if err == nil {
		err = w.WriteFile("small-1.vmdk", bytes.NewReader(disk), int64(len(disk)), 0)
	}
	if err == nil {
		err = w.WriteFile("sbom.json", bytes.NewReader(sbom), int64(len(sbom)), 0)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// fileWriter makes files of a folder in the test.
func folderWriter(t testing.TB, dir string) func(string) (io.WriteCloser, error) {
	return func(name string) (io.WriteCloser, error) {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			return nil, err
		}
		return os.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	}
}

func rootFS(t testing.TB, dir string) fs.FS {
	t.Helper()
	r, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r.FS()
}

func TestOVA(t *testing.T) {
	disk, sbom := testimg.Disk(100_000, 1), []byte(`{"a":1}`)
	b := smallOVA(t, disk, sbom, nil)
	if again := smallOVA(t, disk, sbom, nil); !bytes.Equal(b, again) {
		t.Error("two runs wrote different packages")
	}
	p := openOVA(t, b)
	if err := fstest.TestFS(p, "small.ovf", "small-1.vmdk", "sbom.json", "small.mf"); err != nil {
		t.Error(err)
	}
	d := p.Descriptor()
	if len(d.Problems) > 0 || len(d.Members) != 4 || d.Disks[0].Member != "small-1.vmdk" || d.Machines[0].OS != "Debian" {
		t.Errorf("descriptor %+v", d)
	}
	for _, m := range d.Members {
		got := b[m.Off : m.Off+m.Size]
		if want, err := fs.ReadFile(p, m.Name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s at %d: %v", m.Name, m.Off, err)
		}
	}
	blob, err := p.OpenFile("file1")
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	if got, err := io.ReadAll(io.NewSectionReader(blob, 0, blob.Size())); err != nil || !bytes.Equal(got, disk) {
		t.Errorf("file1: %d bytes, %v", len(got), err)
	}
	r, err := p.Verify(nil)
	if err != nil || r.Verdict != Intact || !r.DescriptorBound || r.Signature.State != SigNone || r.Algorithm != "SHA256" {
		t.Errorf("Verify = %+v, %v", r, err)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}

	name := testimg.WriteFile(t, "small.ova", b)
	if out := testimg.Run(t, "tar", "tf", name); out != "small.ovf\nsmall-1.vmdk\nsbom.json\nsmall.mf\n" {
		t.Errorf("tar t: %q", out)
	}
	dir := t.TempDir()
	testimg.Run(t, "tar", "xf", name, "-C", dir)
	// sha256sum reads "SHA256 (name) = hex"; ours without the spaces is the
	// form importers take.
	mf, err := os.ReadFile(filepath.Join(dir, "small.mf"))
	if err != nil {
		t.Fatal(err)
	}
	bsd := strings.NewReplacer("SHA256(", "SHA256 (", ")= ", ") = ").Replace(string(mf))
	if err := os.WriteFile(filepath.Join(dir, "sums"), []byte(bsd), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := testimg.Run(t, "sh", "-c", "cd '"+dir+"' && sha256sum -c sums"); strings.Count(out, ": OK") != 3 {
		t.Errorf("sha256sum: %q", out)
	}
	if !strings.HasPrefix(string(mf), "SHA256(small.ovf)= ") {
		t.Errorf("manifest %q", mf)
	}
	testimg.Run(t, "xmllint", "--noout", filepath.Join(dir, "small.ovf"))
	// What tar unpacked is a package in a folder.
	q, err := Open(rootFS(t, dir), "small.ovf", nil)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := q.Verify(nil); err != nil || r.Verdict != Intact {
		t.Errorf("unpacked: %+v, %v", r, err)
	}
	if err := fstest.TestFS(q, "small.ovf", "small-1.vmdk", "sbom.json", "small.mf"); err != nil {
		t.Error(err)
	}
	if _, err := q.Open("sums"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is no member: %v", err)
	}
}

// TestRoundTrip takes a package with every kind of file from a folder to an
// OVA and back: all bytes stay.
func TestRoundTrip(t *testing.T) {
	split := testimg.Disk(10_000, 3)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write(split)
	z.Close()
	text := load(t, "strings.ovf")
	files := map[string][]byte{
		"strings/fr.msg":      []byte(`<Strings xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xml:lang="fr-FR"><Msg ovf:msgid="note.text">Une note</Msg></Strings>`),
		"packed.raw.gz":       packed.Bytes(),
		"split.raw.000000000": split[:4096], "split.raw.000000001": split[4096:8192], "split.raw.000000002": split[8192:],
	}
	order := []string{"strings/fr.msg", "packed.raw.gz", "split.raw.000000000", "split.raw.000000001", "split.raw.000000002"}
	dir := t.TempDir()
	w, err := NewFolderWriter(folderWriter(t, dir), "x.ovf", &WriterOptions{Algorithm: "SHA512"})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range order {
		if err := w.WriteFile(name, bytes.NewReader(files[name]), int64(len(files[name])), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WriteDescriptor(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	folder, err := Open(rootFS(t, dir), "x.ovf", nil)
	if err != nil {
		t.Fatal(err)
	}
	check := func(p *Package, what string) {
		t.Helper()
		if r, err := p.Verify(nil); err != nil || r.Verdict != Intact || len(r.Members) != 7 || r.Algorithm != "SHA512" {
			t.Errorf("%s: %+v, %v", what, r, err)
		}
		for name, want := range files {
			if got, err := fs.ReadFile(p, name); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %s: %v", what, name, err)
			}
		}
		if !bytes.Equal(p.Envelope().Bytes(), text) {
			t.Errorf("%s: the descriptor changed", what)
		}
		for _, id := range []string{"packed", "split"} {
			r, err := p.Decode(id, int64(len(split)))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, split) {
				t.Errorf("%s: %s: %d bytes, %v", what, id, len(got), err)
			}
			r.Close()
			if r, err = p.Decode(id, int64(len(split))-1); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(r); !errors.Is(err, formats.ErrLimit) {
				t.Errorf("%s: %s over the limit: %v", what, id, err)
			}
			r.Close()
		}
		for _, id := range []string{"packed", "split"} {
			m, err := p.OpenImage(id, int64(len(split)))
			if err != nil {
				t.Fatal(err)
			}
			if err := formatstest.TestImage(m, split); err != nil {
				t.Errorf("%s: %s: %v", what, id, err)
			}
			m.Close()
			if m, err = p.OpenImage(id, int64(len(split))-1); !errors.Is(err, formats.ErrLimit) || m != nil {
				t.Errorf("%s: image of %s over the limit: %v", what, id, err)
			}
		}
		blob, err := p.OpenFile("split")
		if err != nil {
			t.Fatal(err)
		}
		defer blob.Close()
		if err := formatstest.TestImage(blob, split); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if err := p.LoadStrings(); err != nil {
			t.Error(err)
		}
		if got := p.Envelope().Localise(p.Envelope().Content.Annotations[0], "fr"); got != "Une note" {
			t.Errorf("%s: fr: %q", what, got)
		}
	}
	check(folder, "folder")
	var ova formatstest.Buffer
	w, err = NewWriterAt(&ova, "x.ovf", &WriterOptions{Algorithm: "SHA512"})
	if err != nil {
		t.Fatal(err)
	}
	if err := folder.Repack(w, nil, nil); err != nil {
		t.Fatal(err)
	}
	p := openOVA(t, ova.Bytes())
	check(p, "OVA")
	if f := p.Check(nil); len(f) > 0 {
		t.Errorf("findings %v", f)
	}
	back := t.TempDir()
	w, err = NewFolderWriter(folderWriter(t, back), "x.ovf", &WriterOptions{Algorithm: "SHA512"})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Repack(w, nil, nil); err != nil {
		t.Fatal(err)
	}
	testimg.Run(t, "diff", "-r", dir, back)
	// An edited one: one file replaced, the rest as it was.
	ed := NewEditor(p.Envelope())
	f := *p.Envelope().File("packed")
	f.Size, f.Compression = 3, ""
	if err := ed.SetFile(f); err != nil {
		t.Fatal(err)
	}
	f = *p.Envelope().File("split")
	f.Href = "other%20name.raw"
	if err := ed.SetFile(f); err != nil {
		t.Fatal(err)
	}
	edited, err := ed.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w, err = NewWriter(&out, "y.ovf", nil)
	if err != nil {
		t.Fatal(err)
	}
	err = p.Repack(w, edited, func(f *File) (io.Reader, error) {
		if f.ID == "packed" {
			return strings.NewReader("new"), nil
		}
		return nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	p = openOVA(t, out.Bytes())
	if r, err := p.Verify(nil); err != nil || r.Verdict != Intact || p.Name() != "y.ovf" {
		t.Errorf("edited: %+v, %v", r, err)
	}
	if got := p.Members("split"); len(got) != 3 || got[2] != "other name.raw.000000002" {
		t.Errorf("renamed: %q", got)
	}
	if got, _ := fs.ReadFile(p, "packed.raw.gz"); string(got) != "new" {
		t.Errorf("edited: %q", got)
	}
}

// TestWriterLate writes sizes and descriptor after the files, and goes back
// over bytes as writers of disks do.
func TestWriterLate(t *testing.T) {
	disk := testimg.Disk(70_000, 2)
	write := func(w *Writer) {
		t.Helper()
		if err := w.ReserveDescriptor(8192); err != nil {
			t.Fatal(err)
		}
		f, err := w.Create("small-1.vmdk", -1)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range [][2]int{{0, 512}, {4096, 70_000}, {512, 600}, {600, 4096}, {0, 512}} {
			if _, err := f.WriteAt(disk[r[0]:r[1]], int64(r[0])); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.WriteFile("sbom.json", strings.NewReader("{}"), 2, 0); err != nil {
			t.Fatal(err)
		}
		if err := w.WriteDescriptor(smallText(t, 70_000, 2)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "x.ova"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := NewWriterAt(f, "small.ovf", nil)
	if err != nil {
		t.Fatal(err)
	}
	write(w)
	fi, _ := f.Stat()
	p, err := OpenOVA(f, fi.Size(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := p.Verify(nil); err != nil || r.Verdict != Intact || len(r.Findings) > 0 {
		t.Errorf("Verify = %+v, %v", r, err)
	}
	if got, err := fs.ReadFile(p, "small-1.vmdk"); err != nil || !bytes.Equal(got, disk) {
		t.Errorf("disk: %v", err)
	}
	testimg.Run(t, "tar", "tf", f.Name())
	text, _ := fs.ReadFile(p, "small.ovf")
	testimg.Run(t, "xmllint", "--noout", testimg.WriteFile(t, "padded.ovf", text))
}

// TestWriterGaps leaves bytes out, into a destination that cannot be read.
func TestWriterGaps(t *testing.T) {
	var out formatstest.Buffer
	w, err := NewWriterAt(&out, "small.ovf", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.WriteDescriptor(smallText(t, 10_001, 2)); err != nil {
		t.Fatal(err)
	}
	f, err := w.Create("small-1.vmdk", 10_001)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{5, 10_000} {
		if _, err := f.WriteAt([]byte{1}, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WriteFile("sbom.json", strings.NewReader("{}"), 2, 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if r, err := openOVA(t, out.Bytes()).Verify(nil); err != nil || r.Verdict != Intact {
		t.Errorf("%+v, %v", r, err)
	}
	w, _ = NewWriterAt(&formatstest.Buffer{}, "small.ovf", nil)
	w.WriteDescriptor(smallText(t, 10_001, 2))
	f, _ = w.Create("small-1.vmdk", -1)
	f.WriteAt([]byte{1, 2}, 0)
	if _, err := f.WriteAt([]byte{3}, 1); err == nil {
		t.Error("went back where it cannot read")
	}
}

func TestWriterRefuses(t *testing.T) {
	text := smallText(t, 3, 2)
	for name, run := range map[string]func(w *Writer) error{
		"no descriptor": func(w *Writer) error { return w.Close() },
		"file first":    func(w *Writer) error { _, err := w.Create("small-1.vmdk", 3); return err },
		"file missing":  func(w *Writer) error { return errors.Join(w.WriteDescriptor(text), w.Close()) },
		"order": func(w *Writer) error {
			w.WriteDescriptor(text)
			w.WriteFile("sbom.json", strings.NewReader("{}"), 2, 0)
			w.WriteFile("small-1.vmdk", strings.NewReader("abc"), 3, 0)
			return w.Close()
		},
		"size": func(w *Writer) error {
			w.WriteDescriptor(text)
			w.WriteFile("small-1.vmdk", strings.NewReader("abcd"), 4, 0)
			w.WriteFile("sbom.json", strings.NewReader("{}"), 2, 0)
			return w.Close()
		},
		"extra": func(w *Writer) error {
			w.WriteDescriptor(text)
			w.WriteFile("small-1.vmdk", strings.NewReader("abc"), 3, 0)
			w.WriteFile("sbom.json", strings.NewReader("{}"), 2, 0)
			w.WriteFile("more", strings.NewReader("{}"), 2, 0)
			return w.Close()
		},
		"short source": func(w *Writer) error {
			w.WriteDescriptor(text)
			return w.WriteFile("small-1.vmdk", strings.NewReader("ab"), 3, 0)
		},
		"too many bytes": func(w *Writer) error {
			w.WriteDescriptor(text)
			f, err := w.Create("small-1.vmdk", 3)
			if err != nil {
				return nil
			}
			_, err = f.Write([]byte("abcd"))
			return err
		},
		"twice": func(w *Writer) error {
			w.WriteDescriptor(text)
			w.WriteFile("small-1.vmdk", strings.NewReader("abc"), 3, 0)
			_, err := w.Create("small-1.vmdk", 3)
			return err
		},
		"manifest as file": func(w *Writer) error { w.WriteDescriptor(text); _, err := w.Create("small.mf", 3); return err },
		"outside":          func(w *Writer) error { w.WriteDescriptor(text); _, err := w.Create("../x", 3); return err },
		"newline":          func(w *Writer) error { w.WriteDescriptor(text); _, err := w.Create("a\nb", 3); return err },
		"bad descriptor":   func(w *Writer) error { return w.WriteDescriptor([]byte("<a/>")) },
		"reserve":          func(w *Writer) error { return w.ReserveDescriptor(100) },
		"unknown size":     func(w *Writer) error { w.WriteDescriptor(text); _, err := w.Create("small-1.vmdk", -1); return err },
	} {
		w, err := NewWriter(io.Discard, "small.ovf", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := run(w); err == nil {
			t.Errorf("%s: no error", name)
		}
		if err := w.Close(); err == nil {
			t.Errorf("%s: Close succeeds after it", name)
		}
	}
	for _, name := range []string{"x", "a/x.ovf", ".ovf", "x.OVF", "a\nb.ovf"} {
		if _, err := NewWriter(io.Discard, name, nil); err == nil {
			t.Errorf("descriptor %q: no error", name)
		}
	}
	if _, err := NewWriter(io.Discard, "x.ovf", &WriterOptions{Algorithm: "MD5"}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("MD5: %v", err)
	}
}

// TestWriterFaults fails every write in turn: Close must fail too.
func TestWriterFaults(t *testing.T) {
	for n := int64(0); ; n++ {
		var buf formatstest.Buffer
		fw := &testimg.FaultyWriter{W: &buf, FailAt: n}
		w, err := NewWriterAt(fw, "small.ovf", nil)
		if err != nil {
			t.Fatal(err)
		}
		w.WriteDescriptor(smallText(t, 5000, 2))
		w.WriteFile("small-1.vmdk", bytes.NewReader(make([]byte, 5000)), 5000, 0)
		w.WriteFile("sbom.json", strings.NewReader("{}"), 2, 0)
		err = w.Close()
		if fw.Writes() <= n {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if !errors.Is(err, testimg.ErrInjected) {
			t.Fatalf("write %d failed, Close = %v", n, err)
		}
	}
}

func TestReadFaults(t *testing.T) {
	b := smallOVA(t, testimg.Disk(20_000, 1), []byte("{}"), nil)
	for bad := 0; bad < len(b); bad += 499 {
		p, err := OpenOVA(testimg.FaultyReader{R: bytes.NewReader(b), Bad: int64(bad)}, int64(len(b)), nil)
		if err == nil {
			_, err = p.Verify(nil)
		}
		if !errors.Is(err, testimg.ErrInjected) {
			t.Fatalf("byte %d cannot be read: %v", bad, err)
		}
	}
}

// TestTruncated cuts a package off at every 4 KiB.
func TestTruncated(t *testing.T) {
	b := smallOVA(t, testimg.Disk(100_000, 1), []byte("{}"), nil)
	end := int(openOVA(t, b).archive.End()) + 1024 // what follows pads the tar to its record
	for n := 0; n < end; n += 4096 {
		p, err := OpenOVA(bytes.NewReader(b[:n]), int64(n), nil)
		if err == nil || p != nil {
			t.Errorf("%d of %d bytes: %v", n, len(b), err)
		}
		// The same with the full size claimed: the file shrank.
		if p, err = OpenOVA(bytes.NewReader(b[:n]), int64(len(b)), nil); err == nil {
			_, err = p.Verify(nil)
		}
		if !errors.Is(err, formats.ErrCorrupt) {
			t.Errorf("shrunk to %d of %d bytes: %v", n, len(b), err)
		}
	}
}

func TestOrder(t *testing.T) {
	text := smallText(t, 3, 2)
	d, s := tarFile{"small-1.vmdk", []byte("abc")}, tarFile{"sbom.json", []byte("{}")}
	o := tarFile{"small.ovf", text}
	var m Manifest
	for _, f := range []tarFile{o, d, s} {
		m.Entries = append(m.Entries, ManifestEntry{"SHA256", f.name, fmt.Sprintf("%x", sha256.Sum256(f.b))})
	}
	mfb, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	mf := tarFile{"small.mf", mfb}
	for _, c := range []struct {
		name  string
		files []tarFile
		rule  string
		level Level
	}{
		{"files last", []tarFile{o, mf, d, s}, "", 0},
		{"manifest last", []tarFile{o, d, s, mf}, "", 0},
		{"descriptor late", []tarFile{d, o, s, mf}, "order", Fault},
		{"manifest between", []tarFile{o, d, mf, s}, "order", Warning},
		{"files swapped", []tarFile{o, s, d, mf}, "order", Warning},
		{"extra", []tarFile{o, d, s, {"x", nil}, mf}, "extra", Warning},
		{"file missing", []tarFile{o, s, mf}, "missing", Fault},
		{"size", []tarFile{o, {"small-1.vmdk", []byte("abcd")}, s, mf}, "size", Fault},
	} {
		p := openOVA(t, rawTar(t, c.files...))
		var got []string
		found := false
		for _, f := range p.Check(nil) {
			got = append(got, f.String())
			found = found || f.Rule == c.rule && f.Level == c.level
		}
		if found != (c.rule != "") || c.rule == "" && len(got) > 0 {
			t.Errorf("%s: %q, want %q", c.name, got, c.rule)
		}
		r, err := p.Verify(nil)
		want := Intact
		switch c.name {
		case "extra":
			want = Incomplete
		case "file missing", "size":
			want = Damaged
		}
		if err != nil || r.Verdict != want {
			t.Errorf("%s: %v %q, %v, want %s", c.name, r.Verdict, r.Reasons, err, want)
		}
	}
	m.Entries = append(m.Entries, ManifestEntry{"SHA256", "gone", strings.Repeat("0", 64)})
	if mfb, err = m.Marshal(); err != nil {
		t.Fatal(err)
	}
	r, err := openOVA(t, rawTar(t, o, d, s, tarFile{"small.mf", mfb})).Verify(nil)
	if err != nil || r.Verdict != Damaged || r.Members[len(r.Members)-1].State != MemberMissing {
		t.Errorf("listed and not there: %+v, %v", r, err)
	}
	if r, err := openOVA(t, rawTar(t, o, d, s)).Verify(nil); err != nil || r.Verdict != Unverifiable {
		t.Errorf("no manifest: %+v, %v", r, err)
	}
}

// TestHostile gives packages made to hurt; each ends in its class, soon and
// in little memory.
func TestHostile(t *testing.T) {
	text := smallText(t, 3, 2)
	header := func(h tar.Header, data []byte) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		w.WriteHeader(&tar.Header{Name: "small.ovf", Mode: 0o644, Size: int64(len(text)), Format: tar.FormatUSTAR})
		w.Write(text)
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		w.Write(data)
		w.Close()
		return b.Bytes()
	}
	manyFiles := func(href string) []byte {
		return []byte(minimal(strings.Repeat(`<File ovf:id="a" ovf:href="`+href+`" ovf:chunkSize="1"/>`, maxFiles), "", ""))
	}
	for _, c := range []struct {
		name  string
		b     []byte
		class error
	}{
		{"not a tar", []byte(strings.Repeat("x", 2000)), formats.ErrUnknown},
		{"no descriptor", rawTar(t, tarFile{"a", nil}), formats.ErrUnknown},
		{"two descriptors", rawTar(t, tarFile{"a.ovf", text}, tarFile{"b.ovf", text}), formats.ErrCorrupt},
		{"dot dot", rawTar(t, tarFile{"small.ovf", text}, tarFile{"../a", nil}), formats.ErrCorrupt},
		{"absolute", rawTar(t, tarFile{"small.ovf", text}, tarFile{"/etc/passwd", nil}), formats.ErrCorrupt},
		{"twice", rawTar(t, tarFile{"small.ovf", text}, tarFile{"a", nil}, tarFile{"a", nil}), formats.ErrCorrupt},
		{"symlink", header(tar.Header{Name: "small-1.vmdk", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, nil), errors.ErrUnsupported},
		{"link", header(tar.Header{Name: "small-1.vmdk", Typeflag: tar.TypeLink, Linkname: "small.ovf"}, nil), errors.ErrUnsupported},
		{"device", header(tar.Header{Name: "small-1.vmdk", Typeflag: tar.TypeBlock}, nil), errors.ErrUnsupported},
		{"fifo", header(tar.Header{Name: "small-1.vmdk", Typeflag: tar.TypeFifo}, nil), errors.ErrUnsupported},
		{"descriptor too large", rawTar(t, tarFile{"small.ovf", bytes.Repeat([]byte(" "), MaxDescriptor+1)}), formats.ErrLimit},
		{"entities", rawTar(t, tarFile{"small.ovf", []byte(`<!DOCTYPE a [<!ENTITY b "c">]><a/>`)}), errors.ErrUnsupported},
		{"manifest too large", rawTar(t, tarFile{"small.ovf", text}, tarFile{"small.mf", make([]byte, maxManifest+1)}), formats.ErrLimit},
		{"certificate too large", rawTar(t, tarFile{"small.ovf", text}, tarFile{"small.cert", make([]byte, maxCert+1)}), formats.ErrLimit},
		{"many files of many chunks", rawTar(t, append(chunkFiles(10), tarFile{"small.ovf", manyFiles("c")})...), formats.ErrLimit},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		p, err := OpenOVA(bytes.NewReader(c.b), int64(len(c.b)), nil)
		if !errors.Is(err, c.class) || p != nil {
			t.Errorf("%s: %v, want %v", c.name, err, c.class)
		}
		runtime.ReadMemStats(&after)
		if d, n := time.Since(start), after.TotalAlloc-before.TotalAlloc; d > 3*time.Second || n > 64<<20 {
			t.Errorf("%s: took %v and %d MiB", c.name, d, n>>20)
		}
	}
}

func chunkFiles(n int) []tarFile {
	var all []tarFile
	for i := range n {
		all = append(all, tarFile{ChunkName("c", i), []byte("x")})
	}
	return all
}

// TestFolderHostile opens folders whose descriptor points at what it should
// not.
func TestFolderHostile(t *testing.T) {
	outside := testimg.WriteFile(t, "secret", []byte("secret"))
	dir := t.TempDir()
	put := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, href := range []string{outside, "../secret", "file://" + outside, "a/../../secret", "%2e%2e/secret", "..%2Fsecret", "c:\\secret", "\\\\host\\x", "link", "dir", "."} {
		name := fmt.Sprintf("p%d.ovf", i)
		put(name, []byte(minimal(`<File ovf:id="f" ovf:href="`+href+`"/>`, "", "")))
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 11 {
		p, err := Open(rootFS(t, dir), fmt.Sprintf("p%d.ovf", i), nil)
		if err != nil {
			continue // a link out of the root, a directory
		}
		if b, err := p.OpenFile("f"); err == nil {
			b.Close()
			t.Errorf("p%d.ovf: the file was opened", i)
		}
		if len(p.Members("f")) > 0 {
			t.Errorf("p%d.ovf: %q", i, p.Members("f"))
		}
	}
	for _, name := range []string{"", ".", "../p0.ovf", "/p0.ovf", "dir", "nothing.ovf"} {
		if p, err := Open(rootFS(t, dir), name, nil); err == nil || p != nil {
			t.Errorf("Open(%q): %v", name, err)
		}
	}
	put("enc.ovf", load(t, "ovf2.ovf"))
	put("secret.bin", []byte("x"))
	p, err := Open(rootFS(t, dir), "enc.ovf", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.OpenFile("secret"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("encrypted: %v", err)
	}
	// A percent-encoded name, as VirtualBox writes it.
	put("vbox.ovf", load(t, "virtualbox.ovf"))
	put("box one-disk001.vmdk", []byte("disk"))
	if p, err = Open(rootFS(t, dir), "vbox.ovf", nil); err != nil || !slices.Equal(p.Members("file1"), []string{"box one-disk001.vmdk"}) {
		t.Errorf("percent: %v", err)
	}
}

func TestChunks(t *testing.T) {
	text := load(t, "strings.ovf")
	base := []tarFile{{"x.ovf", text}, {"strings/fr.msg", nil}, {"packed.raw.gz", []byte("not gzip")}}
	c := func(i, n int) tarFile { return tarFile{ChunkName("split.raw", i), make([]byte, n)} }
	for name, chunks := range map[string][]tarFile{
		"last missing":  {c(0, 4096), c(1, 4096)},
		"first missing": {c(1, 4096), c(2, 1808)},
		"short":         {c(0, 4096), c(1, 4000), c(2, 1904)},
		"long":          {c(0, 5904), c(1, 4096)},
		"one too many":  {c(0, 4096), c(1, 4096), c(2, 1808), c(3, 1)},
	} {
		p := openOVA(t, rawTar(t, append(slices.Clone(base), chunks...)...))
		faults := 0
		for _, f := range p.Check(nil) {
			if f.Level == Fault {
				faults++
			}
		}
		if faults == 0 {
			t.Errorf("%s: nothing found", name)
		}
		if _, err := p.Decode("packed", 100); !errors.Is(err, formats.ErrCorrupt) {
			t.Errorf("%s: not gzip: %v", name, err)
		}
	}
}
