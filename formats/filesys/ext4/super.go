package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"imgmaint/formats"
)

var le = binary.LittleEndian

// A superblock is decoded from 1024 bytes (ext4 doc, "Super Block").
type superblock struct {
	off int64 // where it was read, in bytes
	raw [superblockSize]byte

	inodesCount     uint32     // s_inodes_count, u32 at 0x0
	blocksCount     uint64     // s_blocks_count_lo at 0x4, _hi at 0x150
	freeBlocks      uint64     // s_free_blocks_count_lo at 0xC, _hi at 0x158
	freeInodes      uint32     // s_free_inodes_count at 0x10
	firstDataBlock  uint32     // s_first_data_block at 0x14
	logBlockSize    uint32     // s_log_block_size at 0x18: block size is 1024 << this
	logClusterSize  uint32     // s_log_cluster_size at 0x1C
	blocksPerGroup  uint32     // s_blocks_per_group at 0x20
	clusPerGroup    uint32     // s_clusters_per_group at 0x24
	inodesPerGroup  uint32     // s_inodes_per_group at 0x28
	magic           uint16     // s_magic at 0x38
	state           uint16     // s_state at 0x3A
	creatorOS       uint32     // s_creator_os at 0x48
	revLevel        uint32     // s_rev_level at 0x4C
	firstIno        uint32     // s_first_ino at 0x54
	inodeSize       uint16     // s_inode_size at 0x58, bytes
	blockGroupNr    uint16     // s_block_group_nr at 0x5A: the group this copy is in
	compat          uint32     // s_feature_compat at 0x5C
	incompat        uint32     // s_feature_incompat at 0x60
	roCompat        uint32     // s_feature_ro_compat at 0x64
	uuid            [16]byte   // s_uuid at 0x68
	label           string     // s_volume_name, 16 bytes at 0x78
	journalInum     uint32     // s_journal_inum at 0xE0
	journalDev      uint32     // s_journal_dev at 0xE4
	lastOrphan      uint32     // s_last_orphan at 0xE8
	hashSeed        [4]uint32  // s_hash_seed at 0xEC
	defHashVersion  uint8      // s_def_hash_version at 0xFC
	jnlBackupType   uint8      // s_jnl_backup_type at 0xFD
	descSizeField   uint16     // s_desc_size at 0xFE
	firstMetaBG     uint32     // s_first_meta_bg at 0x104
	jnlBlocks       [17]uint32 // s_jnl_blocks at 0x10C: i_block and i_size of the journal
	flags           uint32     // s_flags at 0x160
	logGroupsPerFlx uint8      // s_log_groups_per_flex at 0x174
	checksumType    uint8      // s_checksum_type at 0x175
	errorCount      uint32     // s_error_count at 0x194
	backupBGs       [2]uint32  // s_backup_bgs at 0x24C
	checksumSeed    uint32     // s_checksum_seed at 0x270
	orphanFileInum  uint32     // s_orphan_file_inum at 0x280
	checksum        uint32     // s_checksum at 0x3FC

	// derived by validate
	blockSize    int64
	blockBits    uint
	descSize     int64
	groups       uint32
	descPerBlock uint32
	csumSeed     uint32 // seed of all checksums but the superblock's
}

