package fat

import (
	"io"
	"io/fs"
	"slices"
	"sync"

	"imgmaint/formats"
)

// A file is an opened regular file.
type file struct {
	m      *FS
	name   string
	info   fs.FileInfo
	size   int64
	runs   []run
	starts []int64 // offset in the file of each run

	mu  sync.Mutex
	pos int64
}

var _ formats.File = (*file)(nil)

func (f *file) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *file) Close() error               { return nil }
func (f *file) Size() int64                { return f.size }

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, &fs.PathError{Op: "readat", Path: f.name, Err: fs.ErrInvalid}
	}
	if off >= f.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > f.size-off {
		p, eof = p[:f.size-off], io.EOF
	}
	i, found := slices.BinarySearch(f.starts, off)
	if !found {
		i--
	}
	n := 0
	for n < len(p) {
		in := off + int64(n) - f.starts[i]
		k := int(min(int64(len(p)-n), f.runs[i].n-in))
		if err := f.m.f.ReadFull(p[n:n+k], f.runs[i].off+in, "cluster"); err != nil {
			return n, &fs.PathError{Op: "read", Path: f.name, Err: err}
		}
		n += k
		i++
	}
	return n, eof
}

func (f *file) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
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

func (f *file) Seek(off int64, whence int) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		off += f.pos
	case io.SeekEnd:
		off += f.size
	default:
		return 0, &fs.PathError{Op: "seek", Path: f.name, Err: fs.ErrInvalid}
	}
	if off < 0 {
		return 0, &fs.PathError{Op: "seek", Path: f.name, Err: fs.ErrInvalid}
	}
	f.pos = off
	return off, nil
}

// ExtentAt: a FAT file has no holes.
func (f *file) ExtentAt(off int64) (formats.Extent, error) {
	if off < 0 || off >= f.size {
		return formats.Extent{}, io.EOF
	}
	return formats.Extent{Off: off, Len: f.size - off, Kind: formats.Data}, nil
}

// A dir is an opened directory.
type dir struct {
	fs   *FS
	name string
	info fs.FileInfo

	mu   sync.Mutex
	rest []fs.DirEntry
	read bool
}

func (d *dir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *dir) Close() error               { return nil }

func (d *dir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.name, Err: errIsDir}
}

func (d *dir) ReadDir(n int) ([]fs.DirEntry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.read {
		all, err := d.fs.ReadDir(d.name)
		if err != nil {
			return nil, err
		}
		d.rest, d.read = all, true
	}
	if n <= 0 || n > len(d.rest) {
		if n > 0 && len(d.rest) == 0 {
			return nil, io.EOF
		}
		n = len(d.rest)
	}
	list := d.rest[:n:n]
	d.rest = d.rest[n:]
	return list, nil
}
