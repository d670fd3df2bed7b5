package tarindex

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"imgmaint/formats"
	"imgmaint/formats/internal/bounded"
)

// Options change what Open takes.
type Options struct {
	// Format names the package format in errors; "" is "tar".
	Format string
	// DropSlash takes names that begin with "/" for what follows it, with a
	// note. Without it they are corrupt.
	DropSlash bool
}

// A Member is a regular file of an archive.
type Member struct {
	Name    string // as opened: fs.ValidPath, no leading "./" or "/"
	Stored  string // as the archive spells it
	Size    int64
	Off     int64 // of its bytes
	Header  int64 // offset of its first header block, extended ones included
	ModTime time.Time
}

// End is the offset of the block after the member's bytes and padding.
func (m Member) End() int64 { return m.Off + padded(m.Size) }

// An Archive is an opened tar. It is an fs.FS of its members; all methods are
// safe for concurrent use if the reader is.
type Archive struct {
	f       bounded.File
	members []Member
	sorted  []int32 // indices of members by name
	notes   []string
	end     int64
}

// Open reads the headers of r, a tar of size bytes, and checks all of it but
// the members' bytes. Errors are of the classes of formats: ErrUnknown for
// what is no tar, ErrCorrupt, ErrLimit, or errors.ErrUnsupported for links,
// devices and sparse members.
func Open(r io.ReaderAt, size int64, opts *Options) (*Archive, error) {
	if opts == nil {
		opts = &Options{}
	}
	o := opener{format: opts.Format, dropSlash: opts.DropSlash, names: map[string]bool{}}
	if o.format == "" {
		o.format = Name
	}
	o.a = &Archive{f: bounded.File{R: r, Size: size, Format: o.format}}
	if size < blockSize {
		return nil, formats.Unknown(o.format, -1, "", "no tar header")
	}
	if err := o.run(); err != nil {
		return nil, err
	}
	if err := o.index(); err != nil {
		return nil, err
	}
	return o.a, nil
}

// Members are the members in the order of the archive. The slice is shared:
// do not change it.
func (a *Archive) Members() []Member { return a.members }

// Notes are oddities of the archive that do no harm, for people.
func (a *Archive) Notes() []string { return a.notes }

// End is the offset of the two zero blocks that end the archive.
func (a *Archive) End() int64 { return a.end }

// Member finds a member by name.
func (a *Archive) Member(name string) (Member, bool) {
	i := a.search(name)
	if i < len(a.sorted) && a.members[a.sorted[i]].Name == name {
		return a.members[a.sorted[i]], true
	}
	return Member{}, false
}

// search is the place in sorted of the first name not below name.
func (a *Archive) search(name string) int {
	i, _ := slices.BinarySearchFunc(a.sorted, name, func(i int32, s string) int {
		return strings.Compare(a.members[i].Name, s)
	})
	return i
}

type opener struct {
	a         *Archive
	format    string
	dropSlash bool
	names     map[string]bool // true for a directory's own entry
	nameBytes int
	headers   int
	// What extended headers said of the next member.
	start    int64 // offset of the first of them, or -1
	longName string
	pax      *paxValues
}

type paxValues struct {
	path string
	size int64 // -1 when not given
}

func (o *opener) note(msg string, args ...any) {
	if len(o.a.notes) < maxNotes {
		o.a.notes = append(o.a.notes, fmt.Sprintf(msg, args...))
	}
}

func padded(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }

func (o *opener) run() error {
	// One read fetches the padding of a member together with the header
	// behind it.
	var buf [2 * blockSize]byte
	o.start = -1
	f := o.a.f
	for pad, off := int64(0), int64(0); ; {
		if f.Size-off < blockSize {
			return formats.Corrupt(o.format, off, "end of archive", "missing, the file ends at %d", f.Size)
		}
		b := buf[:pad+blockSize]
		if err := f.ReadFull(b, off-pad, "header"); err != nil {
			return err
		}
		if !zeros(b[:pad]) {
			return formats.Corrupt(o.format, off-pad, "padding", "not zeros")
		}
		b = b[pad:]
		if zeros(b) {
			if off == 0 {
				return formats.Unknown(o.format, -1, "", "no tar header")
			}
			return o.finish(off)
		}
		if o.headers++; o.headers > maxMembers {
			return formats.Limit(o.format, off, "header", "more than %d members", maxMembers)
		}
		h, err := o.decode(b, off)
		if err != nil {
			return err
		}
		data, err := o.take(h, off)
		if err != nil {
			return err
		}
		pad = padded(data) - data
		off += blockSize + padded(data)
	}
}

