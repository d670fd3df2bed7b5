package fat

import (
	"bytes"
	"encoding/binary"
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

// Options say how to open a volume. There is nothing to choose yet; nil is
// as good.
type Options struct{}

// An FS is a FAT volume. Names are found as Windows and Linux do it: as
// written, else without regard to case, else by their short form.
type FS struct {
	f bounded.File
	s *super

	mu     sync.Mutex
	cache  map[uint32]*dirContent
	cached int
	owners map[uint32]int64 // first cluster of a directory -> its entry

	once  sync.Once
	usage formats.Usage
}

var _ formats.FS = (*FS)(nil)

// Open reads the boot sector of the volume r of size bytes.
func Open(r io.ReaderAt, size int64, opts *Options) (*FS, error) {
	m := &FS{
		f: bounded.File{R: r, Size: size, Format: "vfat"}, cache: map[uint32]*dirContent{}, owners: map[uint32]int64{},
	}
	s, err := readSuper(m.f)
	if err != nil {
		return nil, err
	}
	m.s = s
	return m, nil
}

// chain follows the clusters from c for at most n bytes and returns them as
// runs. With whole, the chain must end within n bytes; without, it must be n
// bytes long.
func (m *FS) chain(c uint32, n int64, whole bool) ([]run, error) {
	var runs []run
	t := tableReader{m: m, page: -1}
	var total int64
	for steps := uint32(0); ; steps++ {
		if !m.s.valid(c) {
			return nil, formats.Corrupt(m.f.Format, t.last, "FAT", "cluster %d in a chain, of %d", c, m.s.clusters)
		}
		if steps > m.s.clusters {
			return nil, formats.Corrupt(m.f.Format, t.last, "FAT", "a chain loops")
		}
		if total >= n {
			return nil, formats.Limit(m.f.Format, t.last, "FAT", "a directory of more than %d bytes", n)
		}
		size, off := m.s.cluster, m.s.off(c)
		if !whole {
			size = min(size, n-total)
		}
		if k := len(runs); k > 0 && runs[k-1].off+runs[k-1].n == off {
			runs[k-1].n += size
		} else if k == maxRuns {
			return nil, formats.Limit(m.f.Format, t.last, "FAT", "a file of more than %d fragments", maxRuns)
		} else {
			runs = append(runs, run{off, size})
		}
		if total += size; total >= n && !whole {
			return runs, nil
		}
		next, end, err := t.next(c)
		if err != nil {
			return nil, err
		}
		if end {
			if !whole {
				return nil, formats.Corrupt(m.f.Format, t.last, "FAT", "a chain ends after %d of %d bytes", total, n)
			}
			return runs, nil
		}
		c = next
	}
}

// A tableReader reads entries of the table, a page at a time.
type tableReader struct {
	m    *FS
	page int64
	buf  [4096 + 1]byte
	last int64 // offset of the entry read last
}

// next returns the entry of cluster c: the cluster after it, or the end.
func (t *tableReader) next(c uint32) (next uint32, end bool, err error) {
	s := t.m.s
	at := int64(c) * int64(s.bits) / 8
	t.last = s.fatOff + at
	if page := at &^ 4095; page != t.page {
		// One byte more: an entry of 12 bits may cross the page.
		n := min(int64(len(t.buf)), s.fatLen-page)
		if n <= 0 {
			return 0, false, formats.Corrupt(t.m.f.Format, t.last, "FAT", "no entry for cluster %d", c)
		}
		clear(t.buf[:])
		if err := t.m.f.ReadFull(t.buf[:n], s.fatOff+page, "FAT"); err != nil {
			return 0, false, err
		}
		t.page = page
	}
	b := t.buf[at-t.page:]
	switch s.bits {
	case 12:
		v := binary.LittleEndian.Uint16(b)
		if c&1 != 0 {
			v >>= 4
		}
		next = uint32(v & 0xfff)
		return next, next >= 0xff8, nil
	case 16:
		next = uint32(binary.LittleEndian.Uint16(b))
		return next, next >= 0xfff8, nil
	}
	next = binary.LittleEndian.Uint32(b) & 0x0fffffff
	return next, next >= 0x0ffffff8, nil
}

// find walks to the entry of name; nil is the root.
func (m *FS) find(op, name string) (*entry, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	if name == "." {
		return nil, nil
	}
	var cur *entry
	for part := range strings.SplitSeq(name, "/") {
		var c uint32
		if cur != nil {
			if !cur.isDir() {
				return nil, &fs.PathError{Op: op, Path: name, Err: errNotDir}
			}
			c = cur.cluster
		}
		all, _, err := m.readDir(c)
		if err != nil {
			return nil, &fs.PathError{Op: op, Path: name, Err: err}
		}
		if cur = pick(all, part); cur == nil {
			return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
		}
	}
	return cur, nil
}

var (
	errNotDir = errors.New("not a directory")
	errIsDir  = errors.New("is a directory")
)

func pick(all []*entry, name string) *entry {
	for _, same := range []func(*entry) bool{
		func(e *entry) bool { return e.name == name },
		func(e *entry) bool { return strings.EqualFold(e.name, name) },
		func(e *entry) bool { return strings.EqualFold(e.short, name) },
	} {
		if i := slices.IndexFunc(all, same); i >= 0 {
			return all[i]
		}
	}
	return nil
}

// info of an entry; nil is the root.
func (m *FS) info(e *entry) fs.FileInfo {
	if e == nil {
		e = &entry{name: ".", attr: attrDir}
	}
	return e.info(m.s)
}

// Lstat describes the named file.
func (m *FS) Lstat(name string) (fs.FileInfo, error) {
	e, err := m.find("lstat", name)
	if err != nil {
		return nil, err
	}
	return m.info(e), nil
}

// Stat is Lstat: a FAT volume has no links.
func (m *FS) Stat(name string) (fs.FileInfo, error) { return m.Lstat(name) }

// ReadLink fails: a FAT volume has no links.
func (m *FS) ReadLink(name string) (string, error) {
	if _, err := m.find("readlink", name); err != nil {
		return "", err
	}
	return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
}

// ReadDir lists the named directory by name.
func (m *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	e, err := m.find("readdir", name)
	if err != nil {
		return nil, err
	}
	if e != nil && !e.isDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errNotDir}
	}
	var c uint32
	if e != nil {
		c = e.cluster
	}
	all, _, err := m.readDir(c)
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	list := make([]fs.DirEntry, 0, len(all))
	for _, e := range all {
		list = append(list, fs.FileInfoToDirEntry(m.info(e)))
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list, nil
}

