package vhd

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"testing"
	"time"

	"imgmaint/formats"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

// span is a hostile file: it has b at its start, tail at its end, and zeros,
// or 0xff, between.
type span struct {
	b, tail []byte
	size    int64
	fill    byte
	reads   int64 // bytes
}

func (s *span) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.size-off))
	s.reads += int64(n)
	for i := range p[:n] {
		at := off + int64(i)
		switch {
		case at < int64(len(s.b)):
			p[i] = s.b[at]
		case at >= s.size-int64(len(s.tail)):
			p[i] = s.tail[at-(s.size-int64(len(s.tail)))]
		default:
			p[i] = s.fill
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// try opens r and reports the error with what it cost.
func try(r io.ReaderAt, size int64, opts *Options) (alloc uint64, took time.Duration, err error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	_, err = Open(r, size, opts)
	took = time.Since(start)
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc, took, err
}

// Each line of the list of what went wrong elsewhere, by name.
func TestHostile(t *testing.T) {
	base := build(t, testimg.Disk(5<<20, 2), nil)
	child := build(t, testimg.Disk(5<<20, 2), &WriterOptions{Parent: &Parent{Name: "p", UniqueID: [16]byte{1}}})
	fixed := build(t, testimg.Disk(1<<20, 2), &WriterOptions{Subformat: Fixed})
	entry := func(b []byte, i int, e uint32) []byte {
		b = bytes.Clone(b)
		be.PutUint32(b[1536+4*i:], e)
		return b
	}
	resolve := func(formats.Reference) (formats.Image, error) { return plain(nil), nil }
	for _, tt := range []struct {
		name string
		b    []byte
		want error
	}{
		{"empty", nil, formats.ErrUnknown},
		{"no footer", make([]byte, 4096), formats.ErrUnknown},
		{"max_table_entries of 4 billion", editHeader(base, func(h *header) { h.maxTableEntries = 1<<32 - 1 }), formats.ErrLimit},
		{"max_table_entries over the limit", editHeader(base, func(h *header) { h.maxTableEntries = maxTableEntries + 1 }), formats.ErrLimit},
		{"max_table_entries of a table after the end", editHeader(base, func(h *header) { h.maxTableEntries = maxTableEntries }), formats.ErrCorrupt},
		{"max_table_entries less than the disk", editHeader(base, func(h *header) { h.maxTableEntries = 2 }), formats.ErrCorrupt},
		{"max_table_entries of 0", editHeader(base, func(h *header) { h.maxTableEntries = 0 }), formats.ErrCorrupt},
		{"block_size of 0", editHeader(base, func(h *header) { h.blockSize = 0 }), formats.ErrCorrupt},
		{"block_size of 3 MiB", editHeader(base, func(h *header) { h.blockSize = 3 << 20 }), formats.ErrCorrupt},
		{"block_size of 256", editHeader(base, func(h *header) { h.blockSize = 256 }), formats.ErrCorrupt},
		{"block_size of 2 GiB", editHeader(base, func(h *header) { h.blockSize = 1 << 31 }), formats.ErrLimit},
		{"virtual size of exabytes", editFooters(base, func(f *footer) { f.currentSize = 1 << 60 }), formats.ErrLimit},
		{"virtual size of all ones", editFooters(base, func(f *footer) { f.currentSize = 1<<64 - 1 }), formats.ErrLimit},
		{"virtual size over the table", editFooters(base, func(f *footer) { f.currentSize = 2040 << 30 }), formats.ErrCorrupt},
		{"fixed disk larger than its file", editFooters(fixed, func(f *footer) { f.currentSize += 512 }), formats.ErrCorrupt},
		{"fixed disk of exabytes", editFooters(fixed, func(f *footer) { f.currentSize = 1 << 62 }), formats.ErrCorrupt},
		{"fixed disk of all ones", editFooters(fixed, func(f *footer) { f.currentSize = 1<<64 - 1 }), formats.ErrLimit},
		{"data_offset after the end", editFooters(base, func(f *footer) { f.dataOffset = 1 << 63 }), formats.ErrCorrupt},
		{"data_offset at the end", editFooters(base, func(f *footer) { f.dataOffset = uint64(len(base)) }), formats.ErrCorrupt},
		{"data_offset at the footer", editFooters(base, func(f *footer) { f.dataOffset = 0 }), formats.ErrCorrupt},
		{"data_offset unaligned", editFooters(base, func(f *footer) { f.dataOffset = 513 }), formats.ErrCorrupt},
		{"no header there", editFooters(base, func(f *footer) { f.dataOffset = 4096 }), formats.ErrCorrupt},
		{"table_offset after the end", editHeader(base, func(h *header) { h.tableOffset = 1 << 62 }), formats.ErrCorrupt},
		{"table_offset of all ones", editHeader(base, func(h *header) { h.tableOffset = 1<<64 - 1 }), formats.ErrCorrupt},
		{"table_offset unaligned", editHeader(base, func(h *header) { h.tableOffset = 1537 }), formats.ErrCorrupt},
		{"table_offset within the header", editHeader(base, func(h *header) { h.tableOffset = 1024 }), formats.ErrCorrupt},
		{"table_offset at the footer", editHeader(base, func(h *header) { h.tableOffset = 0 }), formats.ErrCorrupt},
		{"block after the end", entry(base, 1, 1<<31), formats.ErrCorrupt},
		{"block at the last sector number", entry(base, 1, 1<<32-2), formats.ErrCorrupt},
		{"block over the header", entry(base, 1, 1), formats.ErrCorrupt},
		{"block over the BAT", entry(base, 1, 3), formats.ErrCorrupt},
		{"block over the footer", entry(base, 1, be.Uint32(base[1536+8:])+8), formats.ErrCorrupt},
		{"truncated", append(bytes.Clone(base[:len(base)/2]), base[len(base)-512:]...), formats.ErrCorrupt},
		{"truncated without a footer", base[:len(base)/2], formats.ErrCorrupt},
		{"disk_type of 6", editFooters(base, func(f *footer) { f.diskType = 6 }), errors.ErrUnsupported},
		{"file_format_version 2", editFooters(base, func(f *footer) { f.version = 2 << 16 }), errors.ErrUnsupported},
		{"header_version 2", editHeader(base, func(h *header) { h.version = 2 << 16 }), errors.ErrUnsupported},
		{"disk is its own parent", editHeader(child, func(h *header) { h.parentID = parseFooter(child).uniqueID }), formats.ErrCorrupt},
		{"locator of 4 GiB", editHeader(child, func(h *header) { h.locators[0].dataLength = 1<<32 - 1 }), formats.ErrLimit},
		{"locator after the end", editHeader(child, func(h *header) { h.locators[0].dataOffset = uint64(len(child)) - 2 }), formats.ErrCorrupt},
		{"locator at all ones", editHeader(child, func(h *header) { h.locators[7] = locator{[4]byte{'W'}, 1, 1, 1<<64 - 1} }), formats.ErrCorrupt},
		{"block over a locator", entry(child, 1, 4), formats.ErrCorrupt},
	} {
		alloc, took, err := try(bytes.NewReader(tt.b), int64(len(tt.b)), &Options{Resolve: resolve})
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if alloc > 1<<20 || took > time.Second {
			t.Errorf("%s: %d bytes allocated in %v", tt.name, alloc, took)
		}
	}
}

// Names inside an image open nothing, whatever they are.
func TestHostileParentNames(t *testing.T) {
	for _, name := range []string{"/etc/passwd", "../../etc/shadow", `\\.\PhysicalDrive0`, "json:{}", "http://h/x", "a\nb\x1b[2J"} {
		b := build(t, make([]byte, 4096), &WriterOptions{Parent: &Parent{Name: name, Absolute: name, UniqueID: [16]byte{1}}})
		_, err := Open(bytes.NewReader(b), int64(len(b)), nil)
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%q: %v, want unsupported", name, err)
			continue
		}
		if bytes.ContainsAny([]byte(err.Error()), "\n\x1b") {
			t.Errorf("%q: the name is not quoted in %q", name, err)
		}
		if _, err := Describe(bytes.NewReader(b), int64(len(b))); err != nil {
			t.Errorf("%q: Describe: %v", name, err)
		}
	}
}

// The largest table that is allowed, in a file that really has it.
func TestLargestTable(t *testing.T) {
	b := build(t, make([]byte, 4096), nil)[:1536]
	b = editHeader(b, func(h *header) { h.maxTableEntries, h.blockSize = maxTableEntries, 512<<10 })
	b = editFooters(append(b, b[:512]...), func(f *footer) { f.currentSize = maxDynamicSize })[:1536]
	s := &span{b: b, tail: b[:512], size: 64 << 20, fill: 0xff}
	alloc, took, err := try(s, s.size, nil)
	if err != nil {
		t.Fatal(err)
	}
	if alloc > 20<<20 || took > time.Second {
		t.Errorf("%d bytes allocated in %v", alloc, took)
	}
	// A disk of 2040 GiB without data is one hole.
	m, err := Open(s, s.size, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := m.ExtentAt(1); err != nil || e.Kind != formats.Hole || e.End() != maxDynamicSize {
		t.Errorf("ExtentAt(1) = %+v, %v", e, err)
	}
	if rep, err := m.Check(); err != nil || rep.Corruptions > 0 {
		t.Errorf("Check() = %+v, %v", rep, err)
	}
}

// A table of as many wrong entries as it can have is told in a bounded report.
func TestCheckManyProblems(t *testing.T) {
	b := build(t, make([]byte, 4096), nil)[:1536]
	b = editHeader(b, func(h *header) { h.maxTableEntries, h.blockSize = 1<<20, 2<<20 })
	s := &span{b: b, tail: b[:512], size: 16 << 20}
	rep, err := Check(s, s.size)
	if err != nil || rep.Corruptions < 1<<20 || len(rep.Findings) != formats.MaxFindings {
		t.Errorf("Check: %d corruptions, %d findings, %v", rep.Corruptions, len(rep.Findings), err)
	}
}

// One of the two footers is enough, and it is told.
func TestFooterCopies(t *testing.T) {
	want := testimg.Disk(3<<20, 4)
	b := build(t, want, nil)
	n := len(b)
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(b)) }
	for _, tt := range []struct {
		name, problem string
		b             []byte
		err           error
	}{
		{"last damaged", "wrong checksum: the copy", edit(func(b []byte) []byte { b[n-500] ^= 1; return b }), nil},
		{"last cookie gone", "missing at the end", edit(func(b []byte) []byte { b[n-512] ^= 1; return b }), nil},
		{"last cut off", "missing at the end", b[:n-512], nil},
		{"first damaged", "start has a wrong checksum", edit(func(b []byte) []byte { b[100] ^= 1; return b }), nil},
		{"first cookie gone", "start is missing", edit(func(b []byte) []byte { b[0] ^= 1; return b }), nil},
		{"they differ", "differs", edit(func(b []byte) []byte {
			return append(editFooters(b[:512], func(f *footer) { f.timestamp++ }), b[512:]...)
		}), nil},
		{"old footer of 511 bytes", "", b[:n-1], nil},
		{"both damaged", "", edit(func(b []byte) []byte { b[n-500] ^= 1; b[100] ^= 1; return b }), formats.ErrCorrupt},
		{"both gone", "", edit(func(b []byte) []byte { b[n-512] ^= 1; b[0] ^= 1; return b }), formats.ErrUnknown},
		{"one gone, one damaged", "", edit(func(b []byte) []byte { b[n-512] ^= 1; b[100] ^= 1; return b }), formats.ErrCorrupt},
		{"header damaged", "dynamic disk header", edit(func(b []byte) []byte { b[512+700] ^= 1; return b }), nil},
	} {
		m, err := Open(bytes.NewReader(tt.b), int64(len(tt.b)), nil)
		if tt.err != nil {
			if !errors.Is(err, tt.err) {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if err := formatstest.TestImage(m, want); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		problems := m.Info().Problems
		if tt.problem == "" && len(problems) > 0 || tt.problem != "" && !contains(problems, tt.problem) {
			t.Errorf("%s: problems %q, want %q", tt.name, problems, tt.problem)
		}
		rep, err := m.Check()
		if err != nil || (rep.Corruptions > 0) != (tt.problem != "") {
			t.Errorf("%s: Check() = %+v, %v", tt.name, rep, err)
		}
	}
}

func TestOldFixedFooter(t *testing.T) {
	want := testimg.Disk(1<<20, 4)
	b := build(t, want, &WriterOptions{Subformat: Fixed})
	m := open(t, b[:len(b)-1], nil)
	if err := formatstest.TestImage(m, want); err != nil {
		t.Error(err)
	}
	b[len(b)-500] ^= 1
	if _, err := Open(bytes.NewReader(b), int64(len(b)), nil); !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("a fixed disk with a damaged footer: %v, want corrupt", err)
	}
}

// A guest that writes a dynamic disk's headers into its own first sectors does
// not make its fixed disk a dynamic one, as it does for qemu.
func TestGuestWritesHeaders(t *testing.T) {
	guest := build(t, testimg.Disk(1<<20, 9), nil)
	guest = guest[:len(guest)/512*512]
	m := open(t, build(t, guest, &WriterOptions{Subformat: Fixed}), nil)
	if err := formatstest.TestImage(m, guest); err != nil {
		t.Error(err)
	}
	if !contains(m.Info().Problems, "itself the footer") {
		t.Errorf("problems %q", m.Info().Problems)
	}
}

func TestSavedState(t *testing.T) {
	b := editFooters(build(t, make([]byte, 4096), nil), func(f *footer) { f.savedState = 1 })
	info := open(t, b, nil).Info()
	if propertyOf(info, "saved-state") != true || !contains(info.Problems, "saved state") {
		t.Errorf("%+v", info)
	}
}

// Sectors whose bit is not set read as zeros, whatever the block holds there.
func TestSectorBitmap(t *testing.T) {
	for _, bs := range []int64{512 << 10, 2 << 20} {
		want := testimg.Disk(5<<20, 6)
		for i := range want {
			want[i] |= 1
		}
		b := build(t, want, &WriterOptions{BlockSize: bs})
		h := parseHeader(b[512:1536])
		for i := range want[:5<<20/bs*bs] {
			s := int64(i) / 512
			if s%7 < 3 || s%1000 > 900 {
				want[i] = 0
				blk := int64(be.Uint32(b[int64(h.tableOffset)+4*(int64(i)/bs):])) * 512
				in := int64(i) % bs / 512
				b[blk+in/8] &^= 0x80 >> (in % 8)
			}
		}
		m := open(t, b, nil)
		if err := formatstest.TestImage(m, want); err != nil {
			t.Errorf("blocks of %d: %v", bs, err)
		}
		var data int
		for e, err := range formats.Extents(m, 0) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Kind == formats.Data {
				data += int(e.Len)
			}
		}
		if n := len(want) - bytes.Count(want, []byte{0}); data != n {
			t.Errorf("blocks of %d: %d bytes of data, want %d", bs, data, n)
		}
	}
}