// decodeSuperblock decodes b, which is superblockSize bytes long, read at
// off. Nothing is checked.
func decodeSuperblock(b []byte, off int64) *superblock {
	s := &superblock{off: off}
	copy(s.raw[:], b)
	u16 := func(o int) uint16 { return le.Uint16(b[o:]) }
	u32 := func(o int) uint32 { return le.Uint32(b[o:]) }
	s.inodesCount = u32(0x0)
	s.blocksCount = uint64(u32(0x4))
	s.freeBlocks = uint64(u32(0xC))
	s.freeInodes = u32(0x10)
	s.firstDataBlock = u32(0x14)
	s.logBlockSize = u32(0x18)
	s.logClusterSize = u32(0x1C)
	s.blocksPerGroup = u32(0x20)
	s.clusPerGroup = u32(0x24)
	s.inodesPerGroup = u32(0x28)
	s.magic = u16(0x38)
	s.state = u16(0x3A)
	s.creatorOS = u32(0x48)
	s.revLevel = u32(0x4C)
	if s.revLevel == 0 { // EXT4_GOOD_OLD_REV: the fields below do not exist
		s.firstIno, s.inodeSize = goodOldFirst, minInodeSize
		return s
	}
	s.firstIno = u32(0x54)
	s.inodeSize = u16(0x58)
	s.blockGroupNr = u16(0x5A)
	s.compat = u32(0x5C)
	s.incompat = u32(0x60)
	s.roCompat = u32(0x64)
	copy(s.uuid[:], b[0x68:])
	label, _, _ := bytes.Cut(b[0x78:0x88], []byte{0})
	s.label = string(label)
	s.journalInum = u32(0xE0)
	s.journalDev = u32(0xE4)
	s.lastOrphan = u32(0xE8)
	for i := range s.hashSeed {
		s.hashSeed[i] = u32(0xEC + 4*i)
	}
	s.defHashVersion = b[0xFC]
	s.jnlBackupType = b[0xFD]
	s.descSizeField = u16(0xFE)
	s.firstMetaBG = u32(0x104)
	for i := range s.jnlBlocks {
		s.jnlBlocks[i] = u32(0x10C + 4*i)
	}
	if s.incompat&incompat64bit != 0 {
		s.blocksCount |= uint64(u32(0x150)) << 32
		s.freeBlocks |= uint64(u32(0x158)) << 32
	}
	s.flags = u32(0x160)
	s.logGroupsPerFlx = b[0x174]
	s.checksumType = b[0x175]
	s.errorCount = u32(0x194)
	s.backupBGs = [2]uint32{u32(0x24C), u32(0x250)}
	s.checksumSeed = u32(0x270)
	s.orphanFileInum = u32(0x280)
	s.checksum = u32(0x3FC)
	return s
}

// validate checks all that the rest of the package relies on, for a device
// of size bytes, and fills the derived fields.
func (s *superblock) validate(size int64) error {
	if s.magic != superMagic {
		return formats.Unknown(Name, s.off+0x38, "s_magic", "%#x, want %#x", s.magic, superMagic)
	}
	if bad := s.incompat &^ incompatRead; bad != 0 {
		return formats.Unsupported(Name, s.off+0x60, "s_feature_incompat", "%s", featureList(bad, incompatNames, 'I'))
	}
	if s.metadataCsum() {
		if s.checksumType != crc32cType {
			return formats.Unsupported(Name, s.off+0x175, "s_checksum_type", "%d", s.checksumType)
		}
		if got := crc32c(^uint32(0), s.raw[:0x3FC]); got != s.checksum {
			return formats.Corrupt(Name, s.off+0x3FC, "s_checksum", "%#08x, computed %#08x", s.checksum, got)
		}
	}
	corrupt := func(off int64, field, msg string, args ...any) error {
		return formats.Corrupt(Name, s.off+off, field, msg, args...)
	}
	if s.logBlockSize > maxLogBlockSize {
		return corrupt(0x18, "s_log_block_size", "%d, at most %d", s.logBlockSize, maxLogBlockSize)
	}
	s.blockBits = uint(10 + s.logBlockSize)
	s.blockSize = 1 << s.blockBits
	bs := s.blockSize
	clusterRatio := uint32(1)
	if s.roCompat&roBigalloc != 0 {
		if s.logClusterSize < s.logBlockSize || s.logClusterSize > 29-10+maxLogBlockSize {
			return corrupt(0x1C, "s_log_cluster_size", "%d with s_log_block_size %d", s.logClusterSize, s.logBlockSize)
		}
		clusterRatio <<= s.logClusterSize - s.logBlockSize
	}
	// A bitmap of one block describes a group.
	maxPerGroup := uint32(8 * bs)
	if cpg := s.blocksPerGroup / clusterRatio; s.blocksPerGroup == 0 || cpg == 0 || cpg > maxPerGroup ||
		s.blocksPerGroup%clusterRatio != 0 {
		return corrupt(0x20, "s_blocks_per_group", "%d with blocks of %d bytes", s.blocksPerGroup, bs)
	}
	if n := uint32(s.inodeSize); n < minInodeSize || int64(n) > bs || n&(n-1) != 0 {
		return corrupt(0x58, "s_inode_size", "%d with blocks of %d bytes", n, bs)
	}
	if s.inodesPerGroup == 0 || s.inodesPerGroup > maxPerGroup {
		return corrupt(0x28, "s_inodes_per_group", "%d, at most %d", s.inodesPerGroup, maxPerGroup)
	}
	s.descSize = 32
	if s.incompat&incompat64bit != 0 {
		s.descSize = int64(s.descSizeField)
		if s.descSize < 64 || s.descSize > maxDescSize || s.descSize&(s.descSize-1) != 0 {
			return corrupt(0xFE, "s_desc_size", "%d", s.descSize)
		}
	}
	s.descPerBlock = uint32(bs / s.descSize)
	if s.blocksCount > uint64(size)>>s.blockBits {
		return corrupt(0x4, "s_blocks_count", "%d blocks of %d bytes, the disk has %d bytes", s.blocksCount, bs, size)
	}
	if uint64(s.firstDataBlock) >= s.blocksCount || s.firstDataBlock > 1 || s.firstDataBlock == 1 && bs != 1024 {
		return corrupt(0x14, "s_first_data_block", "%d of %d", s.firstDataBlock, s.blocksCount)
	}
	bpg := uint64(s.blocksPerGroup)
	groups := (s.blocksCount - uint64(s.firstDataBlock) + bpg - 1) / bpg
	if groups*uint64(s.inodesPerGroup) != uint64(s.inodesCount) {
		return corrupt(0x0, "s_inodes_count", "%d, want %d groups of %d", s.inodesCount, groups, s.inodesPerGroup)
	}
	s.groups = uint32(groups) // inodesPerGroup is at least 1, so it fits
	if s.firstIno < goodOldFirst || s.firstIno > s.inodesCount {
		return corrupt(0x54, "s_first_ino", "%d of %d", s.firstIno, s.inodesCount)
	}
	descBlocks := (groups + uint64(s.descPerBlock) - 1) / uint64(s.descPerBlock)
	if s.incompat&incompatMetaBG != 0 && uint64(s.firstMetaBG) > descBlocks {
		return corrupt(0x104, "s_first_meta_bg", "%d of %d", s.firstMetaBG, descBlocks)
	}
	s.csumSeed = crc32c(^uint32(0), s.uuid[:])
	if s.incompat&incompatCsumSeed != 0 {
		s.csumSeed = s.checksumSeed
	}
	return nil
}

