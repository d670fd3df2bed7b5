package vmdk

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imgmaint/formats"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

func open(t testing.TB, b []byte, opts *Options) *Image {
	t.Helper()
	m, err := Open(bytes.NewReader(b), int64(len(b)), opts)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// build writes want to a new disk, as the conversion does: grains that are
// not zero, encoded apart from the writer.
func build(t testing.TB, want []byte, opts *WriterOptions) []byte {
	t.Helper()
	var f formatstest.Buffer
	w, err := NewWriter(&f, int64(len(want)), opts)
	if err != nil {
		t.Fatal(err)
	}
	enc := w.NewEncoder()
	for off := 0; off < len(want); off += grainSize {
		p, err := enc.Encode(nil, want[off:min(off+grainSize, len(want))])
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteEncoded(int64(off), p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Bytes()
}

func padded(b []byte) []byte {
	return append(bytes.Clone(b), make([]byte, alignUp(int64(len(b)), sectorSize)-int64(len(b)))...)
}

func TestRoundTrip(t *testing.T) {
	for _, size := range []int64{0, 512, 65536, 65536 * 3, 1<<20 + 512, 5<<20 - 512} {
		err := formatstest.TestWriter(
			func(w io.WriterAt, size int64) (formats.Writer, error) { return NewWriter(w, size, nil) },
			func(r io.ReaderAt, size int64) (formats.Image, error) { return Open(r, size, nil) },
			testimg.Disk(size, 3))
		if err != nil {
			t.Errorf("size %d: %v", size, err)
		}
	}
}

// A pipe takes bytes in order only.
type pipe struct{ formatstest.Buffer }

func (p *pipe) WriteAt(b []byte, off int64) (int, error) {
	if off != int64(len(p.Bytes())) {
		return 0, fmt.Errorf("write at %d after %d bytes", off, len(p.Bytes()))
	}
	return p.Buffer.WriteAt(b, off)
}

// The file is written in order, and it does not matter how: through WriteAt
// in pieces, or through encoders.
func TestStreams(t *testing.T) {
	size := int64(70<<20 + 512) // three grain tables
	want := make([]byte, size)
	copy(want, testimg.Disk(3<<20, 4))
	copy(want[66<<20:], testimg.Disk(2<<20+300, 5))
	want[size-1] = 1
	var p pipe
	w, err := NewWriter(&p, size, nil)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	for off := int64(0); off < size; {
		n := min(1+rnd.Int64N(200_000), size-off)
		if len(bytes.TrimLeft(want[off:off+n], "\x00")) > 0 {
			if _, err := w.WriteAt(want[off:off+n], off); err != nil {
				t.Fatal(err)
			}
		}
		off += n
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p.Bytes(), build(t, want, nil)) {
		t.Error("WriteAt and WriteEncoded made different files")
	}
	m := open(t, p.Bytes(), nil)
	if m.gd[1] != 0 || m.gd[0] == 0 || m.gd[2] == 0 {
		t.Errorf("grain directory %v: the table in the middle is empty", m.gd)
	}
	if err := formatstest.TestImage(m, want); err != nil {
		t.Error(err)
	}
	if rep, err := m.Check(); err != nil || rep.Corruptions+rep.Leaks > 0 || rep.ImageEnd != int64(len(p.Bytes())) {
		t.Errorf("Check() = %+v, %v", rep, err)
	}
}

// The layout, byte by byte, that VMware's tools expect of a stream.
func TestLayout(t *testing.T) {
	want := make([]byte, 40<<20)
	copy(want[64<<10:], "one")
	copy(want[33<<20:], "two")
	b := build(t, want, &WriterOptions{ToolsVersion: "10338", UUID: "60 00 C2 9a", ExtentName: "app.vmdk", HWVersion: 13, AdapterType: "ide"})
	if len(b)%512 != 0 {
		t.Errorf("%d bytes: the file ends within a sector", len(b))
	}
	h := parseHeader(b)
	if string(b[:4]) != "KDMV" || h.version != 3 || h.flags != 0x30001 || h.gdOffset != gdAtEnd || h.rgdOffset != 0 ||
		h.capacity != 40<<11 || h.grainSize != 128 || h.descriptorOffset != 1 || h.descriptorSize != 20 || h.overHead != 128 || h.algorithm != 1 {
		t.Errorf("header %+v", h)
	}
	text, _, _ := strings.Cut(string(b[512:21*512]), "\x00")
	for _, part := range []string{
		"# Disk DescriptorFile\nversion=1\n", "parentCID=ffffffff\n", "createType=\"streamOptimized\"\n", "RW 81920 SPARSE \"app.vmdk\"\n",
		"ddb.toolsVersion = \"10338\"\n", "ddb.virtualHWVersion = \"13\"\n", "ddb.adapterType = \"ide\"\n", "ddb.uuid = \"60 00 C2 9a\"\n",
		"ddb.geometry.cylinders = \"82\"\n", "ddb.geometry.heads = \"16\"\n", "ddb.geometry.sectors = \"63\"\n", "ddb.longContentID",
	} {
		if !strings.Contains(text, part) {
			t.Errorf("descriptor lacks %q:\n%s", part, text)
		}
	}
	sector := func(n int64) []byte { return b[n*512:] }
	// Grain 1, its table; grain 528, its table; directory; footer; end.
	grain := func(at int64, lba uint64) int64 {
		m := parseMarker(sector(at))
		if m.val != lba || m.size == 0 {
			t.Errorf("marker at sector %d: %+v, want a grain of lba %d", at, m, lba)
		}
		return at + (12+int64(m.size)+511)/512
	}
	meta := func(at int64, want marker) int64 {
		if m := parseMarker(sector(at)); m != want {
			t.Errorf("marker at sector %d: %+v, want %+v", at, m, want)
		}
		return at + 1
	}
	tab0 := meta(grain(128, 128), marker{4, 0, markerGT})
	tab1 := meta(grain(tab0+4, 33<<11), marker{4, 0, markerGT})
	gd := meta(tab1+4, marker{1, 0, markerGD})
	foot := meta(gd+1, marker{1, 0, markerFooter})
	end := meta(foot+1, marker{0, 0, markerEOS})
	if end*512 != int64(len(b)) {
		t.Errorf("the stream ends at sector %d, the file has %d bytes", end, len(b))
	}
	f := parseHeader(sector(foot))
	if f.gdOffset != uint64(gd) || f.capacity != h.capacity || f.version != 3 {
		t.Errorf("footer %+v, directory at sector %d", f, gd)
	}
	if le.Uint32(sector(gd)) != uint32(tab0) || le.Uint32(sector(gd)[4:]) != uint32(tab1) || le.Uint32(sector(tab0)[4:]) != 128 {
		t.Error("the tables are not where the directory says")
	}
}

func qemuInfo(t *testing.T, path string) (size int64) {
	t.Helper()
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal([]byte(testimg.Run(t, "qemu-img", "info", "--output=json", "-f", "vmdk", path)), &info); err != nil {
		t.Fatal(err)
	}
	return info.Size
}

// qemuMap returns the runs of data, and of the rest, that qemu-img tells.
func qemuMap(t *testing.T, path string) []formats.Extent {
	t.Helper()
	var entries []struct {
		Start, Length int64
		Zero, Data    bool
	}
	if err := json.Unmarshal([]byte(testimg.Run(t, "qemu-img", "map", "--output=json", "-f", "vmdk", path)), &entries); err != nil {
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
	for e, err := range formats.Extents(img, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == formats.Zero {
			e.Kind = formats.Hole
		}
		if n := len(out); n > 0 && out[n-1].Kind == e.Kind {
			out[n-1].Len += e.Len
			continue
		}
		out = append(out, e)
	}
	return out
}

var oddSizes = []int64{1, 512, 65536, 65537, 1<<20 + 512, 4<<20 + 4097, 33<<20 + 1, 9_000_001}

func disk(size int64, seed uint64) []byte {
	b := testimg.Disk(min(size, 6<<20), seed)
	b = append(b, make([]byte, size-int64(len(b)))...)
	b[size-1] = 9
	return b
}

// What qemu-img writes, we read: size, bytes, map, and a clean check.
func TestReadsQemu(t *testing.T) {
	dir := t.TempDir()
	for i, size := range oddSizes {
		want := disk(size, uint64(i))
		full := padded(want)
		raw := testimg.WriteFile(t, "raw", want)
		all := []string{"subformat=streamOptimized", "subformat=monolithicSparse"}
		if size == 1<<20+512 {
			all = append(all,
				"subformat=streamOptimized,adapter_type=lsilogic,hwversion=13,toolsversion=10338",
				"subformat=streamOptimized,adapter_type=buslogic", "subformat=monolithicSparse,adapter_type=legacyESX",
				"subformat=monolithicSparse,compat6=on", "subformat=monolithicSparse,zeroed_grain=on")
		}
		for _, o := range all {
			name := fmt.Sprintf("%s, size %d", o, size)
			path := filepath.Join(dir, "q.vmdk")
			os.Remove(path)
			testimg.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", o, raw, path)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			m := open(t, b, nil)
			if err := formatstest.TestImage(m, full); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if got, want := fmt.Sprint(ourMap(t, m)), fmt.Sprint(qemuMap(t, path)); got != want {
				t.Errorf("%s: map %v, qemu-img says %v", name, got, want)
			}
			if rep, err := m.Check(); err != nil || rep.Corruptions+rep.Leaks > 0 {
				t.Errorf("%s: Check() = %+v, %v", name, rep, err)
			}
			info := m.Info()
			if len(info.Problems) > 0 || !strings.HasPrefix(o, "subformat="+info.Subformat) || info.VirtualSize != int64(len(full)) {
				t.Errorf("%s: %+v", name, info)
			}
		}
	}
}

// What we write, qemu-img reads and finds clean.
func TestQemuReads(t *testing.T) {
	for i, size := range oddSizes {
		want := disk(size, uint64(i)+50)
		full := padded(want)
		for _, o := range []*WriterOptions{nil, {Level: 1, AdapterType: "buslogic"}, {Level: 9, HWVersion: 21}} {
			path := testimg.WriteFile(t, "ours.vmdk", build(t, want, o))
			raw := testimg.WriteFile(t, "raw", full)
			testimg.Run(t, "qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw, path)
			testimg.Run(t, "qemu-img", "check", "-f", "vmdk", path)
			if got := qemuInfo(t, path); got != int64(len(full)) {
				t.Errorf("size %d: qemu-img sees %d bytes", size, got)
			}
			m := open(t, padded(build(t, want, o)), nil)
			if err := formatstest.TestImage(m, full); err != nil {
				t.Errorf("size %d: %v", size, err)
			}
			if got, want := fmt.Sprint(ourMap(t, m)), fmt.Sprint(qemuMap(t, path)); got != want {
				t.Errorf("size %d: map %v, qemu-img says %v", size, got, want)
			}
		}
	}
}

// Grains that qemu wrote as known zeros are no holes.
func TestZeroGrains(t *testing.T) {
	testimg.Tool(t, "qemu-io")
	path := filepath.Join(t.TempDir(), "z.vmdk")
	testimg.Run(t, "qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicSparse,zeroed_grain=on", path, "4M")
	testimg.Run(t, "qemu-io", "-f", "vmdk", "-c", "write -P 7 1M 1M", "-c", "write -z 1M 512k", "-c", "write -z 3M 64k", path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 4<<20)
	copy(want[1<<20+512<<10:], bytes.Repeat([]byte{7}, 512<<10))
	m := open(t, b, nil)
	if err := formatstest.TestImage(m, want); err != nil {
		t.Error(err)
	}
	if e, err := m.ExtentAt(1 << 20); err != nil || e != (formats.Extent{Off: 1 << 20, Len: 512 << 10, Kind: formats.Zero}) {
		t.Errorf("ExtentAt(1 MiB) = %+v, %v, want 512 KiB of zeros", e, err)
	}
}

// A disk over another: the parent's CID must be the one the child names.
func TestParent(t *testing.T) {
	dir := t.TempDir()
	want := disk(3<<20, 1)
	raw := testimg.WriteFile(t, "raw", want)
	base, top := filepath.Join(dir, "base.vmdk"), filepath.Join(dir, "top.vmdk")
	testimg.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", raw, base)
	testimg.Run(t, "qemu-img", "create", "-q", "-f", "vmdk", "-b", base, "-F", "vmdk", top)
	testimg.Tool(t, "qemu-io")
	testimg.Run(t, "qemu-io", "-f", "vmdk", "-c", "write -P 3 100k 1000", top)
	copy(want[100<<10:], bytes.Repeat([]byte{3}, 1000))
	child, err := os.ReadFile(top)
	if err != nil {
		t.Fatal(err)
	}
	below, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	parent := open(t, below, nil)
	if _, err := Open(bytes.NewReader(child), int64(len(child)), nil); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "base.vmdk") {
		t.Errorf("without a resolver: %v, want unsupported and the name", err)
	}
	m := open(t, child, &Options{Resolve: func(ref formats.Reference) (formats.Image, error) {
		if ref != (formats.Reference{Kind: formats.RefParent, Name: base, Format: "vmdk", ID: fmt.Sprintf("%08x", parent.CID())}) {
			t.Errorf("reference %+v", ref)
		}
		return parent, nil
	}})
	if err := formatstest.TestImage(m, want); err != nil {
		t.Error(err)
	}
	if e, err := m.LayerExtentAt(0); err != nil || e.Kind != formats.Hole || m.Backing() != formats.Image(parent) {
		t.Errorf("LayerExtentAt(0) = %+v, %v", e, err)
	}
	other := open(t, build(t, want, nil), nil)
	for name, tt := range map[string]struct {
		resolve formats.Resolver
		want    error
	}{
		"other CID": {func(formats.Reference) (formats.Image, error) { return other, nil }, formats.ErrCorrupt},
		"nothing":   {func(formats.Reference) (formats.Image, error) { return nil, nil }, errors.ErrUnsupported},
		"error":     {func(formats.Reference) (formats.Image, error) { return nil, testimg.ErrInjected }, testimg.ErrInjected},
	} {
		if _, err := Open(bytes.NewReader(child), int64(len(child)), &Options{Resolve: tt.resolve}); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}

func TestSamples(t *testing.T) {
	path := testimg.Sample(t, "dfvfs-ext2.vmdk")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(t.TempDir(), "raw")
	testimg.Run(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, raw)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	m := open(t, b, nil)
	if err := formatstest.TestImage(m, want); err != nil {
		t.Error(err)
	}
	if rep, err := m.Check(); err != nil || rep.Corruptions+rep.Leaks > 0 {
		t.Errorf("Check() = %+v, %v", rep, err)
	}
	// The header of a stream of 10 GiB of which only 2049 bytes are left:
	// the footer is gone, so nothing can be read.
	b, err = os.ReadFile(testimg.Sample(t, "trivy-monolithicSparse.vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(bytes.NewReader(b), int64(len(b)), nil); !errors.Is(err, formats.ErrCorrupt) || !strings.Contains(err.Error(), "footer") {
		t.Errorf("the truncated stream: %v, want corrupt for want of a footer", err)
	}
}

func TestWriterRefuses(t *testing.T) {
	w, err := NewWriter(new(formatstest.Buffer), 200_000, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(make([]byte, 10), 50); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{-1, 0, 59, 199_991, 200_192 - 10} {
		if _, err := w.WriteAt(make([]byte, 10), off); err == nil {
			t.Errorf("write of 10 bytes at %d of 200000 after 60 was accepted", off)
		}
	}
	for _, off := range []int64{-65536, 0, 1, 4 * 65536, 1 << 40} {
		if err := w.WriteEncoded(off, nil); err == nil {
			t.Errorf("cluster at %d after a write at 50 was accepted", off)
		}
	}
	if err := w.WriteEncoded(3*65536, nil); err != nil {
		t.Errorf("the last cluster: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(nil, 200_000); err == nil {
		t.Error("a write after Close was accepted")
	}
	for _, tt := range []struct {
		size int64
		o    WriterOptions
		want error
	}{
		{maxCapacity + 1, WriterOptions{}, formats.ErrLimit},
		{1, WriterOptions{Level: 10}, errors.ErrUnsupported},
		{1, WriterOptions{AdapterType: "floppy"}, errors.ErrUnsupported},
		{1, WriterOptions{HWVersion: -1}, errors.ErrUnsupported},
		{1, WriterOptions{ExtentName: strings.Repeat("x", 20*512)}, formats.ErrLimit},
	} {
		if _, err := NewWriter(new(formatstest.Buffer), tt.size, &tt.o); !errors.Is(err, tt.want) {
			t.Errorf("NewWriter(%d, %+v) = %v, want %v", tt.size, tt.o, err, tt.want)
		}
	}
	for _, o := range []WriterOptions{{ExtentName: "a\"b"}, {ToolsVersion: "1\nCID=0"}, {UUID: "a\x00"}} {
		if _, err := NewWriter(new(formatstest.Buffer), 1, &o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}

func TestFaults(t *testing.T) {
	want := disk(5<<20, 12)
	b := build(t, want, nil)
	for bad := int64(0); bad < int64(len(b)); bad += 20_011 {
		img, err := Open(testimg.FaultyReader{R: bytes.NewReader(b), Bad: bad}, int64(len(b)), nil)
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
	for n := int64(0); ; n++ {
		fw := &testimg.FaultyWriter{W: new(formatstest.Buffer), FailAt: n}
		w, err := NewWriter(fw, int64(len(want)), &WriterOptions{Level: 1})
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.WriteAt(want, 0)
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
