package vmdk

import (
	"bytes"
	stdzlib "compress/zlib"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"imgmaint/formats"
	"imgmaint/internal/testimg"
)

// try opens r, reads all of the first MiB, and reports the first error with
// what it cost.
func try(r io.ReaderAt, size int64) (alloc uint64, took time.Duration, err error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	img, err := Open(r, size, nil)
	if err == nil {
		if _, err = img.ReadAt(make([]byte, min(1<<20, img.Size())), 0); err == io.EOF {
			err = nil
		}
	}
	took = time.Since(start)
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc, took, err
}

// parts are those of a small stream that edit lets a test change.
type parts struct {
	b          []byte
	head, foot []byte // sectors of the header and the footer
	desc       []byte
	gd, gt     []byte
	grain      []byte // from the first grain's marker on
}

func edit(base []byte, do func(p *parts)) []byte {
	b := bytes.Clone(base)
	foot := b[len(b)-1024 : len(b)-512]
	gd := b[int64(parseHeader(foot).gdOffset)*512:]
	gt := b[int64(le.Uint32(gd))*512:]
	p := parts{b: b, head: b[:512], foot: foot, desc: b[512 : 21*512], gd: gd, gt: gt, grain: b[128*512:]}
	do(&p)
	return p.b
}

// both changes a field of the header and the footer.
func (p *parts) both(do func(b []byte)) { do(p.head); do(p.foot) }

// text replaces the descriptor.
func (p *parts) text(s string) { clear(p.desc[copy(p.desc, s):]) }

func descText(createType, extents string) string {
	return "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"" + createType + "\"\n" + extents + "\nddb.adapterType = \"ide\"\n"
}

func deflated(p []byte) []byte {
	var b bytes.Buffer
	w := stdzlib.NewWriter(&b)
	w.Write(p)
	w.Close()
	return b.Bytes()
}

// setGrain replaces the first grain, in the room of 60 KiB it has.
func (p *parts) setGrain(enc []byte) {
	le.PutUint32(p.grain[8:], uint32(len(enc)))
	copy(p.grain[12:], enc)
}

