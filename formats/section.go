package formats

import (
	"fmt"
	"io"
)

// Section returns the n bytes of img from off as an image of their own. Reads
// never leave it. It is an error if the section does not lie within img.
func Section(img Image, off, n int64) (Image, error) {
	if off < 0 || n < 0 || off > img.Size() || n > img.Size()-off {
		return nil, fmt.Errorf("section of %d bytes at %d: %w: disk has %d bytes", n, off, ErrCorrupt, img.Size())
	}
	return &section{img, off, n}, nil
}

type section struct {
	img    Image
	off, n int64
}

func (s *section) Size() int64 { return s.n }

func (s *section) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	if off >= s.n {
		return 0, io.EOF
	}
	short := false
	if int64(len(p)) > s.n-off {
		p, short = p[:s.n-off], true
	}
	n, err := s.img.ReadAt(p, s.off+off)
	if n == len(p) {
		err = nil
		if short {
			err = io.EOF
		}
	} else if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (s *section) ExtentAt(off int64) (Extent, error) {
	if off < 0 || off >= s.n {
		return Extent{}, io.EOF
	}
	e, err := s.img.ExtentAt(s.off + off)
	if err != nil {
		return Extent{}, err
	}
	e.Off -= s.off
	e.Len = min(e.Len, s.n-off)
	return e, nil
}
