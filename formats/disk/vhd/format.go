// Package vhd reads and writes Virtual Hard Disks: fixed, dynamic and
// differencing, as Virtual PC, Hyper-V, Azure, VirtualBox, Xen and qemu
// (which calls the format vpc) write them.
//
// The layout is that of Microsoft's "Virtual Hard Disk Image Format
// Specification", version 1.0 of 2006-10-11; all fields are big-endian. Where
// the specification and the programs differ the programs are followed, and
// the comment says so.
package vhd

import (
	"encoding/binary"
	"encoding/hex"
	"math"
	"math/bits"
	"time"

	"imgmaint/formats"
)

// Name is the name of the format in errors and on the command line.
const Name = "vhd"

// QemuName is what qemu-img calls the format, and the declared format of a
// differencing disk's parent.
const QemuName = "vpc"

const (
	sectorSize = 512
	footerSize = 512
	// oldFooterSize is the footer of Virtual PC before 2004: the last byte,
	// which is reserved, was not written ("Hard Disk Footer Format").
	oldFooterSize = 511
	headerSize    = 1024 // dynamic disk header
	locatorCount  = 8

	footerCookie = "conectix"
	headerCookie = "cxsparse"
	// batmapCookie starts the header of XenServer's map of full blocks, which
	// follows the BAT. It is redundant: only a check looks at it.
	batmapCookie = "tdbatmap"

	unusedEntry = math.MaxUint32 // BAT entry of a block that is not there
	noOffset    = math.MaxUint64 // data_offset of a fixed disk

	formatVersion = 0x00010000 // both of the footer and of the header
	featReserved  = 0x00000002 // "this bit must always be set to 1"
)

// disk_type values.
const (
	typeFixed        = 2
	typeDynamic      = 3
	typeDifferencing = 4
)

// Limits. What is over them is refused as formats.ErrLimit.
const (
	// maxDynamicSize is the largest dynamic disk: sector numbers in the BAT
	// have 32 bits, and Hyper-V, qemu and VirtualBox all stop at 2040 GiB.
	maxDynamicSize = 2040 << 30
	// maxAzureSize is the largest managed disk Azure takes an upload for; a
	// fixed disk has no 32-bit field that would limit it.
	maxAzureSize = 32767 << 30
	// maxTableEntries covers 2040 GiB in blocks of 512 KiB, the smallest any
	// program writes; the BAT then takes 16 MiB of memory.
	maxTableEntries = 1 << 22
	// maxBlockSize keeps a block's bitmap within 64 KiB. Every known writer
	// uses 2 MiB or 512 KiB.
	maxBlockSize = 256 << 20
	// maxLocator is the longest path Windows knows, 32,767 UTF-16 units.
	maxLocator = 64 << 10
)

// The geometry that stands for "too large for a geometry".
const (
	maxCylinders = 65535
	maxHeads     = 16
	maxSectors   = 255
)

var be = binary.BigEndian

// epoch is second 0 of time stamps in the format.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// footer is the hard disk footer. A dynamic disk has a copy at offset 0.
type footer struct {
	features       uint32   // features, u32 at 8
	version        uint32   // file_format_version, u32 at 12
	dataOffset     uint64   // data_offset, u64 at 16: of the dynamic disk header
	timestamp      uint32   // time_stamp, u32 at 24: seconds since 2000
	creatorApp     [4]byte  // creator_application, at 28
	creatorVersion uint32   // creator_version, u32 at 32
	creatorOS      [4]byte  // creator_host_os, at 36
	originalSize   uint64   // original_size, u64 at 40, bytes
	currentSize    uint64   // current_size, u64 at 48, bytes
	cylinders      uint16   // disk_geometry: cylinders, u16 at 56
	heads          uint8    // disk_geometry: heads, u8 at 58
	sectors        uint8    // disk_geometry: sectors per track, u8 at 59
	diskType       uint32   // disk_type, u32 at 60
	checksum       uint32   // checksum, u32 at 64
	uniqueID       [16]byte // unique_id, at 68
	savedState     uint8    // saved_state, u8 at 84
}