// Each line of the list of what went wrong elsewhere, by name.
func TestHostile(t *testing.T) {
	want := make([]byte, 300<<10)
	copy(want, testimg.Disk(60<<10, 1))
	for i := range 50 << 10 { // the first grain does not compress
		want[i] = byte(i*i>>3 ^ i*7919>>5)
	}
	for i := range want[:60<<10] {
		want[i] ^= byte(uint32(i) * 2654435761 >> 13)
	}
	base := build(t, want, nil)
	e := func(do func(p *parts)) []byte { return edit(base, do) }
	for _, tt := range []struct {
		name string
		b    []byte
		want error
	}{
		{"well", base, nil},
		{"empty", nil, formats.ErrUnknown},
		{"no magic", make([]byte, 4096), formats.ErrUnknown},
		{"magic only", []byte("KDMV"), formats.ErrCorrupt},
		{"version 4", e(func(p *parts) { p.head[4] = 4 }), errors.ErrUnsupported},
		{"version 0", e(func(p *parts) { p.head[4] = 0 }), errors.ErrUnsupported},
		{"unknown incompatible flag", e(func(p *parts) { p.head[10] |= 4 }), errors.ErrUnsupported},
		{"newlines changed", e(func(p *parts) { p.head[73] = '\r' }), formats.ErrCorrupt},
		{"carriage return lost", e(func(p *parts) { p.head[75] = '\n' }), formats.ErrCorrupt},
		{"compressAlgorithm 2", e(func(p *parts) { p.head[77] = 2 }), errors.ErrUnsupported},
		{"compressed without the flag", e(func(p *parts) { p.head[10] &^= 1 }), formats.ErrCorrupt},
		{"capacity of exabytes", e(func(p *parts) { le.PutUint64(p.head[12:], 1<<60) }), formats.ErrLimit},
		{"capacity of all ones", e(func(p *parts) { le.PutUint64(p.head[12:], 1<<64-1) }), formats.ErrLimit},
		{"capacity with tiny grains", e(func(p *parts) {
			p.both(func(b []byte) { le.PutUint64(b[12:], 62<<31); le.PutUint64(b[20:], 1) })
		}), formats.ErrLimit},
		{"capacity beyond the directory", e(func(p *parts) { p.both(func(b []byte) { le.PutUint64(b[12:], 62<<31) }) }), formats.ErrCorrupt},
		{"footer of another capacity", e(func(p *parts) { le.PutUint64(p.foot[12:], 1<<20) }), formats.ErrCorrupt},
		{"footer of another grain size", e(func(p *parts) { le.PutUint64(p.foot[20:], 64) }), formats.ErrCorrupt},
		{"grainSize 0", e(func(p *parts) { le.PutUint64(p.head[20:], 0) }), formats.ErrCorrupt},
		{"grainSize 96", e(func(p *parts) { le.PutUint64(p.head[20:], 96) }), formats.ErrCorrupt},
		{"grainSize 2^63", e(func(p *parts) { le.PutUint64(p.head[20:], 1<<63) }), formats.ErrLimit},
		{"numGTEsPerGT 0", e(func(p *parts) { le.PutUint32(p.head[44:], 0) }), errors.ErrUnsupported},
		{"numGTEsPerGT of 4 billion", e(func(p *parts) { le.PutUint32(p.head[44:], 1<<32-1) }), errors.ErrUnsupported},
		{"gdOffset 0", e(func(p *parts) { le.PutUint64(p.foot[56:], 0) }), formats.ErrCorrupt},
		{"gdOffset after the end", e(func(p *parts) { le.PutUint64(p.foot[56:], 1<<62) }), formats.ErrCorrupt},
		{"gdOffset at the end in the footer too", e(func(p *parts) { le.PutUint64(p.foot[56:], gdAtEnd) }), formats.ErrCorrupt},
		{"grain table after the end", e(func(p *parts) { le.PutUint32(p.gd, 1<<32-1) }), formats.ErrCorrupt},
		{"grain table in the descriptor", e(func(p *parts) { le.PutUint32(p.gd, 2) }), formats.ErrCorrupt},
		{"grain after the end", e(func(p *parts) { le.PutUint32(p.gt, 1<<32-1) }), formats.ErrCorrupt},
		{"grain in the descriptor", e(func(p *parts) { le.PutUint32(p.gt, 5) }), formats.ErrCorrupt},
		{"grain of 1 without the flag", e(func(p *parts) { le.PutUint32(p.gt, 1) }), formats.ErrCorrupt},
		{"grain of another lba", e(func(p *parts) { le.PutUint64(p.grain, 128) }), formats.ErrCorrupt},
		{"two entries, one grain", e(func(p *parts) { copy(p.gt[4:8], p.gt[:4]) }), formats.ErrCorrupt},
		{"grain of 4 GiB", e(func(p *parts) { le.PutUint32(p.grain[8:], 1<<32-1) }), formats.ErrCorrupt},
		{"grain of no bytes", e(func(p *parts) { le.PutUint32(p.grain[8:], 0) }), formats.ErrCorrupt},
		{"grain that inflates to too much", e(func(p *parts) { p.setGrain(deflated(make([]byte, 65537))) }), formats.ErrCorrupt},
		{"compressed bomb", e(func(p *parts) { p.setGrain(deflated(make([]byte, 32<<20))) }), formats.ErrCorrupt},
		{"grain that inflates to too little", e(func(p *parts) { p.setGrain(deflated(make([]byte, 65535))) }), formats.ErrCorrupt},
		{"grain that inflates to nothing", e(func(p *parts) { p.setGrain(deflated(nil)) }), formats.ErrCorrupt},
		{"grain cut short", e(func(p *parts) { le.PutUint32(p.grain[8:], 100) }), formats.ErrCorrupt},
		{"grain that is no zlib", e(func(p *parts) { p.grain[12] = 0 }), formats.ErrCorrupt},
		{"grain with a wrong checksum", e(func(p *parts) { n := le.Uint32(p.grain[8:]); p.grain[12+n-1] ^= 1 }), formats.ErrCorrupt},
		{"truncated", base[:len(base)-2048], formats.ErrCorrupt},
		{"truncated to the header", base[:512], formats.ErrCorrupt},
		{"one sector more", append(bytes.Clone(base), make([]byte, 512)...), formats.ErrCorrupt},
		{"descriptor after the end", e(func(p *parts) { le.PutUint64(p.head[28:], 1<<62) }), formats.ErrCorrupt},
		{"descriptor of gigabytes", e(func(p *parts) { le.PutUint64(p.head[36:], 1<<40) }), formats.ErrLimit},
		{"descriptor of many lines", e(func(p *parts) {
			le.PutUint64(p.head[36:], uint64(len(p.b)/512-1))
			p.b = append(p.b[:512:512], bytes.Repeat([]byte("ddb.a=b\n"), (len(p.b)-512)/8)...)
			copy(p.b[len(p.b)-1536:], base[len(base)-1536:])
		}), formats.ErrLimit},
		{"no descriptor", e(func(p *parts) { le.PutUint64(p.head[28:], 0) }), errors.ErrUnsupported},
		{"descriptor without createType", e(func(p *parts) { p.text("version=1\n") }), errors.ErrUnsupported},
		{"extent of -1 sectors", e(func(p *parts) { p.text(descText("streamOptimized", `RW -1 SPARSE "x"`)) }), formats.ErrCorrupt},
		{"extent line cut", e(func(p *parts) { p.text(descText("streamOptimized", `RW`)) }), formats.ErrCorrupt},
		{"CID of letters", e(func(p *parts) { p.text("CID=zzz\n") }), formats.ErrCorrupt},
		{"two extents", e(func(p *parts) { p.text(descText("streamOptimized", "RW 1 SPARSE \"a\"\nRW 1 SPARSE \"b\"")) }), errors.ErrUnsupported},
	} {
		alloc, took, err := try(bytes.NewReader(tt.b), int64(len(tt.b)))
		if !errors.Is(err, tt.want) || tt.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if alloc > 4<<20 || took > time.Second {
			t.Errorf("%s: %d bytes allocated in %v", tt.name, alloc, took)
		}
	}
}

