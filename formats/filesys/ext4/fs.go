package ext4

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"

	"imgmaint/formats"
	"imgmaint/formats/internal/bounded"
)

var (
	_ formats.FS    = (*FS)(nil)
	_ fs.StatFS     = (*FS)(nil)
	_ fs.ReadFileFS = (*FS)(nil)
)

// Options change how a file system is opened. Nil means the defaults.
type Options struct {
	// SuperblockOffset is the byte offset of the superblock to use, 0 for the
	// primary one at 1024. Backups begin the block groups that have them.
	SuperblockOffset int64
	// NoReplay leaves an unclean journal alone: the file system is read as it
	// is on disk, as a mount with noload does.
	NoReplay bool
}

// An FS is an open file system. It keeps at most 8 MiB of metadata, and the
// map of an unclean journal. All methods are safe for concurrent use.
type FS struct {
	dev    bounded.File
	sb     *superblock
	blocks *cache // metadata blocks by number
	inodes *cache // windows of inode tables by offset
	dirs   dirCache
	names  nameIndex

	overlay []journaled // blocks whose newest contents are in the journal
	fast    *fastCommits

	replayed bool
	mu       sync.Mutex
	problems []string
}

// Open reads the file system in the first size bytes of r. What is not ext2,
// ext3 or ext4 is formats.ErrUnknown, unknown incompatible features are
// errors.ErrUnsupported. If the primary superblock is damaged, a backup is
// used and Usage says so. An unclean journal is replayed in memory.
func Open(r io.ReaderAt, size int64, opts *Options) (*FS, error) {
	if opts == nil {
		opts = new(Options)
	}
	f := &FS{
		dev:    bounded.File{R: r, Size: size, Format: Name},
		blocks: newCache(blockCacheSize),
		inodes: newCache(inodeCacheSize),
	}
	off := opts.SuperblockOffset
	if off == 0 {
		off = superblockOff
	}
	sb, err := f.readSuperblock(off)
	if err != nil && errors.Is(err, formats.ErrCorrupt) && opts.SuperblockOffset == 0 {
		if b := f.findBackup(sb); b != nil {
			f.problem("the primary superblock is damaged (%v): used the backup at 0x%x", err, b.off)
			sb, err = b, nil
		}
	}
	if err != nil {
		return nil, err
	}
	f.sb = sb
	if !opts.NoReplay {
		if err := f.replay(); err != nil {
			return nil, err
		}
	}
	// The root tells early whether the rest can be read.
	var root inode
	if _, err := f.fileInode(rootIno, &root); err != nil {
		return nil, err
	}
	if !root.isDir() {
		return nil, formats.Corrupt(Name, root.off, "i_mode", "the root is not a directory")
	}
	f.checkState()
	return f, nil
}

// readSuperblock returns the superblock at off. It is not nil when it was
// read but is not valid.
func (f *FS) readSuperblock(off int64) (*superblock, error) {
	if off < 0 || off > f.dev.Size-superblockSize {
		return nil, formats.Unknown(Name, off, "superblock", "the disk has %d bytes", f.dev.Size)
	}
	b := make([]byte, superblockSize)
	if err := f.readDev(b, off, "superblock"); err != nil {
		return nil, err
	}
	sb := decodeSuperblock(b, off)
	return sb, sb.validate(f.dev.Size)
}

// findBackup looks for a valid superblock where the second group begins in
// file systems as mke2fs makes them, and where bad says so. It returns nil if
// there is none.
func (f *FS) findBackup(bad *superblock) *superblock {
	if bad == nil || bad.magic != superMagic {
		return nil
	}
	var offs []int64
	if bad.logBlockSize <= maxLogBlockSize && bad.blocksPerGroup != 0 {
		bits := 10 + bad.logBlockSize
		offs = append(offs, (int64(bad.blocksPerGroup)+int64(bad.firstDataBlock))<<bits)
	}
	for _, bs := range []int64{4096, 1024, 2048, 65536} {
		first := int64(0)
		if bs == 1024 {
			first = 1
		}
		offs = append(offs, (8*bs+first)*bs)
	}
	for _, off := range offs {
		if sb, err := f.readSuperblock(off); err == nil && sb.blockGroupNr == 1 && sb.groupFirstBlock(1)<<sb.blockBits == uint64(off) {
			return sb
		}
	}
	return nil
}

// problem notes something that the user should know and that does not stop
// reading.
func (f *FS) problem(msg string, args ...any) {
	s := fmt.Sprintf(msg, args...)
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.problems) < maxProblems && !slices.Contains(f.problems, s) {
		f.problems = append(f.problems, s)
	}
}

// readDev fills p from off bytes into the device, as the journal left it.
func (f *FS) readDev(p []byte, off int64, field string) error {
	if err := f.dev.ReadFull(p, off, field); err != nil {
		return err
	}
	if len(f.overlay) > 0 {
		return f.applyOverlay(p, off)
	}
	return nil
}

