package ext4

import (
	"bytes"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"

	"imgmaint/formats"
)

// A dirent is one entry of a directory (ext4 doc, "Directory Entries"). The
// name is as on disk and shared with the block it was read from.
type dirent struct {
	ino  uint32
	typ  uint8 // file_type, 0 when the file system keeps none
	name []byte
}

// recLen decodes rec_len, which has two spare low bits to reach 64 KiB.
func recLen(b []byte, blockSize int64) int {
	n := int(le.Uint16(b))
	if blockSize < 65536 {
		return n
	}
	if n == 65535 || n == 0 {
		return 65536
	}
	return n&65532 | n&3<<16
}

// parseDirents calls fn for each entry in use in b, a directory block or a
// piece of inline data read from off on disk, except "." and "..". It stops
// when fn returns false.
func (f *FS) parseDirents(in *inode, b []byte, off int64, fn func(dirent) bool) error {
	corrupt := func(pos int, field, msg string, args ...any) error {
		return formats.Corrupt(Name, off+int64(pos), field, msg+" in directory inode %d", append(args, in.ino)...)
	}
	filetype := f.sb.incompat&incompatFiletype != 0
	for pos := 0; pos < len(b); {
		if len(b)-pos < 8 {
			return corrupt(pos, "rec_len", "%d bytes left", len(b)-pos)
		}
		e := b[pos:]
		n := recLen(e[4:], f.sb.blockSize)
		nameLen := int(e[6])
		if n < 8 || n%4 != 0 || n > len(e) || 8+nameLen > n {
			return corrupt(pos+4, "rec_len", "%d for a name of %d, %d bytes left", n, nameLen, len(e))
		}
		pos += n
		d := dirent{ino: le.Uint32(e), name: e[8 : 8+nameLen]}
		if d.ino == 0 || nameLen <= 2 && (string(d.name) == "." || string(d.name) == "..") {
			continue
		}
		if d.ino > f.sb.inodesCount {
			return corrupt(pos-n, "inode", "%d of %d", d.ino, f.sb.inodesCount)
		}
		if nameLen == 0 || bytes.IndexByte(d.name, 0) >= 0 || bytes.IndexByte(d.name, '/') >= 0 {
			return corrupt(pos-n+8, "name", "%q", d.name)
		}
		if filetype {
			d.typ = e[7]
		}
		if !fn(d) {
			return nil
		}
	}
	return nil
}

// dxHeader finds the entries of a block of a hash tree: at 32 in its root, at
// 8 in the others, after what looks like empty directory entries to ext2. The
// first entry has limit and count in place of its hash.
func (f *FS) dxHeader(in *inode, b []byte, off int64, root bool) (entriesOff, count, limit int, err error) {
	entriesOff = 8
	if root {
		entriesOff = 32
		// '.' of 12 bytes, '..' to the end, then dx_root_info of 8 bytes.
		if le.Uint32(b[24:]) != 0 || b[29] != 8 || recLen(b[4:], f.sb.blockSize) != 12 {
			return 0, 0, 0, formats.Corrupt(Name, off+24, "dx_root", "no index root in directory inode %d", in.ino)
		}
	}
	limit, count = int(le.Uint16(b[entriesOff:])), int(le.Uint16(b[entriesOff+2:]))
	room := len(b) - entriesOff
	if f.sb.metadataCsum() {
		room -= dxTailSize
	}
	if count < 1 || count > limit || limit*8 > room {
		return 0, 0, 0, formats.Corrupt(Name, off+int64(entriesOff), "dx_countlimit", "%d of %d in directory inode %d", count, limit, in.ino)
	}
	return entriesOff, count, limit, nil
}

// verifyDirBlock verifies the checksum of block lblk of a directory, a leaf
// or a block of its hash tree.
func (f *FS) verifyDirBlock(in *inode, b []byte, off, lblk int64) error {
	if !f.sb.metadataCsum() {
		return nil
	}
	seed := f.sb.inodeSeed(in.ino, in.generation)
	if in.flags&flagIndex != 0 && (lblk == 0 || recLen(b[4:], f.sb.blockSize) == len(b)) {
		at, count, limit, err := f.dxHeader(in, b, off, lblk == 0)
		if err != nil {
			return err
		}
		tail := at + limit*8
		if got, sum := le.Uint32(b[tail+4:]), dxChecksum(seed, b, at, count, limit); got != sum {
			return formats.Corrupt(Name, off+int64(tail)+4, "dt_checksum", "%#x, computed %#x in directory inode %d", got, sum, in.ino)
		}
		return nil
	}
	tail := len(b) - dirTailSize
	t := b[tail:]
	if le.Uint32(t) != 0 || le.Uint16(t[4:]) != dirTailSize || t[6] != 0 || t[7] != dirTailType {
		return formats.Corrupt(Name, off+int64(tail), "ext4_dir_entry_tail", "missing in directory inode %d", in.ino)
	}
	if got, sum := le.Uint32(t[8:]), dirBlockChecksum(seed, b); got != sum {
		return formats.Corrupt(Name, off+int64(tail)+8, "det_checksum", "%#x, computed %#x in directory inode %d", got, sum, in.ino)
	}
	return nil
}