// Disks of other kinds are refused by their kind, with the names they give
// quoted, and nothing is opened.
func TestOtherKinds(t *testing.T) {
	base := build(t, make([]byte, 4096), nil)
	for _, tt := range []struct{ kind, extents, want string }{
		{"monolithicFlat", `RW 4192256 FLAT "/etc/passwd" 0`, `"/etc/passwd"`},
		{"vmfs", `RW 83886080 VMFS "../../disk-flat.vmdk"`, `"../../disk-flat.vmdk"`},
		{"vmfsSparse", `RW 1 VMFSSPARSE "d-000001-delta.vmdk"`, "VMFSSPARSE"},
		{"vmfsPassthroughRawDeviceMap", `RW 1 VMFSRDM "rdm"`, "VMFSRDM"},
		{"fullDevice", `RW 1 FLAT "/dev/sda" 0`, `"/dev/sda"`},
		{"twoGbMaxExtentSparse", "RW 4 SPARSE \"d-s001.vmdk\"\nRW 4 SPARSE \"d-s002.vmdk\"", `"d-s002.vmdk"`},
		{"twoGbMaxExtentFlat", `RW 4 FLAT "d-f001.vmdk" 0`, "d-f001.vmdk"},
		{"custom", "RW 1 ZERO\nRW 1 FLAT \"a\x1b[2Jb\" 0", `"a\x1b[2Jb"`},
		{"streamOptimized", `RW 1 FLAT "/etc/shadow" 0`, `"/etc/shadow"`},
		{"seSparse", `RW 1 SESPARSE "x"`, "SESPARSE"},
	} {
		for where, b := range map[string][]byte{
			"text":     []byte(descText(tt.kind, tt.extents)),
			"embedded": edit(base, func(p *parts) { p.text(descText(tt.kind, tt.extents)) }),
		} {
			_, err := Open(bytes.NewReader(b), int64(len(b)), nil)
			if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.kind) {
				t.Errorf("%s %s: %v, want unsupported with the kind and %s", where, tt.kind, err, tt.want)
			} else if strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Errorf("%s %s: the names are not quoted in %q", where, tt.kind, err)
			}
			if !Sniff(b[:min(len(b), 65536)], bytes.NewReader(b), int64(len(b))) {
				t.Errorf("%s %s is not sniffed", where, tt.kind)
			}
		}
	}
	for name, b := range map[string]string{"COWD": "COWD\x01\x00", "seSparse": magicSE} {
		b += strings.Repeat("\x00", 600)
		if _, err := Open(strings.NewReader(b), int64(len(b)), nil); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Made by qemu-img.
	for _, sub := range []string{"monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"} {
		dir := t.TempDir()
		testimg.Run(t, "qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat="+sub, filepath.Join(dir, "d.vmdk"), "4M")
		names, _ := filepath.Glob(filepath.Join(dir, "*.vmdk"))
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(name, "-flat.vmdk") || strings.HasSuffix(name, "-f001.vmdk") {
				continue // raw data
			}
			if _, err := Open(bytes.NewReader(b), int64(len(b)), nil); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("%s of %s: %v", filepath.Base(name), sub, err)
			}
		}
	}
	for _, b := range []string{"", "#!/bin/sh\necho\n", "version=10\n", "# comment\n\nfoo=1\n", strings.Repeat("#\n", 5000)} {
		if Sniff([]byte(b), strings.NewReader(b), int64(len(b))) {
			t.Errorf("%.20q is sniffed", b)
		}
	}
}

