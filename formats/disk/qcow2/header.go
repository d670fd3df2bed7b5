package qcow2

import (
	"fmt"
	"io"
	"math"
	"strings"

	"imgmaint/formats"
	"imgmaint/formats/internal/bounded"
)

// A header is the header, decoded. Offsets and sizes are validated by parse.
type header struct {
	version       uint32 // version, u32 at 4
	backingOff    uint64 // backing_file_offset, u64 at 8
	backingSize   uint32 // backing_file_size, u32 at 16
	clusterBits   uint32 // cluster_bits, u32 at 20
	size          uint64 // size, u64 at 24
	crypt         uint32 // crypt_method, u32 at 32
	l1Size        uint32 // l1_size, u32 at 36
	l1Off         uint64 // l1_table_offset, u64 at 40
	refTableOff   uint64 // refcount_table_offset, u64 at 48
	refTableSize  uint32 // refcount_table_clusters, u32 at 56
	nbSnapshots   uint32 // nb_snapshots, u32 at 60
	snapshotsOff  uint64 // snapshots_offset, u64 at 64
	incompatible  uint64 // incompatible_features, u64 at 72
	compatible    uint64 // compatible_features, u64 at 80
	autoclear     uint64 // autoclear_features, u64 at 88
	refcountOrder uint32 // refcount_order, u32 at 96
	headerLength  uint32 // header_length, u32 at 100
	compression   uint8  // compression_type, u8 at 104
}

// A layout is all of an image that does not depend on which disk of it (the
// active one or a snapshot) is read.
type layout struct {
	f bounded.File
	header
	clusterSize int64

	backing  formats.Reference // Name is "" without one
	dataFile formats.Reference // Name is "" without one
	features []featureName
	bitmaps  bitmapsExt
	crypto   region // encryption header

	snapshots     []snapshot
	snapshotsSize int64 // bytes the snapshot table takes
	bitmapList    []bitmap
	problems      []string
}

// A region is a part of the file that metadata uses.
type region struct {
	off, n int64
	name   string
}

func (a region) overlaps(off, n int64) bool { return off < a.off+a.n && a.off < off+n }

type featureName struct {
	kind, bit uint8
	name      string
}

// bitmapsExt is the bitmaps header extension.
type bitmapsExt struct {
	count   uint32 // nb_bitmaps, u32 at 0
	dirSize uint64 // bitmap_directory_size, u64 at 8
	dirOff  uint64 // bitmap_directory_offset, u64 at 16
}

func corrupt(off int64, field, msg string, args ...any) error {
	return formats.Corrupt(Name, off, field, msg, args...)
}

func limit(off int64, field, msg string, args ...any) error {
	return formats.Limit(Name, off, field, msg, args...)
}

// Sniff reports whether head, the start of a file, shows a qcow image of any
// version.
func Sniff(head []byte, _ io.ReaderAt, _ int64) bool {
	return len(head) >= 8 && string(head[:4]) == magic && head[4] == 0
}

// parse reads and validates the header, its extensions, the snapshot table
// and the bitmap directory. It leaves to its callers to refuse what can be
// described but not read.
func parse(r io.ReaderAt, size int64) (*layout, error) {
	l := &layout{f: bounded.File{R: r, Size: size, Format: Name}}
	b, err := l.f.Bytes(0, min(headerSizeV2, max(size, 8)), "header", headerSizeV2)
	if err != nil {
		return nil, err
	}
	if string(b[:4]) != magic {
		return nil, formats.Unknown(Name, 0, "magic", "%q", b[:4])
	}
	switch v := be.Uint32(b[hdrVersion:]); v {
	case 1:
		return nil, formats.Unsupported(Name, hdrVersion, "version", "qcow version 1")
	case 2, 3:
		l.version = v
	default:
		return nil, formats.Unsupported(Name, hdrVersion, "version", "%d", v)
	}
	if len(b) < headerSizeV2 {
		return nil, corrupt(0, "header", "the file has %d bytes", size)
	}
	if err := l.parseHeader(b); err != nil {
		return nil, err
	}
	if err := l.validate(); err != nil {
		return nil, err
	}
	if err := l.parseExtensions(); err != nil {
		return nil, err
	}
	if l.unknownFeatures() != 0 {
		// What follows may not mean what we think; the callers refuse to
		// read the image and can still tell why.
		return l, nil
	}
	if err := l.parseSnapshots(); err != nil {
		return nil, err
	}
	if err := l.parseBitmaps(); err != nil {
		return nil, err
	}
	return l, l.checkOverlaps()
}

