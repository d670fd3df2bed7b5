package tarindex

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"imgmaint/formats"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

// tarOf writes an archive with the standard library, which is not strict.
func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte{'x'}, int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func open(b []byte, opts *Options) (*Archive, error) {
	return Open(bytes.NewReader(b), int64(len(b)), opts)
}

// resum sets the checksum of the header at off.
func resum(b []byte, off int) {
	putOctal(b[off+offChksum:off+offChksum+7], checksum(b[off:off+blockSize]))
	b[off+offChksum+7] = ' '
}

func sample(t testing.TB) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := NewWriter(&buf, nil)
	for _, m := range []struct {
		name string
		size int
	}{{"xvm.xml", 700}, {"dir/disk", 512}, {"dir/disk2", 10000}, {"empty", 0}, {strings.Repeat("d/", 15) + strings.Repeat("n", 90), 3}} {
		if err := w.WriteFile(m.name, testimg.Disk(int64(m.size), 1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestRoundTrip(t *testing.T) {
	b := sample(t)
	a, err := open(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := fstest.TestFS(a, "xvm.xml", "dir/disk", "dir/disk2", "empty"); err != nil {
		t.Error(err)
	}
	var again formatstest.Buffer
	w := NewWriterAt(&again, nil)
	for _, m := range a.Members() {
		f := a.OpenMember(m)
		data, err := io.ReadAll(f)
		if err != nil || int64(len(data)) != m.Size {
			t.Fatalf("%s: %d bytes, %v", m.Name, len(data), err)
		}
		if m.Size > 0 {
			if err := formatstest.TestImage(f, data); err != nil {
				t.Errorf("%s: %v", m.Name, err)
			}
		}
		e, err := w.Create(m.Name, -1)
		if err != nil {
			t.Fatal(err)
		}
		if e.Offset() != m.Off {
			t.Errorf("%s: offset %d, want %d", m.Name, e.Offset(), m.Off)
		}
		if _, err := e.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Bytes(), b) {
		t.Error("write, read, write gave other bytes")
	}
	p := testimg.WriteFile(t, "a.tar", b)
	list := testimg.Run(t, "tar", "tf", p)
	for _, m := range a.Members() {
		if !strings.Contains(list, m.Name+"\n") {
			t.Errorf("tar t does not list %q: %s", m.Name, list)
		}
	}
	if len(b)%10240 != 0 {
		t.Errorf("%d bytes are no whole records", len(b))
	}
}

// Every dialect GNU tar writes is read, and means the same.
func TestGNUTar(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("l", 150) + "/" + strings.Repeat("m", 120)
	files := map[string][]byte{"a": nil, "sub/b": testimg.Disk(5000, 2), "sub/c/d": []byte("x")}
	for name, b := range files {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, format := range []string{"v7", "oldgnu", "gnu", "ustar", "pax"} {
		want := map[string][]byte{}
		for k, v := range files {
			want[k] = v
		}
		if format == "gnu" || format == "pax" || format == "oldgnu" {
			want[long] = []byte("long")
			os.MkdirAll(filepath.Join(dir, filepath.Dir(long)), 0o755)
			os.WriteFile(filepath.Join(dir, long), []byte("long"), 0o644)
		} else {
			os.RemoveAll(filepath.Join(dir, filepath.Dir(long)))
		}
		for _, args := range [][]string{{"."}, {"a", "sub"}} {
			if args[0] == "a" && len(want) > len(files) {
				args = append(args[:len(args):len(args)], filepath.Dir(long))
			}
			p := filepath.Join(t.TempDir(), "x.tar")
			testimg.Run(t, "tar", append([]string{"-C", dir, "--format=" + format, "-cf", p}, args...)...)
			b, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			a, err := open(b, nil)
			if err != nil {
				t.Errorf("%s %v: %v", format, args, err)
				continue
			}
			if len(a.Members()) != len(want) {
				t.Errorf("%s: %d members, want %d", format, len(a.Members()), len(want))
			}
			for name, data := range want {
				got, err := fs.ReadFile(a, name)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s: %.20s: %d bytes, %v", format, name, len(got), err)
				}
			}
			if format != "v7" && !Sniff(b) {
				t.Errorf("%s: not sniffed", format)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	reg := func(name string, size int64) tar.Header {
		return tar.Header{Name: name, Size: size, Typeflag: tar.TypeReg}
	}
	many := make([]tar.Header, 0, 100)
	for i := range 100 {
		many = append(many, reg(fmt.Sprint("m", i), 1))
	}
	good := tarOf(t, reg("a", 600), reg("b", 10))
	patch := func(off int, with string) []byte {
		b := bytes.Clone(good)
		copy(b[off:], with)
		resum(b, off&^511)
		return b
	}
	unsupported, corrupt, limit := errors.ErrUnsupported, formats.ErrCorrupt, formats.ErrLimit
	cases := []struct {
		name string
		b    []byte
		want error
	}{
		{"symbolic link", tarOf(t, tar.Header{Name: "a", Linkname: "/etc/passwd", Typeflag: tar.TypeSymlink}), unsupported},
		{"hard link", tarOf(t, reg("b", 1), tar.Header{Name: "a", Linkname: "b", Typeflag: tar.TypeLink}), unsupported},
		{"character device", tarOf(t, tar.Header{Name: "a", Typeflag: tar.TypeChar}), unsupported},
		{"block device", tarOf(t, tar.Header{Name: "a", Typeflag: tar.TypeBlock}), unsupported},
		{"fifo", tarOf(t, tar.Header{Name: "a", Typeflag: tar.TypeFifo}), unsupported},
		{"long link", tarOf(t, tar.Header{Name: "a", Linkname: strings.Repeat("x", 200), Typeflag: tar.TypeSymlink, Format: tar.FormatGNU}), unsupported},
		{"gnu sparse", patch(offTypeflag, "S"), unsupported},
		{"unknown type", patch(offTypeflag, "Q"), unsupported},
		{"unknown pax record", tarOf(t, tar.Header{Name: "a", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"VENDOR.x": "y"}}), nil},
		{"duplicate", tarOf(t, reg("a", 1), reg("b", 1), reg("a", 1)), corrupt},
		{"duplicate in disguise", tarOf(t, reg("a", 1), reg("./a", 1)), corrupt},
		{"file and directory", tarOf(t, reg("a/b", 1), reg("a", 1)), corrupt},
		{"directory and file", tarOf(t, reg("a", 1), tar.Header{Name: "a/", Typeflag: tar.TypeDir}), corrupt},
		{"absolute", tarOf(t, reg("/etc/passwd", 1)), corrupt},
		{"parent", tarOf(t, reg("../a", 1)), corrupt},
		{"parent inside", tarOf(t, reg("a/../../b", 1)), corrupt},
		{"parent alone", tarOf(t, reg("..", 1)), corrupt},
		{"double slash", tarOf(t, reg("a//b", 1)), corrupt},
		{"newline", tarOf(t, reg("a\nb", 1)), corrupt},
		{"escape", tarOf(t, reg("a\x1b[2J", 1)), corrupt},
		{"not utf-8", tarOf(t, tar.Header{Name: "a\xff", Size: 1, Format: tar.FormatGNU}), corrupt},
		{"nul", patch(0, "a\x00b"), corrupt},
		{"empty name", patch(0, "\x00"), corrupt},
		{"long name", tarOf(t, reg(strings.Repeat("n", maxName+1), 1)), limit},
		{"deep name", tarOf(t, reg(strings.Repeat("d/", maxDepth)+"f", 1)), limit},
		{"very long name", tarOf(t, reg(strings.Repeat("n", maxExtended+1), 1)), limit},
		{"size past the end", patch(offSize, "00000777777\x00"), corrupt},
		{"negative size", patch(offSize, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), corrupt},
		{"huge size", patch(offSize, "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff"), corrupt},
		{"overflowing size", patch(offSize, "\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), corrupt},
		{"size not a number", patch(offSize, "0000000089\x00\x00"), corrupt},
		{"bad checksum", append(append([]byte("c"), good[1:]...), 0), corrupt},
		{"bad checksum later", func() []byte { b := bytes.Clone(good); b[512+1024] ^= 1; return b }(), corrupt},
		{"padding", func() []byte { b := bytes.Clone(good); b[512+700] = 1; return b }(), corrupt},
		{"no end", good[:len(good)-1024], corrupt},
		{"half an end", good[:len(good)-512], corrupt},
		{"after the end", append(bytes.Clone(good), good...), corrupt},
		{"byte after the end", append(bytes.Clone(good), 1), corrupt},
		{"long trailer", append(bytes.Clone(good), make([]byte, maxTrailer)...), limit},
		{"directory with data", func() []byte { b := patch(offTypeflag, "5"); return b }(), corrupt},
		{"truncated header", good[:512+1024+100], corrupt},
		{"zeros", make([]byte, 10240), formats.ErrUnknown},
		{"text", bytes.Repeat([]byte("hello "), 1000), formats.ErrUnknown},
		{"empty", nil, formats.ErrUnknown},
		{"many", tarOf(t, many...), nil},
	}
	for _, c := range cases {
		a, err := open(c.b, nil)
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: Open = %v, want %v", c.name, err, c.want)
		}
		if (a == nil) != (err != nil) {
			t.Errorf("%s: archive %v with error %v", c.name, a, err)
		}
	}
}

func paxTar(records string, size int) []byte {
	x := headerBlock("x", 'x', int64(len(records)), 0)
	b := append(x[:], records...)
	b = append(b, make([]byte, padded(int64(len(b)))-int64(len(b)))...)
	h := headerBlock("a", '0', 0, 0)
	b = append(append(b, h[:]...), bytes.Repeat([]byte{'y'}, size)...)
	return append(b, make([]byte, padded(int64(size))-int64(size)+1024)...)
}

func TestPax(t *testing.T) {
	cases := []struct {
		records string
		size    int
		want    error
	}{
		{"12 size=600\n12 path=./q\n", 600, nil},
		{"22 GNU.sparse.major=1\n", 0, errors.ErrUnsupported},
		{"12 size=-60\n", 0, formats.ErrCorrupt},
		{"12 size=+60\n", 60, formats.ErrCorrupt},
		{"13 size=9999\n", 600, formats.ErrCorrupt},
		{"27 size=99999999999999999999\n", 0, formats.ErrCorrupt},
		{"99 path=q\n", 0, formats.ErrCorrupt},
		{"5 a=\n", 0, nil},
		{"3 a\n", 0, formats.ErrCorrupt},
		{"0 a=b\n", 0, formats.ErrCorrupt},
		{"-1 a=b\n", 0, formats.ErrCorrupt},
		{"6 a=b\n0", 0, formats.ErrCorrupt},
		{"path=q\n", 0, formats.ErrCorrupt},
		{"14 path=../../a\n", 0, formats.ErrCorrupt},
		{"16 path=../../a\n", 0, formats.ErrCorrupt},
		{"12 path=a\x00b\n", 0, formats.ErrCorrupt},
		{"11 path=/a\n", 0, formats.ErrCorrupt},
	}
	for _, c := range cases {
		a, err := open(paxTar(c.records, c.size), nil)
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%q: Open = %v, want %v", c.records, err, c.want)
		}
		if err == nil && c.size > 0 && (a.Members()[0].Name != "q" || a.Members()[0].Size != 600) {
			t.Errorf("%q: %+v", c.records, a.Members()[0])
		}
	}
}

func TestDropSlash(t *testing.T) {
	b := tarOf(t, tar.Header{Name: "/description.xml", Size: 3}, tar.Header{Name: "/", Typeflag: tar.TypeDir})
	a, err := open(b, &Options{DropSlash: true})
	if err != nil {
		t.Fatal(err)
	}
	if m := a.Members(); len(m) != 1 || m[0].Name != "description.xml" || m[0].Stored != "/description.xml" || len(a.Notes()) != 1 {
		t.Errorf("%+v, notes %q", m, a.Notes())
	}
	if _, err := open(tarOf(t, tar.Header{Name: "//x", Size: 1}), &Options{DropSlash: true}); !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("two slashes: %v", err)
	}
	if _, err := open(tarOf(t, tar.Header{Name: "/../x", Size: 1}), &Options{DropSlash: true}); !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("slash and dots: %v", err)
	}
}

// A change of any one byte of our archives, members' data aside, is refused.
func TestAnyByteFlipped(t *testing.T) {
	b := sample(t)
	a, err := open(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]bool, len(b))
	for _, m := range a.Members() {
		for i := m.Off; i < m.Off+m.Size; i++ {
			data[i] = true
		}
	}
	for i := range b {
		for _, x := range []byte{0x01, 0x10, 0x20, 0x80, 0xff} {
			b[i] ^= x
			got, err := open(b, nil)
			b[i] ^= x
			if !data[i] && err == nil {
				t.Fatalf("byte %d ^ %#x: accepted: %+v", i, x, got.Members())
			}
			if data[i] && err != nil {
				t.Fatalf("byte %d of data ^ %#x: %v", i, x, err)
			}
		}
	}
}

func TestTruncated(t *testing.T) {
	b := sample(t)
	a, _ := open(b, nil)
	for n := int64(0); n < a.End()+1024; n += 256 {
		if got, err := open(b[:n], nil); err == nil {
			t.Errorf("%d of %d bytes: accepted, %d members", n, len(b), len(got.Members()))
		}
	}
	// A file that shrinks after it was opened.
	m := a.Members()[2]
	a.f.R = bytes.NewReader(b[:m.Off+100])
	if n, err := a.OpenMember(m).ReadAt(make([]byte, 200), 0); n != 100 || !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("ReadAt of a shrunk file = %d, %v", n, err)
	}
}

func TestFaultyReader(t *testing.T) {
	b := sample(t)
	a, _ := open(b, nil)
	for _, m := range a.Members() {
		_, err := Open(testimg.FaultyReader{R: bytes.NewReader(b), Bad: m.Header + 5}, int64(len(b)), nil)
		if !errors.Is(err, testimg.ErrInjected) {
			t.Errorf("fault in the header of %.20s: %v", m.Name, err)
		}
	}
}

// endless is ten million empty members, or one header for ever.
type endless struct{ same bool }

func (e endless) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = 0
	}
	for i := 0; i+blockSize <= len(p); i += blockSize {
		n := (off + int64(i)) / blockSize
		name := fmt.Sprintf("m%d", n)
		if e.same {
			name = strings.Repeat("n", 100)
		}
		h := headerBlock(name, '0', 0, 0)
		if e.same {
			h = headerBlock(name, 'g', 0, 0)
		}
		copy(p[i:], h[:])
	}
	return len(p), nil
}