// With the directory damaged its redundant copy is used, and told.
func TestRedundantDirectory(t *testing.T) {
	want := disk(3<<20, 3)
	raw := testimg.WriteFile(t, "raw", want)
	path := filepath.Join(t.TempDir(), "q.vmdk")
	testimg.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", raw, path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h := parseHeader(b)
	le.PutUint32(b[h.gdOffset*512:], 1<<31)
	m := open(t, b, nil)
	got := make([]byte, len(want))
	if _, err := m.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ReadAt: %v, or other bytes", err)
	}
	if p := m.Info().Problems; len(p) != 1 || !strings.Contains(p[0], "redundant") {
		t.Errorf("problems %q", p)
	}
	if rep, err := m.Check(); err != nil || rep.Corruptions == 0 {
		t.Errorf("Check() = %+v, %v", rep, err)
	}
	le.PutUint32(b[h.rgdOffset*512:], 1<<31)
	if _, err := Open(bytes.NewReader(b), int64(len(b)), nil); !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("both damaged: %v", err)
	}
}

func TestCheckFinds(t *testing.T) {
	want := disk(2<<20, 3)
	stream := build(t, want, nil)
	raw := testimg.WriteFile(t, "raw", want)
	path := filepath.Join(t.TempDir(), "q.vmdk")
	testimg.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", raw, path)
	sparse, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	table := func(b []byte) []byte {
		h := parseHeader(b)
		return b[int64(le.Uint32(b[h.gdOffset*512:]))*512:]
	}
	k := 0 // a grain that is there, and the next is too
	for k < 31 && (le.Uint32(table(sparse)[4*k:]) == 0 || le.Uint32(table(sparse)[4*k+4:]) == 0) {
		k++
	}
	if k == 31 {
		t.Fatal("the sample has no two grains side by side")
	}
	for _, tt := range []struct {
		name               string
		b                  []byte
		corruptions, leaks bool
	}{
		{"stream", stream, false, false},
		{"sparse", sparse, false, false},
		{"grain dropped", edit(stream, func(p *parts) { le.PutUint32(p.gt[4*k:], 0) }), false, true},
		{"grain of another lba", edit(stream, func(p *parts) { le.PutUint64(p.grain, 1) }), true, true},
		{"grain after the end", edit(stream, func(p *parts) { le.PutUint32(p.gt[4*k:], 1<<31) }), true, true},
		{"grains overlap", func() []byte {
			b := bytes.Clone(sparse)
			le.PutUint32(table(b)[4*k:], le.Uint32(table(b)[4*k+4:]))
			return b
		}(), true, true},
		{"redundant table differs", func() []byte {
			b := bytes.Clone(sparse)
			h := parseHeader(b)
			b[int64(le.Uint32(b[h.rgdOffset*512:]))*512+4*500] = 1
			return b
		}(), true, false},
		{"room at the end", append(bytes.Clone(sparse), make([]byte, 1<<20)...), false, true},
		{"extent of another size", edit(stream, func(p *parts) {
			copy(p.desc, bytes.Replace(bytes.Clone(p.desc), []byte("RW 4096 "), []byte("RW 4097 "), 1))
		}), true, false},
	} {
		rep, err := Check(bytes.NewReader(tt.b), int64(len(tt.b)))
		if err != nil || rep.Corruptions > 0 != tt.corruptions || rep.Leaks > 0 != tt.leaks {
			t.Errorf("%s: %+v, %v, want corruptions %v, leaks %v", tt.name, rep, err, tt.corruptions, tt.leaks)
		}
	}
}