// metaBlock returns the metadata block blk, shared and not to be changed, and
// what it was already verified as.
func (f *FS) metaBlock(blk uint64, field string) ([]byte, uint64, error) {
	if b, checked := f.blocks.get(blk); b != nil {
		return b, checked, nil
	}
	if blk >= f.sb.blocksCount {
		return nil, 0, formats.Corrupt(Name, -1, field, "block %d of %d", blk, f.sb.blocksCount)
	}
	b := make([]byte, f.sb.blockSize)
	if err := f.readDev(b, int64(blk)<<f.sb.blockBits, field); err != nil {
		return nil, 0, err
	}
	f.blocks.add(blk, b)
	return b, 0, nil
}

// descPos is the place in bytes of the descriptor of group g, and its block.
func (f *FS) descPos(g uint32) (off int64, blk uint64) {
	s := f.sb
	blk = s.descBlock(g / s.descPerBlock)
	return int64(blk)<<s.blockBits + int64(g%s.descPerBlock)*s.descSize, blk
}

// groupDesc reads and verifies the descriptor of group g.
func (f *FS) groupDesc(g uint32) (groupDesc, error) {
	if g >= f.sb.groups {
		return groupDesc{}, formats.Corrupt(Name, -1, "group", "%d of %d", g, f.sb.groups)
	}
	off, blk := f.descPos(g)
	b, _, err := f.metaBlock(blk, "group descriptor")
	if err != nil {
		return groupDesc{}, err
	}
	b = b[off-int64(blk)<<f.sb.blockBits:][:f.sb.descSize]
	d := decodeGroupDesc(b)
	if sum, ok := f.sb.groupDescChecksum(g, b); ok && sum != d.checksum {
		return d, formats.Corrupt(Name, off+0x1E, "bg_checksum", "%#04x, computed %#04x in group %d", d.checksum, sum, g)
	}
	return d, nil
}

// checkState lists what the superblock says about the state.
func (f *FS) checkState() {
	s := f.sb
	if s.state&stateErrors != 0 || s.errorCount != 0 {
		f.problem("the file system was marked as having errors (%d recorded)", s.errorCount)
	}
	if s.compat&compatHasJournal == 0 && s.state&stateValid == 0 {
		f.problem("the file system was not unmounted cleanly and has no journal")
	}
	if s.state&stateOrphan != 0 {
		f.problem("orphan processing was interrupted")
	}
	if n := f.orphans(); n > 0 {
		f.problem("%d deleted or truncated inodes wait to be released", n)
	}
}

// Usage reports how full the file system is. Free space and inodes are summed
// from the group descriptors, whose checksums are verified on the way.
func (f *FS) Usage() formats.Usage {
	s := f.sb
	u := formats.Usage{
		Type:       s.version(),
		Label:      EscapeName([]byte(s.label)),
		BlockSize:  s.blockSize,
		Size:       int64(s.blocksCount) << s.blockBits,
		Inodes:     int64(s.inodesCount),
		Features:   s.features(),
		Free:       int64(min(s.freeBlocks, s.blocksCount)) << s.blockBits,
		FreeInodes: int64(s.freeInodes),
		State:      "clean",
	}
	if s.uuid != [16]byte{} {
		x := s.uuid
		u.UUID = fmt.Sprintf("%x-%x-%x-%x-%x", x[:4], x[4:6], x[6:8], x[8:10], x[10:])
	}
	if s.groups <= maxUsageGroups {
		clusters, inodes, whole := int64(0), int64(0), true
		for g := range s.groups {
			d, err := f.groupDesc(g)
			if err != nil {
				f.problem("%v", err)
				whole = false
				continue
			}
			clusters += int64(d.freeBlocks)
			inodes += int64(d.freeInodes)
		}
		if whole {
			bits := s.blockBits
			if s.roCompat&roBigalloc != 0 {
				bits += uint(s.logClusterSize - s.logBlockSize)
			}
			u.Free, u.FreeInodes = min(clusters<<bits, u.Size), min(inodes, u.Inodes)
		}
	}
	switch {
	case s.state&stateErrors != 0:
		u.State = "has errors"
	case f.replayed || s.incompat&incompatRecover != 0:
		u.State = "needs recovery"
	case s.state&stateValid == 0 && s.compat&compatHasJournal == 0:
		u.State = "not clean"
	}
	f.mu.Lock()
	u.Problems = slices.Clone(f.problems)
	f.mu.Unlock()
	return u
}

var (
	errSymlink = fmt.Errorf("is a symbolic link: %w", fs.ErrInvalid)
	errNotDir  = fmt.Errorf("is not a directory: %w", fs.ErrInvalid)
	errNotLink = fmt.Errorf("is not a symbolic link: %w", fs.ErrInvalid)
	errIsDir   = fmt.Errorf("is a directory: %w", fs.ErrInvalid)
	errNotFile = fmt.Errorf("is neither a file nor a directory: %w", fs.ErrInvalid)
)