// dirBlock returns block lblk of a directory, verified and shared, and its
// place on disk.
func (f *FS) dirBlock(in *inode, lblk int64) (b []byte, off int64, err error) {
	r, err := f.mapRun(in, lblk)
	if err != nil {
		return nil, 0, err
	}
	if r.kind != formats.Data {
		return nil, 0, formats.Corrupt(Name, in.off+0x28, "i_block", "block %d of directory inode %d is a hole", lblk, in.ino)
	}
	return f.dirBlockAt(in, lblk, r.pblk)
}

// dirBlockAt is dirBlock when it is known where the block is.
func (f *FS) dirBlockAt(in *inode, lblk int64, pblk uint64) (b []byte, off int64, err error) {
	off = int64(pblk) << f.sb.blockBits
	b, checked, err := f.metaBlock(pblk, "directory block")
	if err != nil {
		return nil, 0, err
	}
	if what := uint64(in.ino)<<8 | checkedDirLeaf; checked != what {
		if err := f.verifyDirBlock(in, b, off, lblk); err != nil {
			return nil, 0, err
		}
		f.blocks.mark(pblk, what)
	}
	return b, off, nil
}

// findDirent looks for name in a directory block. It reads faster than
// parseDirents because it only checks what it needs; when the block is
// damaged before the name it finds nothing, with ok false.
func (f *FS) findDirent(b, name []byte) (d dirent, ok bool) {
	for pos := 0; pos < len(b); {
		e := b[pos:]
		if len(e) < 8 {
			return d, false
		}
		n := recLen(e[4:], f.sb.blockSize)
		k := int(e[6])
		if n < 8+k || n > len(e) || n&3 != 0 {
			return d, false
		}
		if k == len(name) && string(e[8:8+k]) == string(name) {
			if ino := le.Uint32(e); ino != 0 {
				if ino > f.sb.inodesCount {
					return d, false
				}
				d = dirent{ino: ino, name: e[8 : 8+k]}
				if f.sb.incompat&incompatFiletype != 0 {
					d.typ = e[7]
				}
				return d, true
			}
		}
		pos += n
	}
	return d, true
}

// searchBlock looks for name in a directory block read from off.
func (f *FS) searchBlock(in *inode, b []byte, off int64, name []byte) (dirent, error) {
	found, ok := f.findDirent(b, name)
	if !ok {
		return dirent{}, f.parseDirents(in, b, off, func(d dirent) bool { return true })
	}
	return found, nil
}

// A nameIndex holds the names of one directory without a hash tree, the one
// that was looked into last, so that looking up all of its files does not
// read it as many times.
type nameIndex struct {
	mu    sync.Mutex
	ino   uint32
	names map[string]indexed // nil until the second lookup in a row
	given bool               // up: the directory is damaged or too large
}

type indexed struct {
	ino uint32
	typ uint8
}

// find returns the entry called name. known is false when the index is of
// another directory; then again says that this one was asked for before.
func (x *nameIndex) find(ino uint32, name []byte) (d dirent, known, again bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ino == ino && x.names != nil {
		e := x.names[string(name)]
		return dirent{ino: e.ino, typ: e.typ}, true, false
	}
	if x.ino == ino {
		return d, false, !x.given
	}
	x.ino, x.names, x.given = ino, nil, false
	return d, false, false
}

// indexNames fills the index with a directory; it gives up on one that is
// damaged or large.
func (f *FS) indexNames(in *inode) {
	names := make(map[string]indexed)
	ok := f.eachName(in, func(d dirent) bool {
		if _, twice := names[string(d.name)]; !twice {
			names[string(d.name)] = indexed{d.ino, d.typ}
		}
		return len(names) < nameIndexSize
	})
	x := &f.names
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ino != in.ino {
		return
	}
	if x.given = !ok; ok {
		x.names = names
	}
}