// Offsets of the fields that errors name.
const (
	footDataOffset  = 16
	footVersion     = 12
	footCurrentSize = 48
	footType        = 60
	footChecksum    = 64

	headTableOffset = 16
	headVersion     = 24
	headMaxEntries  = 28
	headBlockSize   = 32
	headChecksum    = 36
	headParentID    = 40
	headParentName  = 64
	headLocators    = 576
)

// parseFooter decodes the 512 bytes of b.
func parseFooter(b []byte) footer {
	return footer{
		features:       be.Uint32(b[8:]),
		version:        be.Uint32(b[12:]),
		dataOffset:     be.Uint64(b[16:]),
		timestamp:      be.Uint32(b[24:]),
		creatorApp:     [4]byte(b[28:]),
		creatorVersion: be.Uint32(b[32:]),
		creatorOS:      [4]byte(b[36:]),
		originalSize:   be.Uint64(b[40:]),
		currentSize:    be.Uint64(b[48:]),
		cylinders:      be.Uint16(b[56:]),
		heads:          b[58],
		sectors:        b[59],
		diskType:       be.Uint32(b[60:]),
		checksum:       be.Uint32(b[64:]),
		uniqueID:       [16]byte(b[68:]),
		savedState:     b[84],
	}
}

// marshal encodes f with its checksum.
func (f *footer) marshal() []byte {
	b := make([]byte, footerSize)
	copy(b, footerCookie)
	be.PutUint32(b[8:], f.features)
	be.PutUint32(b[12:], f.version)
	be.PutUint64(b[16:], f.dataOffset)
	be.PutUint32(b[24:], f.timestamp)
	copy(b[28:], f.creatorApp[:])
	be.PutUint32(b[32:], f.creatorVersion)
	copy(b[36:], f.creatorOS[:])
	be.PutUint64(b[40:], f.originalSize)
	be.PutUint64(b[48:], f.currentSize)
	be.PutUint16(b[56:], f.cylinders)
	b[58], b[59] = f.heads, f.sectors
	be.PutUint32(b[60:], f.diskType)
	copy(b[68:], f.uniqueID[:])
	b[84] = f.savedState
	be.PutUint32(b[64:], checksum(b, footChecksum))
	return b
}

// chsSectors is the size that the geometry gives, in sectors.
func (f *footer) chsSectors() int64 {
	return int64(f.cylinders) * int64(f.heads) * int64(f.sectors)
}

// usesGeometry reports whether the creator means the geometry and not
// current_size. Virtual PC shows its guests a disk of the geometry's size, and
// qemu imitates it where it signs as "qemu". All others (Hyper-V "win ",
// Disk2vhd "d2v ", Virtual Server "vs  ", Xen "tap", VirtualBox "vbox", Azure
// "wa", qemu with force_size "qem2") mean current_size, and so does everybody
// who writes the largest geometry. Older releases of qemu, 7.2 among them, take
// the geometry for all creators they do not know, which cuts VirtualBox's
// disks short.
func (f *footer) usesGeometry() bool {
	app := string(f.creatorApp[:])
	return app == "vpc " || app == "qemu"
}

// header is the dynamic disk header.
type header struct {
	tableOffset     uint64   // table_offset, u64 at 16: of the BAT
	version         uint32   // header_version, u32 at 24
	maxTableEntries uint32   // max_table_entries, u32 at 28
	blockSize       uint32   // block_size, u32 at 32, bytes
	checksum        uint32   // checksum, u32 at 36
	parentID        [16]byte // parent_unique_id, at 40
	parentTimestamp uint32   // parent_time_stamp, u32 at 56
	parentName      []byte   // parent_unicode_name, 512 bytes at 64
	locators        [locatorCount]locator
}

// locator is one of the eight parent locator entries, 24 bytes each at 576.
type locator struct {
	platform [4]byte // platform_code, at 0
	// dataSpace is platform_data_space, u32 at 4: the room for the locator.
	// The specification counts sectors, Microsoft's programs count bytes.
	dataSpace  uint32
	dataLength uint32 // platform_data_length, u32 at 8, bytes
	dataOffset uint64 // platform_data_offset, u64 at 16
}

