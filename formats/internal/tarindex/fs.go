package tarindex

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"imgmaint/formats"
)

var (
	_ fs.ReadDirFS = (*Archive)(nil)
	_ fs.StatFS    = (*Archive)(nil)
	_ formats.File = (*File)(nil)
)

// Open implements fs.FS. A member is a *File; a directory exists when a
// member lies in it.
func (a *Archive) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	if m, ok := a.Member(name); ok {
		return a.OpenMember(m), nil
	}
	if lo, hi := a.under(name); lo < hi || name == "." {
		return &dir{a: a, info: dirInfo(path.Base(name)), name: name}, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// Stat implements fs.StatFS.
func (a *Archive) Stat(name string) (fs.FileInfo, error) {
	f, err := a.Open(name)
	if err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: errors.Unwrap(err)}
	}
	return f.Stat()
}

// ReadDir implements fs.ReadDirFS.
func (a *Archive) ReadDir(name string) ([]fs.DirEntry, error) {
	f, err := a.Open(name)
	if err != nil {
		return nil, err
	}
	d, ok := f.(*dir)
	if !ok {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errors.New("not a directory")}
	}
	return d.ReadDir(-1)
}

// under is the run of sorted that lies in the directory name.
func (a *Archive) under(name string) (lo, hi int) {
	if name == "." {
		return 0, len(a.sorted)
	}
	return a.search(name + "/"), a.search(name + "0") // '0' follows '/'
}

// OpenMember returns a reader of m, a member of this archive.
func (a *Archive) OpenMember(m Member) *File { return &File{a: a, m: m} }

// A File is an opened member. ReadAt, Size and ExtentAt are safe for
// concurrent use.
type File struct {
	a   *Archive
	m   Member
	pos int64
}

// Size is the size of the member in bytes.
func (f *File) Size() int64 { return f.m.Size }

// Close implements fs.File; it does nothing.
func (f *File) Close() error { return nil }

// Stat implements fs.File.
func (f *File) Stat() (fs.FileInfo, error) {
	return fileInfo{path.Base(f.m.Name), f.m.Size, 0o444, f.m.ModTime}, nil
}

// ReadAt implements io.ReaderAt within the member. An archive that has become
// shorter is corrupt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("%s: read at negative offset %d", f.a.f.Format, off)
	}
	if off >= f.m.Size {
		return 0, io.EOF
	}
	short := int64(len(p)) > f.m.Size-off
	if short {
		p = p[:f.m.Size-off]
	}
	n, err := f.a.f.R.ReadAt(p, f.m.Off+off)
	switch {
	case n == len(p):
		if short {
			return n, io.EOF
		}
		return n, nil
	case err == nil || errors.Is(err, io.EOF):
		return n, formats.Corrupt(f.a.f.Format, f.m.Off+off+int64(n), f.m.Name, "the file ended while it was read")
	}
	return n, formats.At(f.a.f.Format, f.m.Off+off, f.m.Name, err)
}

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := f.ReadAt(p, f.pos)
	f.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// Seek implements io.Seeker.
func (f *File) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		off += f.pos
	case io.SeekEnd:
		off += f.m.Size
	default:
		return 0, fmt.Errorf("%s: seek: whence %d", f.a.f.Format, whence)
	}
	if off < 0 {
		return 0, fmt.Errorf("%s: seek to negative offset %d", f.a.f.Format, off)
	}
	f.pos = off
	return off, nil
}

// ExtentAt is one run of data, or the runs of the archive's file when that is
// an image that knows them.
func (f *File) ExtentAt(off int64) (formats.Extent, error) {
	if off < 0 || off >= f.m.Size {
		return formats.Extent{}, io.EOF
	}
	left := f.m.Size - off
	img, ok := f.a.f.R.(formats.Image)
	if !ok {
		return formats.Extent{Off: off, Len: left, Kind: formats.Data}, nil
	}
	e, err := img.ExtentAt(f.m.Off + off)
	if err != nil {
		return formats.Extent{}, formats.At(f.a.f.Format, f.m.Off+off, f.m.Name, err)
	}
	return formats.Extent{Off: off, Len: min(e.Len, left), Kind: e.Kind}, nil
}

type fileInfo struct {
	name  string
	size  int64
	mode  fs.FileMode
	mtime time.Time
}

func (i fileInfo) Name() string               { return i.name }
func (i fileInfo) Size() int64                { return i.size }
func (i fileInfo) Mode() fs.FileMode          { return i.mode }
func (i fileInfo) ModTime() time.Time         { return i.mtime }
func (i fileInfo) IsDir() bool                { return i.mode.IsDir() }
func (i fileInfo) Sys() any                   { return nil }
func (i fileInfo) Type() fs.FileMode          { return i.mode.Type() }
func (i fileInfo) Info() (fs.FileInfo, error) { return i, nil }
func (i fileInfo) String() string             { return fs.FormatFileInfo(i) }

func dirInfo(name string) fileInfo { return fileInfo{name: name, mode: fs.ModeDir | 0o555} }

// dir is an opened directory.
type dir struct {
	a       *Archive
	info    fileInfo
	name    string
	entries []fs.DirEntry
	read    bool
}

func (d *dir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *dir) Close() error               { return nil }

func (d *dir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.name, Err: errors.New("is a directory")}
}

// ReadDir implements fs.ReadDirFile, sorted by name.
func (d *dir) ReadDir(n int) ([]fs.DirEntry, error) {
	if !d.read {
		d.load()
	}
	if n <= 0 {
		all := d.entries
		d.entries = nil
		return all, nil
	}
	if len(d.entries) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(d.entries))
	some := d.entries[:n:n]
	d.entries = d.entries[n:]
	return some, nil
}

func (d *dir) load() {
	d.read = true
	lo, hi := d.a.under(d.name)
	skip := 0
	if d.name != "." {
		skip = len(d.name) + 1
	}
	for i := lo; i < hi; {
		m := d.a.members[d.a.sorted[i]]
		first, _, deeper := strings.Cut(m.Name[skip:], "/")
		if !deeper {
			d.entries = append(d.entries, fileInfo{first, m.Size, 0o444, m.ModTime})
			i++
			continue
		}
		d.entries = append(d.entries, dirInfo(first))
		_, i = d.a.under(m.Name[:skip] + first)
	}
	slices.SortFunc(d.entries, func(x, y fs.DirEntry) int { return strings.Compare(x.Name(), y.Name()) })
}
