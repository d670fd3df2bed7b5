// Package mbr reads master boot records: the four primary entries through
// go-diskfs, and the chain of logical partitions, which it leaves out, here.
// There is no standard; the layout is that of the IBM PC DOS 2.0 fixed disk
// record, and numbering and the chain follow what Linux does with it.
package mbr

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"imgmaint/formats"
	"imgmaint/formats/internal/bounded"
	"imgmaint/formats/internal/godiskfs"
)

const (
	sectorMin = 512
	entries   = 446 // offset of the four entries of 16 bytes
	entrySize = 16

	typeProtective = 0xee

	// maxLogical bounds the chain of extended boot records: sfdisk writes at
	// most 60 logical partitions, Linux reads at most about 250.
	maxLogical = 256

	extSuper = 1024 // byte offset of an ext2/3/4 superblock
)

// Options say how to read a table. Nil means the defaults.
type Options struct {
	// SectorSize is the unit of the entries in bytes; 0 means 512. The table
	// itself does not tell.
	SectorSize int64
}

// Read reads the master boot record of the disk r of size bytes. A sector
// that is not one is ErrUnknown: no signature, the boot sector of a FAT, NTFS,
// exFAT or ext file system, entries that no disk could have, or the
// protective record of a GUID partition table.
func Read(r io.ReaderAt, size int64, opts *Options) (*formats.Table, error) {
	sector := int64(sectorMin)
	if opts != nil && opts.SectorSize != 0 {
		sector = opts.SectorSize
	}
	if sector < sectorMin || sector > 65536 || sector&(sector-1) != 0 {
		return nil, formats.Unsupported("mbr", -1, "sector size", "%d", sector)
	}
	f := bounded.File{R: r, Size: size, Format: "mbr"}
	if size < sectorMin {
		return nil, formats.Unknown("mbr", -1, "", "a disk of %d bytes has no room for a table", size)
	}
	b, err := f.Bytes(0, sectorMin, "boot sector", sectorMin)
	if err != nil {
		return nil, err
	}
	if b[510] != 0x55 || b[511] != 0xaa {
		return nil, formats.Unknown("mbr", 510, "signature", "")
	}
	if name := string(b[3:11]); name == "NTFS    " || name == "EXFAT   " || name == "-FVE-FS-" {
		return nil, formats.Unknown("mbr", 3, "boot sector", "of a file system: %q", name)
	}
	id, prim, err := godiskfs.MBR(b)
	if err != nil { // a boot indicator that is neither 0x00 nor 0x80
		return nil, formats.Unknown("mbr", entries, "boot indicator", "")
	}
	t := &formats.Table{Scheme: "mbr", SectorSize: sector}
	if id != "00000000" {
		t.UUID = id
	}
	if err := (table{f, sector, t}).read(b, prim); err != nil {
		return nil, err
	}
	return t, nil
}

// A table is the reading of one disk.
type table struct {
	f      bounded.File
	sector int64
	t      *formats.Table
}

func (s table) read(b []byte, prim []godiskfs.MBREntry) error {
	sectors := s.f.Size / s.sector
	var used []godiskfs.MBREntry
	for _, e := range prim {
		if e.Type == typeProtective {
			return formats.Unknown("mbr", entries, "partition type", "protective: the table is a GPT")
		}
		if e.Type != 0 && e.Sectors != 0 {
			used = append(used, e)
		}
	}
	if len(used) == 0 {
		if fatBoot(b) {
			return formats.Unknown("mbr", 0, "boot sector", "of a FAT file system")
		}
		ext, err := s.extBoot()
		if err != nil {
			return err
		}
		if ext {
			return formats.Unknown("mbr", 0, "boot sector", "of an ext file system")
		}
		return nil
	}
	fat := fatBoot(b)
	within := 0
	for _, e := range used {
		if e.Start > 0 && int64(e.Start) < sectors {
			within++
		}
		// A stick with a file system on the whole device and a made-up entry
		// in its boot sector is a file system.
		if fat && (e.Start == 0 || int64(e.Start)+int64(e.Sectors) > sectors) {
			return formats.Unknown("mbr", 0, "boot sector", "of a FAT file system")
		}
	}
	if within == 0 {
		return formats.Unknown("mbr", entries, "partition entries", "none lies on the disk of %d sectors", sectors)
	}
	if err := s.noteGPT(); err != nil {
		return err
	}
	var extended []godiskfs.MBREntry
	for _, e := range used {
		start, n, ok := s.clamp(e.Index, int64(e.Start), int64(e.Sectors))
		if !ok {
			continue
		}
		s.add(e.Index, start, n, e.Type, e.Bootable, e.UUID)
		if isExtended(e.Type) {
			extended = append(extended, e)
		}
	}
	next := 5
	for _, e := range extended {
		if err := s.chain(int64(e.Start), int64(e.Sectors), &next); err != nil {
			return err
		}
	}
	s.overlaps()
	return nil
}

