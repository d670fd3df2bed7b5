package raw

import (
	"fmt"
	"io"

	"imgmaint/formats"
)

// A Writer writes a raw disk; what is not written is left as a hole.
type Writer struct {
	w    io.WriterAt
	size int64
	end  int64 // of the last write
}

var _ formats.Writer = (*Writer)(nil)

// NewWriter returns a writer of a raw disk of size bytes to w, a new empty
// file. Writes pass through as they are.
func NewWriter(w io.WriterAt, size int64) (*Writer, error) {
	if size < 0 {
		return nil, formats.Corrupt(Name, -1, "size", "%d", size)
	}
	return &Writer{w: w, size: size}, nil
}

// WriteAt implements io.WriterAt. Offsets must ascend.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	if off < w.end || int64(len(p)) > w.size-off {
		return 0, fmt.Errorf("raw: write of %d bytes at %d: written up to %d of %d", len(p), off, w.end, w.size)
	}
	n, err := w.w.WriteAt(p, off)
	w.end = off + int64(n)
	return n, err
}

// Close gives the file its full size: by Truncate(int64) where the underlying
// writer has it, else by writing the last byte.
func (w *Writer) Close() error {
	if t, ok := w.w.(interface{ Truncate(int64) error }); ok {
		return t.Truncate(w.size)
	}
	if w.end == w.size {
		return nil
	}
	_, err := w.w.WriteAt([]byte{0}, w.size-1)
	return err
}