// eachName calls fn for the entries of a linear directory. It returns false if
// fn did or a block is damaged.
func (f *FS) eachName(in *inode, fn func(dirent) bool) bool {
	for lblk := int64(0); lblk < in.size>>f.sb.blockBits; {
		r, err := f.mapRun(in, lblk)
		if err != nil {
			return false
		}
		r.n = min(r.n, in.size>>f.sb.blockBits-lblk)
		lblk += r.n
		for i := range r.n {
			if r.kind != formats.Data {
				break
			}
			more := true
			b, off, err := f.dirBlockAt(in, r.lblk+i, r.pblk+uint64(i))
			if err == nil {
				err = f.parseDirents(in, b, off, func(d dirent) bool {
					more = fn(d)
					return more
				})
			}
			if err != nil || !more {
				return false
			}
		}
	}
	return true
}

// checkDir checks what must hold before the entries of in are read.
func (f *FS) checkDir(in *inode) error {
	if in.flags&flagEncrypt != 0 {
		return formats.Unsupported(Name, in.off+0x20, "i_flags", "directory inode %d is encrypted", in.ino)
	}
	// A directory has no more blocks than the file system: this bounds how
	// long a crafted map can keep us.
	if in.flags&flagInlineData == 0 && (in.size > int64(f.sb.blocksCount)<<f.sb.blockBits || in.size&(f.sb.blockSize-1) != 0) {
		return formats.Corrupt(Name, in.off+0x4, "i_size", "%d bytes in directory inode %d", in.size, in.ino)
	}
	return nil
}

// inlineDir calls fn for the entries of a directory kept in its inode: after
// the number of the parent in i_block, and in the attribute system.data.
func (f *FS) inlineDir(in *inode, raw []byte, fn func(dirent) bool) error {
	b, err := f.inlineData(in, raw)
	if err != nil {
		return err
	}
	more := true
	err = f.parseDirents(in, b[4:inlineInBlock], in.off+0x2C, func(d dirent) bool {
		more = fn(d)
		return more
	})
	if err == nil && more && len(b) > inlineInBlock {
		err = f.parseDirents(in, b[inlineInBlock:], in.off, fn)
	}
	return err
}

// parentOf returns the inode number in "..", which stands right after ".".
func (f *FS) parentOf(in *inode, raw []byte) (ino uint32, off int64, err error) {
	if err := f.checkDir(in); err != nil {
		return 0, 0, err
	}
	if p, ok := f.fastParent(in.ino); ok {
		return p, in.off, nil
	}
	if in.flags&flagInlineData != 0 {
		return le.Uint32(in.block[:]), in.off + 0x28, nil
	}
	b, off, err := f.dirBlock(in, 0)
	if err != nil {
		return 0, 0, err
	}
	first := recLen(b[4:], f.sb.blockSize)
	if b[6] != 1 || b[8] != '.' || first < 12 || first > len(b)-12 || b[first+6] != 2 || string(b[first+8:first+10]) != ".." {
		return 0, 0, formats.Corrupt(Name, off, "name", "directory inode %d does not begin with . and ..", in.ino)
	}
	return le.Uint32(b[first:]), off + int64(first), nil
}

// checkParent checks that the directory in, found in the directory parent,
// thinks so too. A directory has one parent, hence no path of directories can
// be a loop.
func (f *FS) checkParent(in *inode, raw []byte, parent uint32) error {
	if in.ino == rootIno {
		return formats.Corrupt(Name, in.off, "inode", "the root is in directory inode %d", parent)
	}
	if in.flags&flagEncrypt != 0 {
		return nil // can be seen but not entered
	}
	got, off, err := f.parentOf(in, raw)
	if err != nil {
		return err
	}
	if got != parent {
		return formats.Corrupt(Name, off, "..", "directory inode %d is in %d, its parent entry says %d", in.ino, parent, got)
	}
	return nil
}

