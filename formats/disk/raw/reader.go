package raw

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"imgmaint/formats"
)

// An Image is a raw disk.
type Image struct {
	r    io.ReaderAt
	seek io.Seeker // nil where the reader cannot tell holes
	size int64
}

var (
	_ formats.Image     = (*Image)(nil)
	_ formats.Describer = (*Image)(nil)
	_ formats.Checker   = (*Image)(nil)
)

// Open returns the size bytes of r as a disk. When r is an io.Seeker that
// understands SEEK_DATA and SEEK_HOLE, as *os.File is, extents are its holes
// and data; else all is data. The seek position of r is not preserved.
func Open(r io.ReaderAt, size int64) (*Image, error) {
	if size < 0 {
		return nil, formats.Corrupt(Name, -1, "size", "%d", size)
	}
	img := &Image{r: r, size: size}
	if s, ok := r.(io.Seeker); ok && size > 0 {
		// A file system without the calls answers EINVAL; one that keeps no
		// holes answers that all is data.
		if _, err := s.Seek(0, seekHole); err == nil {
			img.seek = s
		}
	}
	return img, nil
}

// Size is the number of bytes of the disk.
func (m *Image) Size() int64 { return m.size }

// ReadAt implements io.ReaderAt. A file that has become shorter than Size is
// an error.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("raw: read at negative offset %d", off)
	}
	if off >= m.size {
		return 0, io.EOF
	}
	atEnd := int64(len(p)) > m.size-off
	if atEnd {
		p = p[:m.size-off]
	}
	n, err := m.r.ReadAt(p, off)
	if n == len(p) {
		if atEnd {
			return n, io.EOF
		}
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return n, formats.Corrupt(Name, off+int64(n), "data", "the file ended while it was read")
	}
	return n, formats.At(Name, off, "data", err)
}

// ExtentAt returns the hole or the data that starts at off.
func (m *Image) ExtentAt(off int64) (formats.Extent, error) {
	if off < 0 || off >= m.size {
		return formats.Extent{}, io.EOF
	}
	e := formats.Extent{Off: off, Len: m.size - off, Kind: formats.Data}
	if m.seek == nil {
		return e, nil
	}
	data, err := m.seek.Seek(off, seekData)
	switch {
	case errors.Is(err, syscall.ENXIO): // no data from here on
		e.Kind = formats.Hole
		return e, nil
	case err != nil:
		return formats.Extent{}, formats.At(Name, off, "SEEK_DATA", err)
	case data > off:
		e.Kind = formats.Hole
		e.Len = min(e.Len, data-off)
		return e, nil
	}
	hole, err := m.seek.Seek(off, seekHole)
	if err != nil && !errors.Is(err, syscall.ENXIO) {
		return formats.Extent{}, formats.At(Name, off, "SEEK_HOLE", err)
	}
	if err == nil && hole > off {
		e.Len = min(e.Len, hole-off)
	}
	return e, nil
}

// Info implements formats.Describer.
func (m *Image) Info() formats.Info { return formats.Info{Format: Name, VirtualSize: m.size} }

// Check implements formats.Checker: raw disks have no metadata to be wrong.
func (m *Image) Check() (*formats.CheckReport, error) {
	return &formats.CheckReport{ImageEnd: m.size}, nil
}