func TestTenMillionMembers(t *testing.T) {
	for _, same := range []bool{false, true} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		_, err := Open(endless{same}, 10_000_000*blockSize, nil)
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, formats.ErrLimit) {
			t.Errorf("Open = %v, want ErrLimit", err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 || took > 15*time.Second {
			t.Errorf("%d MiB allocated in %v", n>>20, took)
		}
	}
}

func TestWriterRefuses(t *testing.T) {
	w := NewWriter(io.Discard, nil)
	for _, name := range []string{"", "/a", "../a", "a/..", "a//b", "a\nb", "a\xff", strings.Repeat("n", maxName+1)} {
		if _, err := w.Create(name, 0); err == nil {
			t.Errorf("Create(%.20q) was accepted", name)
		}
	}
	if _, err := w.Create("a", -1); err == nil {
		t.Error("a size left open was accepted without WriterAt")
	}
	e, err := w.Create("a", 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Write([]byte("xyz")); err == nil {
		t.Error("a write past the size was accepted")
	}
	if _, err := w.Create("b", 0); err == nil {
		t.Error("a member that lacks bytes was accepted")
	}
	if err := w.Close(); err == nil {
		t.Error("Close after a failure succeeded")
	}
	w = NewWriter(io.Discard, nil)
	if err := w.WriteFile("a", nil); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteFile("a", nil); err == nil {
		t.Error("a duplicate was accepted")
	}
}

func TestReplace(t *testing.T) {
	var buf, want formatstest.Buffer
	w := NewWriterAt(&buf, nil)
	e, err := w.Create("a", 700)
	if err != nil {
		t.Fatal(err)
	}
	e.Write(bytes.Repeat([]byte{9}, 700))
	if err := w.Replace(e, make([]byte, 600)); err == nil {
		t.Error("the member being written was replaced")
	}
	if err := w.WriteFile("b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{512, 1025, 0} {
		if err := w.Replace(e, make([]byte, n)); err == nil {
			t.Errorf("700 bytes were replaced by %d", n)
		}
	}
	now := bytes.Repeat([]byte{7}, 513)
	if err := w.Replace(e, now); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w = NewWriterAt(&want, nil)
	w.WriteFile("a", now)
	w.WriteFile("b", []byte("x"))
	w.Close()
	if !bytes.Equal(buf.Bytes(), want.Bytes()) {
		t.Error("a replaced member differs from one written so")
	}
}

func TestFaultyWriter(t *testing.T) {
	for n := int64(0); ; n++ {
		var buf formatstest.Buffer
		fw := &testimg.FaultyWriter{W: &buf, FailAt: n}
		w := NewWriterAt(fw, nil)
		err := func() error {
			e, err := w.Create(strings.Repeat("n", 300), -1)
			if err != nil {
				return err
			}
			if _, err := e.Write([]byte("data")); err != nil {
				return err
			}
			return w.WriteFile("b", []byte("x"))
		}()
		if cerr := w.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			if n < 7 {
				t.Errorf("only %d writes", n)
			}
			return
		}
		if !errors.Is(err, testimg.ErrInjected) {
			t.Fatalf("write %d: %v", n, err)
		}
	}
}