// parseHeader decodes the 1024 bytes of b.
func parseHeader(b []byte) header {
	h := header{
		tableOffset:     be.Uint64(b[16:]),
		version:         be.Uint32(b[24:]),
		maxTableEntries: be.Uint32(b[28:]),
		blockSize:       be.Uint32(b[32:]),
		checksum:        be.Uint32(b[36:]),
		parentID:        [16]byte(b[40:]),
		parentTimestamp: be.Uint32(b[56:]),
		parentName:      b[headParentName : headParentName+512],
	}
	for i := range h.locators {
		l := b[headLocators+24*i:]
		h.locators[i] = locator{
			platform:   [4]byte(l),
			dataSpace:  be.Uint32(l[4:]),
			dataLength: be.Uint32(l[8:]),
			dataOffset: be.Uint64(l[16:]),
		}
	}
	return h
}

// marshal encodes h with its checksum.
func (h *header) marshal() []byte {
	b := make([]byte, headerSize)
	copy(b, headerCookie)
	be.PutUint64(b[8:], noOffset) // data_offset: all 64 bits, as Microsoft's tools want
	be.PutUint64(b[16:], h.tableOffset)
	be.PutUint32(b[24:], h.version)
	be.PutUint32(b[28:], h.maxTableEntries)
	be.PutUint32(b[32:], h.blockSize)
	copy(b[40:], h.parentID[:])
	be.PutUint32(b[56:], h.parentTimestamp)
	copy(b[headParentName:headParentName+512], h.parentName)
	for i, l := range h.locators {
		p := b[headLocators+24*i:]
		copy(p[:4], l.platform[:])
		be.PutUint32(p[4:], l.dataSpace)
		be.PutUint32(p[8:], l.dataLength)
		be.PutUint64(p[16:], l.dataOffset)
	}
	be.PutUint32(b[headChecksum:], checksum(b, headChecksum))
	return b
}

// checksum is the one's complement of the sum of the bytes of b without the
// four of the checksum at off ("Checksum" in the footer and the header).
func checksum(b []byte, off int) uint32 {
	var sum uint32
	for _, c := range b[:off] {
		sum += uint32(c)
	}
	for _, c := range b[off+4:] {
		sum += uint32(c)
	}
	return ^sum
}

// bitmapSize is the length of the sector bitmap of a block, padded to whole
// sectors ("Block Allocation Table and Data Blocks").
func bitmapSize(blockSize int64) int64 {
	return alignUp((blockSize/sectorSize+7)/8, sectorSize)
}

func alignUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// geometry returns the cylinders, heads and sectors per track for a disk of
// so many sectors, by the appendix "CHS Calculation". Their product may be
// less than the disk.
func geometry(sectors int64) (cylinders uint16, heads, perTrack uint8) {
	sectors = min(sectors, maxCylinders*maxHeads*maxSectors)
	spt, h := int64(maxSectors), int64(maxHeads)
	tracks := sectors / spt
	if sectors < maxCylinders*maxHeads*63 {
		spt = 17
		tracks = sectors / spt
		h = max(4, (tracks+1023)/1024)
		if tracks >= h*1024 || h > 16 {
			spt, h = 31, 16
			tracks = sectors / spt
		}
		if tracks >= h*1024 {
			spt, h = 63, 16
			tracks = sectors / spt
		}
	}
	return uint16(tracks / h), uint8(h), uint8(spt)
}

// isPowerOfTwo reports whether exactly one bit of n is set.
func isPowerOfTwo(n uint32) bool { return bits.OnesCount32(n) == 1 }

// stamp turns seconds since 2000 into a time.
func stamp(sec uint32) time.Time { return epoch.Add(time.Duration(sec) * time.Second) }

// seconds is the inverse of stamp; times outside the format's range are cut
// to it, and the zero time is second 0.
func seconds(t time.Time) uint32 {
	return uint32(max(0, min(t.Unix()-epoch.Unix(), math.MaxUint32)))
}

// formatID prints a unique id as a UUID.
func formatID(id [16]byte) string {
	h := hex.EncodeToString(id[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func corrupt(off int64, field, msg string, args ...any) error {
	return formats.Corrupt(Name, off, field, msg, args...)
}
