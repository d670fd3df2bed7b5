// Package formats is the vocabulary of imgmaint: what a disk, a writer of
// disks, a volume and a file's metadata are. It holds no parser and imports
// only the standard library; every format is a leaf package below it that
// speaks in these terms.
//
// All offsets, lengths and sizes are int64 bytes unless the name says
// otherwise.
package formats

import (
	"fmt"
	"io"
	"iter"
)

// A Kind says what is known about a run of a disk without reading it.
type Kind uint8

const (
	// Hole is a run that no layer of the image holds; it reads as zeros.
	Hole Kind = iota
	// Zero is a run the image holds and knows to read as zeros.
	Zero
	// Data is a run that must be read to be known.
	Data
)

func (k Kind) String() string {
	switch k {
	case Hole:
		return "hole"
	case Zero:
		return "zero"
	case Data:
		return "data"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// An Extent is a run of one kind: Len bytes from Off.
type Extent struct {
	Off, Len int64
	Kind     Kind
}

// End is the offset after the last byte of e.
func (e Extent) End() int64 { return e.Off + e.Len }

// An Image is a read-only disk. ReadAt and ExtentAt are safe for concurrent
// use. ReadAt follows io.ReaderAt with Size as the end of file; a read that
// meets a truncated container is an error, never zeros.
type Image interface {
	io.ReaderAt
	// Size is the virtual size: the number of bytes the guest sees.
	Size() int64
	// ExtentAt returns the run that starts at off: at least one byte, ending
	// at or before Size. At Size and beyond it returns io.EOF. Adjacent runs
	// may have the same kind.
	ExtentAt(off int64) (Extent, error)
}

// A Layered image is one whose unallocated runs are read from another image.
// The Image methods answer for the whole chain; LayerExtentAt answers for
// this file alone, where Hole means "ask Backing".
type Layered interface {
	Image
	// Backing is the image below, or nil.
	Backing() Image
	LayerExtentAt(off int64) (Extent, error)
}

// A Writer receives a disk in ascending order of offset. Bytes that are never
// written read back as zeros (in an overlay: as the backing image). Without a
// successful Close the file is not valid. A Writer is not safe for concurrent
// use.
type Writer interface {
	io.WriterAt
	io.Closer
}

// A ClusterWriter is a Writer that transforms each cluster on its own (by
// compression), so that the costly part can run on several goroutines while
// the file is still written in one order.
type ClusterWriter interface {
	Writer
	// ClusterSize is the unit of encoding in bytes.
	ClusterSize() int64
	// NewEncoder returns an encoder for the use of one goroutine at a time.
	NewEncoder() Encoder
	// WriteEncoded stores the cluster at off, a multiple of ClusterSize, in
	// the form an Encoder of this writer gave it. Offsets ascend, together
	// with those of WriteAt.
	WriteEncoded(off int64, enc []byte) error
}

// An Encoder turns one cluster into its stored form. The result depends on
// the cluster alone.
type Encoder interface {
	// Encode appends the stored form of cluster to dst. The cluster is
	// ClusterSize bytes long, or shorter at the end of the disk.
	Encode(dst, cluster []byte) ([]byte, error)
}

// Extents ranges over the runs of img from off to its end. After an error it
// stops.
func Extents(img Image, off int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for off < img.Size() {
			e, err := img.ExtentAt(off)
			if err == nil && (e.Off != off || e.Len <= 0 || e.Len > img.Size()-off) {
				err = fmt.Errorf("extent at %d: got off %d len %d in a disk of %d", off, e.Off, e.Len, img.Size())
			}
			if err != nil {
				yield(Extent{}, err)
				return
			}
			if !yield(e, nil) {
				return
			}
			off += e.Len
		}
	}
}

// Merged is Extents with neighbours of one kind joined.
func Merged(img Image, off int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		var cur Extent
		for e, err := range Extents(img, off) {
			if err != nil {
				if cur.Len > 0 && !yield(cur, nil) {
					return
				}
				yield(Extent{}, err)
				return
			}
			if cur.Len > 0 && cur.Kind == e.Kind {
				cur.Len += e.Len
				continue
			}
			if cur.Len > 0 && !yield(cur, nil) {
				return
			}
			cur = e
		}
		if cur.Len > 0 {
			yield(cur, nil)
		}
	}
}