// sparse is a file of which only some runs are kept.
type sparse struct{ runs map[int64][]byte }

func (s sparse) WriteAt(p []byte, off int64) (int, error) {
	s.runs[off] = bytes.Clone(p)
	return len(p), nil
}

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for at, b := range s.runs {
		if at >= off && at < off+int64(len(p)) {
			copy(p[at-off:], b)
		}
		if at < off && at+int64(len(b)) > off {
			copy(p, b[off-at:])
		}
	}
	return len(p), nil
}

func TestLargeMembers(t *testing.T) {
	for _, name := range []string{"disk", strings.Repeat("d", 60) + "/" + strings.Repeat("n", 60), strings.Repeat("n", 200)} {
		for _, open := range []bool{false, true} {
			s := sparse{map[int64][]byte{}}
			w := NewWriterAt(s, nil)
			const size = 9<<30 + 77
			announced := int64(size)
			if open {
				announced = -1
			}
			e, err := w.Create(name, announced)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := e.WriteAt([]byte("end"), size-3); err != nil {
				t.Fatal(err)
			}
			err = w.WriteFile("after", []byte("x"))
			if open && len(name) == 121 {
				if err == nil {
					t.Error("a prefix under the GNU magic was accepted")
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			a, err := Open(s, w.Size(), nil)
			if err != nil {
				t.Fatalf("%d: %v", len(name), err)
			}
			m := a.Members()[0]
			if m.Name != name || m.Size != size || len(a.Members()) != 2 {
				t.Errorf("got %.20q of %d bytes", m.Name, m.Size)
			}
			tr := tar.NewReader(io.NewSectionReader(s, 0, 4096))
			h, err := tr.Next()
			if err != nil || h.Name != name || h.Size != size {
				t.Errorf("archive/tar: %+v, %v", h, err)
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(sample(f))
	f.Add(tarOf(f, tar.Header{Name: strings.Repeat("n", 150), Size: 5, Format: tar.FormatGNU}))
	f.Add(tarOf(f, tar.Header{Name: strings.Repeat("n", 150), Size: 5, Format: tar.FormatPAX}))
	f.Add(paxTar("12 size=600\n12 path=./q\n", 600))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		a, err := open(b, &Options{DropSlash: true})
		if err != nil {
			if a != nil {
				t.Fatal("archive with an error")
			}
			return
		}
		var end int64
		for _, m := range a.Members() {
			if !fs.ValidPath(m.Name) || m.Off < end || m.Off+m.Size > int64(len(b)) || m.Header < end {
				t.Fatalf("%+v after %d", m, end)
			}
			end = m.Off + m.Size
			got, err := fs.ReadFile(a, m.Name)
			if err != nil || int64(len(got)) != m.Size {
				t.Fatalf("%q: %d bytes, %v", m.Name, len(got), err)
			}
		}
		if err := fs.WalkDir(a, ".", func(_ string, _ fs.DirEntry, err error) error { return err }); err != nil {
			t.Fatal(err)
		}
	})
}
