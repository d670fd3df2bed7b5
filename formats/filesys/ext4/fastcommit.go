package ext4

import (
	"bytes"
	"maps"
	"slices"

	"imgmaint/formats"
)

// Tags in the area of fast commits (ext4 doc, "Fast commits"; struct
// ext4_fc_tl: fc_tag u16, fc_len u16, then fc_len bytes).
const (
	fcAddRange = 1 // fc_ino, then an extent
	fcDelRange = 2 // fc_ino, fc_lblk, fc_len
	fcCreate   = 3 // fc_parent_ino, fc_ino, fc_dname
	fcLink     = 4
	fcUnlink   = 5
	fcInode    = 6 // fc_ino, then the inode
	fcPad      = 7
	fcTail     = 8 // fc_tid, fc_crc: a fast commit is complete
	fcHead     = 9 // fc_features, fc_tid: begins the area

	fcTagSize = 4
)

// A fastCommits is what the fast commits after the last full transaction
// changed. Each is a list of changes to inodes, to their maps and to
// directories, which lie over what is on disk.
type fastCommits struct {
	inodes  map[uint32][]byte            // raw inodes
	runs    map[uint32][]run             // maps, ascending and apart; Hole where a range was removed
	dirs    map[uint32]map[string]uint32 // directory, name: inode, or 0 when removed
	parents map[uint32]uint32            // directories that were made: nothing of them is on disk
	changes int
}

// fastInode returns the inode as a fast commit left it, or nil.
func (f *FS) fastInode(ino uint32) []byte {
	if f.fast == nil {
		return nil
	}
	return f.fast.inodes[ino]
}

// fastRun lays the changed ranges of inode ino over r.
func (f *FS) fastRun(ino uint32, r run) (run, error) {
	for _, c := range f.fast.runs[ino] {
		if c.lblk > r.lblk {
			r.n = min(r.n, c.lblk-r.lblk)
			break
		}
		if skip := r.lblk - c.lblk; skip < c.n {
			return run{lblk: r.lblk, n: c.n - skip, pblk: c.pblk + uint64(skip), kind: c.kind}, nil
		}
	}
	return r, nil
}

// fastParent returns the parent of a directory that a fast commit made.
func (f *FS) fastParent(dir uint32) (uint32, bool) {
	if f.fast == nil {
		return 0, false
	}
	p, ok := f.fast.parents[dir]
	return p, ok
}

// fastLookup returns what a fast commit did to a name: an entry without inode
// when it removed it.
func (f *FS) fastLookup(dir uint32, name []byte) (dirent, bool) {
	if f.fast == nil {
		return dirent{}, false
	}
	ino, ok := f.fast.dirs[dir][string(name)]
	return dirent{ino: ino}, ok
}

// fastEntries calls fn for the entries that fast commits added.
func (f *FS) fastEntries(dir uint32, fn func(dirent) bool) {
	if f.fast == nil {
		return
	}
	names := f.fast.dirs[dir]
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if ino := names[name]; ino != 0 {
			fn(dirent{ino: ino, name: []byte(name)})
		}
	}
}

// replayFast applies the complete fast commits that follow the last
// transaction.
func (j *journal) replayFast() error {
	valid, err := j.scanFast()
	if err != nil || valid == 0 {
		return err
	}
	if valid > maxFastCommit {
		return formats.Limit(Name, j.sbOff, "fc_tag", "%d changes in fast commits, at most %d", valid, maxFastCommit)
	}
	fc := &fastCommits{inodes: make(map[uint32][]byte), runs: make(map[uint32][]run),
		dirs: make(map[uint32]map[string]uint32), parents: make(map[uint32]uint32)}
	err = j.fastTags(func(tag uint16, b []byte, off int64) (bool, error) {
		if valid == 0 {
			return false, nil
		}
		valid--
		return true, j.fs.applyFast(fc, tag, b[fcTagSize:], off)
	})
	if err != nil {
		return err
	}
	j.fs.fast = fc
	j.fs.problem("%d changes of fast commits were replayed from the journal in memory", fc.changes)
	return nil
}