// finish checks what follows the last member: two blocks of zeros, and
// nothing but zeros after them.
func (o *opener) finish(off int64) error {
	if o.start >= 0 {
		return formats.Corrupt(o.format, o.start, "header", "extended header without a member")
	}
	f := o.a.f
	if f.Size-off < 2*blockSize {
		return formats.Corrupt(o.format, off, "end of archive", "one block of zeros, the file ends at %d", f.Size)
	}
	if f.Size-off > maxTrailer {
		return formats.Limit(o.format, off, "end of archive", "%d bytes follow, at most %d", f.Size-off, maxTrailer)
	}
	buf := make([]byte, 32<<10)
	for at := off; at < f.Size; at += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), f.Size-at)]
		if err := f.ReadFull(b, at, "end of archive"); err != nil {
			return err
		}
		if !zeros(b) {
			return formats.Corrupt(o.format, at, "end of archive", "not only zeros follow")
		}
	}
	o.a.end = off
	return nil
}

func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// take handles the header at off and returns the bytes of data behind it.
func (o *opener) take(h header, off int64) (int64, error) {
	switch h.typeflag {
	case '0', 0, '7', '5':
		return o.takeFile(h, off)
	case 'x', 'g', 'L', 'K':
		return o.takeExtended(h, off)
	}
	kind := map[byte]string{'1': "hard link", '2': "symbolic link", '3': "character device", '4': "block device",
		'6': "FIFO", 'S': "GNU sparse file", 'D': "GNU directory dump", 'M': "continued GNU volume", 'N': "old GNU long name",
		'V': "GNU volume header", 'X': "Solaris extended header", 'A': "Solaris access control list"}[h.typeflag]
	if kind == "" {
		kind = "type"
	}
	return 0, formats.Unsupported(o.format, off+offTypeflag, "typeflag", "%s %q: %q", kind, h.typeflag, h.name)
}

func (o *opener) takeExtended(h header, off int64) (int64, error) {
	if o.start < 0 && h.typeflag != 'g' {
		o.start = off
	}
	f := o.a.f
	b, err := f.Bytes(off+blockSize, h.size, "extended header", maxExtended)
	if err != nil {
		return 0, err
	}
	switch h.typeflag {
	case 'K':
		return 0, formats.Unsupported(o.format, off+offTypeflag, "typeflag", "long name of a link")
	case 'L':
		name, ok := text(b)
		if !ok || o.longName != "" || name == "" || len(b)-len(name) > 1 {
			return 0, formats.Corrupt(o.format, off, "long name", "%.100q", b)
		}
		o.longName = name
		return h.size, nil
	}
	v, err := o.parsePax(b, off+blockSize)
	if err != nil {
		return 0, err
	}
	if h.typeflag == 'g' {
		if v.path != "" || v.size >= 0 {
			return 0, formats.Unsupported(o.format, off, "pax global header", "name or size for all members")
		}
		o.note("pax global header at %d left aside", off)
		return h.size, nil
	}
	if o.pax != nil {
		return 0, formats.Corrupt(o.format, off, "pax header", "two for one member")
	}
	o.pax = &v
	return h.size, nil
}

