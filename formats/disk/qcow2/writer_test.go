package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"imgmaint/formats"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

// create makes the writer that o asks for.
func create(w io.WriterAt, size int64, o *WriterOptions) (formats.Writer, error) {
	if o.Compression != "" {
		return NewCompressedWriter(w, size, o)
	}
	return NewWriter(w, size, o)
}

func (o WriterOptions) String() string {
	return fmt.Sprintf("v%d %d %s%d", o.Version, o.ClusterSize, o.Compression, o.Level)
}

// writerRows are options of all kinds.
func writerRows() []WriterOptions {
	var rows []WriterOptions
	for cs := int64(512); cs <= 2<<20; cs *= 2 {
		rows = append(rows, WriterOptions{ClusterSize: cs}, WriterOptions{ClusterSize: cs, Compression: Zlib},
			WriterOptions{ClusterSize: cs, Compression: Zstd})
	}
	rows = append(rows, WriterOptions{}, WriterOptions{Version: 2}, WriterOptions{Version: 2, Compression: Zlib},
		WriterOptions{Version: 2, ClusterSize: 4096}, WriterOptions{Compression: Zlib, Level: 9}, WriterOptions{Compression: Zlib, Level: 1},
		WriterOptions{Compression: Zstd, Level: 1}, WriterOptions{Compression: Zstd, Level: 22})
	return rows
}

func TestWriter(t *testing.T) {
	for _, o := range writerRows() {
		t.Run(o.String(), func(t *testing.T) {
			t.Parallel()
			for _, size := range []int64{0, 1, 1<<20 + 1234} {
				if size > 1 && (o.ClusterSize == 1024 || o.ClusterSize == 8192 || o.ClusterSize > 128<<10 && o.ClusterSize < 2<<20) {
					continue // like their neighbours
				}
				err := formatstest.TestWriter(
					func(w io.WriterAt, size int64) (formats.Writer, error) { return create(w, size, &o) },
					func(r io.ReaderAt, n int64) (formats.Image, error) {
						if n%max(o.ClusterSize, 512) != 0 {
							return nil, fmt.Errorf("the file has %d bytes", n)
						}
						img, err := Open(r, n, nil)
						if err != nil {
							return nil, err
						}
						if rep, err := img.Check(); err != nil || rep.Corruptions+rep.Leaks > 0 || rep.ImageEnd != n {
							return nil, fmt.Errorf("Check: %+v, %v", rep, err)
						}
						return formats.Section(img, 0, size)
					}, testimg.Disk(size, 21))
				if err != nil {
					t.Errorf("size %d: %v", size, err)
				}
			}
		})
	}
}

// writeFile writes a disk through WriteAt, or as convert does with encoders.
func writeFile(t testing.TB, path string, disk []byte, o *WriterOptions) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := create(f, int64(len(disk)), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := copyDisk(w, disk); err != nil {
		t.Fatal(err)
	}
}

func copyDisk(w formats.Writer, disk []byte) error {
	step := w.(interface{ ClusterSize() int64 }).ClusterSize()
	cw, _ := w.(formats.ClusterWriter)
	var enc formats.Encoder
	if cw != nil {
		enc = cw.NewEncoder()
	}
	for off := int64(0); off < int64(len(disk)); off += step {
		p := disk[off:min(off+step, int64(len(disk)))]
		if len(bytes.TrimLeft(p, "\x00")) == 0 {
			continue
		}
		var err error
		if cw != nil {
			var b []byte
			if b, err = enc.Encode(nil, p); err == nil {
				err = cw.WriteEncoded(off, b)
			}
		} else {
			_, err = w.WriteAt(p, off)
		}
		if err != nil {
			return err
		}
	}
	return w.Close()
}

// What we write QEMU reads, finds in order, and maps like we do.
func TestWriterQemu(t *testing.T) {
	testimg.Tool(t, "qemu-img")
	const size = 4<<20 + 5*512
	raw, disk := testDisk(t, size)
	for _, o := range writerRows() {
		t.Run(o.String(), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "a.qcow2")
			writeFile(t, path, disk, &o)
			testimg.Run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, path)
			q, out := runQemuCheck(t, path)
			if q.Corruptions+q.Leaks+q.CheckErrors != 0 {
				t.Errorf("qemu-img check: %s", out)
			}
			checkSame(t, path)
		})
	}
}

