package open

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"
	"unicode/utf16"
)

// A signature is a row of the table of what can fill a volume. The type
// names are those of blkid, which administrators know.
type signature struct {
	typ   string
	class Class
	off   int64
	magic string
	match func(v *view) bool               // in place of off and magic
	name  func(v *view) string             // in place of typ
	ids   func(v *view) (label, id string) // label and UUID
}

// signatures in order of precedence: what holds other things comes before
// what it may hold, long signatures before short ones.
var signatures = []signature{
	{typ: "crypto_LUKS", class: Encrypted, off: 0, magic: "LUKS\xba\xbe", ids: func(v *view) (string, string) {
		if binary.BigEndian.Uint16(v.head[6:]) == 2 {
			return v.text(24, 48), v.text(168, 40)
		}
		return "", v.text(168, 40)
	}},
	{typ: "crypto_LUKS", class: Encrypted, match: func(v *view) bool { // LUKS2, first header lost
		for off := int64(16 << 10); off < probeHead; off *= 2 {
			if v.has(off, "SKUL\xba\xbe") {
				return !v.has(0, "LUKS\xba\xbe")
			}
		}
		return false
	}},
	{typ: "BitLocker", class: Encrypted, match: func(v *view) bool {
		return v.has(3, "-FVE-FS-") || v.has(3, "MSWIN4.1") && v.has(424, "\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01")
	}},
	{typ: "LVM2_member", class: Container, match: func(v *view) bool { return lvmLabel(v) >= 0 }, ids: func(v *view) (string, string) {
		id := v.text(lvmLabel(v)+32, 32)
		if len(id) == 32 {
			id = strings.Join([]string{id[:6], id[6:10], id[10:14], id[14:18], id[18:22], id[22:26], id[26:]}, "-")
		}
		return "", id
	}},
	{typ: "linux_raid_member", class: Container, match: func(v *view) bool { return raidSuper(v) != nil }, ids: func(v *view) (string, string) {
		if b := raidSuper(v); len(b) >= 64 {
			name, _, _ := strings.Cut(string(b[32:64]), "\x00")
			return name, uuid(b[16:32])
		}
		return "", ""
	}},
	{typ: "dm_verity_hash", class: Container, off: 0, magic: "verity\x00\x00"},
	{typ: "dm_integrity", class: Container, off: 0, magic: "integrt\x00"},
	{typ: "vdo", class: Container, off: 0, magic: "dmvdo001"},
	{typ: "bcache", class: Container, match: func(v *view) bool {
		// bcachefs began with the same magic; its superblock is told by the
		// layout in it, which has the magic again, and by its versions.
		return v.has(4096+24, bcacheMagic) && !v.has(4096+0x1f8+16, bcacheMagic) && v.le16(4096+16) < 10
	}},
	{typ: "ceph_bluestore", class: Container, off: 0, magic: "bluestore block device"},
	{typ: "drbd", class: Container, match: func(v *view) bool {
		if len(v.tail) < 4096 {
			return false
		}
		magic := binary.BigEndian.Uint32(v.tail[len(v.tail)-4096+60:])
		return magic >= 0x8374026b && magic <= 0x8374026d
	}},
	{typ: "VMFS", class: FileSystem, match: func(v *view) bool { return vmfs(v) }},

	{typ: "xfs", class: FileSystem, off: 0, magic: "XFSB", ids: func(v *view) (string, string) { return v.text(108, 12), uuid(v.at(32, 16)) }},
	{typ: "btrfs", class: FileSystem, off: 0x10040, magic: "_BHRfS_M", ids: func(v *view) (string, string) {
		return v.text(0x1012b, 256), uuid(v.at(0x10020, 16))
	}},
	{typ: "zfs_member", class: FileSystem, match: func(v *view) bool {
		n := 0
		for off := int64(128 << 10); off < probeHead; off += 1 << 10 {
			if m := v.at(off, 8); m != nil && (binary.LittleEndian.Uint64(m) == 0x00bab10c || binary.BigEndian.Uint64(m) == 0x00bab10c) {
				n++
			}
		}
		return n >= 2
	}},
	{typ: "bcachefs", class: FileSystem, match: func(v *view) bool {
		return v.has(4096+24, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef") ||
			v.has(4096+24, bcacheMagic) && !(v.le16(4096+16) < 10 && !v.has(4096+0x1f8+16, bcacheMagic))
	}, ids: func(v *view) (string, string) { return v.text(4096+72, 32), uuid(v.at(4096+56, 16)) }},
	{typ: "squashfs", class: FileSystem, match: func(v *view) bool {
		return (v.has(0, "hsqs") || v.has(0, "sqsh")) && (v.le16(28) == 4 || v.le16(28) == 3 || v.le16(28) == 0x0400 || v.le16(28) == 0x0300)
	}},
	{typ: "erofs", class: FileSystem, off: 1024, magic: "\xe2\xe1\xf5\xe0", ids: func(v *view) (string, string) {
		return v.text(1024+64, 16), uuid(v.at(1024+48, 16))
	}},
	{typ: "f2fs", class: FileSystem, off: 1024, magic: "\x10\x20\xf5\xf2", ids: func(v *view) (string, string) {
		return utf16Text(v.at(1024+124, 512)), uuid(v.at(1024+108, 16))
	}},
	{typ: "jfs", class: FileSystem, off: 32768, magic: "JFS1", ids: func(v *view) (string, string) {
		return v.text(32768+152, 16), uuid(v.at(32768+136, 16))
	}},
	{typ: "reiserfs", class: FileSystem, match: func(v *view) bool {
		return v.has(65536+52, "ReIsErFs") || v.has(65536+52, "ReIsEr2Fs") || v.has(65536+52, "ReIsEr3Fs")
	}, ids: func(v *view) (string, string) { return v.text(65536+100, 16), uuid(v.at(65536+84, 16)) }},
	{typ: "apfs", class: FileSystem, off: 32, magic: "NXSB", ids: func(v *view) (string, string) { return "", uuid(v.at(72, 16)) }},
	{typ: "cramfs", class: FileSystem, off: 0, magic: "\x45\x3d\xcd\x28"},
	{typ: "romfs", class: FileSystem, off: 0, magic: "-rom1fs-"},
	{typ: "ReFS", class: FileSystem, off: 3, magic: "ReFS\x00\x00\x00\x00"},
	{typ: "exfat", class: FileSystem, off: 3, magic: "EXFAT   ", ids: func(v *view) (string, string) { return "", serial(v.le32(100)) }},
	{typ: "ntfs", class: FileSystem, off: 3, magic: "NTFS    ", ids: func(v *view) (string, string) {
		return "", fmt.Sprintf("%08X%08X", v.le32(76), v.le32(72))
	}},
	{typ: "ufs", class: FileSystem, match: func(v *view) bool {
		return v.le32(8192+1372) == 0x00011954 || v.le32(65536+1372) == 0x19540119
	}},
	{class: FileSystem, match: func(v *view) bool { return v.le16(1080) == 0xef53 && v.le32(1024+24) <= 6 }, name: extType,
		ids: func(v *view) (string, string) { return v.text(1024+120, 16), uuid(v.at(1024+104, 16)) }},
	{typ: "swap", class: Swap, match: func(v *view) bool {
		for _, page := range []int64{4 << 10, 8 << 10, 16 << 10, 64 << 10} {
			if v.has(page-10, "SWAPSPACE2") || v.has(page-10, "SWAP-SPACE") {
				return true
			}
		}
		return false
	}, ids: func(v *view) (string, string) { return v.text(1024+28, 16), uuid(v.at(1024+12, 16)) }},
	{typ: "swsuspend", class: Swap, match: func(v *view) bool {
		return v.has(4086, "S1SUSPEND\x00") || v.has(4086, "S2SUSPEND\x00") || v.has(4086, "ULSUSPEND\x00")
	}},
	{class: FileSystem, match: func(v *view) bool { return v.has(0x8001, "CD001") || v.has(0x8001, "BEA01") }, name: func(v *view) string {
		if v.has(0x8001, "CD001") {
			return "iso9660"
		}
		return "udf"
	}, ids: func(v *view) (string, string) {
		if v.has(0x8001, "CD001") {
			return v.text(0x8028, 32), ""
		}
		return "", ""
	}},
	{typ: "vfat", class: FileSystem, match: isFAT, ids: func(v *view) (string, string) {
		at := int64(39)
		if v.le16(22) == 0 {
			at = 67
		}
		l := v.text(at+4, 11)
		if l == "NO NAME" {
			l = ""
		}
		return l, serial(v.le32(at))
	}},
	{typ: "hfsplus", class: FileSystem, match: func(v *view) bool {
		return (v.has(1024, "H+\x00\x04") || v.has(1024, "HX\x00\x05"))
	}},
	{typ: "hfs", class: FileSystem, match: func(v *view) bool { // block size at 20 is a multiple of 512
		b := v.at(1024, 32)
		return b != nil && string(b[:2]) == "BD" && binary.BigEndian.Uint32(b[20:]) != 0 && binary.BigEndian.Uint32(b[20:])%512 == 0
	}},
	{typ: "nilfs2", class: FileSystem, match: func(v *view) bool { return v.le16(1024+6) == 0x3434 && v.le16(1024) == 2 }},
	{typ: "minix", class: FileSystem, match: func(v *view) bool {
		// A magic of 16 bits: the zone size and the zone where data begins
		// must make sense as well.
		switch v.le16(1024 + 16) {
		case 0x137f, 0x138f, 0x2468, 0x2478:
			return v.le16(1024+10) == 0 && v.le16(1024+8) > 4 && v.le16(1024) > 0
		}
		return v.le16(1024+24) == 0x4d5a && v.le16(1024+28) >= 1024 && v.le16(1024+28)&(v.le16(1024+28)-1) == 0
	}},
}

const bcacheMagic = "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"

// extType tells the generations apart as blkid does.
func extType(v *view) string {
	compat, incompat, ro := v.le32(1024+92), v.le32(1024+96), v.le32(1024+100)
	switch {
	case incompat&0x8 != 0: // journal_dev
		return "jbd"
	case incompat&^uint32(0x2|0x4|0x10) != 0, ro&^uint32(0x1|0x2|0x4) != 0:
		return "ext4"
	case compat&0x4 != 0: // has_journal
		return "ext3"
	}
	return "ext2"
}

// isFAT checks the BIOS parameter block, as FAT has no signature.
func isFAT(v *view) bool {
	b := v.at(0, 512)
	if b == nil || b[0] != 0xe9 && b[0] != 0xeb {
		return false
	}
	sector, media := v.le16(11), b[21]
	return sector >= 512 && sector <= 4096 && sector&(sector-1) == 0 && bits.OnesCount8(b[13]) == 1 && v.le16(14) != 0 &&
		b[16] >= 1 && b[16] <= 4 && (media == 0xf0 || media >= 0xf8) && (v.le16(22) != 0 || v.le32(36) != 0) &&
		(v.le16(19) != 0 || v.le32(32) != 0)
}

// lvmLabel is the offset of the LVM2 label, in one of the first four
// sectors, or -1.
func lvmLabel(v *view) int64 {
	for off := int64(0); off < 2048; off += 512 {
		if v.has(off, "LABELONE") && v.has(off+24, "LVM2 001") {
			return off
		}
	}
	return -1
}

// raidSuper is the superblock of a Linux software RAID member, or nil. That
// of version 0.90 has no place for a name and is returned short.
func raidSuper(v *view) []byte {
	const magic = "\xfc\x4e\x2b\xa9"
	for _, off := range []int64{0, 4096} { // versions 1.1 and 1.2
		if b := v.at(off, 256); b != nil && string(b[:4]) == magic && v.le32(off+4) == 1 {
			return b
		}
	}
	tail := func(off int64) []byte {
		off -= v.size - int64(len(v.tail))
		if off < 0 || off+256 > int64(len(v.tail)) || string(v.tail[off:off+4]) != magic {
			return nil
		}
		return v.tail[off : off+256]
	}
	if b := tail((v.size/512 - 16) &^ 7 * 512); b != nil { // version 1.0
		return b
	}
	if b := tail(v.size&^0xffff - 0x10000); b != nil { // version 0.90
		return b[:4]
	}
	return nil
}

// vmfs has its signature 1 MiB into the volume.
func vmfs(v *view) bool {
	if v.size < 1<<20+4 {
		return false
	}
	b, err := v.read(1<<20, 4)
	return err == nil && string(b) == "\x0d\xd0\x01\xc0"
}

func uuid(b []byte) string {
	if len(b) != 16 || strings.Trim(string(b), "\x00") == "" {
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func serial(n uint32) string { return fmt.Sprintf("%04X-%04X", n>>16, n&0xffff) }

func utf16Text(b []byte) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}