// parsePax reads records of the form "length key=value\n", the length in
// decimal and counting all of the record.
func (o *opener) parsePax(b []byte, off int64) (paxValues, error) {
	v := paxValues{size: -1}
	for len(b) > 0 {
		digits, _, ok := strings.Cut(string(b[:min(len(b), 8)]), " ")
		n, err := strconv.Atoi(digits)
		if !ok || err != nil || digits[0] < '1' || digits[0] > '9' || n <= len(digits)+2 || n > len(b) || b[n-1] != '\n' {
			return v, formats.Corrupt(o.format, off, "pax record", "%.40q", b)
		}
		key, value, ok := strings.Cut(string(b[len(digits)+1:n-1]), "=")
		if !ok || key == "" {
			return v, formats.Corrupt(o.format, off, "pax record", "%.40q", b[:n])
		}
		switch {
		case key == "path":
			v.path = value
		case key == "size":
			v.size = -1
			if value != "" {
				v.size, err = strconv.ParseInt(value, 10, 64)
				if err != nil || value[0] == '+' || v.size < 0 {
					return v, formats.Corrupt(o.format, off, "pax size", "%.40q", value)
				}
			}
		case strings.HasPrefix(key, "GNU.sparse."):
			return v, formats.Unsupported(o.format, off, "pax record", "sparse member")
		}
		b = b[n:]
		off += int64(n)
	}
	return v, nil
}

func (o *opener) takeFile(h header, off int64) (int64, error) {
	m := Member{Stored: h.name, Size: h.size, Off: off + blockSize, Header: off, ModTime: time.Unix(h.mtime, 0).UTC()}
	if o.start >= 0 {
		m.Header = o.start
	}
	if o.longName != "" {
		m.Stored = o.longName
	}
	if o.pax != nil {
		if o.pax.path != "" {
			if o.longName != "" {
				return 0, formats.Corrupt(o.format, off, "name", "%q and %q for one member", o.longName, o.pax.path)
			}
			m.Stored = o.pax.path
		}
		if o.pax.size >= 0 {
			m.Size = o.pax.size
		}
	}
	o.start, o.longName, o.pax = -1, "", nil

	name := m.Stored
	dir := h.typeflag == '5'
	if strings.HasSuffix(name, "/") && (dir || h.typeflag != '7' && m.Size == 0) {
		name, dir = strings.TrimRight(name, "/"), true // seventh edition directories end so
		if name == "" && m.Stored == "/" && o.dropSlash {
			name = "."
		}
	}
	if o.dropSlash && strings.HasPrefix(name, "/") {
		o.note("member %q: leading slash dropped", m.Stored)
		name = name[1:]
	}
	for strings.HasPrefix(name, "./") {
		name = name[2:]
	}
	if dir && m.Size != 0 {
		return 0, formats.Corrupt(o.format, off+offSize, "size", "directory %q of %d bytes", m.Stored, m.Size)
	}
	if dir && name == "." {
		return 0, nil
	}
	switch why := checkName(name); why {
	case "":
	case "long", "deep":
		return 0, formats.Limit(o.format, off, "name", "%s: %d bytes %.100q", why, len(name), name)
	default:
		return 0, formats.Corrupt(o.format, off, "name", "%s: %.200q", why, m.Stored)
	}
	if m.Size > o.a.f.Size-m.Off {
		return 0, formats.Corrupt(o.format, off+offSize, "size", "%q has %d bytes, the file ends at %d", name, m.Size, o.a.f.Size)
	}
	if wasDir, seen := o.names[name]; seen {
		if dir && wasDir {
			return 0, nil
		}
		return 0, formats.Corrupt(o.format, off, "name", "two members are %q", name)
	}
	if o.nameBytes += len(name) + len(m.Stored); o.nameBytes > maxNames {
		return 0, formats.Limit(o.format, off, "name", "more than %d bytes of names", maxNames)
	}
	o.names[name] = dir
	if dir {
		return 0, nil
	}
	m.Name = name
	o.a.members = append(o.a.members, m)
	return m.Size, nil
}

// index sorts the names and refuses a file that is also a directory.
func (o *opener) index() error {
	a := o.a
	a.sorted = make([]int32, len(a.members))
	for i, m := range a.members {
		a.sorted[i] = int32(i)
		for j := range len(m.Name) {
			if m.Name[j] != '/' {
				continue
			}
			if dir, seen := o.names[m.Name[:j]]; seen && !dir {
				return formats.Corrupt(o.format, m.Header, "name", "%q lies in a file", m.Name)
			}
		}
	}
	slices.SortFunc(a.sorted, func(x, y int32) int { return strings.Compare(a.members[x].Name, a.members[y].Name) })
	return nil
}