// What Open refuses, Check lists: overlaps, blocks past the end, leaks.
func TestCheckFinds(t *testing.T) {
	base := build(t, bytes.Repeat([]byte{1}, 7<<20), nil)
	bat := func(b []byte, i int) []byte { return b[1536+4*i:] }
	for _, tt := range []struct {
		name               string
		edit               func(b []byte) []byte
		corruptions, leaks int64
	}{
		{"clean", func(b []byte) []byte { return b }, 0, 0},
		{"two entries, one block", func(b []byte) []byte { copy(bat(b, 1)[:4], bat(b, 0)[:4]); return b }, 1, 1},
		{"blocks overlap", func(b []byte) []byte { be.PutUint32(bat(b, 1), be.Uint32(bat(b, 0))+8); return b }, 1, 1},
		{"block past the end", func(b []byte) []byte { be.PutUint32(bat(b, 1), 1<<20); return b }, 1, 1},
		{"block dropped", func(b []byte) []byte { be.PutUint32(bat(b, 2), unusedEntry); return b }, 0, 1},
		{"room at the end", func(b []byte) []byte {
			return append(append(b[:len(b)-512:len(b)-512], make([]byte, 1<<20)...), b[len(b)-512:]...)
		}, 0, 1},
		{"checksum", func(b []byte) []byte { b[200] ^= 1; return b }, 1, 0},
		{"entry after the disk", func(b []byte) []byte {
			b = editHeader(b, func(h *header) { h.maxTableEntries = 5 })
			copy(bat(b, 4), bat(b, 3)[:4])
			be.PutUint32(bat(b, 3), unusedEntry)
			return b
		}, 0, 1},
	} {
		b := tt.edit(bytes.Clone(base))
		rep, err := Check(bytes.NewReader(b), int64(len(b)))
		if err != nil || rep.Corruptions != tt.corruptions || rep.Leaks != tt.leaks {
			t.Errorf("%s: %+v, %v, want %d corruptions, %d leaks", tt.name, rep, err, tt.corruptions, tt.leaks)
		}
		if rep.TotalClusters != 4 {
			t.Errorf("%s: %d clusters", tt.name, rep.TotalClusters)
		}
	}
	fixed := build(t, make([]byte, 1<<20), &WriterOptions{Subformat: Fixed})
	long := append(append(bytes.Clone(fixed[:1<<20]), 0, 0), fixed[1<<20:]...)
	if rep, err := Check(bytes.NewReader(long), int64(len(long))); err != nil || rep.Leaks != 1 || rep.Corruptions != 0 {
		t.Errorf("fixed with room: %+v, %v", rep, err)
	}
}