// fastTags calls fn for each tag in the area, with its header, until fn
// returns false or something is no tag.
func (j *journal) fastTags(fn func(tag uint16, b []byte, off int64) (bool, error)) error {
	b := make([]byte, j.fs.sb.blockSize)
	for n := j.fcFirst; n < j.fcLast; n++ {
		if err := j.read(b, n); err != nil {
			return err
		}
		off, err := j.pos(n)
		if err != nil {
			return err
		}
		for at := 0; at < len(b)-fcTagSize; {
			tag, size := le.Uint16(b[at:]), int(le.Uint16(b[at+2:]))
			if tag < fcAddRange || tag > fcHead || size > len(b)-at-fcTagSize || size < fcMinSize[tag] {
				return nil
			}
			end := at + fcTagSize + size
			if more, err := fn(tag, b[at:end], off+int64(at)); err != nil || !more {
				return err
			}
			at = end
		}
	}
	return nil
}

// fcMinSize is the smallest fc_len of each tag.
var fcMinSize = [...]int{fcAddRange: 16, fcDelRange: 12, fcCreate: 9, fcLink: 9, fcUnlink: 9,
	fcInode: 4 + minInodeSize, fcPad: 0, fcTail: 8, fcHead: 8}

// scanFast counts the tags up to the end of the last complete fast commit.
func (j *journal) scanFast() (valid int, err error) {
	n, crc := 0, uint32(0)
	err = j.fastTags(func(tag uint16, b []byte, off int64) (bool, error) {
		if (n == 0) != (tag == fcHead) {
			return false, nil
		}
		n++
		v := b[fcTagSize:]
		switch tag {
		case fcHead:
			if features := le.Uint32(v); features != 0 {
				return false, formats.Unsupported(Name, off+fcTagSize, "fc_features", "%#x", features)
			}
			if le.Uint32(v[4:]) != j.endSequence {
				return false, nil // of a transaction before
			}
		case fcTail:
			crc = crc32c(crc, b[:fcTagSize+4])
			if le.Uint32(v) != j.endSequence || le.Uint32(v[4:]) != crc {
				return false, nil
			}
			valid, crc = n, 0
			return true, nil
		}
		crc = crc32c(crc, b)
		return true, nil
	})
	return valid, err
}

// applyFast applies one change, whose value b was read from off.
func (f *FS) applyFast(fc *fastCommits, tag uint16, b []byte, off int64) error {
	fc.changes++
	ino := le.Uint32(b)
	check := func(ino uint32) error {
		if ino != rootIno && ino < f.sb.firstIno || ino > f.sb.inodesCount {
			return formats.Corrupt(Name, off+fcTagSize, "fc_ino", "%d of %d", ino, f.sb.inodesCount)
		}
		return nil
	}
	switch tag {
	case fcAddRange:
		node := extentNode{off: off - 4, data: b[4:16], entries: 1}
		if err := node.validate(f.sb, &inode{ino: ino}, 0, 1<<32); err != nil {
			return err
		}
		fc.runs[ino] = setRun(fc.runs[ino], node.extent(0))
		return check(ino)
	case fcDelRange:
		r := run{lblk: int64(le.Uint32(b[4:])), n: int64(le.Uint32(b[8:])), kind: formats.Hole}
		fc.runs[ino] = setRun(fc.runs[ino], r)
		return check(ino)
	case fcInode:
		if err := check(ino); err != nil {
			return err
		}
		return f.setFastInode(fc, ino, b[4:], off)
	case fcCreate, fcLink, fcUnlink:
		parent, ino, name := ino, le.Uint32(b[4:]), b[8:]
		if err := check(parent); err != nil {
			return err
		}
		if err := check(ino); err != nil {
			return err
		}
		if len(name) > maxNameLen || bytes.IndexByte(name, 0) >= 0 || bytes.IndexByte(name, '/') >= 0 ||
			string(name) == "." || string(name) == ".." {
			return formats.Corrupt(Name, off+fcTagSize+8, "fc_dname", "%q", name)
		}
		if fc.dirs[parent] == nil {
			fc.dirs[parent] = make(map[string]uint32)
		}
		raw, err := f.rawInode(fc, ino)
		if err != nil {
			return err
		}
		isDir := le.Uint16(raw)&modeFmt == modeDir
		switch tag {
		case fcCreate:
			fc.dirs[parent][string(name)] = ino
			if isDir {
				fc.parents[ino] = parent
				le.PutUint16(raw[0x1A:], 2)
				return f.addLinks(fc, parent, 1)
			}
			le.PutUint16(raw[0x1A:], 1)
		case fcLink:
			fc.dirs[parent][string(name)] = ino
			return f.addLinks(fc, ino, 1)
		case fcUnlink:
			fc.dirs[parent][string(name)] = 0
			if isDir {
				delete(fc.parents, ino)
				return f.addLinks(fc, parent, -1)
			}
			return f.addLinks(fc, ino, -1)
		}
	}
	return nil
}