func (s *superblock) metadataCsum() bool { return s.roCompat&roMetadataCsum != 0 }

// hasSuper reports whether group g holds a copy of the superblock and, but
// for meta_bg, of the descriptors (ext4 doc, "Sparse Super").
func (s *superblock) hasSuper(g uint32) bool {
	switch {
	case g == 0:
		return true
	case s.compat&compatSparseSuper2 != 0:
		return g == s.backupBGs[0] || g == s.backupBGs[1]
	case g == 1 || s.roCompat&roSparseSuper == 0:
		return true
	}
	for _, base := range []uint32{3, 5, 7} {
		n := g
		for n%base == 0 {
			n /= base
		}
		if n == 1 {
			return true
		}
	}
	return false
}

// groupFirstBlock is the first block of group g.
func (s *superblock) groupFirstBlock(g uint32) uint64 {
	return uint64(s.firstDataBlock) + uint64(g)*uint64(s.blocksPerGroup)
}

// descBlock is the block that holds the descriptor block nr (ext4 doc, "Meta
// Block Groups"), beside the superblock that was read.
func (s *superblock) descBlock(nr uint32) uint64 {
	if s.incompat&incompatMetaBG == 0 || nr < s.firstMetaBG {
		return uint64(s.off)>>s.blockBits + 1 + uint64(nr)
	}
	g := nr * s.descPerBlock
	b := s.groupFirstBlock(g)
	if s.hasSuper(g) {
		b++
	}
	if s.blockSize == 1024 && nr == 0 && s.firstDataBlock == 0 {
		b++ // bigalloc with 1 KiB blocks: block 0 is the boot block
	}
	return b
}

// version is ext2, ext3 or ext4, by the features in use (as blkid tells them
// apart).
func (s *superblock) version() string {
	const (
		oldRO = roSparseSuper | roLargeFile | roBtreeDir
		oldIn = incompatFiletype | incompatMetaBG
	)
	if s.roCompat&^oldRO != 0 || s.incompat&^(oldIn|incompatRecover) != 0 {
		return "ext4"
	}
	if s.compat&compatHasJournal != 0 {
		return "ext3"
	}
	return "ext2"
}

