package convert

import (
	"context"
	"fmt"
	"io"
	"os"

	"imgmaint/formats"
	"imgmaint/formats/open"
	"imgmaint/internal/atomicfile"
)

// FileOptions say how File makes a disk image.
type FileOptions struct {
	Options
	Create open.CreateOptions
	// Verify reads the finished file and compares it with the source before
	// it is put in its place.
	Verify bool
	// NoSpaceCheck starts even if the file may not fit.
	NoSpaceCheck bool
}

// File writes src as a new image at path. The file appears there whole, and
// durable, or not at all.
func File(ctx context.Context, path string, src *open.Image, o *FileOptions) (Stats, error) {
	f, err := atomicfile.Create(path, 0o666&^umask())
	if err != nil {
		return Stats{}, err
	}
	defer f.Abort()
	for _, s := range src.Files() {
		if sameFile(s, f.Path()) {
			return Stats{}, fmt.Errorf("%s: the destination is the source, or a file it is read from", path)
		}
	}
	if !o.NoSpaceCheck && o.Create.Compression == "" {
		if err := checkSpace(f.File, src); err != nil {
			return Stats{}, err
		}
	}
	st, err := write(ctx, newFlusher(f.File), src, o)
	if err != nil {
		return st, err
	}
	if o.Verify {
		if err := verify(ctx, f.File, src, o); err != nil {
			return st, err
		}
	}
	if err := ctx.Err(); err != nil {
		return st, context.Cause(ctx)
	}
	return st, f.Commit()
}

// Stream writes src as a new image to w, which is written from its start to
// its end. Only formats that need no seeking can be streamed.
func Stream(ctx context.Context, w io.Writer, src formats.Image, o *FileOptions) (Stats, error) {
	if !open.Streams(o.Create.Format) {
		return Stats{}, formats.Unsupported(o.Create.Format, -1, "", "the format can't be streamed")
	}
	s := &stream{w: w}
	st, err := write(ctx, s, src, o)
	if err == nil && o.Create.Format == "raw" {
		err = s.pad(src.Size())
	}
	return st, err
}

func write(ctx context.Context, w io.WriterAt, src formats.Image, o *FileOptions) (Stats, error) {
	dst, err := open.Create(w, src.Size(), &o.Create)
	if err != nil {
		return Stats{}, err
	}
	st, err := Image(ctx, dst, src, &o.Options)
	if err != nil {
		return st, err
	}
	return st, dst.Close()
}

func verify(ctx context.Context, f *os.File, src formats.Image, o *FileOptions) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	img, _, err := open.Reader(f, fi.Size(), o.Create.Format)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	diff, err := Compare(ctx, img, src, &Options{Workers: o.Workers})
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	if diff != nil && !diff.SizeOnly {
		return fmt.Errorf("verify: %w: the new image differs from its source at offset %d", formats.ErrCorrupt, diff.Off)
	}
	return nil
}

// checkSpace refuses a copy whose data may not fit where f is.
func checkSpace(f *os.File, src formats.Image) error {
	free, ok := freeSpace(f)
	if !ok {
		return nil
	}
	var need int64
	for e, err := range formats.Extents(src, 0) {
		if err != nil {
			return err
		}
		if e.Kind == formats.Data {
			need += e.Len
		}
	}
	if need > free {
		return &SpaceError{Need: need, Free: free}
	}
	return nil
}

// A SpaceError says that a copy may not fit.
type SpaceError struct{ Need, Free int64 } // bytes

func (e *SpaceError) Error() string {
	return fmt.Sprintf("not enough space: the data needs up to %d bytes, %d are free at the destination", e.Need, e.Free)
}

func (e *SpaceError) Unwrap() error { return errNoSpace }

func sameFile(a *os.File, path string) bool {
	x, err1 := a.Stat()
	y, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// A stream is an io.WriterAt over a pipe: what is passed over is written as
// zeros, and nothing can be written twice.
type stream struct {
	w   io.Writer
	off int64
}

func (s *stream) WriteAt(p []byte, off int64) (int, error) {
	if off < s.off {
		return 0, fmt.Errorf("stream: write at %d after %d bytes", off, s.off)
	}
	if err := s.pad(off); err != nil {
		return 0, err
	}
	n, err := s.w.Write(p)
	s.off += int64(n)
	return n, err
}

// pad writes zeros up to size.
func (s *stream) pad(size int64) error {
	for s.off < size {
		n, err := s.w.Write(zeroPage[:min(size-s.off, int64(len(zeroPage)))])
		s.off += int64(n)
		if err != nil {
			return err
		}
	}
	return nil
}