// Open opens the named file or directory.
func (m *FS) Open(name string) (fs.File, error) {
	e, err := m.find("open", name)
	if err != nil {
		return nil, err
	}
	if e == nil || e.isDir() {
		return &dir{fs: m, name: name, info: m.info(e)}, nil
	}
	f := &file{m: m, name: name, info: m.info(e), size: e.size}
	if e.size > 0 {
		if f.runs, err = m.chain(e.cluster, e.size, false); err != nil {
			return nil, &fs.PathError{Op: "open", Path: path.Base(name), Err: err}
		}
	}
	f.starts = make([]int64, len(f.runs))
	var at int64
	for i, r := range f.runs {
		f.starts[i] = at
		at += r.n
	}
	return f, nil
}

// Usage counts the free clusters in the table, once.
func (m *FS) Usage() formats.Usage {
	m.once.Do(func() { m.usage = m.measure() })
	return m.usage
}

func (m *FS) measure() formats.Usage {
	s := m.s
	u := formats.Usage{
		Type: "vfat", Label: s.label, UUID: s.id, BlockSize: s.cluster, Size: int64(s.clusters) * s.cluster,
		Features: []string{fmt.Sprintf("FAT%d", s.bits)}, State: "clean",
	}
	if s.dirty {
		u.State = "not cleanly unmounted"
	}
	if _, l, err := m.readDir(0); err != nil {
		u.Problems = append(u.Problems, err.Error())
	} else if l != "" {
		u.Label = l // the entry in the root directory is what users see
	}
	free, err := m.countFree(&u)
	if err != nil {
		u.Problems = append(u.Problems, err.Error())
	}
	u.Free = free * s.cluster
	return u
}

func (m *FS) countFree(u *formats.Usage) (free int64, err error) {
	s := m.s
	need := (int64(s.clusters+fatEntries)*int64(s.bits) + 7) / 8
	if need > maxScan {
		return m.believeFree()
	}
	const step = 3 << 14 // whole entries of 12, 16 and 32 bits
	buf, other := make([]byte, step), make([]byte, step)
	first := int64(0) // number of the first entry in buf
	differ := false
	for off := int64(0); off < need; off += step {
		b := buf[:min(step, need-off)]
		if err := m.f.ReadFull(b, s.fatOff+off, "FAT"); err != nil {
			return 0, err
		}
		if s.mirrored && s.fats > 1 && !differ {
			o := other[:len(b)]
			if err := m.f.ReadFull(o, s.fatOff+s.fatLen+off, "FAT"); err != nil {
				return 0, err
			}
			if differ = !bytes.Equal(b, o); differ {
				u.Problems = append(u.Problems, "the copies of the FAT differ: the first is used")
			}
		}
		n := min(int64(len(b))*8/int64(s.bits), int64(s.clusters)+fatEntries-first)
		for i := range n {
			if c := first + i; c >= fatEntries && entryIsZero(b, i, s.bits) {
				free++
			}
		}
		first += n
	}
	return free, nil
}

func entryIsZero(b []byte, i int64, bits int) bool {
	switch bits {
	case 12:
		at := i * 3 / 2
		if i&1 == 0 {
			return b[at] == 0 && b[at+1]&0x0f == 0
		}
		return b[at]&0xf0 == 0 && b[at+1] == 0
	case 16:
		return b[2*i] == 0 && b[2*i+1] == 0
	}
	return binary.LittleEndian.Uint32(b[4*i:])&0x0fffffff == 0
}

// believeFree takes the count that FSInfo keeps, for a table too large to
// count in.
func (m *FS) believeFree() (int64, error) {
	if m.s.fsInfo == 0 {
		return 0, formats.Limit(m.f.Format, m.s.fatOff, "FAT", "too large to count free clusters, and no FSInfo")
	}
	b, err := m.f.Bytes(m.s.fsInfo, sectorMin, "FSInfo", sectorMin)
	if err != nil {
		return 0, err
	}
	n := binary.LittleEndian.Uint32(b[488:]) // FSI_Free_Count
	if string(b[:4]) != "RRaA" || string(b[484:488]) != "rrAa" || n > m.s.clusters {
		return 0, formats.Corrupt(m.f.Format, m.s.fsInfo, "FSI_Free_Count", "%d of %d clusters", n, m.s.clusters)
	}
	return int64(n), nil
}