func isExtended(typ byte) bool { return typ == 0x05 || typ == 0x0f || typ == 0x85 }

// clamp cuts a partition at the end of the disk, and reports it.
func (s table) clamp(index int, start, n int64) (int64, int64, bool) {
	sectors := s.f.Size / s.sector
	switch {
	case start == 0:
		s.problem("partition %d starts at sector 0: left out", index)
		return 0, 0, false
	case start >= sectors:
		s.problem("partition %d starts at sector %d, beyond the end of the disk at %d: left out", index, start, sectors)
		return 0, 0, false
	case start+n > sectors:
		s.problem("partition %d ends at sector %d, beyond the end of the disk at %d: cut there", index, start+n-1, sectors)
		n = sectors - start
	}
	return start, n, true
}

func (s table) problem(format string, args ...any) {
	s.t.Problems = append(s.t.Problems, fmt.Sprintf(format, args...))
}

func (s table) add(index int, start, n int64, typ byte, boot bool, uuid string) {
	v := formats.Volume{
		Index: index, Off: start * s.sector, Len: n * s.sector,
		Type: fmt.Sprintf("0x%02x", typ), TypeName: typeNames[typ], Bootable: boot,
	}
	if s.t.UUID != "" {
		v.UUID = uuid
	}
	s.t.Volumes = append(s.t.Volumes, v)
}

// chain follows the extended boot records of one extended partition. Each
// record has a logical partition, relative to the record, and the next
// record, relative to the extended partition.
func (s table) chain(base, n int64, next *int) error {
	seen := map[int64]bool{}
	for at := base; ; {
		off := at * s.sector
		if seen[at] {
			return formats.Corrupt("mbr", off, "extended boot record", "the chain comes back to sector %d", at)
		}
		if len(seen) == maxLogical {
			return formats.Limit("mbr", off, "extended boot record", "more than %d", maxLogical)
		}
		seen[at] = true
		b, err := s.f.Bytes(off, sectorMin, "extended boot record", sectorMin)
		if err != nil {
			if errors.Is(err, formats.ErrCorrupt) { // the disk ends before
				s.problem("extended boot record at sector %d: beyond the end of the disk", at)
				return nil
			}
			return err
		}
		if b[510] != 0x55 || b[511] != 0xaa {
			s.problem("extended boot record at sector %d: no signature: what follows is not read", at)
			return nil
		}
		link := int64(-1)
		for i := range 4 {
			e := b[entries+i*entrySize:]
			typ := e[4]
			start, size := int64(binary.LittleEndian.Uint32(e[8:])), int64(binary.LittleEndian.Uint32(e[12:]))
			switch {
			case size == 0 || typ == 0:
			case isExtended(typ):
				if link < 0 {
					link = start
				}
			case i >= 2 && start+size > n:
				// Some systems leave rubbish in the last two entries.
			default:
				if *next > 4+maxLogical {
					return formats.Limit("mbr", off, "extended boot record", "more than %d logical partitions", maxLogical)
				}
				if at+start+size > base+n {
					s.problem("partition %d leaves its extended partition", *next)
				}
				if a, k, ok := s.clamp(*next, at+start, size); ok {
					s.add(*next, a, k, typ, e[0]&0x80 != 0, fmt.Sprintf("%s-%02x", s.t.UUID, *next))
				}
				*next++
			}
		}
		switch {
		case link < 0:
			return nil
		case link >= n:
			return formats.Corrupt("mbr", off+entries, "extended boot record", "the next one at %d is outside the extended partition of %d sectors", link, n)
		}
		at = base + link
	}
}