// resolve finds the inode called name and reads it into in.
func (f *FS) resolve(name string, in *inode) ([]byte, error) {
	if !fs.ValidPath(name) {
		return nil, fs.ErrInvalid
	}
	if name == "." {
		return f.fileInode(rootIno, in)
	}
	if ino, ok := f.dirs.get(name); ok {
		return f.fileInode(ino, in)
	}
	// Start from the nearest parent that is known.
	ino, rest := uint32(rootIno), name
	for end := len(name); ; {
		end = strings.LastIndexByte(name[:end], '/')
		if end < 0 {
			break
		}
		if known, ok := f.dirs.get(name[:end]); ok {
			ino, rest = known, name[end+1:]
			break
		}
	}
	raw, err := f.fileInode(ino, in)
	for err == nil && rest != "" {
		var elem string
		elem, rest, _ = strings.Cut(rest, "/")
		if !in.isDir() {
			return nil, notThere(in)
		}
		parent := in.ino
		var e dirent
		if e, err = f.lookup(in, raw, elem); err != nil {
			return nil, err
		}
		if raw, err = f.fileInode(e.ino, in); err != nil {
			return nil, err
		}
		if in.isDir() {
			if err = f.checkParent(in, raw, parent); err != nil {
				return nil, err
			}
			end := len(name) - len(rest)
			f.dirs.add(strings.TrimSuffix(name[:end], "/"), in.ino)
		}
	}
	return raw, err
}

// notThere is the error for a path that goes on below what is no directory.
func notThere(in *inode) error {
	if in.mode&modeFmt == modeLink {
		return errSymlink
	}
	return fs.ErrNotExist
}

// Open opens the named file or directory. A symbolic link is an error; a
// device, FIFO or socket opens but does not read. Regular files implement
// formats.File, directories fs.ReadDirFile.
func (f *FS) Open(name string) (fs.File, error) {
	file, err := f.open(name)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return file, nil
}

func (f *FS) open(name string) (fs.File, error) {
	var in inode
	raw, err := f.resolve(name, &in)
	if err != nil {
		return nil, err
	}
	switch in.mode & modeFmt {
	case modeReg:
		return f.openFile(name, &in, raw)
	case modeDir:
		return &dirFile{fs: f, name: name, in: in}, nil
	case modeLink:
		return nil, errSymlink
	}
	return &special{f.info(path.Base(name), &in)}, nil
}

// Stat is Lstat: links are not followed.
func (f *FS) Stat(name string) (fs.FileInfo, error) { return f.stat("stat", name) }

// Lstat describes the named file. Sys returns a *formats.Stat.
func (f *FS) Lstat(name string) (fs.FileInfo, error) { return f.stat("lstat", name) }

func (f *FS) stat(op, name string) (fs.FileInfo, error) {
	var in inode
	if _, err := f.resolve(name, &in); err != nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return f.info(path.Base(name), &in), nil
}

// ReadLink returns the target of the named symbolic link, as it is on disk.
func (f *FS) ReadLink(name string) (string, error) {
	var in inode
	raw, err := f.resolve(name, &in)
	var target string
	if err == nil {
		target, err = f.readLink(&in, raw)
	}
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return target, nil
}

// ReadDir lists the named directory by name. On an error it also returns what
// could be read.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	var in inode
	raw, err := f.resolve(name, &in)
	if err == nil && !in.isDir() {
		err = errNotDir
	}
	var list []fs.DirEntry
	if err == nil {
		if name != "." {
			f.dirs.add(name, in.ino)
		}
		list, err = f.readDir(&in, raw)
		slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	}
	if err != nil {
		return list, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	return list, nil
}

// ReadFile returns the contents of the named file. Files above 32 MiB are
// formats.ErrLimit: open them and read in pieces.
func (f *FS) ReadFile(name string) ([]byte, error) {
	b, err := f.readFile(name)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return b, nil
}

func (f *FS) readFile(name string) ([]byte, error) {
	var in inode
	raw, err := f.resolve(name, &in)
	if err != nil {
		return nil, err
	}
	switch in.mode & modeFmt {
	case modeReg:
	case modeDir:
		return nil, errIsDir
	case modeLink:
		return nil, errSymlink
	default:
		return nil, errNotFile
	}
	file, err := f.openFile(name, &in, raw)
	if err != nil {
		return nil, err
	}
	if in.size > maxReadFile {
		return nil, formats.Limit(Name, in.off+0x4, "i_size", "%d bytes in one piece, at most %d", in.size, maxReadFile)
	}
	b := make([]byte, in.size)
	if n, err := file.ReadAt(b, 0); n < len(b) {
		return nil, err
	}
	return b, nil
}