// XenServer's batmap is in use, not leaked.
func TestBatmap(t *testing.T) {
	base := build(t, bytes.Repeat([]byte{1}, 2<<20), nil)
	const room = 128 << 10
	b := append(bytes.Clone(base[:2048]), make([]byte, room)...)
	b = append(b, base[2048:]...)
	be.PutUint32(b[1536:], be.Uint32(b[1536:])+room/512)
	without, err := Check(bytes.NewReader(b), int64(len(b)))
	if err != nil || without.Leaks != 1 {
		t.Fatalf("without: %+v, %v", without, err)
	}
	copy(b[2048:], batmapCookie)
	be.PutUint64(b[2048+8:], 2048+512)
	be.PutUint32(b[2048+16:], room/512)
	if rep, err := Check(bytes.NewReader(b), int64(len(b))); err != nil || rep.Leaks+rep.Corruptions != 0 {
		t.Errorf("with: %+v, %v", rep, err)
	}
}

func FuzzOpen(f *testing.F) {
	small := testimg.Disk(8192, 1)
	f.Add(build(f, small, &WriterOptions{Subformat: Fixed}))
	for _, p := range []*Parent{nil, {Name: "p", Absolute: `C:\p`, UniqueID: [16]byte{1}}} {
		// Two blocks of 4 KiB, so that the seeds are small.
		b := editFooters(build(f, make([]byte, 8192), &WriterOptions{Parent: p}), func(f *footer) { f.currentSize = 8192 })
		foot := b[len(b)-footerSize:]
		b = editHeader(b[:len(b)-footerSize], func(h *header) { h.blockSize, h.maxTableEntries = 4096, 2 })
		for i := range 2 {
			b = append(b, make([]byte, alignUp(int64(len(b)), 512)-int64(len(b)))...)
			be.PutUint32(b[1536+4*i:], uint32(len(b)/512))
			b = append(b, make([]byte, 512)...)
			b[len(b)-512] = 0x3c
			b = append(b, small[4096*i:4096*(i+1)]...)
		}
		b = append(b, foot...)
		open(f, b, &Options{Resolve: func(formats.Reference) (formats.Image, error) { return plain(small), nil }})
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		img, err := Open(r, int64(len(b)), &Options{Resolve: func(formats.Reference) (formats.Image, error) { return plain(small), nil }})
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
			if n++; n > 1000 {
				break
			}
			if k, err := img.ReadAt(buf[:min(e.Len, 4096)], e.Off); err == nil && int64(k) != min(e.Len, 4096) {
				t.Fatalf("ReadAt at %+v = %d without an error", e, k)
			} else if err == nil && e.Kind == formats.Hole && len(bytes.TrimLeft(buf[:k], "\x00")) > 0 {
				t.Fatalf("%+v is not zero", e)
			}
		}
		img.Info()
		if _, err := img.Check(); err != nil && !errors.Is(err, formats.ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for name, o := range map[string]*WriterOptions{"dynamic": nil, "fixed": {Subformat: Fixed}} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(64 << 20)
			b.ReportAllocs()
			for b.Loop() {
				w, err := NewWriter(new(sparseFile), 64<<20, o)
				if err != nil {
					b.Fatal(err)
				}
				for off := int64(0); off < 64<<20; off += int64(len(data)) {
					if _, err := w.WriteAt(data, off); err != nil {
						b.Fatal(err)
					}
				}
				if err := w.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRead(b *testing.B) {
	img := open(b, build(b, bytes.Repeat([]byte{1}, 64<<20), nil), nil)
	for _, n := range []int{4 << 10, 1 << 20} {
		b.Run(map[bool]string{true: "4KiB", false: "1MiB"}[n == 4<<10], func(b *testing.B) {
			p := make([]byte, n)
			b.SetBytes(64 << 20)
			b.ReportAllocs()
			for b.Loop() {
				for off := int64(0); off < 64<<20; off += int64(n) {
					if _, err := img.ReadAt(p, off); err != nil && err != io.EOF {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
