package fat

import (
	"encoding/binary"
	"io/fs"
	"slices"
	"strings"
	"time"
	"unicode/utf16"

	"imgmaint/formats"
)

// An entry is a file or directory as its directory records it.
type entry struct {
	name    string
	short   string // the 8.3 name; equal to name when there is no long one
	attr    byte   // DIR_Attr
	cluster uint32 // DIR_FstClusHI, u16 at 20, and DIR_FstClusLO, u16 at 26
	size    int64  // DIR_FileSize, u32 at 28
	off     int64  // of the entry in the volume
	mtime   time.Time
	ctime   time.Time // creation
	atime   time.Time
}

func (e *entry) isDir() bool { return e.attr&attrDir != 0 }

// readDir returns the entries of the directory that starts at cluster c, or
// of the root for c = 0, in the order of the volume.
func (m *FS) readDir(c uint32) ([]*entry, string, error) {
	m.mu.Lock()
	d, ok := m.cache[c]
	m.mu.Unlock()
	if ok {
		return d.entries, d.label, nil
	}
	pieces, err := m.dirPieces(c)
	if err != nil {
		return nil, "", err
	}
	p := dirParser{fs: m, seen: map[string]bool{}}
	for _, r := range pieces {
		b, err := m.f.Bytes(r.off, r.n, "directory", maxDir)
		if err != nil {
			return nil, "", err
		}
		if p.parse(b, r.off) {
			break
		}
	}
	if err := m.claim(c, p.entries); err != nil {
		return nil, "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cached+len(p.entries) <= maxCached {
		if _, ok := m.cache[c]; !ok {
			m.cached += len(p.entries) + 1
			m.cache[c] = &dirContent{p.entries, p.label}
		}
	}
	return p.entries, p.label, nil
}

type dirContent struct {
	entries []*entry
	label   string
}

// A run is a part of a file in the volume.
type run struct{ off, n int64 }

func (m *FS) dirPieces(c uint32) ([]run, error) {
	if c == 0 {
		if m.s.bits != 32 {
			return []run{{m.s.rootOff, m.s.rootLen}}, nil
		}
		c = m.s.rootCluster
	}
	return m.chain(c, maxDir, true)
}

// claim records which entry owns each directory. A directory entered twice
// would make the tree endless.
func (m *FS) claim(parent uint32, entries []*entry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range entries {
		if !e.isDir() {
			continue
		}
		if !m.s.valid(e.cluster) || e.cluster == m.s.rootCluster || e.cluster == parent {
			return formats.Corrupt(m.f.Format, e.off, "DIR_FstClus", "directory %q at cluster %d", e.name, e.cluster)
		}
		if owner, ok := m.owners[e.cluster]; ok && owner != e.off {
			return formats.Corrupt(m.f.Format, e.off, "DIR_FstClus", "directory %q at cluster %d is entered twice", e.name, e.cluster)
		}
		if len(m.owners) >= maxDirs {
			return formats.Limit(m.f.Format, e.off, "directories", "more than %d", maxDirs)
		}
		m.owners[e.cluster] = e.off
	}
	return nil
}

// A dirParser collects entries, and the parts of long names before them.
type dirParser struct {
	fs      *FS
	entries []*entry
	label   string
	seen    map[string]bool

	long []uint16 // of the parts so far, in order of the name
	next byte     // number of the part that must come next
	sum  byte     // checksum of the short name the parts belong to
}

// parse reads the entries in b, found at off, and reports whether the end
// mark was there.
func (p *dirParser) parse(b []byte, off int64) bool {
	for ; len(b) >= dirEntry; b, off = b[dirEntry:], off+dirEntry {
		e := b[:dirEntry]
		switch {
		case e[0] == 0:
			return true
		case e[0] == 0xe5:
			p.long = nil
		case e[11]&0x3f == attrLong:
			p.part(e)
		case e[11]&attrVolume != 0:
			p.long = nil
			if p.label == "" && e[11]&attrDir == 0 {
				p.label = label(fix05(e[:11]))
			}
		default:
			p.add(e, off)
		}
	}
	return false
}

// part takes an entry that holds 13 units of a long name. The last part
// comes first.
func (p *dirParser) part(e []byte) {
	n := e[0] & 0x3f // LDIR_Ord
	if e[0]&0x40 != 0 {
		p.long, p.next, p.sum = nil, n, e[13]
	} else if p.long == nil {
		return
	}
	if n == 0 || n > 20 || n != p.next || e[13] != p.sum {
		p.long = nil
		return
	}
	p.next--
	units := make([]uint16, 0, 13+len(p.long))
	for _, at := range [...]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
		units = append(units, binary.LittleEndian.Uint16(e[at:]))
	}
	p.long = append(units, p.long...)
}