// lookup finds the entry that is shown as elem in a directory.
func (f *FS) lookup(in *inode, raw []byte, elem string) (dirent, error) {
	if err := f.checkDir(in); err != nil {
		return dirent{}, err
	}
	name, ok := UnescapeName(elem)
	if !ok || len(name) > maxNameLen {
		return dirent{}, fs.ErrNotExist
	}
	if d, ok := f.fastLookup(in.ino, name); ok {
		if d.ino == 0 {
			return d, fs.ErrNotExist
		}
		return d, nil
	}
	if _, ok := f.fastParent(in.ino); ok {
		return dirent{}, fs.ErrNotExist // made by a fast commit: nothing on disk
	}
	if in.flags&flagInlineData != 0 {
		var found dirent
		err := f.inlineDir(in, raw, func(d dirent) bool {
			if !bytes.Equal(d.name, name) {
				return true
			}
			found = d
			return false
		})
		return orNotExist(found, err)
	}
	// In a folded directory the hash is of the folded name.
	if in.flags&flagIndex != 0 && in.flags&flagCasefold == 0 && f.sb.compat&compatDirIndex != 0 {
		found, err := f.dxLookup(in, name)
		if err == nil && (found.ino != 0 || f.sb.flags&(flagSigned|flagUnsigned) != 0) {
			return orNotExist(found, nil)
		}
		// A damaged index, or one whose hash nobody wrote down: as ext2 does.
		if err != nil {
			f.problem("directory inode %d is read without its index: %v", in.ino, err)
		}
	} else if in.size>>f.sb.blockBits > 2 {
		found, known, again := f.names.find(in.ino, name)
		if !known && again {
			f.indexNames(in)
			found, known, _ = f.names.find(in.ino, name)
		}
		if known {
			return orNotExist(found, nil)
		}
	}
	var first error
	for lblk := int64(0); lblk < in.size>>f.sb.blockBits; {
		r, err := f.mapRun(in, lblk)
		if err != nil {
			return dirent{}, err
		}
		r.n = min(r.n, in.size>>f.sb.blockBits-lblk)
		lblk += r.n
		for i := range r.n {
			if r.kind != formats.Data {
				break
			}
			var found dirent
			b, off, err := f.dirBlockAt(in, r.lblk+i, r.pblk+uint64(i))
			if err == nil {
				found, err = f.searchBlock(in, b, off, name)
			}
			if err != nil && first == nil {
				first = err
			}
			if found.ino != 0 {
				return found, nil
			}
		}
	}
	return orNotExist(dirent{}, first)
}

func orNotExist(d dirent, err error) (dirent, error) {
	if err == nil && d.ino == 0 {
		err = fs.ErrNotExist
	}
	return d, err
}

// A dirEntry is the fs.DirEntry of all directories here.
type dirEntry struct {
	fs   *FS
	name string
	ino  uint32
	mode fs.FileMode // type bits
}

func (e *dirEntry) Name() string      { return e.name }
func (e *dirEntry) IsDir() bool       { return e.mode.IsDir() }
func (e *dirEntry) Type() fs.FileMode { return e.mode }
func (e *dirEntry) String() string    { return fs.FormatDirEntry(e) }

// Info reads the inode.
func (e *dirEntry) Info() (fs.FileInfo, error) {
	var in inode
	if _, err := e.fs.fileInode(e.ino, &in); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: e.name, Err: err}
	}
	return e.fs.info(e.name, &in), nil
}

// A dirReader reads a directory piece by piece, in the order on disk. It goes
// on after a damaged block; err is what went wrong first.
type dirReader struct {
	fs    *FS
	in    *inode
	next  int64 // block to read next
	begun bool
	done  bool
	err   error
	buf   []byte
	slab  []dirEntry
	list  []fs.DirEntry
	dirs  map[uint32]struct{}
}

func (d *dirReader) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// add appends e to the list. Each directory has one name: a second one would
// let a small image hold an endless tree.
func (d *dirReader) add(e dirent) bool {
	mode, ok := entryMode(e.typ)
	if !ok {
		var in inode
		if _, err := d.fs.fileInode(e.ino, &in); err != nil {
			d.fail(err)
			return true
		}
		mode = fileMode(in.mode).Type()
	}
	if mode.IsDir() {
		if _, again := d.dirs[e.ino]; again {
			d.fail(formats.Corrupt(Name, d.in.off, "inode", "directory inode %d is twice in directory inode %d", e.ino, d.in.ino))
			return true
		}
		if d.dirs == nil {
			d.dirs = make(map[uint32]struct{})
		}
		d.dirs[e.ino] = struct{}{}
	}
	if len(d.slab) == cap(d.slab) {
		d.slab = make([]dirEntry, 0, min(max(16, 2*cap(d.slab)), 512))
	}
	d.slab = append(d.slab, dirEntry{d.fs, EscapeName(e.name), e.ino, mode})
	d.list = append(d.list, &d.slab[len(d.slab)-1])
	return true
}

