package ext4

import (
	"io/fs"
	"time"

	"imgmaint/formats"
)

// An inode is decoded from an entry of an inode table (ext4 doc, "Index
// Nodes").
type inode struct {
	ino uint32
	off int64 // of the inode on disk, in bytes

	mode       uint16 // i_mode, u16 at 0x0
	uid, gid   uint32 // i_uid at 0x2 and l_i_uid_high at 0x78; i_gid at 0x18 and 0x7A
	size       int64  // i_size_lo at 0x4, i_size_high at 0x6C
	links      uint16 // i_links_count at 0x1A
	blocks     int64  // i_blocks_lo at 0x1C, l_i_blocks_high at 0x74; here in bytes
	flags      uint32 // i_flags at 0x20
	block      [inlineInBlock]byte
	generation uint32 // i_generation at 0x64
	fileACL    uint64 // i_file_acl_lo at 0x68, l_i_file_acl_high at 0x76
	dtime      uint32 // i_dtime at 0x14
	extraISize uint16 // i_extra_isize at 0x80

	atime, ctime, mtime, crtime stamp
}

// A stamp is a point in time: i_xtime and i_xtime_extra. A nanosecond count
// below zero means there is no such field.
type stamp struct {
	sec  int64
	nsec int32
}

func (s stamp) time() time.Time {
	if s.nsec < 0 {
		return time.Time{}
	}
	return time.Unix(s.sec, int64(s.nsec)).UTC()
}

// decodeStamp decodes the time whose low word is at o; extra is the offset of
// the word with two more bits of seconds and the nanoseconds, which exists
// when it lies before end (ext4 doc, "Inode Timestamps").
func decodeStamp(raw []byte, o, extra, end int) stamp {
	s := stamp{sec: int64(int32(le.Uint32(raw[o:])))}
	if extra+4 <= end {
		x := le.Uint32(raw[extra:])
		s.sec += int64(x&3) << 32
		s.nsec = int32(x >> 2)
	}
	return s
}

// decode fills in from raw, an inode of s.inodeSize bytes. Only
// i_extra_isize is checked, which says where fields end.
func (in *inode) decode(s *superblock, raw []byte) error {
	u16 := func(o int) uint16 { return le.Uint16(raw[o:]) }
	u32 := func(o int) uint32 { return le.Uint32(raw[o:]) }
	in.mode = u16(0x0)
	in.uid = uint32(u16(0x2)) | uint32(u16(0x78))<<16
	in.gid = uint32(u16(0x18)) | uint32(u16(0x7A))<<16
	in.dtime = u32(0x14)
	in.links = u16(0x1A)
	in.flags = u32(0x20)
	copy(in.block[:], raw[0x28:])
	in.generation = u32(0x64)
	in.fileACL = uint64(u32(0x68))
	blocks := uint64(u32(0x1C))
	if s.creatorOS != creatorHurd { // its osd2 has other fields there
		if s.roCompat&roHugeFile != 0 {
			blocks |= uint64(u16(0x74)) << 32
		}
		in.fileACL |= uint64(u16(0x76)) << 32
	}
	if s.roCompat&roHugeFile != 0 && in.flags&flagHugeFile != 0 {
		in.blocks = int64(blocks) << s.blockBits // 48 + 16 bits
	} else {
		in.blocks = int64(blocks) << 9
	}
	if in.blocks < 0 {
		return formats.Corrupt(Name, in.off+0x74, "l_i_blocks_high", "inode %d has %d blocks", in.ino, blocks)
	}
	size := uint64(u32(0x4))
	if in.mode&modeFmt == modeReg || s.incompat&incompatLargeDir != 0 && in.mode&modeFmt == modeDir {
		size |= uint64(u32(0x6C)) << 32
	}
	in.size = int64(size)
	if in.size < 0 {
		return formats.Corrupt(Name, in.off+0x6C, "i_size_high", "inode %d has %d bytes", in.ino, size)
	}
	end := minInodeSize
	if len(raw) > minInodeSize {
		in.extraISize = u16(0x80)
		end += int(in.extraISize)
		if end > len(raw) || in.extraISize%4 != 0 {
			return formats.Corrupt(Name, in.off+0x80, "i_extra_isize", "inode %d has %d", in.ino, in.extraISize)
		}
	}
	in.atime = decodeStamp(raw, 0x8, 0x8C, end)
	in.ctime = decodeStamp(raw, 0xC, 0x84, end)
	in.mtime = decodeStamp(raw, 0x10, 0x88, end)
	in.crtime = stamp{nsec: -1}
	if 0x90+4 <= end {
		in.crtime = decodeStamp(raw, 0x90, 0x94, end)
	}
	return nil
}