// Compressed images are at most 2 % larger than QEMU's with zlib. The encoder
// for zstd is another one than QEMU's, and comes within 5 %.
func TestWriterCompressedSize(t *testing.T) {
	testimg.Tool(t, "qemu-img")
	// A program and source text: what is at hand of what a disk holds.
	names, _ := filepath.Glob("*.go")
	var disk []byte
	for _, name := range append(names, testimg.Tool(t, "qemu-img")) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		disk = append(disk, b...)
	}
	disk = append(disk, make([]byte, -len(disk)&511)...)
	raw := testimg.WriteFile(t, "raw", disk)
	for _, o := range []WriterOptions{{Compression: Zlib, ClusterSize: 16384}, {Compression: Zlib, ClusterSize: 4096}, {Compression: Zstd, ClusterSize: 16384}} {
		dir := t.TempDir()
		theirs, ours := filepath.Join(dir, "theirs"), filepath.Join(dir, "ours")
		testimg.Run(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o",
			fmt.Sprintf("compression_type=%s,cluster_size=%d", o.Compression, o.ClusterSize), raw, theirs)
		writeFile(t, ours, disk, &o)
		a, err1 := os.Stat(ours)
		b, err2 := os.Stat(theirs)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		t.Logf("%v: %d bytes, QEMU %d", o, a.Size(), b.Size())
		// Theirs may end within a cluster.
		percent := int64(102)
		if o.Compression == Zstd {
			percent = 105
		}
		if (a.Size()-o.ClusterSize)*100 > b.Size()*percent {
			t.Errorf("%v: %d bytes, QEMU takes %d", o, a.Size(), b.Size())
		}
	}
}

// More than one window of refcounts, and more than one group of L2 tables.
func TestWriterLarge(t *testing.T) {
	testimg.Tool(t, "qemu-img")
	dir := t.TempDir()
	for _, o := range []WriterOptions{{ClusterSize: 512}, {ClusterSize: 512, Compression: Zlib}, {ClusterSize: 512, Compression: Zstd}} {
		disk := make([]byte, 20<<20)
		rnd := rand.New(rand.NewPCG(9, 9))
		for i := range disk { // more than a window when compressed, too
			disk[i] = byte(rnd.Uint32() & 0x7f)
		}
		raw := filepath.Join(dir, "raw")
		if err := os.WriteFile(raw, disk, 0o600); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "a.qcow2")
		writeFile(t, path, disk, &o)
		testimg.Run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, path)
		testimg.Run(t, "qemu-img", "check", "-q", path)
		checkVerdict(t, path)
		if fi, err := os.Stat(path); err != nil || fi.Size() < 17<<20 {
			t.Errorf("%v: a file of %d bytes has one window only, %v", o, fi.Size(), err)
		}
	}
}