func (p *dirParser) add(e []byte, off int64) {
	le := binary.LittleEndian
	en := &entry{
		short: shortName(e), attr: e[11], size: int64(le.Uint32(e[28:])), off: off,
		cluster: uint32(le.Uint16(e[26:])),
		ctime:   dosTime(le.Uint16(e[16:]), le.Uint16(e[14:]), e[13]),
		atime:   dosTime(le.Uint16(e[18:]), 0, 0),
		mtime:   dosTime(le.Uint16(e[24:]), le.Uint16(e[22:]), 0),
	}
	if p.fs.s.bits == 32 {
		en.cluster |= uint32(le.Uint16(e[20:])) << 16
	}
	if en.isDir() {
		en.size = 0
	}
	en.name = en.short
	if p.long != nil && p.next == 0 && p.sum == checksum(e[:11]) {
		if n := longName(p.long); n != "" {
			en.name = n
		}
	}
	p.long = nil
	if e[0] == '.' { // the directory itself and its parent
		if s := strings.TrimRight(string(e[:11]), " "); s == "." || s == ".." {
			return
		}
	}
	if en.name == "" || en.name == "." || en.name == ".." || p.seen[en.name] {
		return
	}
	p.seen[en.name] = true
	p.entries = append(p.entries, en)
}

// longName decodes the units of a long name; empty when no path can have it.
func longName(units []uint16) string {
	if i := slices.Index(units, 0); i >= 0 {
		units = units[:i]
	}
	s := string(utf16.Decode(units))
	if s == "." || s == ".." || strings.ContainsAny(s, "/\x00") {
		return ""
	}
	return s
}

// fix05 undoes the mark for names that start with byte 0xe5.
func fix05(b []byte) []byte {
	if b[0] == 0x05 {
		b = append([]byte{0xe5}, b[1:]...)
	}
	return b
}

// shortName is the 8.3 name of a directory entry, in the case that Windows
// NT notes in byte 12.
func shortName(e []byte) string {
	n := fix05(e[:11])
	base, ext := strings.TrimRight(oem(n[:8]), " "), strings.TrimRight(oem(n[8:11]), " ")
	if e[12]&0x08 != 0 {
		base = strings.ToLower(base)
	}
	if e[12]&0x10 != 0 {
		ext = strings.ToLower(ext)
	}
	if ext != "" {
		base += "." + ext
	}
	return base
}

// checksum ties the parts of a long name to the short one.
func checksum(name []byte) (sum byte) {
	for _, c := range name {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

// dosTime decodes a date and time, which have no zone and are taken for UTC.
// Date 0 is no date.
func dosTime(date, tod uint16, hundredths byte) time.Time {
	if date == 0 {
		return time.Time{}
	}
	month, day := max(1, min(12, int(date>>5&0xf))), max(1, int(date&0x1f))
	return time.Date(1980+int(date>>9), time.Month(month), day, int(tod>>11), int(tod>>5&0x3f), 2*int(tod&0x1f),
		int(min(hundredths, 199))*10_000_000, time.UTC)
}

func (e *entry) info(s *super) fs.FileInfo {
	st := &formats.Stat{
		Ino: uint64(e.off)/dirEntry + 1, Nlink: 1, Atime: e.atime, Ctime: e.mtime, Btime: e.ctime, Flags: uint32(e.attr),
	}
	mode := fs.FileMode(0o644)
	if e.isDir() {
		mode = fs.ModeDir | 0o755
		st.Blocks = s.cluster
	} else {
		st.Blocks = (e.size + s.cluster - 1) / s.cluster * s.cluster
	}
	if e.attr&attrReadOnly != 0 {
		mode &^= 0o222
	}
	return &info{e.name, e.size, mode, e.mtime, st}
}

type info struct {
	name  string
	size  int64
	mode  fs.FileMode
	mtime time.Time
	stat  *formats.Stat
}

func (i *info) Name() string       { return i.name }
func (i *info) Size() int64        { return i.size }
func (i *info) Mode() fs.FileMode  { return i.mode }
func (i *info) ModTime() time.Time { return i.mtime }
func (i *info) IsDir() bool        { return i.mode.IsDir() }
func (i *info) Sys() any           { return i.stat }