// readInode reads the inode number ino into in and returns its raw bytes,
// which are shared and not to be changed or kept. The checksum is verified.
func (f *FS) readInode(ino uint32, in *inode) ([]byte, error) {
	if ino == 0 || ino > f.sb.inodesCount {
		return nil, formats.Corrupt(Name, -1, "inode", "%d of %d", ino, f.sb.inodesCount)
	}
	*in = inode{ino: ino, off: -1}
	if raw := f.fastInode(ino); raw != nil {
		return raw, in.decode(f.sb, raw)
	}
	s := f.sb
	g, idx := (ino-1)/s.inodesPerGroup, int64((ino-1)%s.inodesPerGroup)
	d, err := f.groupDesc(g)
	if err != nil {
		return nil, err
	}
	isize := int64(s.inodeSize)
	tableLen := (int64(s.inodesPerGroup)*isize + s.blockSize - 1) &^ (s.blockSize - 1)
	if d.inodeTable >= s.blocksCount || uint64(tableLen)>>s.blockBits > s.blocksCount-d.inodeTable {
		off, _ := f.descPos(g)
		return nil, formats.Corrupt(Name, off+8, "bg_inode_table", "block %d in group %d", d.inodeTable, g)
	}
	table := int64(d.inodeTable) << s.blockBits
	in.off = table + idx*isize
	// An inode lies within one window: both sizes are powers of two, and a
	// window is no smaller unless inodes are as large as big blocks.
	win := max(inodeWindow, isize)
	start := idx * isize / win * win
	key := uint64(table + start)
	w, _ := f.inodes.get(key)
	if w == nil {
		w = make([]byte, min(win, tableLen-start))
		if err := f.readDev(w, table+start, "inode table"); err != nil {
			return nil, err
		}
		f.inodes.add(key, w)
	}
	raw := w[idx*isize-start:][:isize:isize]
	if s.metadataCsum() {
		// A bad i_extra_isize is found by decode; the sum needs none of it.
		sum, wide := s.inodeChecksum(ino, raw)
		stored := uint32(le.Uint16(raw[0x7C:]))
		if wide {
			stored |= uint32(le.Uint16(raw[0x82:])) << 16
		}
		if sum != stored {
			return nil, formats.Corrupt(Name, in.off+0x7C, "i_checksum", "inode %d: %#x, computed %#x", ino, stored, sum)
		}
	}
	return raw, in.decode(s, raw)
}

// fileInode is readInode for an inode that a directory names.
func (f *FS) fileInode(ino uint32, in *inode) ([]byte, error) {
	if ino < f.sb.firstIno && ino != rootIno {
		return nil, formats.Corrupt(Name, -1, "inode", "%d is reserved but in a directory", ino)
	}
	raw, err := f.readInode(ino, in)
	if err != nil {
		return nil, err
	}
	if in.links == 0 || in.mode == 0 {
		return nil, formats.Corrupt(Name, in.off+0x1A, "i_links_count", "inode %d is deleted but in a directory", ino)
	}
	if in.flags&flagEAInode != 0 {
		return nil, formats.Corrupt(Name, in.off+0x20, "i_flags", "inode %d is an attribute value but in a directory", ino)
	}
	switch in.mode & modeFmt {
	case modeFIFO, modeChar, modeDir, modeBlk, modeReg, modeLink, modeSock:
	default:
		return nil, formats.Corrupt(Name, in.off, "i_mode", "inode %d has type %#x", ino, in.mode&modeFmt)
	}
	return raw, nil
}

func (in *inode) isDir() bool { return in.mode&modeFmt == modeDir }

// fileMode converts i_mode.
func fileMode(m uint16) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m & modeFmt {
	case modeFIFO:
		mode |= fs.ModeNamedPipe
	case modeChar:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case modeDir:
		mode |= fs.ModeDir
	case modeBlk:
		mode |= fs.ModeDevice
	case modeLink:
		mode |= fs.ModeSymlink
	case modeSock:
		mode |= fs.ModeSocket
	}
	if m&0o4000 != 0 {
		mode |= fs.ModeSetuid
	}
	if m&0o2000 != 0 {
		mode |= fs.ModeSetgid
	}
	if m&0o1000 != 0 {
		mode |= fs.ModeSticky
	}
	return mode
}

// entryMode converts the file type of a directory entry; ok is false when it
// tells nothing.
func entryMode(fileType uint8) (mode fs.FileMode, ok bool) {
	switch fileType {
	case 1:
		return 0, true
	case 2:
		return fs.ModeDir, true
	case 3:
		return fs.ModeDevice | fs.ModeCharDevice, true
	case 4:
		return fs.ModeDevice, true
	case 5:
		return fs.ModeNamedPipe, true
	case 6:
		return fs.ModeSocket, true
	case 7:
		return fs.ModeSymlink, true
	}
	return 0, false
}

// device returns the numbers of a device node: the old encoding in 16 bits in
// the first word of i_block, the new one in the second.
func (in *inode) device() (major, minor uint32) {
	switch in.mode & modeFmt {
	case modeChar, modeBlk:
	default:
		return 0, 0
	}
	if d := le.Uint32(in.block[:]); d != 0 {
		return d >> 8 & 0xFF, d & 0xFF
	}
	d := le.Uint32(in.block[4:])
	return d >> 8 & 0xFFF, d&0xFF | d>>12&0xFFF00
}

// fileInfo is the fs.FileInfo of any file here.
type fileInfo struct {
	name  string
	mode  fs.FileMode
	size  int64
	mtime stamp
	stat  formats.Stat
}

func (i *fileInfo) Name() string       { return i.name }
func (i *fileInfo) Size() int64        { return i.size }
func (i *fileInfo) Mode() fs.FileMode  { return i.mode }
func (i *fileInfo) ModTime() time.Time { return i.mtime.time() }
func (i *fileInfo) IsDir() bool        { return i.mode.IsDir() }
func (i *fileInfo) Sys() any           { return &i.stat }

func (f *FS) info(name string, in *inode) *fileInfo {
	major, minor := in.device()
	ino := in.ino
	return &fileInfo{
		name:  name,
		mode:  fileMode(in.mode),
		size:  in.size,
		mtime: in.mtime,
		stat: formats.Stat{
			Ino: uint64(ino), Nlink: uint64(in.links), UID: in.uid, GID: in.gid,
			Major: major, Minor: minor, Blocks: in.blocks,
			Atime: in.atime.time(), Ctime: in.ctime.time(), Btime: in.crtime.time(),
			Flags:      in.flags,
			ReadXattrs: func() ([]formats.Xattr, error) { return f.xattrs(ino) },
		},
	}
}