// more reads the next piece into list; done is set at the end.
func (d *dirReader) more(raw []byte) {
	f, in := d.fs, d.in
	add := d.add
	if f.fast != nil {
		add = func(e dirent) bool {
			if _, ok := f.fastLookup(in.ino, e.name); ok {
				return true
			}
			return d.add(e)
		}
	}
	if !d.begun {
		d.begun = true
		if err := f.checkDir(in); err != nil {
			d.fail(err)
			d.done = true
			return
		}
		f.fastEntries(in.ino, d.add)
		if _, ok := f.fastParent(in.ino); ok {
			d.done = true
			return
		}
		if in.flags&flagInlineData != 0 {
			if err := f.inlineDir(in, raw, add); err != nil {
				d.fail(err)
			}
			d.done = true
			return
		}
	}
	bits := f.sb.blockBits
	total := in.size >> bits
	if d.next >= total {
		d.done = true
		return
	}
	r, err := f.mapRun(in, d.next)
	if err != nil {
		d.fail(err)
		d.done = true
		return
	}
	r.n = min(r.n, total-d.next)
	if r.kind != formats.Data {
		f.problem("directory inode %d has a hole at block %d", in.ino, d.next)
		d.next += r.n
		return
	}
	if r.n == 1 {
		d.next++
		b, off, err := f.dirBlock(in, r.lblk)
		if err == nil {
			err = f.parseDirents(in, b, off, add)
		}
		if err != nil {
			d.fail(err)
		}
		return
	}
	n := min(r.n, max(1, int64(dirReadSize)>>bits))
	if int64(cap(d.buf)) < n<<bits {
		d.buf = make([]byte, n<<bits)
	}
	buf := d.buf[:n<<bits]
	off := int64(r.pblk) << bits
	d.next += n
	if err := f.readDev(buf, off, "directory block"); err != nil {
		d.fail(err)
		return
	}
	for i := range n {
		b, at := buf[i<<bits:(i+1)<<bits], off+i<<bits
		err := f.verifyDirBlock(in, b, at, r.lblk+i)
		if err == nil {
			err = f.parseDirents(in, b, at, add)
		}
		if err != nil {
			d.fail(err)
		}
	}
}

// readDir lists the directory in, in the order on disk.
func (f *FS) readDir(in *inode, raw []byte) ([]fs.DirEntry, error) {
	d := dirReader{fs: f, in: in}
	for !d.done {
		d.more(raw)
		if len(d.list) > maxDirEntries {
			return d.list, formats.Limit(Name, in.off+0x4, "i_size", "more than %d entries in directory inode %d", maxDirEntries, in.ino)
		}
	}
	return d.list, d.err
}

// A dirFile is an open directory.
type dirFile struct {
	fs   *FS
	name string
	in   inode

	mu sync.Mutex
	r  *dirReader
}

func (d *dirFile) Stat() (fs.FileInfo, error) { return d.fs.info(path.Base(d.name), &d.in), nil }
func (d *dirFile) Close() error               { return nil }

func (d *dirFile) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.name, Err: errIsDir}
}

// ReadDir implements fs.ReadDirFile, in the order on disk. With n above 0 it
// reads piece by piece, however large the directory is.
func (d *dirFile) ReadDir(n int) ([]fs.DirEntry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.r == nil {
		d.r = &dirReader{fs: d.fs, in: &d.in}
	}
	r := d.r
	for !r.done && (n <= 0 || len(r.list) < n) {
		var raw []byte
		if d.in.flags&flagInlineData != 0 {
			var again inode
			var err error
			if raw, err = d.fs.fileInode(d.in.ino, &again); err != nil {
				return nil, d.wrap(err)
			}
		}
		r.more(raw)
		if n <= 0 && len(r.list) > maxDirEntries {
			r.fail(formats.Limit(Name, d.in.off+0x4, "i_size", "more than %d entries in directory inode %d", maxDirEntries, d.in.ino))
			r.done = true
		}
	}
	list := r.list
	if n > 0 && len(list) > n {
		list = list[:n:n]
	}
	r.list = r.list[len(list):]
	if n > 0 && len(list) > 0 {
		return list, nil
	}
	err := r.err
	r.err = nil
	if err == nil && n > 0 {
		err = io.EOF
	}
	return list, d.wrap(err)
}

func (d *dirFile) wrap(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &fs.PathError{Op: "readdir", Path: strings.TrimSuffix(d.name, "/"), Err: err}
}
