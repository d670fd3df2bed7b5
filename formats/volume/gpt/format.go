// Package gpt reads GUID partition tables as the UEFI Specification 2.10,
// chapter 5, defines them: both headers and both entry arrays are verified,
// a damaged primary is reported and the backup used in its place.
package gpt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"imgmaint/formats"
	"imgmaint/formats/internal/bounded"
)

const (
	signature     = "EFI PART"
	headerMin     = 92 // bytes that revision 1.0 defines
	entryMin      = 128
	nameUnits     = 36 // UTF-16 units of PartitionName
	attrLegacy    = 1 << 2
	typeProtected = 0xee // MBR type of the protective entry

	// maxEntries: the usual count is 128; the largest a common tool offers to
	// write is far below this.
	maxEntries = 8192
	// maxEntrySize: entries are 128 bytes in every revision so far; the
	// specification lets them grow by powers of two.
	maxEntrySize = 4096
	// maxArray bounds the bytes of one entry array.
	maxArray = 1 << 20
	// maxProblems keeps a table of thousands of bad entries from filling a
	// report.
	maxProblems = 64
)

// sectorSizes are tried in this order: nearly all disks have 512, some 4096,
// optical media 2048.
var sectorSizes = []int64{512, 4096, 2048, 1024}

// A header is a verified GPT header.
type header struct {
	lba          int64  // where it was read
	alternateLBA uint64 // AlternateLBA, u64 at 32
	firstUsable  uint64 // FirstUsableLBA, u64 at 40
	lastUsable   uint64 // LastUsableLBA, u64 at 48
	guid         string // DiskGUID, 16 bytes at 56
	entriesLBA   int64  // PartitionEntryLBA, u64 at 72
	entries      int64  // NumberOfPartitionEntries, u32 at 80
	entrySize    int64  // SizeOfPartitionEntry, u32 at 84
	entriesCRC   uint32 // PartitionEntryArrayCRC32, u32 at 88
	array        []byte // the array, checksum verified
}

// readHeader reads and verifies the header at lba and the array it points to.
func readHeader(f bounded.File, lba, sector int64) (*header, error) {
	off := lba * sector
	b, err := f.Bytes(off, sector, "header", sector)
	if err != nil {
		return nil, err
	}
	if string(b[:8]) != signature {
		return nil, formats.Unknown(f.Format, off, "Signature", "")
	}
	if rev := binary.LittleEndian.Uint32(b[8:]); rev>>16 != 1 {
		return nil, formats.Unsupported(f.Format, off+8, "Revision", "%#x", rev)
	}
	size := int64(binary.LittleEndian.Uint32(b[12:]))
	if size < headerMin || size > sector {
		return nil, formats.Corrupt(f.Format, off+12, "HeaderSize", "%d bytes", size)
	}
	want := binary.LittleEndian.Uint32(b[16:])
	clear(b[16:20])
	if got := crc32.ChecksumIEEE(b[:size]); got != want {
		return nil, formats.Corrupt(f.Format, off+16, "HeaderCRC32", "%08x, computed %08x", want, got)
	}
	if my := binary.LittleEndian.Uint64(b[24:]); my != uint64(lba) {
		return nil, formats.Corrupt(f.Format, off+24, "MyLBA", "%d in sector %d", my, lba)
	}
	h := &header{
		lba:          lba,
		alternateLBA: binary.LittleEndian.Uint64(b[32:]),
		firstUsable:  binary.LittleEndian.Uint64(b[40:]),
		lastUsable:   binary.LittleEndian.Uint64(b[48:]),
		guid:         guid(b[56:72]),
		entries:      int64(binary.LittleEndian.Uint32(b[80:])),
		entrySize:    int64(binary.LittleEndian.Uint32(b[84:])),
		entriesCRC:   binary.LittleEndian.Uint32(b[88:]),
	}
	entriesLBA := binary.LittleEndian.Uint64(b[72:])
	switch {
	case h.entrySize > maxEntrySize:
		return nil, formats.Limit(f.Format, off+84, "SizeOfPartitionEntry", "%d bytes, at most %d", h.entrySize, maxEntrySize)
	case h.entrySize < entryMin || h.entrySize&(h.entrySize-1) != 0:
		return nil, formats.Corrupt(f.Format, off+84, "SizeOfPartitionEntry", "%d bytes", h.entrySize)
	case h.entries > maxEntries:
		return nil, formats.Limit(f.Format, off+80, "NumberOfPartitionEntries", "%d, at most %d", h.entries, maxEntries)
	case h.entries == 0:
		return nil, formats.Corrupt(f.Format, off+80, "NumberOfPartitionEntries", "0")
	case entriesLBA > uint64(f.Size/sector):
		return nil, formats.Corrupt(f.Format, off+72, "PartitionEntryLBA", "%d in a disk of %d sectors", entriesLBA, f.Size/sector)
	}
	h.entriesLBA = int64(entriesLBA)
	n, err := f.Entries(off+80, h.entries, h.entrySize, "NumberOfPartitionEntries", maxArray)
	if err != nil {
		return nil, err
	}
	first, last := h.entriesLBA*sector, h.entriesLBA*sector+n
	switch {
	case first < 2*sector:
		return nil, formats.Corrupt(f.Format, off+72, "PartitionEntryLBA", "%d", entriesLBA)
	case first < off+sector && last > off:
		return nil, formats.Corrupt(f.Format, off+72, "PartitionEntryLBA", "the array covers the header")
	case h.firstUsable <= h.lastUsable && h.firstUsable < uint64(last+sector-1)/uint64(sector) && h.lastUsable >= uint64(entriesLBA):
		return nil, formats.Corrupt(f.Format, off+72, "PartitionEntryLBA", "the array lies in the usable sectors")
	}
	if h.array, err = f.Bytes(first, n, "partition entry array", maxArray); err != nil {
		return nil, err
	}
	if got := crc32.ChecksumIEEE(h.array); got != h.entriesCRC {
		return nil, formats.Corrupt(f.Format, first, "PartitionEntryArrayCRC32", "%08x, computed %08x", h.entriesCRC, got)
	}
	return h, nil
}