// addLinks changes i_links_count, which an inode that follows in the log
// sets for good.
func (f *FS) addLinks(fc *fastCommits, ino uint32, n int) error {
	raw, err := f.rawInode(fc, ino)
	if err == nil {
		if c := int(le.Uint16(raw[0x1A:])) + n; c >= 0 && c <= 0xFFFF {
			le.PutUint16(raw[0x1A:], uint16(c))
		}
	}
	return err
}

// rawInode returns a copy of inode ino that may be changed. An inode never
// written before may be anything on disk, hence no check.
func (f *FS) rawInode(fc *fastCommits, ino uint32) ([]byte, error) {
	if raw := fc.inodes[ino]; raw != nil {
		return raw, nil
	}
	var in inode
	raw, err := f.readInode(ino, &in)
	if err != nil {
		if in.off < 0 {
			return nil, err
		}
		raw = make([]byte, f.sb.inodeSize)
		if err := f.readDev(raw, in.off, "inode"); err != nil {
			return nil, err
		}
	}
	raw = bytes.Clone(raw)
	fc.inodes[ino] = raw
	return raw, nil
}

// setFastInode replaces inode ino but for the map of its blocks, whose
// changes have their own tags.
func (f *FS) setFastInode(fc *fastCommits, ino uint32, b []byte, off int64) error {
	raw, err := f.rawInode(fc, ino)
	if err != nil {
		return err
	}
	if len(b) > len(raw) {
		return formats.Corrupt(Name, off, "fc_len", "an inode of %d bytes, s_inode_size is %d", len(b), len(raw))
	}
	copy(raw[:0x28], b)
	copy(raw[0x64:], b[0x64:])
	root := raw[0x28:0x64]
	switch {
	case le.Uint32(raw[0x20:])&flagExtents == 0:
		copy(root, b[0x28:0x64])
	case le.Uint16(root) != extentMagic:
		clear(root)
		le.PutUint16(root, extentMagic)
		le.PutUint16(root[4:], 4) // eh_max
	}
	return nil
}

// setRun puts r into runs in place of what it covers.
func setRun(runs []run, r run) []run {
	if r.n == 0 {
		return runs
	}
	out := make([]run, 0, len(runs)+2)
	placed := false
	end := r.lblk + r.n
	for _, c := range runs {
		if c.lblk+c.n <= r.lblk {
			out = append(out, c)
			continue
		}
		if c.lblk < r.lblk {
			head := c
			head.n = r.lblk - c.lblk
			out = append(out, head)
		}
		if !placed {
			out, placed = append(out, r), true
		}
		if cut := end - c.lblk; c.lblk+c.n > end {
			if cut > 0 {
				c.lblk, c.n, c.pblk = c.lblk+cut, c.n-cut, c.pblk+uint64(cut)
			}
			out = append(out, c)
		}
	}
	if !placed {
		out = append(out, r)
	}
	return out
}
