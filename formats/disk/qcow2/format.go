// Package qcow2 reads, checks and writes disk images in QEMU's qcow2 format,
// versions 2 and 3.
//
// The specification is "Qcow2 Image File Format", docs/interop/qcow2.rst of
// QEMU ("spec" in comments here); field names are its names. Where it leaves
// something open, QEMU's reader is followed, and the place says so.
package qcow2

import "encoding/binary"

// Name is the name of the format in errors and on the command line.
const Name = "qcow2"

// Numbers in the file are big-endian.
var be = binary.BigEndian

const magic = "QFI\xfb" // magic, u32 at 0

// Offsets of the header's fields (spec, "Header").
const (
	hdrVersion        = 4   // version, u32
	hdrBackingOff     = 8   // backing_file_offset, u64
	hdrBackingSize    = 16  // backing_file_size, u32
	hdrClusterBits    = 20  // cluster_bits, u32
	hdrSize           = 24  // size, u64
	hdrCrypt          = 32  // crypt_method, u32
	hdrL1Size         = 36  // l1_size, u32
	hdrL1Off          = 40  // l1_table_offset, u64
	hdrRefTableOff    = 48  // refcount_table_offset, u64
	hdrRefTableSize   = 56  // refcount_table_clusters, u32
	hdrNbSnapshots    = 60  // nb_snapshots, u32
	hdrSnapshotsOff   = 64  // snapshots_offset, u64
	hdrIncompatible   = 72  // incompatible_features, u64
	hdrCompatible     = 80  // compatible_features, u64
	hdrAutoclear      = 88  // autoclear_features, u64
	hdrRefcountOrder  = 96  // refcount_order, u32
	hdrHeaderLength   = 100 // header_length, u32
	hdrCompression    = 104 // compression_type, u8
	headerSizeV2      = 72
	headerSizeV3      = 104
	headerSizeCurrent = 112 // with compression_type and its padding
)

// Bits of incompatible_features.
const (
	incompatDirty       = 1 << 0
	incompatCorrupt     = 1 << 1
	incompatDataFile    = 1 << 2
	incompatCompression = 1 << 3
	incompatExtendedL2  = 1 << 4
	incompatKnown       = 1<<5 - 1
)

// Bits of compatible_features and autoclear_features.
const (
	compatLazyRefcounts  = 1 << 0
	autoclearBitmaps     = 1 << 0
	autoclearDataFileRaw = 1 << 1
)

// Values of crypt_method.
const (
	cryptNone = 0
	cryptAES  = 1
	cryptLUKS = 2
)

// Values of compression_type.
const (
	compressionZlib = 0
	compressionZstd = 1
)

// Types of header extensions (spec, "Header extensions").
const (
	extEnd           = 0
	extBackingFormat = 0xe2792aca
	extFeatureNames  = 0x6803f857
	extBitmaps       = 0x23852875
	extCrypto        = 0x0537be77
	extDataFile      = 0x44415441
)

// Entries of the L1, L2, refcount and bitmap tables (spec, "Cluster
// mapping" and "Host cluster management").
const (
	oflagCopied     = 1 << 63 // refcount is exactly one
	oflagCompressed = 1 << 62 // L2 only
	oflagZero       = 1 << 0  // L2 only, version 3, without subclusters
	offsetMask      = 1<<56 - 1<<9
	reftableMask    = ^uint64(1<<9 - 1)
	l1Reserved      = 0x7f000000000001ff
	l2Reserved      = 0x3f000000000001fe
)

// Subclusters (spec, "Extended L2 Entries"): 32 to a cluster; the second half
// of an entry has their allocation bits below and their zero bits above.
const (
	subclusters       = 32
	minSubclusterBits = 14 // cluster_bits from which a cluster can have subclusters
)

// Limits. What a header may ask for is bounded by them and, wherever it names
// a part of the file, by the size of the file.
const (
	// Cluster sizes: the specification's minimum and QEMU's maximum, which
	// also bounds every buffer of one cluster.
	minClusterBits = 9
	maxClusterBits = 21
	// maxL1Bytes is QEMU's limit of an L1 table (QCOW_MAX_L1_SIZE).
	maxL1Bytes = 32 << 20
	// maxRefTableBytes is QEMU's limit of a refcount table.
	maxRefTableBytes = 8 << 20
	// maxRefcountOrder is the specification's: 64 bits.
	maxRefcountOrder = 6
	// maxBackingName is the specification's limit of a backing file name;
	// QEMU holds the data file's name in a buffer of the same size.
	maxBackingName = 1023
	// maxFormatName: QEMU keeps the name of the backing format in 16 bytes.
	maxFormatName = 15
	// maxFeatureNames is more than the three fields have bits.
	maxFeatureNames = 256
	// maxSnapshots is QEMU's (QCOW_MAX_SNAPSHOTS); maxSnapshotTable bounds
	// their names in memory: 16 MiB is 256 bytes for each of so many.
	maxSnapshots     = 65536
	maxSnapshotTable = 16 << 20
	// maxSnapshotExtra is QEMU's limit of the extra data of one snapshot.
	maxSnapshotExtra = 1024
	// maxBitmaps is QEMU's; maxBitmapDir bounds their names in memory.
	maxBitmaps   = 65535
	maxBitmapDir = 16 << 20
	// maxBitmapName is QEMU's.
	maxBitmapName = 1023
	// maxBitmapTable is QEMU's limit of the table of one bitmap, in entries.
	maxBitmapTable = 0x8000000 / 8
	// maxZstdWindow is what a decoder may be asked to keep: 8 MiB is the
	// size that RFC 8878 wants every decoder to support.
	maxZstdWindow = 8 << 20
)

// Budgets of memory of one opened image.
const (
	// l2CacheBytes holds the L2 entries of 32 GiB of disk in 64 KiB clusters.
	l2CacheBytes = 4 << 20
	// l2SliceBytes is how much of an L2 table is read at once.
	l2SliceBytes = 64 << 10
	// inflatedBytes is for clusters that were decompressed for a read of a
	// part of them.
	inflatedBytes = 4 << 20
	// maxWalk is the number of table entries one call of ExtentAt looks at:
	// 64 GiB of disk in 64 KiB clusters, and about a millisecond.
	maxWalk = 1 << 20
)