// guid prints 16 bytes in the mixed order of the specification's appendix A.
func guid(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]),
		binary.LittleEndian.Uint16(b[6:]), b[8:10], b[10:16])
}

// typeNames are the partition types worth a name to a reader: those of the
// UEFI Specification, table 5-7, of the Discoverable Partitions
// Specification, and of systems found on golden images.
var typeNames = map[string]string{
	"c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI system",
	"024dee41-33e7-11d3-9d69-0008c781f39f": "MBR partition scheme",
	"21686148-6449-6e6f-744e-656564454649": "BIOS boot",
	"0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux filesystem",
	"0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "Linux swap",
	"e6d6d379-f507-44c2-a23c-238f2a3df928": "Linux LVM",
	"a19d880f-05fc-4d3b-a006-743f0f84911e": "Linux RAID",
	"ca7d7ccb-63ed-4c53-861c-1742536059cc": "Linux LUKS",
	"bc13c2ff-59e6-4262-a352-b275fd6f7172": "Linux extended boot",
	"933ac7e1-2eb4-4f13-b844-0e14e2aef915": "Linux home",
	"3b8f8425-20e0-4f3b-907f-1a25a76f98e8": "Linux server data",
	"4d21b016-b534-45c2-a9fb-5c16e091fd2d": "Linux variable data",
	"8da63339-0007-60c0-c436-083ac8230908": "Linux reserved",
	"44479540-f297-41b2-9af7-d131d5f0458a": "Linux root (x86)",
	"4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "Linux root (x86-64)",
	"69dad710-2ce4-4e3c-b16c-21a1d49abed3": "Linux root (ARM)",
	"b921b045-1df0-41c3-af44-4c6f280d3fae": "Linux root (ARM-64)",
	"72ec70a6-cf74-40e6-bd49-4bda08e8f224": "Linux root (RISC-V-64)",
	"8484680c-9521-48c6-9c11-b0720656f69e": "Linux /usr (x86-64)",
	"b0e01050-ee5f-4390-949a-9101b17104e9": "Linux /usr (ARM-64)",
	"2c7357ed-ebd2-46d9-aec1-23d437ec2bf5": "Linux root verity (x86-64)",
	"e3c9e316-0b5c-4db8-817d-f92df00215ae": "Microsoft reserved",
	"ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "Microsoft basic data",
	"de94bba4-06d1-4d40-a16a-bfd50179d6ac": "Windows recovery",
	"5808c8aa-7e8f-42e0-85d2-e1e90434cfb3": "Windows LDM metadata",
	"af9b60a0-1431-4f62-bc68-3311714a69ad": "Windows LDM data",
	"9e1a2d38-c612-4316-aa26-8b49521e5a8b": "PowerPC PReP boot",
	"83bd6b9d-7f41-11dc-be0b-001560b84f0f": "FreeBSD boot",
	"516e7cb6-6ecf-11d6-8ff8-00022d09712b": "FreeBSD UFS",
	"516e7cb5-6ecf-11d6-8ff8-00022d09712b": "FreeBSD swap",
	"516e7cba-6ecf-11d6-8ff8-00022d09712b": "FreeBSD ZFS",
	"6a898cc3-1dd2-11b2-99a6-080020736631": "ZFS",
	"48465300-0000-11aa-aa11-00306543ecac": "Apple HFS+",
	"7c3457ef-0000-11aa-aa11-00306543ecac": "Apple APFS",
	"5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6": "CoreOS usr",
	"3884dd41-8582-4404-b9a8-e9b84f2df50e": "CoreOS root",
	"fe3a2a5d-4f32-41a7-b725-accc3285a309": "ChromeOS kernel",
	"3cb8e202-3b7e-47dd-8a3c-7ff2a13cfcec": "ChromeOS root",
}
