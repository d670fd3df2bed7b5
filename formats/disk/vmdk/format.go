// Package vmdk reads and writes VMware virtual disks that are one sparse
// file: streamOptimized, which is what an OVA carries, is read and written,
// monolithicSparse is read. Disks of other kinds consist of several files or
// are text; they are recognised and refused by name.
//
// The layout is that of VMware's "Virtual Disk Format 5.0" technical note;
// all fields are little-endian, all offsets and sizes in it are sectors of
// 512 bytes. Where VMware's programs (open-vmdk's vmdk-convert, ovftool) and
// qemu do more than the note says, they are followed and the comment says so.
package vmdk

import (
	"encoding/binary"

	"imgmaint/formats"
)

// Name is the name of the format in errors and on the command line.
const Name = "vmdk"

const (
	sectorSize = 512
	headerSize = 512 // SparseExtentHeader, padded
	gtEntries  = 512 // numGTEsPerGT: "always 512"
	gtSize     = 4 * gtEntries
	gtSectors  = gtSize / sectorSize

	magic     = "KDMV" // magicNumber 0x564d444b
	magicCOWD = "COWD" // vmfsSparse, of ESX
	// magicSE starts a seSparse extent: 0xcafebabe in 64 bits.
	magicSE = "\xbe\xba\xfe\xca\x00\x00\x00\x00"

	newlines = "\n \r\n" // singleEndLineChar .. doubleEndLineChar2

	gdAtEnd = 1<<64 - 1 // gdOffset: the footer at the end has the real one

	algorithmNone    = 0
	algorithmDeflate = 1 // RFC 1951 in the zlib wrapper of RFC 1950

	noParent = 0xffffffff // parentCID
)

// flags of the header. Those of the upper half must be understood.
const (
	flagNewline    = 1 << 0 // the newline test is valid
	flagRedundant  = 1 << 1 // the redundant grain directory is used
	flagZeroGrain  = 1 << 2 // a grain table entry of 1 is a grain of zeros
	flagCompressed = 1 << 16
	flagMarkers    = 1 << 17
	flagsIncompat  = 0xffff0000
)

// Types of metadata markers.
const (
	markerEOS    = 0
	markerGT     = 1
	markerGD     = 2
	markerFooter = 3
)

// grainHead is the start of a grain marker, before the compressed bytes: lba,
// u64, and size, u32.
const grainHead = 12

// Limits. What is over them is refused as formats.ErrLimit.
const (
	// maxCapacity is VMware's largest disk, 62 TiB.
	maxCapacity = 62 << 40
	// maxGrain is 16 times the size every program uses; a grain is the unit
	// of inflating, of which several are in memory.
	maxGrain = 1 << 20
	// maxDirectory is the entries of a grain directory: 62 TiB in tables of
	// 512 grains of 64 KiB need 2,031,616. It takes 16 MiB of memory.
	maxDirectory = 1 << 22
	// maxDescriptor is what qemu reads of one; they have about 500 bytes.
	maxDescriptor = 1 << 20
	// maxLines bounds the descriptor's extents and ddb entries.
	maxLines = 4096
	// maxRuns is how many separate runs of the file a check keeps apart; the
	// grains of a file that was written in order are one run.
	maxRuns = 1 << 20
)

var le = binary.LittleEndian

// header is the sparse extent header; the footer has the same layout.
type header struct {
	version          uint32 // version, u32 at 4
	flags            uint32 // flags, u32 at 8
	capacity         uint64 // capacity, u64 at 12, sectors
	grainSize        uint64 // grainSize, u64 at 20, sectors
	descriptorOffset uint64 // descriptorOffset, u64 at 28, sectors
	descriptorSize   uint64 // descriptorSize, u64 at 36, sectors
	numGTEsPerGT     uint32 // numGTEsPerGT, u32 at 44
	rgdOffset        uint64 // rgdOffset, u64 at 48, sectors
	gdOffset         uint64 // gdOffset, u64 at 56, sectors
	overHead         uint64 // overHead, u64 at 64, sectors
	uncleanShutdown  bool   // uncleanShutdown, u8 at 72
	newlines         [4]byte
	algorithm        uint16 // compressAlgorithm, u16 at 77
}

// Offsets of the fields that errors name.
const (
	offVersion    = 4
	offFlags      = 8
	offCapacity   = 12
	offGrainSize  = 20
	offDescriptor = 28
	offGTEs       = 44
	offRGD        = 48
	offGD         = 56
	offNewlines   = 73
	offAlgorithm  = 77
)

func parseHeader(b []byte) header {
	return header{
		version:          le.Uint32(b[4:]),
		flags:            le.Uint32(b[8:]),
		capacity:         le.Uint64(b[12:]),
		grainSize:        le.Uint64(b[20:]),
		descriptorOffset: le.Uint64(b[28:]),
		descriptorSize:   le.Uint64(b[36:]),
		numGTEsPerGT:     le.Uint32(b[44:]),
		rgdOffset:        le.Uint64(b[48:]),
		gdOffset:         le.Uint64(b[56:]),
		overHead:         le.Uint64(b[64:]),
		uncleanShutdown:  b[72] != 0,
		newlines:         [4]byte(b[73:]),
		algorithm:        le.Uint16(b[77:]),
	}
}

// marshal encodes h as one sector.
func (h *header) marshal() []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	le.PutUint32(b[4:], h.version)
	le.PutUint32(b[8:], h.flags)
	le.PutUint64(b[12:], h.capacity)
	le.PutUint64(b[20:], h.grainSize)
	le.PutUint64(b[28:], h.descriptorOffset)
	le.PutUint64(b[36:], h.descriptorSize)
	le.PutUint32(b[44:], h.numGTEsPerGT)
	le.PutUint64(b[48:], h.rgdOffset)
	le.PutUint64(b[56:], h.gdOffset)
	le.PutUint64(b[64:], h.overHead)
	if h.uncleanShutdown {
		b[72] = 1
	}
	copy(b[73:], h.newlines[:])
	le.PutUint16(b[77:], h.algorithm)
	return b
}

// A marker is what stands in a stream before a grain or metadata: val, u64 at
// 0; size, u32 at 8, of the compressed grain; and where that is 0 type, u32
// at 12.
type marker struct {
	val  uint64 // lba of the grain, or sectors of metadata that follow
	size uint32
	kind uint32
}

func parseMarker(b []byte) marker {
	return marker{le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:])}
}

// marshal encodes a marker of metadata as one sector.
func (m marker) marshal() []byte {
	b := make([]byte, sectorSize)
	le.PutUint64(b, m.val)
	le.PutUint32(b[8:], m.size)
	le.PutUint32(b[12:], m.kind)
	return b
}

func alignUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

func corrupt(off int64, field, msg string, args ...any) error {
	return formats.Corrupt(Name, off, field, msg, args...)
}
