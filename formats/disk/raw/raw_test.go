package raw

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"imgmaint/formats"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

func TestRoundTrip(t *testing.T) {
	for _, size := range []int64{0, 1, 511, 4096, 1<<20 + 77} {
		err := formatstest.TestWriter(
			func(w io.WriterAt, size int64) (formats.Writer, error) { return NewWriter(w, size) },
			func(r io.ReaderAt, size int64) (formats.Image, error) { return Open(r, size) },
			testimg.Disk(size, 3))
		if err != nil {
			t.Errorf("size %d: %v", size, err)
		}
	}
}

// A writer that has no Truncate still gives the file its size.
func TestCloseWithoutTruncate(t *testing.T) {
	var f formatstest.Buffer
	w, err := NewWriter(struct{ io.WriterAt }{&f}, 10000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("head"), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	want := append([]byte("head"), make([]byte, 9996)...)
	if !bytes.Equal(f.Bytes(), want) {
		t.Errorf("got %d bytes, want %d with head", len(f.Bytes()), len(want))
	}
}

func TestSparseFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 64<<20 + 123
	want := make([]byte, size)
	for _, off := range []int64{0, 1 << 20, 33<<20 + 5, size - 3} {
		copy(want[off:], "xyz")
		if _, err := f.WriteAt([]byte("xyz"), off); err != nil {
			t.Fatal(err)
		}
	}
	img, err := Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	if err := formatstest.TestImage(img, want); err != nil {
		t.Error(err)
	}
	var data int64
	for e, err := range formats.Extents(img, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == formats.Data {
			data += e.Len
		}
	}
	if data == 0 || data > 1<<20 {
		t.Errorf("%d bytes of data in a file with four 3-byte writes", data)
	}
}

func TestFileShrinksWhileRead(t *testing.T) {
	img, err := Open(bytes.NewReader(make([]byte, 1000)), 2000)
	if err != nil {
		t.Fatal(err)
	}
	n, err := img.ReadAt(make([]byte, 500), 800)
	if n != 200 || !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("ReadAt over the end of a shrunk file = %d, %v, want 200, ErrCorrupt", n, err)
	}
}

func TestWriterRefuses(t *testing.T) {
	var f formatstest.Buffer
	w, err := NewWriter(&f, 100)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(make([]byte, 10), 50); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{-1, 0, 59, 91} {
		if _, err := w.WriteAt(make([]byte, 10), off); err == nil {
			t.Errorf("write of 10 bytes at %d of 100 after 60 was accepted", off)
		}
	}
}