// overlaps reports partitions that share sectors. Logical ones lie in the
// extended one by design.
func (s table) overlaps() {
	vols := slices.DeleteFunc(slices.Clone(s.t.Volumes), func(v formats.Volume) bool {
		return v.Index < 5 && (v.Type == "0x05" || v.Type == "0x0f" || v.Type == "0x85")
	})
	slices.SortStableFunc(vols, func(a, b formats.Volume) int {
		return int(min(1, max(-1, a.Off-b.Off)))
	})
	var far formats.Volume
	for i, v := range vols {
		if i > 0 && v.Off < far.Off+far.Len {
			s.problem("partitions %d and %d overlap", far.Index, v.Index)
		}
		if v.Off+v.Len > far.Off+far.Len {
			far = v
		}
	}
}

// noteGPT reports a GPT header that this record, which is not protective,
// puts out of force.
func (s table) noteGPT() error {
	var b [8]byte
	for _, off := range []int64{512, 4096} {
		if off+8 > s.f.Size {
			break
		}
		if err := s.f.ReadFull(b[:], off, "sector 1"); err != nil {
			return err
		}
		if string(b[:]) == "EFI PART" {
			s.problem("a GPT header is present, and the master boot record is not protective: the GPT is not in force")
			return nil
		}
	}
	return nil
}

// fatBoot reports whether b has the BIOS parameter block of a FAT volume.
func fatBoot(b []byte) bool {
	jump := b[0] == 0xe9 || b[0] == 0xeb && b[2] == 0x90
	bps, spc, media := binary.LittleEndian.Uint16(b[11:]), b[13], b[21]
	return jump && bps >= 512 && bps <= 4096 && bps&(bps-1) == 0 && spc != 0 && spc&(spc-1) == 0 &&
		binary.LittleEndian.Uint16(b[14:]) != 0 && b[16] >= 1 && b[16] <= 4 && (media >= 0xf8 || media == 0xf0)
}

func (s table) extBoot() (bool, error) {
	if s.f.Size < extSuper+1024 {
		return false, nil
	}
	b, err := s.f.Bytes(extSuper, 64, "sector 2", 64)
	if err != nil {
		return false, err
	}
	return b[56] == 0x53 && b[57] == 0xef, nil
}

var typeNames = map[byte]string{
	0x01: "FAT12", 0x04: "FAT16 below 32 MiB", 0x05: "Extended", 0x06: "FAT16", 0x07: "NTFS or exFAT",
	0x0b: "FAT32", 0x0c: "FAT32 (LBA)", 0x0e: "FAT16 (LBA)", 0x0f: "Extended (LBA)",
	0x11: "Hidden FAT12", 0x14: "Hidden FAT16 below 32 MiB", 0x16: "Hidden FAT16", 0x17: "Hidden NTFS",
	0x1b: "Hidden FAT32", 0x1c: "Hidden FAT32 (LBA)", 0x1e: "Hidden FAT16 (LBA)", 0x27: "Windows recovery",
	0x39: "Plan 9", 0x41: "PowerPC PReP boot", 0x42: "Windows LDM", 0x4d: "QNX", 0x63: "Unix System V",
	0x81: "Minix", 0x82: "Linux swap", 0x83: "Linux", 0x85: "Linux extended", 0x8e: "Linux LVM",
	0xa5: "FreeBSD", 0xa6: "OpenBSD", 0xa8: "Apple UFS", 0xa9: "NetBSD", 0xab: "Apple boot", 0xaf: "Apple HFS",
	0xbe: "Solaris boot", 0xbf: "Solaris", 0xda: "Non-FS data", 0xea: "Linux extended boot", 0xeb: "BeOS",
	0xef: "EFI system", 0xfb: "VMware VMFS", 0xfc: "VMware swap", 0xfd: "Linux RAID",
}
