package gzindex

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	kgzip "github.com/klauspost/compress/gzip"

	"imgmaint/formats"
	"imgmaint/formats/formatstest"
	"imgmaint/formats/internal/deflate"
	"imgmaint/internal/testimg"
)

func gz(t testing.TB, b []byte, level int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func open(b []byte, opts *Options) (*Image, error) {
	return Open(bytes.NewReader(b), int64(len(b)), opts)
}

func TestImage(t *testing.T) {
	disk := testimg.Disk(5<<20+321, 4)
	random := make([]byte, 3<<20)
	rnd := rand.New(rand.NewPCG(1, 1))
	for i := range random {
		random[i] = byte(rnd.Uint32())
	}
	holes := make([]byte, 6<<20+7000)
	copy(holes[1<<20:], random[:5000])
	copy(holes[4<<20+1:], disk[:300000])
	inputs := map[string][]byte{"disk": disk, "random": random, "holes": holes, "empty": {}, "one": {1}, "zeros": make([]byte, 1<<20+5)}
	for name, want := range inputs {
		for _, level := range []int{gzip.HuffmanOnly, gzip.NoCompression, 1, 6, 9} {
			h := sha256.New()
			img, err := open(gz(t, want, level), &Options{Tee: h, MaxSize: int64(len(want)) + 1, Memory: int64(level) << 20})
			if err != nil {
				t.Errorf("%s, level %d: %v", name, level, err)
				continue
			}
			if sum := sha256.Sum256(want); !bytes.Equal(h.Sum(nil), sum[:]) {
				t.Errorf("%s, level %d: tee saw other bytes", name, level)
			}
			if err := formatstest.TestImage(img, want); err != nil {
				t.Errorf("%s, level %d: %v", name, level, err)
			}
		}
	}
	img, err := open(gz(t, holes, 6), nil)
	if err != nil {
		t.Fatal(err)
	}
	var zero int64
	for e := range formats.Extents(img, 0) {
		if e.Kind == formats.Zero {
			zero += e.Len
		}
	}
	if zero < 5<<20+500000 {
		t.Errorf("%d bytes of zeros noted", zero)
	}
}

func TestMembers(t *testing.T) {
	want := testimg.Disk(2<<20, 9)
	var b []byte
	for off := 0; off < len(want); {
		n := min(1+off%70000, len(want)-off)
		b = append(b, gz(t, want[off:off+n], 1+off%9)...)
		off += n
		if off%3 == 0 {
			b = append(b, gz(t, nil, 6)...)
		}
	}
	img, err := open(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := formatstest.TestImage(img, want); err != nil {
		t.Error(err)
	}
}

// Files of gzip(1) and of klauspost's encoder, with every part of a header.
func TestOthers(t *testing.T) {
	want := testimg.Disk(3<<20, 11)
	p := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(p, want, 0o600); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, level := range []string{"-1", "-6", "-9"} {
		files["gzip"+level] = []byte(testimg.Run(t, "gzip", "-c", level, p))
	}
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Name, w.Comment, w.Extra = "name", "comment", make([]byte, 1000)
	w.Write(want)
	w.Close()
	files["header"] = buf.Bytes()
	for level := -3; level <= 9; level++ {
		var buf bytes.Buffer
		w, err := kgzip.NewWriterLevel(&buf, level)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(want)
		w.Close()
		files[fmt.Sprint("klauspost ", level)] = buf.Bytes()
	}
	for name, b := range files {
		img, err := open(b, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := make([]byte, len(want))
		if n, err := img.ReadAt(got, 0); n != len(want) || err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
	}
}

func TestRefused(t *testing.T) {
	disk := testimg.Disk(300000, 3)
	good := gz(t, disk, 6)
	patch := func(off int, c byte) []byte {
		b := bytes.Clone(good)
		b[off] = c
		return b
	}
	raw := func(deflated []byte) []byte {
		b := append(bytes.Clone(good[:10]), deflated...)
		return append(b, make([]byte, 8)...)
	}
	cases := []struct {
		name string
		b    []byte
		want error
	}{
		{"empty", nil, formats.ErrCorrupt},
		{"text", []byte("hello, world, hello"), formats.ErrUnknown},
		{"method", patch(2, 7), errors.ErrUnsupported},
		{"flags", patch(3, 0x20), formats.ErrCorrupt},
		{"cut name", append(patch(3, 8)[:10], "name"...), formats.ErrCorrupt},
		{"long name", append(append(bytes.Clone(good[:3]), 8, 0, 0, 0, 0, 0, 0), bytes.Repeat([]byte("n"), 1<<20)...), formats.ErrLimit},
		{"crc", patch(len(good)-8, good[len(good)-8]^1), formats.ErrCorrupt},
		{"isize", patch(len(good)-4, good[len(good)-4]^1), formats.ErrCorrupt},
		{"garbage behind", append(bytes.Clone(good), "garbage"...), formats.ErrCorrupt},
		{"zeros behind", append(bytes.Clone(good), make([]byte, 512)...), formats.ErrCorrupt},
		{"block type 3", raw([]byte{7}), formats.ErrCorrupt},
		{"stored length", raw([]byte{1, 1, 0, 0, 0, 0}), formats.ErrCorrupt},
		{"distance before the start", raw([]byte{0x63, 0x04, 0x42, 0x00, 0x00}), formats.ErrCorrupt},
		{"oversubscribed", raw([]byte{5, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}), formats.ErrCorrupt},
		{"no codes", raw([]byte{5, 0, 0, 0, 0, 0, 0, 0, 0}), formats.ErrCorrupt},
	}
	for _, c := range cases {
		img, err := open(c.b, nil)
		if !errors.Is(err, c.want) || img != nil {
			t.Errorf("%s: Open = %v, want %v", c.name, err, c.want)
		}
	}
	for n := range len(good) {
		if n > 300 && n < len(good)-300 && n%997 != 0 {
			continue
		}
		if _, err := open(good[:n], nil); !errors.Is(err, formats.ErrCorrupt) {
			t.Fatalf("%d of %d bytes: %v", n, len(good), err)
		}
	}
	// Bytes of the header that carry nothing are not guarded by a sum, and
	// another distance may lead to the same bytes.
	for i := range good {
		if i >= 3 && i < 10 || i > 1000 && i%61 != 0 {
			continue
		}
		for _, x := range []byte{1, 0x80} {
			var got bytes.Buffer
			if _, err := open(patch(i, good[i]^x), &Options{Tee: &got}); err == nil && !bytes.Equal(got.Bytes(), disk) {
				t.Fatalf("byte %d ^ %#x was accepted", i, x)
			}
		}
	}
}

func TestBombs(t *testing.T) {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	block := make([]byte, 1<<20)
	for range 64 {
		w.Write(block)
	}
	w.Close()
	bomb := buf.Bytes()
	for _, limit := range []int64{1, 1 << 20, 64<<20 - 1} {
		if _, err := open(bomb, &Options{MaxSize: limit}); !errors.Is(err, formats.ErrLimit) {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	img, err := open(bomb, &Options{MaxSize: 64 << 20})
	runtime.ReadMemStats(&after)
	if err != nil || img.Size() != 64<<20 {
		t.Fatal(err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 24<<20 {
		t.Errorf("%d MiB allocated", n>>20)
	}
	if e, err := img.ExtentAt(5); e.Kind != formats.Zero || e.End() != 64<<20 {
		t.Errorf("extent %+v, %v", e, err)
	}
}

// The index stays within its memory when windows do not compress and zeros
// come in small runs.
func TestIndexMemory(t *testing.T) {
	b := &builder{d: &inflater{}, m: &Image{}, spacing: 1, minRun: zeroBlock, zeroFrom: -1, memory: 2 << 20}
	b.enc = mustEncoder(t)
	rnd := rand.New(rand.NewPCG(3, 3))
	for i := range b.d.out[:windowSize] {
		b.d.out[i] = byte(rnd.Uint32())
	}
	b.d.w = windowSize
	for range 800 {
		if n := len(b.m.points); n == 0 || b.m.size-b.m.points[n-1].off >= b.spacing {
			b.mark()
		}
		b.m.size++
	}
	sum := 0
	for _, p := range b.m.points {
		sum += pointSize + len(p.window)
	}
	if sum != b.cost || sum > b.memory || len(b.m.points) < 25 || b.spacing < 4 {
		t.Errorf("%d points, %d bytes, spacing %d", len(b.m.points), sum, b.spacing)
	}
	b.m.size = 0
	page := make([]byte, zeroBlock)
	for i := range 3 * maxZeroRuns {
		page[0] = byte(i & 1)
		b.scan(page)
	}
	if len(b.m.zeros) > maxZeroRuns {
		t.Errorf("%d runs", len(b.m.zeros))
	}
}

func mustEncoder(t testing.TB) *deflate.Encoder {
	t.Helper()
	e, err := deflate.New(1, deflate.MaxWindow)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// counting counts what is read.
type counting struct {
	r io.ReaderAt
	n atomic.Int64
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	c.n.Add(int64(len(p)))
	return c.r.ReadAt(p, off)
}

// Sequential reads, by one reader or by several in turns, inflate once.
func TestSequential(t *testing.T) {
	want := testimg.Disk(12<<20, 6)
	b := gz(t, want, 1)
	for _, readers := range []int{1, 2, 4} {
		src := &counting{r: bytes.NewReader(b)}
		img, err := Open(src, int64(len(b)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if n := src.n.Load(); n > int64(len(b))+inputSize {
			t.Errorf("the pass read %d of %d bytes", n, len(b))
		}
		src.n.Store(0)
		var next atomic.Int64
		var wg sync.WaitGroup
		for range readers {
			wg.Go(func() {
				buf := make([]byte, 50000)
				for {
					off := next.Add(int64(len(buf))) - int64(len(buf))
					if off >= int64(len(want)) {
						return
					}
					n, err := img.ReadAt(buf, off)
					if err != nil && err != io.EOF || !bytes.Equal(buf[:n], want[off:off+int64(n)]) {
						t.Errorf("ReadAt %d = %d, %v", off, n, err)
						return
					}
				}
			})
		}
		wg.Wait()
		if n := src.n.Load(); n > int64(len(b))*5/4+inputSize {
			t.Errorf("%d readers read %d of %d bytes", readers, n, len(b))
		}
	}
}

func TestFaults(t *testing.T) {
	want := testimg.Disk(8<<20, 5)
	b := gz(t, want, 1)
	for _, bad := range []int64{0, 5, 100000, int64(len(b)) - 1} {
		if _, err := Open(testimg.FaultyReader{R: bytes.NewReader(b), Bad: bad}, int64(len(b)), nil); !errors.Is(err, testimg.ErrInjected) {
			t.Errorf("fault at %d: %v", bad, err)
		}
	}
	if _, err := Open(bytes.NewReader(b[:len(b)/2]), int64(len(b)), nil); !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("a file shorter than it was said to be: %v", err)
	}
	if _, err := open(b, &Options{Tee: failing{}}); !errors.Is(err, testimg.ErrInjected) {
		t.Errorf("tee fails: %v", err)
	}
	// A file that changes after it was indexed.
	img, err := open(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	img.src = bytes.NewReader(b[:len(b)/2])
	buf := make([]byte, len(want))
	if n, err := img.ReadAt(buf, 0); err == nil || !bytes.Equal(buf[:n], want[:n]) {
		t.Errorf("read %d bytes of a cut file: %v", n, err)
	}
	if _, err := img.ReadAt(buf[:10], 100); err != nil {
		t.Errorf("the part before the cut: %v", err)
	}
	rnd := rand.New(rand.NewPCG(8, 8))
	junk := bytes.Clone(b)
	for i := range junk {
		junk[i] = byte(rnd.Uint32())
	}
	img.src = bytes.NewReader(junk)
	img.pool.idle, img.pool.chunks = nil, nil
	if _, err := img.ReadAt(buf, 0); err == nil {
		t.Error("junk was read")
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, testimg.ErrInjected }

// Every point, also in the middle of blocks, brings back the same stream.
func TestPoints(t *testing.T) {
	want := testimg.Disk(1<<20, 8)
	for _, level := range []int{0, 1, 6} {
		b := gz(t, want, level)
		m := &Image{src: bytes.NewReader(b), csize: int64(len(b)), format: Name}
		bl := builder{d: m.newInflater(), m: m, max: 1 << 40, enc: mustEncoder(t), spacing: 1, zeroFrom: -1, minRun: firstZeroRun, memory: 1 << 24}
		if err := bl.run(); err != nil {
			t.Fatal(err)
		}
		if len(m.points) < 8 {
			t.Errorf("level %d: %d points", level, len(m.points))
		}
		d := m.newInflater()
		for i := range m.points {
			p := &m.points[i]
			if err := d.restore(p, m); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, min(300000, int64(len(want))-p.off))
			if err := d.read(got); err != nil || !bytes.Equal(got, want[p.off:][:len(got)]) {
				t.Fatalf("level %d, point %d: %v", level, p.off, err)
			}
		}
	}
}

// wrap puts a raw deflate stream that inflates to data into a gzip file.
func wrap(deflated, data []byte) []byte {
	b := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, deflated...)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(data))
	return binary.LittleEndian.AppendUint32(b, uint32(len(data)))
}

// FuzzInflate compares with compress/flate.
func FuzzInflate(f *testing.F) {
	for _, level := range []int{0, 1, 6, 9, -2} {
		b := gz(f, testimg.Disk(3000, 1), level)
		f.Add(b[10 : len(b)-8])
	}
	f.Add([]byte{0x63, 0x04, 0x42, 0x00, 0x00})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<14 {
			return
		}
		src := bytes.NewReader(b)
		want, err := io.ReadAll(io.LimitReader(flate.NewReader(src), 1<<20))
		if len(want) == 1<<20 {
			return
		}
		whole := err == nil && src.Len() == 0
		img, ours := open(wrap(b, want), nil)
		if whole != (ours == nil) {
			t.Fatalf("compress/flate: %v, %d bytes left; ours: %v", err, src.Len(), ours)
		}
		if ours != nil {
			return
		}
		got := make([]byte, len(want))
		if n, err := img.ReadAt(got, 0); n != len(want) || err != nil && err != io.EOF || !bytes.Equal(got, want) {
			t.Fatalf("read %d of %d bytes, %v", n, len(want), err)
		}
	})
}

func FuzzOpen(f *testing.F) {
	f.Add(gz(f, testimg.Disk(5000, 1), 6))
	f.Add(append(gz(f, []byte("hello"), 1), gz(f, nil, 1)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<14 {
			return
		}
		img, err := open(b, &Options{MaxSize: 1 << 22})
		if err != nil {
			if img != nil {
				t.Fatal("image with an error")
			}
			return
		}
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("compress/gzip: %v", err)
		}
		want, err := io.ReadAll(z)
		if err != nil || int64(len(want)) != img.Size() {
			t.Fatalf("compress/gzip: %d bytes, %v; ours %d", len(want), err, img.Size())
		}
	})
}

func benchInput(b *testing.B) (disk, packed []byte) {
	words := make([][]byte, 3000)
	rnd := rand.New(rand.NewPCG(5, 5))
	for i := range words {
		words[i] = make([]byte, 2+rnd.IntN(10))
		for j := range words[i] {
			words[i][j] = "etaoinshrdlucmfwypvbgkjqxz  "[rnd.IntN(28)]
		}
	}
	for len(disk) < 16<<20 {
		switch rnd.IntN(40) {
		case 0:
			disk = append(disk, make([]byte, rnd.IntN(60000))...)
		case 1:
			for range rnd.IntN(3000) {
				disk = append(disk, byte(rnd.Uint32()))
			}
		default:
			for range 300 {
				disk = append(disk, words[rnd.IntN(1+rnd.IntN(len(words)))]...)
				disk = append(disk, ' ')
			}
		}
	}
	return disk, gz(b, disk, 6)
}

func BenchmarkInflate(b *testing.B) {
	disk, packed := benchInput(b)
	b.Run("open", func(b *testing.B) {
		b.SetBytes(int64(len(disk)))
		for b.Loop() {
			if _, err := open(packed, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("read", func(b *testing.B) {
		img, err := open(packed, nil)
		if err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, 1<<20)
		b.SetBytes(int64(len(disk)))
		for b.Loop() {
			img.pool.chunks = slices.Delete(img.pool.chunks, 0, len(img.pool.chunks))
			for off := int64(0); off < img.Size(); off += int64(len(buf)) {
				if _, err := img.ReadAt(buf, off); err != nil && err != io.EOF {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("klauspost", func(b *testing.B) {
		b.SetBytes(int64(len(disk)))
		for b.Loop() {
			z, err := kgzip.NewReader(bytes.NewReader(packed))
			if err == nil {
				_, err = io.Copy(io.Discard, z)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}
