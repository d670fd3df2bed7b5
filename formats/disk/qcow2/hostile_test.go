package qcow2

import (
	"bytes"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"imgmaint/formats"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

// smallImage is an image of 1 MiB in clusters of 4 KiB: header, L1 table at
// 4096, L2 tables from 8192, data after them.
func smallImage(t testing.TB, o *WriterOptions) []byte {
	t.Helper()
	if o == nil {
		o = &WriterOptions{ClusterSize: 4096}
	}
	var f formatstest.Buffer
	w, err := create(&f, 1<<20, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := copyDisk(w, testimg.Disk(1<<20, 6)); err != nil {
		t.Fatal(err)
	}
	return f.Bytes()
}

func put32(off int, v uint32) func([]byte) []byte {
	return func(b []byte) []byte { be.PutUint32(b[off:], v); return b }
}

func put64(off int, v uint64) func([]byte) []byte {
	return func(b []byte) []byte { be.PutUint64(b[off:], v); return b }
}

func all(fs ...func([]byte) []byte) func([]byte) []byte {
	return func(b []byte) []byte {
		for _, f := range fs {
			b = f(b)
		}
		return b
	}
}

// ext puts a header extension of n bytes, and what it holds, at the start of
// the extension area.
func ext(kind, n uint32, data ...byte) func([]byte) []byte {
	return func(b []byte) []byte {
		be.PutUint32(b[headerSizeCurrent:], kind)
		be.PutUint32(b[headerSizeCurrent+4:], n)
		copy(b[headerSizeCurrent+8:], data)
		return b
	}
}

func bytes64(vs ...uint64) []byte {
	var b []byte
	for _, v := range vs {
		b = be.AppendUint64(b, v)
	}
	return b
}

// entry changes the L2 entry of the first cluster.
func entry(v uint64) func([]byte) []byte {
	return func(b []byte) []byte {
		l1 := be.Uint64(b[hdrL1Off:])
		l2 := be.Uint64(b[l1:]) & offsetMask
		be.PutUint64(b[l2:], v)
		return b
	}
}

func l1Entry(v uint64) func([]byte) []byte {
	return func(b []byte) []byte { be.PutUint64(b[be.Uint64(b[hdrL1Off:]):], v); return b }
}

// snapshotTable appends a snapshot table of one entry.
func snapshotTable(count uint32, edit func(e []byte)) func([]byte) []byte {
	return func(b []byte) []byte {
		e := make([]byte, 4096)
		be.PutUint64(e, be.Uint64(b[hdrL1Off:]))
		be.PutUint32(e[8:], 1)
		be.PutUint16(e[12:], 1)
		be.PutUint32(e[36:], 16)
		be.PutUint64(e[48:], 1<<20)
		e[56] = '1'
		if edit != nil {
			edit(e)
		}
		be.PutUint32(b[hdrNbSnapshots:], count)
		be.PutUint64(b[hdrSnapshotsOff:], uint64(len(b)))
		return append(b, e...)
	}
}

func bitmaps(n uint32, size, off uint64, dir []byte) func([]byte) []byte {
	return func(b []byte) []byte {
		be.PutUint64(b[hdrAutoclear:], autoclearBitmaps)
		if off == 0 {
			off = uint64(len(b))
			b = append(b, append(dir, make([]byte, 4096-len(dir))...)...)
		}
		return ext(extBitmaps, 24, append(be.AppendUint32(nil, n), append(make([]byte, 4), bytes64(size, off)...)...)...)(b)
	}
}

func TestHostile(t *testing.T) {
	unsupported := errors.ErrUnsupported
	type row struct {
		name   string
		change func(b []byte) []byte
		want   error
		says   string // part of the message
	}
	rows := []row{
		{"not qcow2", put32(0, 1), formats.ErrUnknown, "magic"},
		{"qcow version 1", put32(hdrVersion, 1), unsupported, "qcow version 1"},
		{"version 4", put32(hdrVersion, 4), unsupported, "version"},
		{"backing file names a host file", backing("/etc/passwd"), unsupported, `"/etc/passwd"`},
		{"backing file is json:", backing(`json:{"file":"x"}`), unsupported, `"json:{\"file\":\"x\"}"`},
		{"backing file is a device", backing("/dev/sda\n\x1b[2J"), unsupported, `"/dev/sda\n\x1b[2J"`},
		{"backing file name too long", all(backing("a"), put32(hdrBackingSize, 1<<20)), formats.ErrLimit, "backing_file_size"},
		{"backing file name leaves the cluster", all(put64(hdrBackingOff, 4000), put32(hdrBackingSize, 1000)), formats.ErrCorrupt, "backing_file_size"},
		{"backing file name past the cluster", all(put64(hdrBackingOff, 1<<40), put32(hdrBackingSize, 10)), formats.ErrCorrupt, "backing_file_offset"},
		{"backing file name in the header", all(put64(hdrBackingOff, 8), put32(hdrBackingSize, 10)), formats.ErrCorrupt, "backing_file_offset"},
		{"external data file", all(put64(hdrIncompatible, incompatDataFile), ext(extDataFile, 8, []byte("/dev/sda")...)), unsupported, `"/dev/sda"`},
		{"external data file without a name", put64(hdrIncompatible, incompatDataFile), unsupported, "data file"},
		{"AES", put32(hdrCrypt, cryptAES), unsupported, "AES"},
		{"LUKS", put32(hdrCrypt, cryptLUKS), unsupported, "LUKS"},
		{"crypt_method 3", put32(hdrCrypt, 3), unsupported, "crypt_method"},
		{"unknown incompatible bit", put64(hdrIncompatible, 1<<40), unsupported, "bit 40"},
		{"unknown incompatible bit with a name", all(put64(hdrIncompatible, 1<<40),
			ext(extFeatureNames, 48, append([]byte{0, 40}, "time travel"...)...)), unsupported, `"time travel"`},
		{"cluster_bits 0", put32(hdrClusterBits, 0), formats.ErrCorrupt, "cluster_bits"},
		{"cluster_bits 8", put32(hdrClusterBits, 8), formats.ErrCorrupt, "cluster_bits"},
		{"cluster_bits 22", put32(hdrClusterBits, 22), formats.ErrCorrupt, "cluster_bits"},
		{"cluster_bits 2^32-1", put32(hdrClusterBits, 1<<32-1), formats.ErrCorrupt, "cluster_bits"},
		{"subclusters in small clusters", put64(hdrIncompatible, incompatExtendedL2), formats.ErrCorrupt, "cluster_bits"},
		{"refcount_order 7", put32(hdrRefcountOrder, 7), formats.ErrCorrupt, "refcount_order"},
		{"refcount_order 2^32-1", put32(hdrRefcountOrder, 1<<32-1), formats.ErrCorrupt, "refcount_order"},
		{"size of exabytes", put64(hdrSize, 1<<63-1), formats.ErrLimit, "size"},
		{"size negative", put64(hdrSize, 1<<64-1), formats.ErrLimit, "size"},
		{"size larger than the L1 table", put64(hdrSize, 1<<40), formats.ErrCorrupt, "l1_size"},
		{"l1_size 2^32-1", put32(hdrL1Size, 1<<32-1), formats.ErrLimit, "l1_size"},
		{"l1_size 32 MiB in a small file", put32(hdrL1Size, 4<<20), formats.ErrCorrupt, "l1_table_offset"},
		{"l1_size 0", put32(hdrL1Size, 0), formats.ErrCorrupt, "l1_size"},
		{"l1_table_offset unaligned", put64(hdrL1Off, 4096+512), formats.ErrCorrupt, "l1_table_offset"},
		{"l1_table_offset past the end", put64(hdrL1Off, 1<<50), formats.ErrCorrupt, "l1_table_offset"},
		{"l1_table_offset negative", put64(hdrL1Off, 1<<63), formats.ErrCorrupt, "l1_table_offset"},
		{"l1_table_offset 0", put64(hdrL1Off, 0), formats.ErrCorrupt, "l1_table_offset"},
		{"refcount_table_clusters 2^32-1", put32(hdrRefTableSize, 1<<32-1), formats.ErrLimit, "refcount_table_clusters"},
		{"refcount_table_clusters 0", put32(hdrRefTableSize, 0), formats.ErrCorrupt, "refcount_table_clusters"},
		{"refcount_table_clusters past the end", put32(hdrRefTableSize, 2048), formats.ErrCorrupt, "refcount_table_offset"},
		{"refcount_table_offset unaligned", put64(hdrRefTableOff, 513), formats.ErrCorrupt, "refcount_table_offset"},
		{"refcount_table_offset past the end", put64(hdrRefTableOff, 1<<62), formats.ErrCorrupt, "refcount_table_offset"},
		{"refcount table inside the L1 table", func(b []byte) []byte { return put64(hdrRefTableOff, be.Uint64(b[hdrL1Off:]))(b) }, formats.ErrCorrupt, "overlaps"},
		{"nb_snapshots 2^32-1", put32(hdrNbSnapshots, 1<<32-1), formats.ErrLimit, "nb_snapshots"},
		{"nb_snapshots beyond the file", snapshotTable(60000, nil), formats.ErrCorrupt, "snapshots_offset"},
		{"snapshots past the end", all(put32(hdrNbSnapshots, 1), put64(hdrSnapshotsOff, 1<<40)), formats.ErrCorrupt, "snapshots_offset"},
		{"snapshot table inside the L1 table", func(b []byte) []byte {
			return all(put32(hdrNbSnapshots, 1), put64(hdrSnapshotsOff, be.Uint64(b[hdrL1Off:])))(b)
		}, formats.ErrCorrupt, ""},
		{"snapshot extra data of gigabytes", snapshotTable(1, func(e []byte) { be.PutUint32(e[36:], 1<<31) }), formats.ErrLimit, "extra data"},
		{"snapshot name past the end", snapshotTable(1, func(e []byte) { be.PutUint16(e[14:], 65535) }), formats.ErrCorrupt, "snapshot"},
		{"header_length 0", put32(hdrHeaderLength, 0), formats.ErrCorrupt, "header_length"},
		{"header_length over the cluster", put32(hdrHeaderLength, 1<<20), formats.ErrCorrupt, "header_length"},
		{"compression_type 9", all(put64(hdrIncompatible, incompatCompression), func(b []byte) []byte { b[hdrCompression] = 9; return b }), unsupported, "compression_type"},
		{"compression_type without its bit", func(b []byte) []byte { b[hdrCompression] = 1; return b }, formats.ErrCorrupt, "compression_type"},
		{"compression bit without a type", put64(hdrIncompatible, incompatCompression), formats.ErrCorrupt, "compression_type"},
		{"header extension of gigabytes", ext(0x12345678, 1<<32-1), formats.ErrCorrupt, "header extension"},
		{"header extension over the cluster", ext(0x12345678, 4096), formats.ErrCorrupt, "header extension"},
		{"header extension twice", all(ext(extFeatureNames, 0), func(b []byte) []byte {
			be.PutUint32(b[headerSizeCurrent+8:], extFeatureNames)
			return b
		}), formats.ErrCorrupt, "twice"},
		{"backing format too long", ext(extBackingFormat, 100), formats.ErrLimit, "backing format"},
		{"data file name too long", ext(extDataFile, 2000), formats.ErrLimit, "data file"},
		{"encryption header past the end", ext(extCrypto, 16, bytes64(1<<40, 4096)...), formats.ErrCorrupt, "encryption"},
		{"encryption header of exabytes", ext(extCrypto, 16, bytes64(4096, 1<<63)...), formats.ErrCorrupt, "encryption"},
		{"bitmaps without the extension", put64(hdrAutoclear, autoclearBitmaps), formats.ErrCorrupt, "bitmaps"},
		{"bitmaps extension too short", ext(extBitmaps, 8), formats.ErrCorrupt, "bitmaps"},
		{"nb_bitmaps 2^32-1", bitmaps(1<<32-1, 4096, 4096, nil), formats.ErrLimit, "nb_bitmaps"},
		{"bitmap directory of exabytes", bitmaps(1, 1<<62, 4096, nil), formats.ErrLimit, "bitmap_directory_size"},
		{"bitmap directory past the end", bitmaps(1, 4096, 1<<40, nil), formats.ErrCorrupt, "bitmap_directory_offset"},
		{"bitmap granularity", bitmaps(1, 32, 0, append(make([]byte, 16), 1, 255, 0, 1, 0, 0, 0, 0, 'a')), formats.ErrCorrupt, "granularity"},
		{"bitmap name past the directory", bitmaps(1, 32, 0, append(make([]byte, 16), 1, 16, 0, 200, 0, 0, 0, 0, 'a')), formats.ErrCorrupt, "bitmap 0"},
		{"bitmap extra data", bitmaps(1, 32, 0, append(make([]byte, 16), 1, 16, 0, 1, 0xff, 0xff, 0xff, 0xff, 'a')), formats.ErrCorrupt, "bitmap 0"},
		{"truncated header", func(b []byte) []byte { return b[:100] }, formats.ErrCorrupt, "header"},
		{"only a magic", func(b []byte) []byte { return b[:8] }, formats.ErrCorrupt, "header"},
		{"empty", func([]byte) []byte { return nil }, formats.ErrCorrupt, "header"},
		{"truncated in the L1 table", func(b []byte) []byte { return b[:4096+4] }, formats.ErrCorrupt, ""},
		{"L2 table unaligned", l1Entry(8192 + 512), formats.ErrCorrupt, "cluster boundary"},
		{"L2 table past the end", l1Entry(1 << 50), formats.ErrCorrupt, "within the file"},
		{"L2 table inside the L1 table", l1Entry(4096), formats.ErrCorrupt, "overlaps the L1 table"},
		{"L2 table inside the refcount table", func(b []byte) []byte { return l1Entry(be.Uint64(b[hdrRefTableOff:]))(b) }, formats.ErrCorrupt, "overlaps the refcount table"},
		{"data cluster unaligned", entry(8192 + 1024), formats.ErrCorrupt, "cluster boundary"},
		{"data cluster past the end", entry(1 << 50), formats.ErrCorrupt, "after the end"},
		{"data cluster inside the L1 table", entry(4096), formats.ErrCorrupt, "overlaps the L1 table"},
		{"zero cluster in version 2", all(put32(hdrVersion, 2), entry(1)), formats.ErrCorrupt, "version 2"},
		{"compressed data in the header", entry(oflagCompressed | 100), formats.ErrCorrupt, "compressed data"},
		{"compressed data past the end", entry(oflagCompressed | 1<<50), formats.ErrCorrupt, "compressed data"},
		{"compressed data in the L1 table", entry(oflagCompressed | 4096), formats.ErrCorrupt, "overlap"},
		{"compressed data that are none", entry(oflagCompressed | 8192), formats.ErrCorrupt, "compressed cluster"},
	}
	base := smallImage(t, nil)
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			b := r.change(bytes.Clone(base))
			if r.name == "compressed data in the L1 table" {
				r.says = "L1 table"
			}
			err := hostile(t, b)
			if !errors.Is(err, r.want) || !strings.Contains(err.Error(), r.says) {
				t.Errorf("got %v, want %v with %q", err, r.want, r.says)
			}
			// Describe opens nothing, and has no panic for us either.
			Describe(bytes.NewReader(b), int64(len(b)))
			Check(bytes.NewReader(b), int64(len(b)))
		})
	}
}