// A disk of 16 TiB with little on it takes little: file, memory and time.
func TestWriterHugeDisk(t *testing.T) {
	testimg.Tool(t, "qemu-img")
	path := filepath.Join(t.TempDir(), "a.qcow2")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 16 << 40
	w, err := NewWriter(f, size, nil)
	if err != nil {
		t.Fatal(err)
	}
	block := testimg.Disk(200_000, 1)
	for _, off := range []int64{0, 5 << 30, 9<<40 + 12345, size - 200_000} {
		if _, err := w.WriteAt(block, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	testimg.Run(t, "qemu-img", "check", "-q", path)
	fi, err := f.Stat()
	if err != nil || fi.Size() > 3<<20 {
		t.Fatalf("the file has %d bytes, %v", fi.Size(), err)
	}
	img, err := Open(f, fi.Size(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(ourMap(t, img)), fmt.Sprint(qemuMap(t, path)); got != want {
		t.Errorf("map\n got %s\nwant %s", got, want)
	}
	b := make([]byte, len(block))
	if _, err := img.ReadAt(b, 9<<40+12345); err != nil || !bytes.Equal(b, block) {
		t.Errorf("the block at 9 TiB differs, %v", err)
	}
}

func TestWriterOverlay(t *testing.T) {
	testimg.Tool(t, "qemu-img")
	const size = 3<<20 + 1024
	base := testimg.Disk(2<<20+512, 8)
	for _, o := range []WriterOptions{{}, {Version: 2}, {ClusterSize: 4096}, {ClusterSize: 512, Version: 2}, {Compression: Zlib}, {Compression: Zstd}} {
		for _, compat := range []string{"raw", "qcow2"} {
			t.Run(o.String()+" "+compat, func(t *testing.T) {
				dir := t.TempDir()
				raw := filepath.Join(dir, "base.raw")
				if err := os.WriteFile(raw, base, 0o600); err != nil {
					t.Fatal(err)
				}
				name := raw
				if compat == "qcow2" {
					name = filepath.Join(dir, "base.qcow2")
					testimg.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, name)
				}
				o.Backing = &formats.Reference{Kind: formats.RefBacking, Name: name, Format: compat}
				o.BackingImage = memDisk(base)
				path := filepath.Join(dir, "top.qcow2")
				f, err := os.Create(path)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				w, err := create(f, size, &o)
				if err != nil {
					t.Fatal(err)
				}
				want := make([]byte, size)
				copy(want, base)
				zeros := w.(interface{ WriteZeros(off, n int64) error })
				rnd := rand.New(rand.NewPCG(1, 1))
				for off := rnd.Int64N(9000); off < size; {
					n := min(1+rnd.Int64N(1<<rnd.IntN(19)), size-off)
					if rnd.IntN(2) == 0 {
						clear(want[off : off+n])
						err = zeros.WriteZeros(off, n)
					} else {
						for i := range n {
							want[off+i] = byte(off + i>>9)
						}
						_, err = w.WriteAt(want[off:off+n], off)
					}
					if err != nil {
						t.Fatal(err)
					}
					off += n
					if rnd.IntN(2) == 0 {
						off += rnd.Int64N(200_000)
					}
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				checkSame(t, path)
				if got := qemuRaw(t, path); !bytes.Equal(got, want) {
					t.Error("qemu-img reads other contents")
				}
			})
		}
	}
}

func TestWriteZeros(t *testing.T) {
	disk := testimg.Disk(1<<20+512, 2)
	for _, o := range []WriterOptions{{}, {Compression: Zlib}, {ClusterSize: 4096}} {
		var f formatstest.Buffer
		w, err := create(&f, int64(len(disk)), &o)
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, len(disk))
		copy(want[:100_000], disk)
		copy(want[300_001:], disk[300_001:])
		for _, step := range []error{
			second(w.WriteAt(want[:100_000], 0)),
			w.(interface{ WriteZeros(off, n int64) error }).WriteZeros(100_000, 200_001),
			second(w.WriteAt(want[300_001:1<<20], 300_001)),
			w.(interface{ WriteZeros(off, n int64) error }).WriteZeros(1<<20, 512),
			w.Close(),
		} {
			if step != nil {
				t.Fatal(step)
			}
		}
		clear(want[1<<20:])
		img, err := Open(bytes.NewReader(f.Bytes()), int64(len(f.Bytes())), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := formatstest.TestImage(img, want); err != nil {
			t.Errorf("%v: %v", o, err)
		}
	}
}

func second(_ int, err error) error { return err }

// countingWriter counts writes and keeps the largest.
type countingWriter struct {
	formatstest.Buffer
	n, largest int
	same       *byte // first byte of the largest write
}

func (c *countingWriter) WriteAt(p []byte, off int64) (int, error) {
	c.n++
	if len(p) > c.largest {
		c.largest, c.same = len(p), &p[0]
	}
	return c.Buffer.WriteAt(p, off)
}

// A large write goes through in one piece, uncopied.
func TestWriteInOnePiece(t *testing.T) {
	p := testimg.Disk(1<<20, 1)
	for _, cs := range []int64{4096, 65536, 1 << 20} {
		var c countingWriter
		w, err := NewWriter(&c, 4<<20, &WriterOptions{ClusterSize: cs})
		if err != nil {
			t.Fatal(err)
		}
		for i := range int64(4) {
			before := c.n
			if _, err := w.WriteAt(p, i<<20); err != nil {
				t.Fatal(err)
			}
			if c.n != before+1 || c.largest != len(p) || c.same != &p[0] {
				t.Errorf("cluster size %d: %d writes, the largest of %d bytes", cs, c.n-before, c.largest)
			}
		}
		if n := testing.AllocsPerRun(1, func() { w.WriteAt(nil, 4<<20) }); n > 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

func TestWriterFaults(t *testing.T) {
	disk := testimg.Disk(2<<20, 4)
	for _, o := range []WriterOptions{{ClusterSize: 512}, {}, {Compression: Zlib, ClusterSize: 4096}} {
		for at := int64(0); ; at++ {
			var f formatstest.Buffer
			fw := &testimg.FaultyWriter{W: &f, FailAt: at}
			w, err := create(fw, int64(len(disk)), &o)
			if err == nil {
				err = copyDisk(w, disk)
			}
			if err == nil {
				if fw.Writes() > at {
					t.Fatalf("%v: write %d failed and nobody said so", o, at)
				}
				break
			}
			if !errors.Is(err, testimg.ErrInjected) {
				t.Fatalf("%v: write %d: %v", o, at, err)
			}
			if w != nil {
				if err := w.Close(); err == nil {
					t.Fatalf("%v: Close after the failure of write %d succeeded", o, at)
				}
			}
			if _, err := Open(bytes.NewReader(f.Bytes()), int64(len(f.Bytes())), nil); err == nil {
				t.Fatalf("%v: after the failure of write %d the file opens", o, at)
			}
			if at > 400 {
				at += 97
			}
		}
	}
}

func TestWriterRefuses(t *testing.T) {
	var f formatstest.Buffer
	for name, o := range map[string]*WriterOptions{
		"version":       {Version: 4},
		"cluster 3000":  {ClusterSize: 3000},
		"cluster 256":   {ClusterSize: 256},
		"cluster 4M":    {ClusterSize: 4 << 20},
		"method":        {Compression: "lzma"},
		"zstd v2":       {Compression: Zstd, Version: 2},
		"zlib level":    {Compression: Zlib, Level: 10},
		"zstd level":    {Compression: Zstd, Level: -1},
		"no format":     {Backing: &formats.Reference{Name: "a"}},
		"no name":       {Backing: &formats.Reference{Format: "raw"}},
		"long name":     {Backing: &formats.Reference{Name: string(make([]byte, 1024)), Format: "raw"}},
		"name too long": {Backing: &formats.Reference{Name: string(make([]byte, 500)), Format: "raw"}, ClusterSize: 512},
		"long format":   {Backing: &formats.Reference{Name: "a", Format: "0123456789abcdef"}},
	} {
		if w, err := create(&f, 1<<20, o); err == nil {
			t.Errorf("%s: accepted as %T", name, w)
		}
	}
	if _, err := NewWriter(&f, 1<<62, nil); !errors.Is(err, formats.ErrLimit) {
		t.Errorf("exabytes: %v", err)
	}
	if _, err := NewWriter(&f, -1, nil); err == nil {
		t.Error("a negative size was accepted")
	}
	w, err := NewWriter(&f, 1<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(make([]byte, 10), 50); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{-1, 0, 59, 1<<20 - 9} {
		if _, err := w.WriteAt(make([]byte, 10), off); err == nil {
			t.Errorf("write of 10 bytes at %d after 60 was accepted", off)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err == nil {
		t.Error("a second Close succeeded")
	}
	if _, err := w.WriteAt([]byte{1}, 1000); err == nil {
		t.Error("a write after Close was accepted")
	}
	// An overlay can't invent the rest of a cluster.
	w, err = NewWriter(&f, 1<<20, &WriterOptions{Backing: &formats.Reference{Name: "a", Format: "raw"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(make([]byte, 512), 0); err == nil {
		t.Error("a part of a cluster of an overlay was accepted")
	}
}