func (l *layout) parseHeader(b []byte) error {
	h := &l.header
	h.backingOff = be.Uint64(b[hdrBackingOff:])
	h.backingSize = be.Uint32(b[hdrBackingSize:])
	h.clusterBits = be.Uint32(b[hdrClusterBits:])
	h.size = be.Uint64(b[hdrSize:])
	h.crypt = be.Uint32(b[hdrCrypt:])
	h.l1Size = be.Uint32(b[hdrL1Size:])
	h.l1Off = be.Uint64(b[hdrL1Off:])
	h.refTableOff = be.Uint64(b[hdrRefTableOff:])
	h.refTableSize = be.Uint32(b[hdrRefTableSize:])
	h.nbSnapshots = be.Uint32(b[hdrNbSnapshots:])
	h.snapshotsOff = be.Uint64(b[hdrSnapshotsOff:])
	h.refcountOrder, h.headerLength = 4, headerSizeV2 // what version 2 means
	if h.version == 2 {
		return nil
	}
	b, err := l.f.Bytes(0, headerSizeV3, "header", headerSizeV3)
	if err != nil {
		return err
	}
	h.incompatible = be.Uint64(b[hdrIncompatible:])
	h.compatible = be.Uint64(b[hdrCompatible:])
	h.autoclear = be.Uint64(b[hdrAutoclear:])
	h.refcountOrder = be.Uint32(b[hdrRefcountOrder:])
	h.headerLength = be.Uint32(b[hdrHeaderLength:])
	if h.headerLength < headerSizeV3 {
		return corrupt(hdrHeaderLength, "header_length", "%d, at least %d", h.headerLength, headerSizeV3)
	}
	if h.headerLength > hdrCompression {
		c, err := l.f.Bytes(hdrCompression, 1, "compression_type", 1)
		if err != nil {
			return err
		}
		h.compression = c[0]
	}
	return nil
}

// validate checks the fixed part of the header.
func (l *layout) validate() error {
	h := &l.header
	if h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
		return corrupt(hdrClusterBits, "cluster_bits", "%d is not from %d to %d", h.clusterBits, minClusterBits, maxClusterBits)
	}
	l.clusterSize = 1 << h.clusterBits
	switch {
	case int64(h.headerLength) > l.clusterSize:
		return corrupt(hdrHeaderLength, "header_length", "%d is more than a cluster", h.headerLength)
	case h.size > math.MaxInt64-1<<maxClusterBits:
		return limit(hdrSize, "size", "%d bytes", h.size)
	case h.crypt > cryptLUKS:
		return formats.Unsupported(Name, hdrCrypt, "crypt_method", "%d", h.crypt)
	case h.refcountOrder > maxRefcountOrder:
		return corrupt(hdrRefcountOrder, "refcount_order", "%d is more than %d", h.refcountOrder, maxRefcountOrder)
	case h.incompatible&incompatExtendedL2 != 0 && h.clusterBits < minSubclusterBits:
		return corrupt(hdrClusterBits, "cluster_bits", "%d with extended L2 entries, at least %d", h.clusterBits, minSubclusterBits)
	case h.compression > compressionZstd:
		return formats.Unsupported(Name, hdrCompression, "compression_type", "%d", h.compression)
	case (h.compression != compressionZlib) != (h.incompatible&incompatCompression != 0):
		return corrupt(hdrCompression, "compression_type", "%d does not agree with incompatible_features %#x", h.compression, h.incompatible)
	case int64(h.refTableSize) > maxRefTableBytes>>h.clusterBits:
		return limit(hdrRefTableSize, "refcount_table_clusters", "%d, at most %d", h.refTableSize, maxRefTableBytes>>h.clusterBits)
	case h.refTableSize == 0:
		return corrupt(hdrRefTableSize, "refcount_table_clusters", "0")
	case h.l1Size > maxL1Bytes/8:
		return limit(hdrL1Size, "l1_size", "%d entries, at most %d", h.l1Size, maxL1Bytes/8)
	case uint64(h.l1Size) < l.l1Needed(h.size):
		return corrupt(hdrL1Size, "l1_size", "%d entries, a disk of %d bytes needs %d", h.l1Size, h.size, l.l1Needed(h.size))
	case h.nbSnapshots > maxSnapshots:
		return limit(hdrNbSnapshots, "nb_snapshots", "%d, at most %d", h.nbSnapshots, maxSnapshots)
	}
	if err := l.table(hdrRefTableOff, "refcount_table_offset", h.refTableOff, int64(h.refTableSize)<<h.clusterBits); err != nil {
		return err
	}
	if err := l.table(hdrL1Off, "l1_table_offset", h.l1Off, 8*int64(h.l1Size)); err != nil {
		return err
	}
	if h.nbSnapshots > 0 {
		return l.table(hdrSnapshotsOff, "snapshots_offset", h.snapshotsOff, 40*int64(h.nbSnapshots))
	}
	return nil
}

