// Package bounded reads metadata from files that strangers made: every read
// is checked against the size of the file and a limit before anything is
// allocated.
package bounded

import (
	"errors"
	"io"

	"imgmaint/formats"
)

// A File is a reader of known size with the name of the format it is read
// as, for errors.
type File struct {
	R      io.ReaderAt
	Size   int64 // bytes
	Format string
}

// Check reports whether the n bytes at off lie within the file and n is at
// most limit. Beyond the file is ErrCorrupt, beyond the limit is ErrLimit.
func (f File) Check(off, n int64, field string, limit int64) error {
	switch {
	case n < 0 || n > limit:
		return formats.Limit(f.Format, off, field, "%d bytes, at most %d", n, limit)
	case off < 0 || off > f.Size || n > f.Size-off:
		return formats.Corrupt(f.Format, off, field, "%d bytes needed, the file ends at %d", n, f.Size)
	}
	return nil
}

// Bytes returns the n bytes at off in a new slice, after Check.
func (f File) Bytes(off, n int64, field string, limit int64) ([]byte, error) {
	if err := f.Check(off, n, field, limit); err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if err := f.ReadFull(b, off, field); err != nil {
		return nil, err
	}
	return b, nil
}

// ReadFull fills p from off. A file that ends early is ErrCorrupt; an error
// of the reader is wrapped with the place.
func (f File) ReadFull(p []byte, off int64, field string) error {
	if len(p) == 0 {
		return nil
	}
	if off < 0 || off > f.Size || int64(len(p)) > f.Size-off {
		return formats.Corrupt(f.Format, off, field, "%d bytes needed, the file ends at %d", len(p), f.Size)
	}
	n, err := f.R.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return formats.Corrupt(f.Format, off+int64(n), field, "the file ended while it was read")
	}
	return formats.At(f.Format, off, field, err)
}

// Entries returns count*size after checking that it neither overflows nor
// exceeds limit bytes.
func (f File) Entries(off, count, size int64, field string, limit int64) (int64, error) {
	if count < 0 || size <= 0 || count > limit/size {
		return 0, formats.Limit(f.Format, off, field, "%d entries of %d bytes, at most %d bytes", count, size, limit)
	}
	return count * size, nil
}
