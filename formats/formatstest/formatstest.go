// Package formatstest holds the conformance checks that every image, writer
// and file system must pass. They return errors, as testing/fstest does.
package formatstest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"sync"
	"testing/fstest"

	"imgmaint/formats"
)

// TestImage checks that img reads as want, at aligned and unaligned offsets,
// past the end and concurrently, and that its extents cover it and are true.
func TestImage(img formats.Image, want []byte) error {
	size := int64(len(want))
	if img.Size() != size {
		return fmt.Errorf("Size() = %d, want %d", img.Size(), size)
	}
	if err := testExtents(img, want); err != nil {
		return err
	}
	got := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(got)) {
		p := got[:min(int64(len(got)), size-off)]
		if n, err := img.ReadAt(p, off); n != len(p) || err != nil && err != io.EOF {
			return fmt.Errorf("ReadAt(%d bytes, %d) = %d, %v", len(p), off, n, err)
		}
		if i := diff(p, want[off:]); i >= 0 {
			return fmt.Errorf("byte %d = %#x, want %#x", off+int64(i), p[i], want[off+int64(i)])
		}
	}
	if err := testEnd(img, size); err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for g := range errs {
		wg.Go(func() { errs[g] = randomReads(img, want, uint64(g)) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func randomReads(img formats.Image, want []byte, seed uint64) error {
	size := int64(len(want))
	if size == 0 {
		return nil
	}
	rnd := rand.New(rand.NewPCG(seed, 1))
	buf := make([]byte, 200_000)
	for range 150 {
		off := rnd.Int64N(size)
		n := 1 + rnd.Int64N(1<<rnd.IntN(18))
		if rnd.IntN(4) == 0 { // around a boundary
			off = max(0, min(off&^0xfff+int64(rnd.IntN(5))-2, size-1))
		}
		p := buf[:min(n, int64(len(buf)))]
		for i := range p {
			p[i] = 0xa5
		}
		wantN := min(int64(len(p)), size-off)
		k, err := img.ReadAt(p, off)
		if int64(k) != wantN || err != nil && (err != io.EOF || wantN == int64(len(p)) && off+wantN < size) {
			return fmt.Errorf("ReadAt(%d bytes, %d) = %d, %v, want %d", len(p), off, k, err, wantN)
		}
		if i := diff(p[:k], want[off:]); i >= 0 {
			return fmt.Errorf("ReadAt(%d bytes, %d): byte %d differs", len(p), off, off+int64(i))
		}
		e, err := img.ExtentAt(off)
		if err != nil || e.Off != off || e.Len <= 0 || e.End() > size {
			return fmt.Errorf("ExtentAt(%d) = %+v, %v", off, e, err)
		}
	}
	return nil
}

func testEnd(img formats.Image, size int64) error {
	var b [16]byte
	for _, off := range []int64{size, size + 1, size + 1<<40} {
		if n, err := img.ReadAt(b[:], off); n != 0 || err != io.EOF {
			return fmt.Errorf("ReadAt at %d of %d = %d, %v, want 0, EOF", off, size, n, err)
		}
		if e, err := img.ExtentAt(off); err != io.EOF {
			return fmt.Errorf("ExtentAt(%d) of %d = %+v, %v, want EOF", off, size, e, err)
		}
	}
	if n, err := img.ReadAt(b[:], -1); n != 0 || err == nil || err == io.EOF {
		return fmt.Errorf("ReadAt at -1 = %d, %v, want an error", n, err)
	}
	if size > 3 {
		if n, err := img.ReadAt(b[:], size-3); n != 3 || err != io.EOF {
			return fmt.Errorf("ReadAt 3 bytes before the end = %d, %v, want 3, EOF", n, err)
		}
	}
	return nil
}

func testExtents(img formats.Image, want []byte) error {
	var end int64
	for e, err := range formats.Extents(img, 0) {
		if err != nil {
			return fmt.Errorf("extents: %w", err)
		}
		end = e.End()
		if e.Kind != formats.Data {
			for i, c := range want[e.Off:e.End()] {
				if c != 0 {
					return fmt.Errorf("extent %+v: byte %d is %#x", e, e.Off+int64(i), c)
				}
			}
		}
	}
	if end != int64(len(want)) {
		return fmt.Errorf("extents end at %d, want %d", end, len(want))
	}
	return nil
}

func diff(got, want []byte) int {
	if bytes.Equal(got, want[:len(got)]) {
		return -1
	}
	for i := range got {
		if got[i] != want[i] {
			return i
		}
	}
	return -1
}

// TestWriter writes want through the writers that create returns, with
// several patterns of writes, and checks what open reads back. Each file must
// come out the same for the same pattern.
func TestWriter(create func(w io.WriterAt, size int64) (formats.Writer, error),
	open func(r io.ReaderAt, size int64) (formats.Image, error), want []byte) error {
	for name, pattern := range writePatterns(want) {
		var first []byte
		for range 2 {
			var f Buffer
			w, err := create(&f, int64(len(want)))
			if err != nil {
				return fmt.Errorf("%s: create: %w", name, err)
			}
			for _, e := range pattern {
				if n, err := w.WriteAt(want[e.Off:e.End()], e.Off); err != nil || int64(n) != e.Len {
					return fmt.Errorf("%s: WriteAt(%d bytes, %d) = %d, %w", name, e.Len, e.Off, n, err)
				}
			}
			if _, err := w.WriteAt([]byte{1}, int64(len(want))); err == nil {
				return fmt.Errorf("%s: a write past the end was accepted", name)
			}
			if err := w.Close(); err != nil {
				return fmt.Errorf("%s: Close: %w", name, err)
			}
			if first == nil {
				first = f.Bytes()
			} else if !bytes.Equal(first, f.Bytes()) {
				return fmt.Errorf("%s: two runs wrote different files", name)
			}
		}
		img, err := open(bytes.NewReader(first), int64(len(first)))
		if err != nil {
			return fmt.Errorf("%s: open: %w", name, err)
		}
		if err := TestImage(img, want); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// writePatterns are ascending sequences of writes that together write every
// byte of b that is not zero.
func writePatterns(b []byte) map[string][]formats.Extent {
	size := int64(len(b))
	p := map[string][]formats.Extent{"whole": nil, "clusters": nil, "odd": nil, "sparse": nil}
	if size > 0 {
		p["whole"] = []formats.Extent{{Off: 0, Len: size}}
	}
	for off := int64(0); off < size; off += 65536 {
		p["clusters"] = append(p["clusters"], formats.Extent{Off: off, Len: min(65536, size-off)})
	}
	rnd := rand.New(rand.NewPCG(7, 7))
	for off := int64(0); off < size; {
		n := min(1+rnd.Int64N(100_000), size-off)
		p["odd"] = append(p["odd"], formats.Extent{Off: off, Len: n})
		off += n
	}
	for off := int64(0); off < size; off += 4096 {
		n := min(4096, size-off)
		if len(bytes.TrimLeft(b[off:off+n], "\x00")) > 0 {
			p["sparse"] = append(p["sparse"], formats.Extent{Off: off, Len: n})
		}
	}
	return p
}

// A Buffer is a file in memory; it grows as it is written.
type Buffer struct{ b []byte }

// WriteAt implements io.WriterAt.
func (f *Buffer) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > 1<<32 {
		return 0, fmt.Errorf("write of %d bytes at %d", len(p), off)
	}
	if n := off + int64(len(p)); n > int64(len(f.b)) {
		if n <= int64(cap(f.b)) {
			f.b = f.b[:n]
		} else {
			f.b = append(make([]byte, 0, n+n/4), f.b...)[:n]
		}
	}
	return copy(f.b[off:], p), nil
}

// Truncate sets the size, as os.File does.
func (f *Buffer) Truncate(size int64) error {
	if size <= int64(len(f.b)) {
		clear(f.b[size:])
		f.b = f.b[:size]
		return nil
	}
	_, err := f.WriteAt([]byte{0}, size-1)
	return err
}

// Bytes returns the contents.
func (f *Buffer) Bytes() []byte { return f.b }

// TestFS checks a file system: the rules of testing/fstest, and ours on
// links, metadata and files that are images.
func TestFS(fsys formats.FS, expected ...string) error {
	if err := fstest.TestFS(noLinks{fsys}, expected...); err != nil {
		return err
	}
	return fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		fi, err := fsys.Lstat(name)
		if err != nil {
			return err
		}
		st, ok := fi.Sys().(*formats.Stat)
		if !ok || st.Nlink == 0 {
			return fmt.Errorf("%s: Sys() = %T %+v, want *formats.Stat", name, fi.Sys(), fi.Sys())
		}
		if fi.Mode().Type() != d.Type() {
			return fmt.Errorf("%s: Lstat type %v, entry type %v", name, fi.Mode().Type(), d.Type())
		}
		if name != "." && fi.Name() != path.Base(name) {
			return fmt.Errorf("%s: Name() = %q", name, fi.Name())
		}
		if _, err := st.Xattrs(); err != nil {
			return fmt.Errorf("%s: xattrs: %w", name, err)
		}
		switch fi.Mode().Type() {
		case fs.ModeSymlink:
			target, err := fsys.ReadLink(name)
			if err != nil || int64(len(target)) != fi.Size() {
				return fmt.Errorf("%s: ReadLink = %q, %v, size %d", name, target, err, fi.Size())
			}
			if f, err := fsys.Open(name); err == nil {
				f.Close()
				return fmt.Errorf("%s: Open followed a symbolic link", name)
			}
		case 0:
			f, err := fsys.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			img, ok := f.(formats.File)
			if !ok {
				return fmt.Errorf("%s: %T is not a formats.File", name, f)
			}
			if fi.Size() > 64<<20 {
				return nil
			}
			want, err := io.ReadAll(f)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if err := TestImage(img, want); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	})
}

// noLinks hides what fstest would open through a link, which our file
// systems refuse by design.
type noLinks struct{ formats.FS }

func (n noLinks) ReadDir(name string) ([]fs.DirEntry, error) {
	all, err := n.FS.ReadDir(name)
	var kept []fs.DirEntry
	for _, d := range all {
		if d.Type().IsRegular() || d.IsDir() {
			kept = append(kept, d)
		}
	}
	return kept, err
}

func (n noLinks) Open(name string) (fs.File, error) {
	f, err := n.FS.Open(name)
	if d, ok := f.(fs.ReadDirFile); ok && err == nil {
		return noLinksDir{d}, nil
	}
	return f, err
}

type noLinksDir struct{ fs.ReadDirFile }

func (d noLinksDir) ReadDir(n int) ([]fs.DirEntry, error) {
	for {
		all, err := d.ReadDirFile.ReadDir(n)
		var kept []fs.DirEntry
		for _, e := range all {
			if e.Type().IsRegular() || e.IsDir() {
				kept = append(kept, e)
			}
		}
		if len(kept) > 0 || err != nil || n <= 0 {
			return kept, err
		}
	}
}