// A disk of 62 TiB without data is small, and one hole.
func TestLargest(t *testing.T) {
	var f bytes.Buffer
	w, err := NewWriter(appender{&f}, maxCapacity, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("x"), maxCapacity-1); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	alloc, took, err := try(bytes.NewReader(f.Bytes()), int64(f.Len()))
	if err != nil || alloc > 12<<20 || took > time.Second {
		t.Errorf("%d bytes allocated in %v: %v", alloc, took, err)
	}
	m := open(t, f.Bytes(), nil)
	if e, err := m.ExtentAt(0); err != nil || e.Kind != formats.Hole || e.Len < 61<<40 {
		t.Errorf("ExtentAt(0) = %+v, %v", e, err)
	}
	var b [2]byte
	if _, err := m.ReadAt(b[:], maxCapacity-2); err != nil || b != [2]byte{0, 'x'} {
		t.Errorf("the end is %q, %v", b, err)
	}
}

type appender struct{ w io.Writer }

func (a appender) WriteAt(p []byte, _ int64) (int, error) { return a.w.Write(p) }

func FuzzOpen(f *testing.F) {
	small := testimg.Disk(70<<10, 1)
	clear(small[3000:])
	small[66<<10] = 1
	f.Add(build(f, small, nil))
	f.Add([]byte(descText("monolithicFlat", `RW 1 FLAT "x" 0`)))
	// The same disk without compression, in grains of 4 KiB.
	h := header{version: 1, flags: flagNewline | flagZeroGrain, capacity: 20, grainSize: 8, descriptorOffset: 1, descriptorSize: 1,
		numGTEsPerGT: gtEntries, gdOffset: 2, overHead: 8, newlines: [4]byte([]byte(newlines))}
	b := h.marshal()
	b = append(b, descText("monolithicSparse", `RW 20 SPARSE "x"`)...)
	b = append(b, make([]byte, 1024-len(b))...)
	b = le.AppendUint32(b, 3)
	b = append(b, make([]byte, 1536-len(b))...)
	for _, e := range []uint32{8, 1, 16} {
		b = le.AppendUint32(b, e)
	}
	b = append(b, make([]byte, 4096-len(b))...)
	b = append(b, small[:4096]...)
	b = append(b, small[:2048]...)
	open(f, b, nil)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		parent := open(t, b0, nil)
		img, err := Open(bytes.NewReader(b), int64(len(b)), &Options{Resolve: func(formats.Reference) (formats.Image, error) { return parent, nil }})
		if err != nil {
			if img != nil {
				t.Fatal("an image with an error")
			}
			return
		}
		n := 0
		buf := make([]byte, 4096)
		for e, err := range formats.Extents(img, 0) {
			if err != nil {
				break
			}
			if n++; n > 300 {
				break
			}
			k, err := img.ReadAt(buf[:min(e.Len, 4096)], e.Off)
			if err == nil && int64(k) != min(e.Len, 4096) {
				t.Fatalf("ReadAt at %+v = %d without an error", e, k)
			} else if err == nil && e.Kind != formats.Data && len(bytes.TrimLeft(buf[:k], "\x00")) > 0 {
				t.Fatalf("%+v is not zero", e)
			}
		}
		img.Info()
		if _, err := img.Check(); err != nil && !errors.Is(err, formats.ErrCorrupt) && !errors.Is(err, formats.ErrLimit) {
			t.Fatal(err)
		}
	})
}

// b0 is a small disk that fuzzed ones may have as parent.
var b0 = func() []byte {
	var f bytes.Buffer
	w, err := NewWriter(appender{&f}, 512, nil)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err)
	}
	return f.Bytes()
}()

func benchDisk() []byte {
	b := testimg.Disk(16<<20, 1)
	for i := 0; i < len(b); i += 3 {
		b[i] &= 0x1f
	}
	return b
}

func BenchmarkEncode(b *testing.B) {
	data := benchDisk()
	for _, level := range []int{1, DefaultLevel, 6, 9} {
		b.Run(string(rune('0'+level)), func(b *testing.B) {
			e := newEncoder(level)
			var dst []byte
			var n int64
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				n = 0
				for off := 0; off < len(data); off += grainSize {
					dst, _ = e.Encode(dst[:0], data[off:off+grainSize])
					n += int64(len(dst))
				}
			}
			b.ReportMetric(float64(n)/float64(len(data)), "ratio")
		})
	}
}

func BenchmarkRead(b *testing.B) {
	data := benchDisk()
	img := open(b, build(b, data, nil), nil)
	for name, n := range map[string]int{"4KiB": 4096, "1MiB": 1 << 20} {
		b.Run(name, func(b *testing.B) {
			p := make([]byte, n)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				for off := 0; off < len(data); off += n {
					if _, err := img.ReadAt(p, int64(off)); err != nil && err != io.EOF {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