// backing makes the image an overlay.
func backing(name string) func([]byte) []byte {
	return func(b []byte) []byte {
		be.PutUint64(b[hdrBackingOff:], 1024)
		be.PutUint32(b[hdrBackingSize:], uint32(len(name)))
		copy(b[1024:], name)
		return b
	}
}

// hostile opens an image, goes through all of it and returns the first error.
// It takes a second and 64 MiB at most.
func hostile(t *testing.T, b []byte) error {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	err := func() error {
		img, err := Open(bytes.NewReader(b), int64(len(b)), nil)
		if err != nil {
			if img != nil {
				t.Error("an image came with the error")
			}
			return err
		}
		buf := make([]byte, 100_000)
		for e, err := range formats.Extents(img, 0) {
			if err != nil {
				return err
			}
			for off := e.Off; off < e.End() && off-e.Off < 4<<20; off += int64(len(buf)) {
				if _, err := img.ReadAt(buf[:min(int64(len(buf)), e.End()-off)], off); err != nil && err != io.EOF {
					return err
				}
			}
		}
		_, err = img.Check()
		return err
	}()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
		t.Errorf("%d bytes allocated", n)
	}
	if d := time.Since(start); d > 5*time.Second { // a second on a machine of one's own
		t.Errorf("took %v", d)
	}
	return err
}

