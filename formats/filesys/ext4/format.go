// Package ext4 reads the Linux file systems ext2, ext3 and ext4 out of an
// image, without a kernel and without changing a byte: an unclean journal is
// replayed in memory.
//
// The format is described in the Linux kernel documentation, "ext4 Data
// Structures and Algorithms" (Documentation/filesystems/ext4), cited below as
// "ext4 doc" with the chapter. All fields are little-endian except those of
// the journal (jbd2), which are big-endian.
//
// # Names
//
// A name on disk is 1 to 255 bytes without NUL and slash, in no particular
// encoding; io/fs wants UTF-8. A name that is valid UTF-8 is shown as it is.
// Bytes that are not are shown as the code points U+EF80 to U+EFFF, one for
// each byte from 0x80 to 0xff; so are the bytes of those code points
// themselves, which makes the mapping reversible. EscapeName and UnescapeName
// convert; all methods of FS take and return escaped names. The targets of
// symbolic links are returned as they are on disk.
package ext4

// Name is the name of the format in errors and on the command line; the
// three generations share it.
const Name = "ext4"

// Limits, each with its reason. Those without a comment on memory are the
// format's own.
const (
	superblockOff  = 1024 // ext4 doc, "Layout"
	superblockSize = 1024

	maxLogBlockSize = 6     // 64 KiB, EXT4_MAX_BLOCK_LOG_SIZE
	minInodeSize    = 128   // EXT4_GOOD_OLD_INODE_SIZE
	maxDescSize     = 1024  // EXT4_MAX_DESC_SIZE; also the smallest block
	maxNameLen      = 255   // EXT4_NAME_LEN
	maxExtentDepth  = 5     // EXT4_MAX_EXTENT_DEPTH: 2^32 blocks need no more
	maxHtreeLevels  = 3     // EXT4_HTREE_LEVEL with large_dir
	maxSymlink      = 65536 // no target is longer than a block

	// maxDirEntries is what ReadDir of a whole directory may hold in memory,
	// about 30 MiB; larger ones are read piecewise through ReadDirFile.
	maxDirEntries = 1 << 18
	// maxReadFile is the largest file that ReadFile returns in one slice.
	maxReadFile = 32 << 20
	// maxXattrInode is the largest attribute value read from an inode of its
	// own: XATTR_SIZE_MAX of Linux.
	maxXattrInode = 64 << 10
	// maxXattrs bounds the attributes of one file in number; a 64 KiB block
	// holds fewer than 4096 entries of 16 bytes.
	maxXattrs = 2 * 65536 / 16
	// maxReplay is the number of distinct blocks an unclean journal may
	// replace: 16 MiB of map while it is made, for 2 GiB of 4 KiB blocks;
	// mke2fs makes journals of at most 1 GiB by itself.
	maxReplay = 1 << 19
	// maxRevoke bounds the revoked blocks in an unclean journal: 20 MiB.
	maxRevoke = 1 << 19
	// maxFastCommit bounds the changes replayed from fast commits, whose area
	// is 256 blocks unless tuned.
	maxFastCommit = 1 << 16
	// maxUsageGroups is up to how many groups Usage sums up and verifies the
	// descriptors: a file system of 8 TiB. Beyond, the superblock is quoted.
	maxUsageGroups = 1 << 16
	// maxProblems bounds the list in Usage.
	maxProblems = 100
	// maxOrphans bounds the walk of the orphan list.
	maxOrphans = 1 << 16

	// The caches' sizes in bytes, and the run of an inode table read at once.
	blockCacheSize = 4 << 20
	inodeCacheSize = 4 << 20
	inodeWindow    = 32 << 10
	dirCacheSize   = 2048 // directories by path
	dirReadSize    = 64 << 10
	nameIndexSize  = 1 << 16 // entries of the directory looked into last: 5 MiB
)

// Inode numbers with a meaning. Those below s_first_ino are not for files
// (ext4 doc, "Special inodes").
const (
	rootIno       = 2
	journalIno    = 8
	goodOldFirst  = 11 // EXT4_GOOD_OLD_FIRST_INO, when s_rev_level is 0
	superMagic    = 0xEF53
	extentMagic   = 0xF30A
	xattrMagic    = 0xEA020000
	dirTailType   = 0xDE // det_reserved_ft
	dirTailSize   = 12
	dxTailSize    = 8
	extentTail    = 4
	crc32cType    = 1 // EXT4_CRC32C_CHKSUM
	creatorHurd   = 1 // EXT4_OS_HURD
	stateValid    = 1 // EXT4_VALID_FS
	stateErrors   = 2 // EXT4_ERROR_FS
	stateOrphan   = 4 // EXT4_ORPHAN_FS
	flagSigned    = 1 // EXT2_FLAGS_SIGNED_HASH
	flagUnsigned  = 2 // EXT2_FLAGS_UNSIGNED_HASH
	maxExtentLen  = 32768
	inlineInBlock = 60 // bytes of i_block
)

