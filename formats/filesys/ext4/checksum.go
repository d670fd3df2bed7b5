package ext4

import "hash/crc32"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c continues the Castagnoli CRC as ext4 and jbd2 use it: without the
// inversions before and after that the standard library makes.
func crc32c(seed uint32, p []byte) uint32 {
	return ^crc32.Update(^seed, castagnoli, p)
}

// crc32cWord is crc32c of the n low bytes of v, little-endian. The standard
// library would have them on the heap.
func crc32cWord(c uint32, v uint64, n int) uint32 {
	for range n {
		c = c>>8 ^ castagnoli[byte(c)^byte(v)]
		v >>= 8
	}
	return c
}

// crc16Table is of CRC-16/ARC (polynomial 0x8005, reflected), which uninit_bg
// uses for group descriptors.
var crc16Table = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0xA001
			} else {
				c >>= 1
			}
		}
		t[i] = c
	}
	return t
}()

func crc16(c uint16, p []byte) uint16 {
	for _, b := range p {
		c = c>>8 ^ crc16Table[byte(c)^b]
	}
	return c
}

// crc32beTable is of the unreflected CRC-32 (polynomial 0x04C11DB7), which
// the first form of journal checksums uses.
var crc32beTable = func() (t [256]uint32) {
	for i := range t {
		c := uint32(i) << 24
		for range 8 {
			if c&(1<<31) != 0 {
				c = c<<1 ^ 0x04C11DB7
			} else {
				c <<= 1
			}
		}
		t[i] = c
	}
	return t
}()

func crc32be(c uint32, p []byte) uint32 {
	for _, b := range p {
		c = c<<8 ^ crc32beTable[byte(c>>24)^b]
	}
	return c
}

// inodeSeed is the seed of the checksums of what belongs to an inode: its
// extent blocks, directory blocks, and itself.
func (s *superblock) inodeSeed(ino, generation uint32) uint32 {
	return crc32cWord(s.csumSeed, uint64(ino)|uint64(generation)<<32, 8)
}

// inodeChecksum computes i_checksum of the raw inode: 32 bits when
// i_checksum_hi fits, else 16. i_generation is taken from raw.
func (s *superblock) inodeChecksum(ino uint32, raw []byte) (sum uint32, wide bool) {
	c := s.inodeSeed(ino, le.Uint32(raw[0x64:]))
	c = crc32c(c, raw[:0x7C])
	c = crc32cWord(c, 0, 2)
	c = crc32c(c, raw[0x7E:0x80])
	if len(raw) > minInodeSize {
		if le.Uint16(raw[0x80:]) >= 4 { // i_extra_isize covers i_checksum_hi
			wide = true
			c = crc32c(c, raw[0x80:0x82])
			c = crc32cWord(c, 0, 2)
			c = crc32c(c, raw[0x84:])
		} else {
			c = crc32c(c, raw[0x80:])
		}
	}
	if !wide {
		c &= 0xFFFF
	}
	return c, wide
}

// dirBlockChecksum computes det_checksum of a leaf of a directory (ext4 doc,
// "Directory Entries").
func dirBlockChecksum(seed uint32, block []byte) uint32 {
	return crc32c(seed, block[:len(block)-dirTailSize])
}

// dxChecksum computes dt_checksum of a block of a directory's hash tree whose
// entries start at entriesOff and number count of limit.
func dxChecksum(seed uint32, block []byte, entriesOff, count, limit int) uint32 {
	c := crc32c(seed, block[:entriesOff+count*8])
	tail := entriesOff + limit*8
	c = crc32c(c, block[tail:tail+4])
	return crc32cWord(c, 0, 4)
}

// extentChecksum computes et_checksum of an extent block whose eh_max is max.
func extentChecksum(seed uint32, block []byte, max int) uint32 {
	return crc32c(seed, block[:12+12*max])
}

// xattrBlockChecksum computes h_checksum of the attribute block at number
// blk.
func (s *superblock) xattrBlockChecksum(blk uint64, block []byte) uint32 {
	c := crc32cWord(s.csumSeed, blk, 8)
	c = crc32c(c, block[:0x10])
	c = crc32cWord(c, 0, 4)
	return crc32c(c, block[0x14:])
}

// bitmapChecksum computes the checksum of a bitmap for its group descriptor:
// of clusters-per-group or inodes-per-group bits. Descriptors of 32 bytes
// hold 16 bits of it.
func (s *superblock) bitmapChecksum(bitmap []byte, bits uint32) uint32 {
	c := crc32c(s.csumSeed, bitmap[:bits/8])
	if s.descSize < 64 {
		c &= 0xFFFF
	}
	return c
}
