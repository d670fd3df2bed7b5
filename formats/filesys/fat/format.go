// Package fat reads FAT12, FAT16 and FAT32 file systems with long names, as
// the Microsoft FAT32 File System Specification 1.03 (2000) and, where it is
// silent, the Linux kernel define them. It only reads.
//
// The parser is our own: that of go-diskfs reads zeros where an image is
// truncated, an empty root where a FAT16 volume has one table, and wrong
// names where they have characters outside the basic plane. The tests hold
// each of these cases.
package fat

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"

	"imgmaint/formats"
	"imgmaint/formats/internal/bounded"
)

const (
	sectorMin = 512
	sectorMax = 4096

	// Number of clusters from which a volume is FAT16 (specification: 4085)
	// and the most a FAT32 volume may have (28-bit entries, the top reserved).
	fat16From  = 4085
	fat16Most  = 65524
	fat32Most  = 0x0ffffff5
	fatEntries = 2 // the first cluster has number 2

	dirEntry = 32 // bytes of a directory entry

	// maxDir: the specification limits a directory to 65536 entries.
	maxDir = 65536 * dirEntry
	// maxRuns bounds the fragments of one file: 16 MiB of memory. A file of
	// 4 GiB in clusters of 4 KiB has that many at the very worst.
	maxRuns = 1 << 20
	// maxScan bounds what Usage reads of the table to count free clusters:
	// 16 million clusters of FAT32. Beyond, FSInfo is believed.
	maxScan = 64 << 20
	// maxDirs bounds the directories whose owners are remembered to find
	// those entered in two places.
	maxDirs = 1 << 18
	// maxCached bounds the directory entries kept after a listing.
	maxCached = 1 << 16

	attrReadOnly = 0x01
	attrVolume   = 0x08
	attrDir      = 0x10
	attrLong     = 0x0f
)

// A super is the verified BIOS parameter block.
type super struct {
	bits        int   // 12, 16 or 32: bits of a table entry
	sector      int64 // BPB_BytsPerSec, u16 at 11
	cluster     int64 // bytes; BPB_SecPerClus, u8 at 13
	fatOff      int64 // of the active table; BPB_RsvdSecCnt, u16 at 14
	fatLen      int64 // bytes of one table; BPB_FATSz16, u16 at 22, or BPB_FATSz32, u32 at 36
	fats        int64 // BPB_NumFATs, u8 at 16
	mirrored    bool  // all tables are meant to be equal; BPB_ExtFlags, u16 at 40
	rootOff     int64 // FAT12 and FAT16: the fixed root directory
	rootLen     int64 // bytes; BPB_RootEntCnt, u16 at 17
	rootCluster uint32
	dataOff     int64  // of cluster 2
	clusters    uint32 // in the data area
	fsInfo      int64  // offset of FSInfo, 0 when there is none
	id          string // BS_VolID as 1234-ABCD
	label       string // BS_VolLab
	dirty       bool
}