// Compatible features.
const (
	compatDirPrealloc  = 0x1
	compatHasJournal   = 0x4
	compatExtAttr      = 0x8
	compatResizeInode  = 0x10
	compatDirIndex     = 0x20
	compatSparseSuper2 = 0x200
	compatFastCommit   = 0x400
	compatStableInodes = 0x800
	compatOrphanFile   = 0x1000
)

// Incompatible features: an unknown one forbids reading.
const (
	incompatCompression = 0x1
	incompatFiletype    = 0x2
	incompatRecover     = 0x4
	incompatJournalDev  = 0x8
	incompatMetaBG      = 0x10
	incompatExtents     = 0x40
	incompat64bit       = 0x80
	incompatMMP         = 0x100
	incompatFlexBG      = 0x200
	incompatEAInode     = 0x400
	incompatDirdata     = 0x1000
	incompatCsumSeed    = 0x2000
	incompatLargeDir    = 0x4000
	incompatInlineData  = 0x8000
	incompatEncrypt     = 0x10000
	incompatCasefold    = 0x20000

	incompatRead = incompatFiletype | incompatRecover | incompatMetaBG | incompatExtents | incompat64bit |
		incompatMMP | incompatFlexBG | incompatEAInode | incompatCsumSeed | incompatLargeDir |
		incompatInlineData | incompatEncrypt | incompatCasefold
)

// Read-only compatible features: none of them hinders a reader.
const (
	roSparseSuper   = 0x1
	roLargeFile     = 0x2
	roBtreeDir      = 0x4
	roHugeFile      = 0x8
	roGdtCsum       = 0x10
	roDirNlink      = 0x20
	roExtraIsize    = 0x40
	roBigalloc      = 0x200
	roMetadataCsum  = 0x400
	roOrphanPresent = 0x10000
)

// Names of the features as mke2fs and dumpe2fs spell them, by bit number.
var (
	compatNames = map[uint]string{0: "dir_prealloc", 1: "imagic_inodes", 2: "has_journal", 3: "ext_attr",
		4: "resize_inode", 5: "dir_index", 6: "lazy_bg", 8: "snapshot_bitmap", 9: "sparse_super2",
		10: "fast_commit", 11: "stable_inodes", 12: "orphan_file"}
	incompatNames = map[uint]string{0: "compression", 1: "filetype", 2: "needs_recovery", 3: "journal_dev",
		4: "meta_bg", 6: "extent", 7: "64bit", 8: "mmp", 9: "flex_bg", 10: "ea_inode", 12: "dirdata",
		13: "metadata_csum_seed", 14: "large_dir", 15: "inline_data", 16: "encrypt", 17: "casefold"}
	roCompatNames = map[uint]string{0: "sparse_super", 1: "large_file", 3: "huge_file", 4: "uninit_bg",
		5: "dir_nlink", 6: "extra_isize", 7: "snapshot", 8: "quota", 9: "bigalloc", 10: "metadata_csum",
		11: "replica", 12: "read-only", 13: "project", 14: "shared_blocks", 15: "verity", 16: "orphan_present"}
)

// Inode flags (ext4 doc, "Index Nodes", i_flags) that change how an inode is
// read. formats.Stat carries all of them as they are.
const (
	flagEncrypt    = 0x800      // EXT4_ENCRYPT_FL
	flagIndex      = 0x1000     // EXT4_INDEX_FL
	flagHugeFile   = 0x40000    // EXT4_HUGE_FILE_FL
	flagExtents    = 0x80000    // EXT4_EXTENTS_FL
	flagEAInode    = 0x200000   // EXT4_EA_INODE_FL
	flagInlineData = 0x10000000 // EXT4_INLINE_DATA_FL
	flagCasefold   = 0x40000000 // EXT4_CASEFOLD_FL
)

// File types in i_mode.
const (
	modeFmt  = 0xF000
	modeFIFO = 0x1000
	modeChar = 0x2000
	modeDir  = 0x4000
	modeBlk  = 0x6000
	modeReg  = 0x8000
	modeLink = 0xA000
	modeSock = 0xC000
)

// Group descriptor flags.
const (
	groupInodeUninit = 1 // EXT4_BG_INODE_UNINIT
	groupBlockUninit = 2 // EXT4_BG_BLOCK_UNINIT
)
