// Package godiskfs is the one place that imports go-diskfs. The library was
// made for images its user built: it allocates what headers ask for, lets
// reads leave a partition, ignores failed reads in places, and panics. So it
// never sees a reader of ours. A caller hands it the few sectors in question,
// already read and bounded, and gets plain values back; a panic is ErrCorrupt.
//
// What is used is what was found right: decoding of GPT entries and of the
// four primary MBR entries. Its file systems are not used. Its FAT reader
// gives zeros for what a truncated image lacks, shows a FAT16 volume with one
// table as empty and refuses a FAT32 one, loses the characters of names that
// take two UTF-16 units, and allocates for every cluster number a header
// can name; its ext4 reader returns wrong data.
package godiskfs

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/diskfs/go-diskfs/partition/mbr"

	"imgmaint/formats"
)

const (
	// maxView bounds the sectors given to the library at once. The largest
	// GPT array the gpt package accepts is 1 MiB in this form.
	maxView = 2 << 20
	// readsPerByte bounds what the library may read of a view, as a multiple
	// of its size: each parser needs its sectors once or twice.
	readsPerByte = 8

	gptEntrySize  = 128
	gptHeaderSize = 92
	gptSector     = 512
)

// A GPTEntry is a used entry of a GUID partition array. GUIDs are in lower
// case.
type GPTEntry struct {
	Index       int // from 1
	Type, GUID  string
	First, Last uint64 // LBA, inclusive
	Attributes  uint64
	Name        string
}

// GPTEntries decodes an array of 128-byte entries whose checksum the caller
// has verified.
func GPTEntries(array []byte) (entries []GPTEntry, err error) {
	defer recovered("gpt", &err)
	if len(array) == 0 || len(array)%gptEntrySize != 0 {
		return nil, formats.Corrupt("gpt", -1, "partition entry array", "%d bytes", len(array))
	}
	if len(array) > maxView-2*gptSector {
		return nil, formats.Limit("gpt", -1, "partition entry array", "%d bytes", len(array))
	}
	t, err := gpt.Read(newDisk(gptView(array)), gptSector, gptSector)
	if err != nil {
		return nil, formats.Corrupt("gpt", -1, "partition entry array", "%v", err)
	}
	for _, p := range t.Partitions {
		entries = append(entries, GPTEntry{
			Index: p.Index, Type: strings.ToLower(string(p.Type)), GUID: strings.ToLower(p.GUID),
			First: p.Start, Last: p.End, Attributes: p.Attributes, Name: p.Name,
		})
	}
	return entries, nil
}

// gptView lays the array out as the smallest disk the library accepts: a
// header in LBA 1 and the entries from LBA 2.
func gptView(array []byte) []byte {
	view := make([]byte, 2*gptSector+len(array))
	copy(view[2*gptSector:], array)
	h := view[gptSector:]
	copy(h, "EFI PART")
	binary.LittleEndian.PutUint32(h[8:], 0x00010000)
	binary.LittleEndian.PutUint32(h[12:], gptHeaderSize)
	binary.LittleEndian.PutUint64(h[24:], 1)
	binary.LittleEndian.PutUint64(h[72:], 2)
	binary.LittleEndian.PutUint32(h[80:], uint32(len(array)/gptEntrySize))
	binary.LittleEndian.PutUint32(h[84:], gptEntrySize)
	binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(array))
	binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:gptHeaderSize]))
	return view
}

// An MBREntry is one of the four entries of a master boot record, used or
// not.
type MBREntry struct {
	Index    int // 1 to 4
	Type     byte
	Bootable bool
	Start    uint32 // sectors
	Sectors  uint32
	UUID     string // as PARTUUID= names it
}

// MBR decodes the 512 bytes of a master boot record and returns the disk
// identifier in hexadecimal and the four entries.
func MBR(sector []byte) (id string, entries []MBREntry, err error) {
	defer recovered("mbr", &err)
	if len(sector) != 512 {
		return "", nil, formats.Corrupt("mbr", 0, "sector", "%d bytes", len(sector))
	}
	t, err := mbr.Read(newDisk(append([]byte(nil), sector...)), 512, 512)
	if err != nil {
		return "", nil, formats.Corrupt("mbr", 0, "partition entries", "%v", err)
	}
	for _, p := range t.Partitions {
		entries = append(entries, MBREntry{
			Index: p.Index, Type: byte(p.Type), Bootable: p.Bootable,
			Start: p.Start, Sectors: p.Size, UUID: p.UUID(),
		})
	}
	if len(entries) != 4 {
		return "", nil, formats.Corrupt("mbr", 446, "partition entries", "%d read", len(entries))
	}
	return t.UUID(), entries, nil
}

// recovered turns a panic of the library into ErrCorrupt.
func recovered(format string, err *error) {
	if p := recover(); p != nil {
		*err = formats.Corrupt(format, -1, "go-diskfs", "%v", p)
	}
}

// A disk is a read-only file in memory, as the library wants one.
type disk struct {
	view   []byte
	pos    int64
	budget int64 // bytes that may still be read
}

func newDisk(view []byte) *disk {
	return &disk{view: view, budget: int64(len(view)) * readsPerByte}
}

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if d.budget -= int64(len(p)) + 1; d.budget < 0 {
		return 0, formats.Limit("go-diskfs", off, "reads", "")
	}
	if off < 0 || off >= int64(len(d.view)) {
		return 0, io.EOF
	}
	n := copy(p, d.view[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d *disk) Read(p []byte) (int, error) {
	n, err := d.ReadAt(p, d.pos)
	d.pos += int64(n)
	return n, err
}

func (d *disk) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += d.pos
	case io.SeekEnd:
		off += int64(len(d.view))
	}
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	d.pos = off
	return off, nil
}

func (d *disk) Close() error               { return nil }
func (d *disk) Stat() (fs.FileInfo, error) { return diskInfo{int64(len(d.view))}, nil }

type diskInfo struct{ size int64 }

func (i diskInfo) Name() string     { return "disk" }
func (i diskInfo) Size() int64      { return i.size }
func (diskInfo) Mode() fs.FileMode  { return 0o400 }
func (diskInfo) ModTime() time.Time { return time.Time{} }
func (diskInfo) IsDir() bool        { return false }
func (diskInfo) Sys() any           { return nil }