// features lists the features in use by name.
func (s *superblock) features() []string {
	return slices.Concat(featureNames(s.compat, compatNames, 'C'), featureNames(s.incompat, incompatNames, 'I'),
		featureNames(s.roCompat, roCompatNames, 'R'))
}

func featureNames(set uint32, names map[uint]string, class byte) []string {
	var l []string
	for set != 0 {
		bit := uint(bits.TrailingZeros32(set))
		set &= set - 1
		n, ok := names[bit]
		if !ok {
			n = fmt.Sprintf("FEATURE_%c%d", class, bit)
		}
		l = append(l, n)
	}
	return l
}

func featureList(set uint32, names map[uint]string, class byte) string {
	var b []byte
	for i, n := range featureNames(set, names, class) {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(b, n...)
	}
	return string(b)
}

// A groupDesc is a decoded group descriptor (ext4 doc, "Block Group
// Descriptors").
type groupDesc struct {
	blockBitmap     uint64 // bg_block_bitmap_lo at 0x0, _hi at 0x20
	inodeBitmap     uint64 // bg_inode_bitmap_lo at 0x4, _hi at 0x24
	inodeTable      uint64 // bg_inode_table_lo at 0x8, _hi at 0x28
	freeBlocks      uint32 // bg_free_blocks_count_lo at 0xC, _hi at 0x2C; clusters
	freeInodes      uint32 // bg_free_inodes_count_lo at 0xE, _hi at 0x2E
	usedDirs        uint32 // bg_used_dirs_count_lo at 0x10, _hi at 0x30
	flags           uint16 // bg_flags at 0x12
	blockBitmapCsum uint32 // bg_block_bitmap_csum_lo at 0x18, _hi at 0x38
	inodeBitmapCsum uint32 // bg_inode_bitmap_csum_lo at 0x1A, _hi at 0x3A
	itableUnused    uint32 // bg_itable_unused_lo at 0x1C, _hi at 0x32
	checksum        uint16 // bg_checksum at 0x1E
}

// decodeGroupDesc decodes b, one descriptor of 32 bytes or at least 64.
func decodeGroupDesc(b []byte) groupDesc {
	wide := func(lo, hi int) uint32 {
		v := uint32(le.Uint16(b[lo:]))
		if len(b) >= 64 {
			v |= uint32(le.Uint16(b[hi:])) << 16
		}
		return v
	}
	block := func(lo, hi int) uint64 {
		v := uint64(le.Uint32(b[lo:]))
		if len(b) >= 64 {
			v |= uint64(le.Uint32(b[hi:])) << 32
		}
		return v
	}
	return groupDesc{
		blockBitmap:     block(0x0, 0x20),
		inodeBitmap:     block(0x4, 0x24),
		inodeTable:      block(0x8, 0x28),
		freeBlocks:      wide(0xC, 0x2C),
		freeInodes:      wide(0xE, 0x2E),
		usedDirs:        wide(0x10, 0x30),
		flags:           le.Uint16(b[0x12:]),
		blockBitmapCsum: wide(0x18, 0x38),
		inodeBitmapCsum: wide(0x1A, 0x3A),
		itableUnused:    wide(0x1C, 0x32),
		checksum:        le.Uint16(b[0x1E:]),
	}
}

// groupDescChecksum computes bg_checksum of the descriptor b of group g; ok
// is false when the file system keeps none.
func (s *superblock) groupDescChecksum(g uint32, b []byte) (sum uint16, ok bool) {
	switch {
	case s.metadataCsum():
		c := crc32cWord(s.csumSeed, uint64(g), 4)
		c = crc32c(c, b[:0x1E])
		c = crc32cWord(c, 0, 2)
		return uint16(crc32c(c, b[0x20:])), true
	case s.roCompat&roGdtCsum != 0:
		c := crc16(^uint16(0), s.uuid[:])
		c = crc16(c, le.AppendUint32(nil, g))
		c = crc16(c, b[:0x1E])
		return crc16(c, b[0x20:]), true
	}
	return 0, false
}