func readSuper(f bounded.File) (*super, error) {
	if f.Size < sectorMin {
		return nil, formats.Unknown(f.Format, -1, "", "%d bytes hold no boot sector", f.Size)
	}
	b, err := f.Bytes(0, sectorMin, "boot sector", sectorMin)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if b[0] != 0xe9 && b[0] != 0xeb || string(b[3:11]) == "NTFS    " || string(b[3:11]) == "EXFAT   " {
		return nil, formats.Unknown(f.Format, 0, "BS_jmpBoot", "")
	}
	s := &super{sector: int64(le.Uint16(b[11:])), fats: int64(b[16]), rootLen: int64(le.Uint16(b[17:])) * dirEntry}
	perCluster, reserved, media := int64(b[13]), int64(le.Uint16(b[14:])), b[21]
	switch {
	case s.sector < sectorMin || s.sector > sectorMax || s.sector&(s.sector-1) != 0:
		return nil, formats.Corrupt(f.Format, 11, "BPB_BytsPerSec", "%d", s.sector)
	case bits.OnesCount8(b[13]) != 1:
		return nil, formats.Corrupt(f.Format, 13, "BPB_SecPerClus", "%d", b[13])
	case reserved == 0:
		return nil, formats.Corrupt(f.Format, 14, "BPB_RsvdSecCnt", "0")
	case s.fats == 0 || s.fats > 4:
		return nil, formats.Corrupt(f.Format, 16, "BPB_NumFATs", "%d", s.fats)
	case media != 0xf0 && media < 0xf8:
		return nil, formats.Corrupt(f.Format, 21, "BPB_Media", "%#x", media)
	}
	s.cluster = perCluster * s.sector
	total := int64(le.Uint16(b[19:]))
	if total == 0 {
		total = int64(le.Uint32(b[32:]))
	}
	fatSectors := int64(le.Uint16(b[22:]))
	ext := b[36:] // the extended block of FAT12 and FAT16
	if fatSectors == 0 {
		s.bits = 32
		fatSectors = int64(le.Uint32(b[36:]))
		ext = b[64:]
		if v := le.Uint16(b[42:]); v != 0 {
			return nil, formats.Unsupported(f.Format, 42, "BPB_FSVer", "%#x", v)
		}
		if s.rootLen != 0 {
			return nil, formats.Corrupt(f.Format, 17, "BPB_RootEntCnt", "%d in a FAT32 volume", s.rootLen/dirEntry)
		}
	}
	if fatSectors == 0 {
		return nil, formats.Corrupt(f.Format, 36, "BPB_FATSz32", "0")
	}
	if total == 0 || total > f.Size/s.sector {
		return nil, formats.Corrupt(f.Format, 32, "BPB_TotSec32", "%d sectors of %d bytes in %d bytes", total, s.sector, f.Size)
	}
	s.fatLen, s.fatOff = fatSectors*s.sector, reserved*s.sector
	s.rootOff = s.fatOff + s.fats*s.fatLen
	s.dataOff = s.rootOff + (s.rootLen+s.sector-1)/s.sector*s.sector
	if s.dataOff >= total*s.sector {
		return nil, formats.Corrupt(f.Format, 32, "BPB_TotSec32", "%d sectors hold no data, which would start at byte %d", total, s.dataOff)
	}
	clusters := (total*s.sector - s.dataOff) / s.cluster
	if s.bits == 0 {
		s.bits = 12
		if clusters >= fat16From {
			s.bits = 16
		}
	}
	most := map[int]int64{12: fat16From - 1, 16: fat16Most, 32: fat32Most}[s.bits]
	if clusters == 0 || clusters > most {
		return nil, formats.Corrupt(f.Format, 32, "BPB_TotSec32", "%d clusters in a FAT%d volume", clusters, s.bits)
	}
	if held := s.fatLen * 8 / int64(s.bits); clusters+fatEntries > held {
		// Linux uses what the table can name; so does the specification's text
		// on tables that are too small.
		clusters = held - fatEntries
		if clusters <= 0 {
			return nil, formats.Corrupt(f.Format, 22, "BPB_FATSz", "%d bytes", s.fatLen)
		}
	}
	s.clusters = uint32(clusters)
	s.mirrored = true
	if s.bits == 32 {
		if flags := le.Uint16(b[40:]); flags&0x80 != 0 {
			s.mirrored = false
			if n := int64(flags & 0x0f); n < s.fats {
				s.fatOff += n * s.fatLen
			} else {
				return nil, formats.Corrupt(f.Format, 40, "BPB_ExtFlags", "table %d of %d", n, s.fats)
			}
		}
		s.rootCluster = le.Uint32(b[44:])
		if !s.valid(s.rootCluster) {
			return nil, formats.Corrupt(f.Format, 44, "BPB_RootClus", "%d", s.rootCluster)
		}
		if n := int64(le.Uint16(b[48:])); n != 0 && n < reserved {
			s.fsInfo = n * s.sector
		}
	} else if s.rootLen == 0 {
		return nil, formats.Corrupt(f.Format, 17, "BPB_RootEntCnt", "0")
	}
	if sig := ext[2]; sig == 0x28 || sig == 0x29 { // BS_BootSig
		id := le.Uint32(ext[3:])
		s.id = fmt.Sprintf("%04X-%04X", id>>16, id&0xffff)
		if sig == 0x29 {
			s.label = label(ext[7:18])
		}
	}
	s.dirty = ext[1]&1 != 0 // BS_Reserved1, which Windows and Linux use for this
	return s, nil
}

// valid reports whether c is the number of a data cluster.
func (s *super) valid(c uint32) bool { return c >= fatEntries && c-fatEntries < s.clusters }

// off is the byte offset of cluster c.
func (s *super) off(c uint32) int64 { return s.dataOff + int64(c-fatEntries)*s.cluster }

// label decodes a volume label of 11 bytes.
func label(b []byte) string {
	l := strings.TrimRight(oem(b), " ")
	if l == "NO NAME" {
		return ""
	}
	return l
}

// oem decodes a name in code page 437, which is what a volume means that
// does not say.
func oem(b []byte) string {
	var s strings.Builder
	for _, c := range b {
		switch {
		case c == 0 || c == '/':
			s.WriteRune('\ufffd') // no path can have it
		case c < 0x80:
			s.WriteByte(c)
		default:
			s.WriteRune(cp437[c-0x80])
		}
	}
	return s.String()
}

var cp437 = []rune("ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐" +
	"└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00a0")