// table checks that the n bytes at off, from the field at pos, are a table
// that can be: on a cluster boundary, after the header, within the file.
func (l *layout) table(pos int64, field string, off uint64, n int64) error {
	if n == 0 {
		return nil
	}
	if off&uint64(l.clusterSize-1) != 0 {
		return corrupt(pos, field, "%#x is not on a cluster boundary", off)
	}
	if off == 0 {
		return corrupt(pos, field, "the table overlaps the header")
	}
	if off > uint64(l.f.Size) || n > l.f.Size-int64(off) {
		return corrupt(pos, field, "%d bytes at %#x, the file ends at %#x", n, off, l.f.Size)
	}
	return nil
}

// regions are the tables the header points to.
func (l *layout) regions() []region {
	all := []region{
		{0, l.clusterSize, "header"},
		{int64(l.refTableOff), int64(l.refTableSize) << l.clusterBits, "refcount table"},
		{int64(l.l1Off), 8 * int64(l.l1Size), "L1 table"},
		{int64(l.snapshotsOff), l.snapshotsSize, "snapshot table"},
		{int64(l.bitmaps.dirOff), int64(l.bitmaps.dirSize), "bitmap directory"},
		l.crypto,
	}
	used := all[:0]
	for _, r := range all {
		if r.n > 0 {
			used = append(used, r)
		}
	}
	return used
}

func (l *layout) checkOverlaps() error {
	all := l.regions()
	for i, a := range all {
		for _, b := range all[:i] {
			if b.overlaps(a.off, a.n) {
				return corrupt(a.off, a.name, "overlaps the %s", b.name)
			}
		}
	}
	return nil
}

// entryBits is the logarithm of the size of an L2 entry.
func (h *header) entryBits() uint32 {
	if h.incompatible&incompatExtendedL2 != 0 {
		return 4
	}
	return 3
}

// l2Bits is the logarithm of the number of entries of an L2 table.
func (h *header) l2Bits() uint32 { return h.clusterBits - h.entryBits() }

// l1Needed is the number of L1 entries a disk of size bytes takes.
func (l *layout) l1Needed(size uint64) uint64 {
	if size == 0 {
		return 0
	}
	return (size-1)>>(l.clusterBits+l.l2Bits()) + 1
}

// unknownFeatures are the incompatible features no one here knows.
func (h *header) unknownFeatures() uint64 { return h.incompatible &^ incompatKnown }

