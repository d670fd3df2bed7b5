package vhd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imgmaint/formats"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

// open opens b, which must work.
func open(t testing.TB, b []byte, opts *Options) *Image {
	t.Helper()
	m, err := Open(bytes.NewReader(b), int64(len(b)), opts)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// build writes the sectors of want that are not zero to a new disk.
func build(t testing.TB, want []byte, opts *WriterOptions) []byte {
	t.Helper()
	var f formatstest.Buffer
	w, err := NewWriter(&f, int64(len(want)), opts)
	if err != nil {
		t.Fatal(err)
	}
	writeSparse(t, w, want, 4096)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Bytes()
}

func writeSparse(t testing.TB, w formats.Writer, want []byte, unit int) {
	t.Helper()
	for off := 0; off < len(want); off += unit {
		p := want[off:min(off+unit, len(want))]
		if len(bytes.TrimLeft(p, "\x00")) == 0 {
			continue
		}
		if _, err := w.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
}

// padded is b with zeros to a multiple of unit.
func padded(b []byte, unit int64) []byte {
	return append(bytes.Clone(b), make([]byte, alignUp(int64(len(b)), unit)-int64(len(b)))...)
}

func TestRoundTrip(t *testing.T) {
	opener := func(r io.ReaderAt, size int64) (formats.Image, error) { return Open(r, size, nil) }
	for name, o := range map[string]WriterOptions{
		"dynamic": {}, "small": {BlockSize: 512 << 10}, "fixed": {Subformat: Fixed},
	} {
		for _, size := range []int64{0, 512, 512 * 1001, 2 << 20, 5<<20 + 512} {
			err := formatstest.TestWriter(
				func(w io.WriterAt, size int64) (formats.Writer, error) { return NewWriter(w, size, &o) },
				opener, testimg.Disk(size, 3))
			if err != nil {
				t.Errorf("%s, size %d: %v", name, size, err)
			}
		}
	}
}

func TestSizeIsRoundedUp(t *testing.T) {
	for _, size := range []int64{1, 511, 513, 1<<20 + 1, 3<<20 - 1} {
		want := testimg.Disk(size, 4)
		want[size-1] = 7
		for name, o := range map[string]*WriterOptions{"dynamic": nil, "fixed": {Subformat: Fixed}, "azure": {Azure: true}} {
			unit := int64(512)
			if name == "azure" {
				unit = 1 << 20
			}
			b := build(t, want, o)
			if err := formatstest.TestImage(open(t, b, nil), padded(want, unit)); err != nil {
				t.Errorf("%s, size %d: %v", name, size, err)
			}
			w, err := NewWriter(new(formatstest.Buffer), size, o)
			if err != nil {
				t.Fatal(err)
			}
			if got := w.DiskSize(); got != alignUp(size, unit) {
				t.Errorf("%s: DiskSize for %d = %d", name, size, got)
			}
		}
	}
}

// Azure wants a fixed disk of whole MiB with exact size and the footer last.
func TestAzure(t *testing.T) {
	b := build(t, testimg.Disk(3<<20+5, 1), &WriterOptions{Azure: true})
	if len(b) != 4<<20+512 {
		t.Fatalf("%d bytes, want 4 MiB and a footer", len(b))
	}
	f := parseFooter(b[4<<20:])
	if f.diskType != typeFixed || f.currentSize != 4<<20 || f.originalSize != 4<<20 || f.dataOffset != noOffset || f.usesGeometry() {
		t.Errorf("footer %+v", f)
	}
	if _, err := NewWriter(new(formatstest.Buffer), 1, &WriterOptions{Azure: true, Subformat: Dynamic}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("dynamic for Azure: %v", err)
	}
}

// qemuSize is the virtual size that qemu-img sees.
func qemuSize(t *testing.T, path string) int64 {
	t.Helper()
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal([]byte(testimg.Run(t, "qemu-img", "info", "--output=json", "-f", "vpc", path)), &info); err != nil {
		t.Fatal(err)
	}
	return info.Size
}

type mapEntry struct {
	Start, Length int64
	Zero, Data    bool
}

// qemuMap returns the runs of data that qemu-img map tells.
func qemuMap(t *testing.T, path string) []formats.Extent {
	t.Helper()
	var entries []mapEntry
	if err := json.Unmarshal([]byte(testimg.Run(t, "qemu-img", "map", "--output=json", "-f", "vpc", path)), &entries); err != nil {
		t.Fatal(err)
	}
	var out []formats.Extent
	for _, e := range entries {
		k := formats.Hole
		if e.Data && !e.Zero {
			k = formats.Data
		}
		if n := len(out); n > 0 && out[n-1].Kind == k {
			out[n-1].Len += e.Length
			continue
		}
		out = append(out, formats.Extent{Off: e.Start, Len: e.Length, Kind: k})
	}
	return out
}

func ourMap(t *testing.T, img formats.Image) []formats.Extent {
	t.Helper()
	var out []formats.Extent
	for e, err := range formats.Merged(img, 0) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

func openFile(t *testing.T, path string, opts *Options) *Image {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(f, st.Size(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

var oddSizes = []int64{1, 512, 34816, 1<<20 + 512, 2 << 20, 4<<20 + 4096 + 1, 7<<20 - 512, 13_000_001}

// What qemu-img writes, we read: the size it shows, the bytes, the same map,
// and a clean check.
func TestReadsQemu(t *testing.T) {
	dir := t.TempDir()
	for i, size := range oddSizes {
		want := testimg.Disk(size, uint64(i))
		if size > 5<<20 {
			clear(want[2<<20 : 4<<20+5])
		}
		raw := testimg.WriteFile(t, "raw", want)
		for _, sub := range []string{"fixed", "dynamic"} {
			for _, force := range []string{"on", "off"} {
				name := fmt.Sprintf("%s, force_size=%s, size %d", sub, force, size)
				path := filepath.Join(dir, "q.vhd")
				testimg.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat="+sub+",force_size="+force, raw, path)
				qsize := qemuSize(t, path)
				img := openFile(t, path, nil)
				if img.Size() != qsize {
					t.Errorf("%s: Size() = %d, qemu-img says %d", name, img.Size(), qsize)
					continue
				}
				if err := formatstest.TestImage(img, append(bytes.Clone(want), make([]byte, qsize-size)...)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if got, want := fmt.Sprint(ourMap(t, img)), fmt.Sprint(qemuMap(t, path)); got != want {
					t.Errorf("%s: map %v, qemu-img says %v", name, got, want)
				}
				rep, err := img.Check()
				if err != nil || rep.Corruptions+rep.Leaks > 0 {
					t.Errorf("%s: Check() = %+v, %v", name, rep, err)
				}
				if p := img.Info().Problems; len(p) > 0 {
					t.Errorf("%s: problems %q", name, p)
				}
				if img.Info().Subformat != sub {
					t.Errorf("%s: subformat %q", name, img.Info().Subformat)
				}
			}
		}
	}
}

// What we write, qemu-img reads: exactly the size rounded to sectors, and the
// same bytes.
func TestQemuReads(t *testing.T) {
	for i, size := range oddSizes {
		want := testimg.Disk(size, uint64(i)+50)
		for name, o := range map[string]*WriterOptions{
			"dynamic": nil, "small": {BlockSize: 512 << 10}, "fixed": {Subformat: Fixed}, "azure": {Azure: true},
		} {
			unit := int64(512)
			if name == "azure" {
				unit = 1 << 20
			}
			full := padded(want, unit)
			b := build(t, want, o)
			path := testimg.WriteFile(t, "ours.vhd", b)
			raw := testimg.WriteFile(t, "raw", full)
			out, err := testimg.Try(t, "qemu-img", "compare", "-f", "raw", "-F", "vpc", raw, path)
			if err != nil {
				t.Errorf("%s, size %d: %v: %s", name, size, err, out)
			}
			if got := qemuSize(t, path); got != int64(len(full)) {
				t.Errorf("%s, size %d: qemu-img sees %d bytes", name, size, got)
			}
			img := open(t, b, nil)
			rep, err := img.Check()
			if err != nil || rep.Corruptions+rep.Leaks > 0 {
				t.Errorf("%s, size %d: Check() = %+v, %v", name, size, rep, err)
			}
			if p := img.Info().Problems; len(p) > 0 {
				t.Errorf("%s: problems %q", name, p)
			}
		}
	}
}

// qemu-img writes into a disk of ours: the layout leaves it room to.
func TestQemuWritesIntoOurs(t *testing.T) {
	testimg.Tool(t, "qemu-io")
	want := make([]byte, 9<<20)
	copy(want[5<<20:], "here")
	path := testimg.WriteFile(t, "w.vhd", build(t, want, nil))
	testimg.Run(t, "qemu-io", "-f", "vpc", "-c", "write -P 0x5a 0 70000", "-c", "write -P 0x11 5242880 512", path)
	copy(want, bytes.Repeat([]byte{0x5a}, 70000))
	copy(want[5<<20:], bytes.Repeat([]byte{0x11}, 512))
	if err := formatstest.TestImage(openFile(t, path, nil), want); err != nil {
		t.Error(err)
	}
}

func TestGeometry(t *testing.T) {
	for _, tt := range []struct {
		sectors int64
		c       uint16
		h, s    uint8
	}{
		{0, 0, 4, 17},
		{68, 1, 4, 17},
		{40 << 11, 963, 5, 17}, // govhd-win8
		{1 << 21, 2080, 16, 63},
		{4 << 11, 120, 4, 17},                         // dfvfs-fat
		{65535*16*63 - 1, 65534, 16, 63},              // the last with 63
		{65535 * 16 * 63, 16191, 16, 255},             // the first with 255
		{65535*16*255 - 1, maxCylinders - 1, 16, 255}, // just below the largest
		{65535 * 16 * 255, maxCylinders, 16, 255},
		{1 << 40, maxCylinders, 16, 255},
	} {
		if c, h, s := geometry(tt.sectors); c != tt.c || h != tt.h || s != tt.s {
			t.Errorf("geometry(%d) = %d/%d/%d, want %d/%d/%d", tt.sectors, c, h, s, tt.c, tt.h, tt.s)
		}
	}
}

// The size trap: who signed decides between geometry and current_size.
func TestSizeByCreator(t *testing.T) {
	const cur = 40 << 20
	const chs = 963 * 5 * 17 * 512
	base := map[string][]byte{}
	for _, typ := range []string{Fixed, Dynamic} {
		base[typ] = build(t, make([]byte, cur), &WriterOptions{Subformat: typ})
	}
	for _, tt := range []struct {
		app, force string
		c          uint16
		h, s       uint8
		want       int64
	}{
		{"vpc ", "", 963, 5, 17, chs},
		{"qemu", "", 963, 5, 17, chs},
		{"qem2", "", 963, 5, 17, cur},
		{"win ", "", 963, 5, 17, cur},
		{"d2v ", "", 963, 5, 17, cur},
		{"vs  ", "", 963, 5, 17, cur},
		{"vbox", "", 963, 5, 17, cur},
		{"CTXS", "", 963, 5, 17, cur},
		{"tap\x00", "", 963, 5, 17, cur},
		{"wa\x00\x00", "", 963, 5, 17, cur},
		{"win ", "chs", 963, 5, 17, chs},
		{"vpc ", "current", 963, 5, 17, cur},
		{"vpc ", "", 65535, 16, 255, cur},
		{"vpc ", "chs", 65535, 16, 255, cur},
		{"qemu", "", 0, 0, 0, cur},
	} {
		for _, typ := range []string{Fixed, Dynamic} {
			b := editFooters(base[typ], func(f *footer) {
				copy(f.creatorApp[:], tt.app)
				f.cylinders, f.heads, f.sectors = tt.c, tt.h, tt.s
			})
			if got := open(t, b, &Options{ForceSize: tt.force}).Size(); got != tt.want {
				t.Errorf("%s: creator %q, geometry %d/%d/%d, force %q: size %d, want %d", typ, tt.app, tt.c, tt.h, tt.s, tt.force, got, tt.want)
			}
		}
	}
	if _, err := Open(bytes.NewReader(make([]byte, 512)), 512, &Options{ForceSize: "x"}); err == nil {
		t.Error("a nonsense size rule was accepted")
	}
}

// editFooters changes the footers of b and signs them again.
func editFooters(b []byte, edit func(*footer)) []byte {
	b = bytes.Clone(b)
	for _, off := range []int{0, len(b) - footerSize} {
		if string(b[off:off+8]) == footerCookie {
			f := parseFooter(b[off:])
			edit(&f)
			copy(b[off:], f.marshal())
		}
	}
	return b
}

// editHeader changes the dynamic disk header of b and signs it again.
func editHeader(b []byte, edit func(*header)) []byte {
	b = bytes.Clone(b)
	h := parseHeader(b[footerSize : footerSize+headerSize])
	h.parentName = bytes.Clone(h.parentName)
	edit(&h)
	copy(b[footerSize:], h.marshal())
	return b
}

func TestIDAndTime(t *testing.T) {
	want := testimg.Disk(5<<20, 8)
	first := open(t, build(t, want, nil), nil)
	if first.UniqueID() != open(t, build(t, want, nil), nil).UniqueID() {
		t.Error("two runs gave two ids")
	}
	want[3<<20] ^= 1
	if first.UniqueID() == open(t, build(t, want, nil), nil).UniqueID() {
		t.Error("two disks have one id")
	}
	// The id does not depend on how the writes were cut.
	var f formatstest.Buffer
	w, err := NewWriter(&f, int64(len(want)), nil)
	if err != nil {
		t.Fatal(err)
	}
	writeSparse(t, w, want, 512*3)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var g formatstest.Buffer
	w, err = NewWriter(&g, int64(len(want)), nil)
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(want); off += 512 * 3 { // what writeSparse wrote, in pieces
		p := want[off:min(off+512*3, len(want))]
		if len(bytes.TrimLeft(p, "\x00")) == 0 {
			continue
		}
		for i := range p {
			if _, err := w.WriteAt(p[i:i+1], int64(off+i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.Bytes(), g.Bytes()) {
		t.Error("the file depends on how the writes were cut")
	}

	id := [16]byte{1, 2, 3}
	b := build(t, want, &WriterOptions{UniqueID: id, Time: time.Unix(1_700_000_000, 0)})
	foot := parseFooter(b)
	if foot.uniqueID != id || foot.timestamp != 1_700_000_000-946684800 {
		t.Errorf("footer %+v", foot)
	}
	if s := seconds(time.Time{}); s != 0 {
		t.Errorf("the zero time is %d", s)
	}
}

func TestWriterRefuses(t *testing.T) {
	for _, o := range []*WriterOptions{nil, {Subformat: Fixed}} {
		w, err := NewWriter(new(formatstest.Buffer), 10000, o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteAt(make([]byte, 10), 50); err != nil {
			t.Fatal(err)
		}
		for _, off := range []int64{-1, 0, 59, 9991, 10240 - 10} {
			if _, err := w.WriteAt(make([]byte, 10), off); err == nil {
				t.Errorf("write of 10 bytes at %d of 10000 after 60 was accepted", off)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteAt([]byte{1}, 9000); err == nil {
			t.Error("a write after Close was accepted")
		}
	}
	for _, tt := range []struct {
		size int64
		o    *WriterOptions
		want error
	}{
		{2040<<30 + 1, nil, formats.ErrLimit},
		{2040<<30 + 1, &WriterOptions{Subformat: Fixed}, formats.ErrLimit},
		{32767<<30 + 1, &WriterOptions{Azure: true}, formats.ErrLimit},
		{1, &WriterOptions{Subformat: "x"}, errors.ErrUnsupported},
		{1, &WriterOptions{BlockSize: 4096}, errors.ErrUnsupported},
		{1, &WriterOptions{Subformat: Fixed, Parent: &Parent{Name: "p"}}, errors.ErrUnsupported},
	} {
		if _, err := NewWriter(new(formatstest.Buffer), tt.size, tt.o); !errors.Is(err, tt.want) {
			t.Errorf("NewWriter(%d, %+v) = %v, want %v", tt.size, tt.o, err, tt.want)
		}
	}
	for _, o := range []*WriterOptions{{Parent: &Parent{}}, {Parent: &Parent{Name: "p"}}} {
		if _, err := NewWriter(new(formatstest.Buffer), 1, o); err == nil {
			t.Errorf("parent %+v was accepted", o.Parent)
		}
	}
}

// A full disk of 2040 GiB keeps every block below the last sector number.
func TestLargestDisk(t *testing.T) {
	for _, bs := range []int64{512 << 10, 2 << 20} {
		var f sparseFile
		w, err := NewWriter(&f, maxDynamicSize, &WriterOptions{BlockSize: bs})
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < maxDynamicSize; off += bs {
			if _, err := w.WriteAt([]byte{1}, off); err != nil {
				t.Fatal(err)
			}
		}
		if last := int64(w.bat[len(w.bat)-1]) * sectorSize; w.bat[len(w.bat)-1] == unusedEntry || last < maxDynamicSize-1<<30 {
			t.Errorf("blocks of %d: the last is at %#x", bs, last)
		}
		for i := 1; i < len(w.bat); i++ {
			if int64(w.bat[i]-w.bat[i-1])*sectorSize < bs+bitmapSize(bs) || w.bat[i] < w.bat[i-1] {
				t.Fatalf("blocks of %d: entries %d and %d overlap", bs, i-1, i)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// sparseFile takes writes anywhere and keeps only its size.
type sparseFile struct{ size int64 }

func (s *sparseFile) WriteAt(p []byte, off int64) (int, error) {
	s.size = max(s.size, off+int64(len(p)))
	return len(p), nil
}

func TestFaults(t *testing.T) {
	want := testimg.Disk(5<<20, 12)
	b := build(t, want, nil)
	for bad := int64(0); bad < int64(len(b)); bad += 30_011 {
		r := testimg.FaultyReader{R: bytes.NewReader(b), Bad: bad}
		img, err := Open(r, int64(len(b)), nil)
		if err != nil {
			if !errors.Is(err, testimg.ErrInjected) {
				t.Fatalf("bad byte %d: %v", bad, err)
			}
			continue
		}
		got := make([]byte, len(want))
		n, err := img.ReadAt(got, 0)
		if err != nil && !errors.Is(err, testimg.ErrInjected) {
			t.Fatalf("bad byte %d: %v", bad, err)
		}
		if !bytes.Equal(got[:n], want[:n]) || err == nil && n != len(want) {
			t.Fatalf("bad byte %d: ReadAt = %d, %v and differs", bad, n, err)
		}
	}
	for _, o := range []*WriterOptions{nil, {Subformat: Fixed}} {
		for n := int64(0); ; n++ {
			fw := &testimg.FaultyWriter{W: new(formatstest.Buffer), FailAt: n}
			w, err := NewWriter(fw, int64(len(want)), o)
			if err != nil {
				t.Fatal(err)
			}
			for off := 0; off < len(want) && err == nil; off += 1 << 20 {
				_, err = w.WriteAt(want[off:off+1<<20], int64(off))
			}
			if cerr := w.Close(); err == nil {
				err = cerr
			} else if cerr == nil {
				t.Fatalf("Close is well after write %d failed", n)
			}
			if fw.Writes() <= n {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			if !errors.Is(err, testimg.ErrInjected) {
				t.Fatalf("write %d failed and the error is %v", n, err)
			}
		}
	}
}

func TestSniff(t *testing.T) {
	dyn := build(t, testimg.Disk(1<<20, 1), nil)
	fixed := build(t, testimg.Disk(1<<20, 1), &WriterOptions{Subformat: Fixed})
	for _, tt := range []struct {
		name string
		b    []byte
		want bool
	}{
		{"dynamic", dyn, true}, {"fixed", fixed, true}, {"old fixed", fixed[:len(fixed)-1], true},
		{"empty", nil, false}, {"zeros", make([]byte, 4096), false}, {"cut", fixed[:len(fixed)-9], false},
	} {
		if got := Sniff(tt.b[:min(len(tt.b), 65536)], bytes.NewReader(tt.b), int64(len(tt.b))); got != tt.want {
			t.Errorf("%s: Sniff = %v, want %v", tt.name, got, tt.want)
		}
	}
}

// propertyOf returns a property of info by name.
func propertyOf(info formats.Info, name string) any {
	for _, p := range info.Properties {
		if p.Name == name {
			return p.Value
		}
	}
	return nil
}

func contains(list []string, part string) bool {
	for _, s := range list {
		if strings.Contains(s, part) {
			return true
		}
	}
	return false
}