// A zstd frame may ask for no more than a cluster, nor for a large window.
func TestHostileZstd(t *testing.T) {
	base := smallImage(t, &WriterOptions{ClusterSize: 4096, Compression: Zstd})
	enc, _ := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	bomb := enc.EncodeAll(make([]byte, 1<<20), nil)
	window := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0xff, 1, 0, 0} // a window of terabytes, an empty block
	for name, c := range map[string]struct {
		frame []byte
		want  error
	}{
		"bomb":      {bomb, formats.ErrLimit},
		"window":    {window, formats.ErrLimit},
		"short":     {enc.EncodeAll(make([]byte, 100), nil), formats.ErrCorrupt},
		"no frame":  {bytes.Repeat([]byte{0x55}, 600), formats.ErrCorrupt},
		"cut":       {bomb[:len(bomb)-2], formats.ErrCorrupt},
		"skippable": {[]byte{0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff}, formats.ErrCorrupt},
	} {
		b := bytes.Clone(base)
		at := uint64(len(b))
		b = append(b, append(c.frame, make([]byte, 0)...)...)
		sectors := (uint64(len(b))-1)>>9 - at>>9
		if err := hostile(t, entry(oflagCompressed|sectors<<(62-4)|at)(b)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// Ten thousand snapshots of one large L1 table whose entries are all the same
// L2 table would take days to check.
func TestHostileWork(t *testing.T) {
	b := smallImage(t, nil)
	l1 := uint64(len(b))
	const entries, count = 100_000, 10_000
	l2 := be.Uint64(b[be.Uint64(b[hdrL1Off:]):])
	for range entries {
		b = be.AppendUint64(b, l2)
	}
	b = append(b, make([]byte, -len(b)&4095)...)
	be.PutUint32(b[hdrNbSnapshots:], count)
	be.PutUint64(b[hdrSnapshotsOff:], uint64(len(b)))
	for range count {
		e := make([]byte, 64)
		be.PutUint64(e, l1)
		be.PutUint32(e[8:], entries)
		be.PutUint16(e[12:], 1)
		be.PutUint32(e[36:], 16)
		e[56] = '1'
		b = append(b, e...)
	}
	if err := hostile(t, b); !errors.Is(err, formats.ErrLimit) {
		t.Errorf("got %v, want ErrLimit", err)
	}
}

func TestHostileSnapshot(t *testing.T) {
	base := smallImage(t, nil)
	for name, c := range map[string]struct {
		edit func(e []byte)
		want error
	}{
		"fine":           {nil, nil},
		"l1_size":        {func(e []byte) { be.PutUint32(e[8:], 1<<32-1) }, formats.ErrLimit},
		"l1 beyond":      {func(e []byte) { be.PutUint32(e[8:], 1<<20) }, formats.ErrCorrupt},
		"l1 unaligned":   {func(e []byte) { be.PutUint64(e[0:], 4097) }, formats.ErrCorrupt},
		"l1 past end":    {func(e []byte) { be.PutUint64(e[0:], 1<<60) }, formats.ErrCorrupt},
		"l1 in header":   {func(e []byte) { be.PutUint64(e[0:], 0) }, formats.ErrCorrupt},
		"l1 in refcount": {func(e []byte) { be.PutUint64(e[0:], be.Uint64(base[hdrRefTableOff:])) }, formats.ErrCorrupt},
		"exabytes":       {func(e []byte) { be.PutUint64(e[48:], 1<<63) }, formats.ErrLimit},
	} {
		b := snapshotTable(1, c.edit)(bytes.Clone(base))
		_, err := Open(bytes.NewReader(b), int64(len(b)), &Options{Snapshot: "1"})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if _, err := Open(bytes.NewReader(b), int64(len(b)), nil); err != nil {
			t.Errorf("%s: the active disk does not open: %v", name, err)
		}
	}
	// A disk that is larger than its L1 table ends in a hole, at once.
	b := snapshotTable(1, func(e []byte) { be.PutUint64(e[48:], 1<<60) })(bytes.Clone(base))
	img, err := Open(bytes.NewReader(b), int64(len(b)), &Options{Snapshot: "1"})
	if err != nil {
		t.Fatal(err)
	}
	if e, err := img.ExtentAt(4 << 20); err != nil || e.Kind != formats.Hole {
		t.Errorf("ExtentAt after the L1 table = %+v, %v", e, err)
	}
}

// A file may end within its last data cluster, as QEMU's may; where it ends
// before, what is missing is missed.
func TestTruncated(t *testing.T) {
	var f formatstest.Buffer
	w, err := NewWriter(&f, 256<<10, nil)
	if err != nil {
		t.Fatal(err)
	}
	disk := bytes.Repeat([]byte("data"), 64<<10)
	if err := copyDisk(w, disk); err != nil {
		t.Fatal(err)
	}
	// The data end at 7 clusters; put the refcount table, which is after
	// them, out of the way by pointing it at a free place.
	b := append(bytes.Clone(f.Bytes()[:7<<16]), []byte{}...)
	refs := bytes.Clone(f.Bytes()[7<<16:])
	copy(b[1<<16+32<<10:], refs[:0])
	l1 := bytes.Clone(b[1<<16:][:8])
	moved := append(append(append([]byte{}, b[:1<<16]...), refs...), b[1<<16:]...) // two clusters in
	shift := uint64(len(refs))
	be.PutUint64(moved[hdrRefTableOff:], 2<<16)
	be.PutUint64(moved[hdrL1Off:], 1<<16+shift)
	l2 := be.Uint64(l1)&offsetMask + shift
	be.PutUint64(moved[1<<16+shift:], oflagCopied|l2)
	for i := range uint64(4) {
		be.PutUint64(moved[l2+8*i:], be.Uint64(moved[l2+8*i:])+shift)
	}
	for _, c := range []struct {
		cut int // bytes from the end
		ok  bool
	}{{0, true}, {1000, true}, {65535, true}, {65536, false}, {100_000, false}} {
		cut := moved[:len(moved)-c.cut]
		img, err := Open(bytes.NewReader(cut), int64(len(cut)), nil)
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(disk)
		clear(want[len(want)-min(c.cut, len(want)):])
		got := make([]byte, len(disk))
		_, err = img.ReadAt(got, 0)
		if c.ok && (err != nil || !bytes.Equal(got, want)) {
			t.Errorf("%d bytes cut: %v, or other contents", c.cut, err)
		}
		if !c.ok && !errors.Is(err, formats.ErrCorrupt) {
			t.Errorf("%d bytes cut: %v, want ErrCorrupt", c.cut, err)
		}
		if c.ok {
			path := testimg.WriteFile(t, "cut.qcow2", cut)
			if !bytes.Equal(qemuRaw(t, path), want) {
				t.Errorf("%d bytes cut: QEMU reads other contents", c.cut)
			}
		}
	}
	// A file that shrinks while it is read.
	img, err := Open(bytes.NewReader(moved[:len(moved)-3<<16]), int64(len(moved)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := img.ReadAt(make([]byte, len(disk)), 0); !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("a file that shrank: %v", err)
	}
}

func TestReadFaults(t *testing.T) {
	for _, o := range []*WriterOptions{nil, {ClusterSize: 4096, Compression: Zlib}} {
		b := snapshotTable(1, nil)(smallImage(t, o))
		for bad := int64(0); bad < int64(len(b)); bad += 509 {
			r := testimg.FaultyReader{R: bytes.NewReader(b), Bad: bad}
			img, err := Open(r, int64(len(b)), &Options{Snapshot: "1"})
			if err != nil {
				if img != nil || !errors.Is(err, testimg.ErrInjected) {
					t.Fatalf("bad byte %d: Open = %v, %v", bad, img, err)
				}
				continue
			}
			if _, err := img.ReadAt(make([]byte, 1<<20), 0); err != nil && !errors.Is(err, testimg.ErrInjected) {
				t.Fatalf("bad byte %d: ReadAt: %v", bad, err)
			}
			if _, err := img.Check(); err != nil && !errors.Is(err, testimg.ErrInjected) {
				t.Fatalf("bad byte %d: Check: %v", bad, err)
			}
		}
		// Each byte of metadata and data is read by someone: count failures.
		failed := 0
		for _, off := range []int64{0, 4096, 8192, 65536 + 8192} {
			r := testimg.FaultyReader{R: bytes.NewReader(b), Bad: off}
			img, err := Open(r, int64(len(b)), nil)
			if err == nil {
				_, err = img.ReadAt(make([]byte, 1<<20), 0)
			}
			if errors.Is(err, testimg.ErrInjected) {
				failed++
			}
		}
		if failed != 4 {
			t.Errorf("%d of 4 bad places were noticed", failed)
		}
	}
}

// Damage is told as qemu-img tells it.
func TestCheckDamage(t *testing.T) {
	testimg.Tool(t, "qemu-img")
	base := smallImage(t, nil)
	l1 := int(be.Uint64(base[hdrL1Off:]))
	l2 := int(be.Uint64(base[l1:]) & offsetMask)
	rt := int(be.Uint64(base[hdrRefTableOff:]))
	rb := int(be.Uint64(base[rt:]))
	data := be.Uint64(base[l2:])
	packed := smallImage(t, &WriterOptions{ClusterSize: 4096, Compression: Zlib})
	for name, c := range map[string]struct {
		b      []byte
		change func([]byte) []byte
	}{
		"clean":                {base, func(b []byte) []byte { return b }},
		"clean compressed":     {packed, func(b []byte) []byte { return b }},
		"leak":                 {base, entry(0)},
		"refcount 0":           {base, func(b []byte) []byte { b[rb+1+2*int(data&offsetMask>>12)] = 0; return b }},
		"refcount 2":           {base, func(b []byte) []byte { b[rb+1+2*int(data&offsetMask>>12)] = 2; return b }},
		"two references":       {base, func(b []byte) []byte { copy(b[l2:l2+8], b[l2+8*4:]); return b }},
		"copied flag off":      {base, entry(data &^ oflagCopied)},
		"L1 copied flag off":   {base, func(b []byte) []byte { b[l1] &= 0x7f; return b }},
		"data unaligned":       {base, entry(data + 512)},
		"data in refcounts":    {base, func(b []byte) []byte { return entry(oflagCopied | uint64(rb))(b) }},
		"data after the end":   {base, entry(oflagCopied | 1<<40)},
		"L2 after the end":     {base, l1Entry(oflagCopied | 1<<40)},
		"reserved L2 bits":     {base, entry(data | 4)},
		"reserved L1 bits":     {base, func(b []byte) []byte { b[l1+7] |= 2; return b }},
		"refblock unaligned":   {base, func(b []byte) []byte { be.PutUint64(b[rt:], uint64(rb+512)); return b }},
		"refblock after end":   {base, put64(rt+8, 1<<40)},
		"refblock twice":       {base, put64(rt+8, uint64(rb))},
		"no refblock":          {base, put64(rt, 0)},
		"compressed copied":    {packed, func(b []byte) []byte { b[int(be.Uint64(b[be.Uint64(b[hdrL1Off:]):])&offsetMask)] |= 0x80; return b }},
		"leaked at the end":    {base, func(b []byte) []byte { b[rb+1+2*(len(b)>>12)] = 1; return append(b, make([]byte, 4096)...) }},
		"free at the end":      {base, func(b []byte) []byte { return append(b, make([]byte, 9000)...) }},
		"zero preallocated":    {base, entry(data | oflagZero)},
		"snapshot L1 unknown":  {base, snapshotTable(1, func(e []byte) { be.PutUint64(e, 4097) })},
		"snapshot not counted": {base, snapshotTable(1, nil)},
	} {
		t.Run(name, func(t *testing.T) {
			b := c.change(bytes.Clone(c.b))
			path := testimg.WriteFile(t, "a.qcow2", b)
			q, out := runQemuCheck(t, path)
			r, err := Check(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatalf("Check: %v; qemu-img: %s", err, out)
			}
			if (r.Corruptions > 0) != (q.Corruptions+q.CheckErrors > 0) || (r.Leaks > 0) != (q.Leaks > 0) {
				t.Errorf("got %d corruptions, %d leaks %v\nqemu-img: %s", r.Corruptions, r.Leaks, r.Findings, out)
			}
			if q.CheckErrors == 0 && (r.Corruptions != q.Corruptions || r.Leaks != q.Leaks) {
				t.Errorf("counts differ: got %d corruptions, %d leaks, qemu-img %d, %d\n%v\n%s", r.Corruptions, r.Leaks, q.Corruptions, q.Leaks, r.Findings, out)
			}
		})
	}
}

func TestSamples(t *testing.T) {
	for _, name := range []string{"dfvfs-ext2.qcow2", "dfvfs-windows_volume.qcow2"} {
		path := testimg.Sample(t, name)
		t.Run(name, func(t *testing.T) { checkSame(t, path) })
	}
	for _, name := range []string{"cdi-cirros-snapshot1.qcow2", "cdi-cirros-snapshot2.qcow2"} {
		path := testimg.Sample(t, name)
		if _, err := openFile(t, path, &Options{}); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
		img, err := openFile(t, path, &Options{LayerOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(io.NewSectionReader(img, 0, img.Size())); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if r, err := img.Check(); err != nil || r.Corruptions+r.Leaks > 0 || r.AllocatedClusters == 0 {
			t.Errorf("%s: Check: %+v, %v", name, r, err)
		}
	}
	b, err := os.ReadFile(testimg.Sample(t, "cdi-invalid-qcow-large-memory.img"))
	if err != nil {
		t.Fatal(err)
	}
	if err := hostile(t, b); err == nil {
		t.Error("the hostile header was accepted")
	}
}