// parseExtensions reads the header extensions and the backing file name.
func (l *layout) parseExtensions() error {
	end := l.clusterSize
	if l.backingOff != 0 {
		if l.backingOff > uint64(l.clusterSize) {
			return corrupt(hdrBackingOff, "backing_file_offset", "%#x is not in the first cluster", l.backingOff)
		}
		if l.backingOff < uint64(l.headerLength) {
			return corrupt(hdrBackingOff, "backing_file_offset", "%#x is within the header", l.backingOff)
		}
		end = int64(l.backingOff)
	}
	head, err := l.f.Bytes(0, min(l.clusterSize, l.f.Size), "header", 1<<maxClusterBits)
	if err != nil {
		return err
	}
	end = min(end, int64(len(head)))
	seen := make(map[uint32]bool)
	for off := int64(l.headerLength); off <= end-8; {
		kind, n := be.Uint32(head[off:]), int64(be.Uint32(head[off+4:]))
		if kind == extEnd {
			break
		}
		if n > end-off-8 {
			return corrupt(off+4, "header extension length", "%d bytes, there is room for %d", n, end-off-8)
		}
		switch kind {
		case extBackingFormat, extFeatureNames, extBitmaps, extCrypto, extDataFile:
			if seen[kind] {
				return corrupt(off, "header extension", "%#x appears twice", kind)
			}
			seen[kind] = true
		}
		if err := l.parseExtension(kind, off+8, head[off+8:off+8+n]); err != nil {
			return err
		}
		off += 8 + (n+7)&^7
	}
	switch {
	case l.incompatible&incompatDataFile == 0:
		l.dataFile = formats.Reference{}
	case l.dataFile.Name == "":
		l.dataFile.Kind = formats.RefData // the image wants one and gives no name
	}
	if l.backingOff == 0 || l.backingSize == 0 {
		l.backing = formats.Reference{}
		return nil
	}
	if l.backingSize > maxBackingName {
		return limit(hdrBackingSize, "backing_file_size", "%d bytes, at most %d", l.backingSize, maxBackingName)
	}
	if at := int64(l.backingOff); int64(l.backingSize) > int64(len(head))-at {
		return corrupt(hdrBackingSize, "backing_file_size", "%d bytes at %#x do not fit in the first cluster", l.backingSize, at)
	}
	l.backing.Kind = formats.RefBacking
	l.backing.Name = string(head[l.backingOff:][:l.backingSize])
	return nil
}

func (l *layout) parseExtension(kind uint32, off int64, b []byte) error {
	switch kind {
	case extBackingFormat:
		if len(b) > maxFormatName {
			return limit(off-4, "backing format name", "%d bytes, at most %d", len(b), maxFormatName)
		}
		l.backing.Format = string(b)
	case extFeatureNames:
		if len(b)/48 > maxFeatureNames {
			return limit(off-4, "feature name table", "%d entries, at most %d", len(b)/48, maxFeatureNames)
		}
		for ; len(b) >= 48; b = b[48:] {
			name, _, _ := strings.Cut(string(b[2:48]), "\x00")
			l.features = append(l.features, featureName{b[0], b[1], name})
		}
	case extBitmaps:
		if len(b) != 24 {
			return corrupt(off-4, "bitmaps extension", "%d bytes, want 24", len(b))
		}
		l.bitmaps = bitmapsExt{be.Uint32(b), be.Uint64(b[8:]), be.Uint64(b[16:])}
	case extCrypto:
		if len(b) < 16 {
			return corrupt(off-4, "full disk encryption header pointer", "%d bytes, want 16", len(b))
		}
		at, n := be.Uint64(b), be.Uint64(b[8:])
		if n > uint64(l.f.Size) {
			return corrupt(off+8, "full disk encryption header pointer", "%d bytes, the file has %d", n, l.f.Size)
		}
		if err := l.table(off, "full disk encryption header pointer", at, int64(n)); err != nil {
			return err
		}
		l.crypto = region{int64(at), int64(n), "encryption header"}
	case extDataFile:
		if len(b) > maxBackingName {
			return limit(off-4, "external data file name", "%d bytes, at most %d", len(b), maxBackingName)
		}
		l.dataFile = formats.Reference{Kind: formats.RefData, Name: string(b), Format: "raw"}
	}
	return nil
}

// featureList names the incompatible features in bits, as the image does
// where it does.
func (l *layout) featureList(bits uint64) string {
	var names []string
	for i := range uint8(64) {
		if bits>>i&1 == 0 {
			continue
		}
		name := fmt.Sprintf("bit %d", i)
		for _, f := range l.features {
			if f.kind == 0 && f.bit == i && f.name != "" {
				name = fmt.Sprintf("bit %d %q", i, f.name)
				break
			}
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

// readable refuses what can be described but not read.
func (l *layout) readable() error {
	if u := l.unknownFeatures(); u != 0 {
		return formats.Unsupported(Name, hdrIncompatible, "incompatible_features", "%s", l.featureList(u))
	}
	switch l.crypt {
	case cryptAES:
		return formats.Unsupported(Name, hdrCrypt, "crypt_method", "AES encryption")
	case cryptLUKS:
		return formats.Unsupported(Name, hdrCrypt, "crypt_method", "LUKS encryption")
	}
	return nil
}
