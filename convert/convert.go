// Package convert copies and compares disks of any format. Reading, looking
// for zeros and compressing run on several goroutines; writing happens in one
// order, so that the same input gives the same bytes.
package convert

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"

	"imgmaint/formats"
)

const (
	// window is the run of disk that one goroutine reads at a time. Measured:
	// below 256 KiB system calls cost, above 4 MiB the processor's caches do.
	window = 1 << 20
	// pageSize is the unit of zero detection when the destination has no
	// clusters, as qemu-img's -S default.
	pageSize = 4096
	// maxWorkers bounds memory: each worker holds one window and its encoded
	// form.
	maxWorkers = 8
)

// Options tune Image and Compare. The zero value is ready to use.
type Options struct {
	// Workers is the number of goroutines that read and encode; 0 is one for
	// each processor, at most 8.
	Workers int
	// KeepZeros turns off zero detection: what the source holds as data is
	// written even if it is all zeros.
	KeepZeros bool
	// Progress, when set, is told how far the copy is, in bytes of the disk.
	Progress func(done, total int64)
}

func (o *Options) workers() int {
	if o.Workers > 0 {
		return min(o.Workers, maxWorkers)
	}
	return min(runtime.GOMAXPROCS(0), maxWorkers)
}

// Stats is what a copy did, in bytes of the disk.
type Stats struct {
	Size    int64 `json:"size"`    // virtual size
	Read    int64 `json:"read"`    // data read from the source
	Written int64 `json:"written"` // data given to the destination
}

// Image copies all of src to dst, which must be a new writer of src's size,
// and leaves closing dst to the caller. Runs that are holes, known zeros or
// found to be zeros are not written.
func Image(ctx context.Context, dst formats.Writer, src formats.Image, o *Options) (Stats, error) {
	if o == nil {
		o = new(Options)
	}
	c := copier{src: src, dst: dst, keepZeros: o.KeepZeros, granule: pageSize, size: src.Size()}
	if s, ok := dst.(interface{ ClusterSize() int64 }); ok && s.ClusterSize() > c.granule {
		c.granule = s.ClusterSize()
	}
	c.encoded, _ = dst.(formats.ClusterWriter)
	if c.encoded != nil {
		c.granule = c.encoded.ClusterSize()
	}
	// Smaller clusters are no reason for smaller reads.
	c.window = max(window/c.granule*c.granule, c.granule)

	st := Stats{Size: c.size}
	err := ordered(ctx, o.workers(), func() *task { return new(task) }, planWindows(c.window, src),
		c.newWorker,
		func(t *task) error {
			st.Read += t.read
			n, err := c.write(t)
			st.Written += n
			if err == nil && o.Progress != nil {
				o.Progress(t.off+int64(len(t.buf)), c.size)
			}
			return err
		})
	if err == nil && o.Progress != nil {
		o.Progress(c.size, c.size)
	}
	return st, err
}

type copier struct {
	src       formats.Image
	dst       formats.Writer
	encoded   formats.ClusterWriter // dst, when it transforms clusters
	keepZeros bool
	granule   int64 // unit of zero detection, and of encoding
	window    int64
	size      int64
}

// A task is one window of the disk on its way through the pipeline.
type task struct {
	span
	buf  []byte           // the window's bytes
	runs []formats.Extent // what is to be written, relative to off
	enc  []byte           // encoded clusters, end to end
	ends []int            // end of each cluster of runs in enc
	read int64
}

// newWorker returns the work of one goroutine, with an encoder of its own.
func (c *copier) newWorker() func(*task) error {
	var coder formats.Encoder
	if c.encoded != nil {
		coder = c.encoded.NewEncoder()
	}
	return func(t *task) error { return c.process(t, coder) }
}

// process reads the data of a window, finds what must be written, and encodes
// it if the destination wants that.
func (c *copier) process(t *task, coder formats.Encoder) error {
	if t.buf == nil {
		t.buf = make([]byte, c.window)
	}
	t.buf = t.buf[:min(c.window, c.size-t.off)]
	t.runs, t.enc, t.ends, t.read = t.runs[:0], t.enc[:0], t.ends[:0], 0
	end := int64(0) // of what is filled
	for _, e := range t.data {
		clear(t.buf[end:e.Off])
		if err := readFull(c.src, t.buf[e.Off:e.End()], t.off+e.Off); err != nil {
			return err
		}
		end = e.End()
		t.read += e.Len
	}
	clear(t.buf[end:])
	for _, e := range t.data {
		// A granule that two extents share is looked at once.
		from := e.Off / c.granule * c.granule
		if n := len(t.runs); n > 0 {
			from = max(from, t.runs[n-1].End())
		}
		for from < e.End() {
			to := min(from+c.granule, int64(len(t.buf)))
			if c.keepZeros || !isZero(t.buf[from:to]) {
				if n := len(t.runs); n > 0 && t.runs[n-1].End() == from {
					t.runs[n-1].Len += to - from
				} else {
					t.runs = append(t.runs, formats.Extent{Off: from, Len: to - from, Kind: formats.Data})
				}
			}
			from = to
		}
	}
	if coder == nil {
		return nil
	}
	for _, r := range t.runs {
		for off := r.Off; off < r.End(); off += c.granule {
			var err error
			t.enc, err = coder.Encode(t.enc, t.buf[off:min(off+c.granule, r.End())])
			if err != nil {
				return fmt.Errorf("cluster at %d: %w", t.off+off, err)
			}
			t.ends = append(t.ends, len(t.enc))
		}
	}
	return nil
}

// write gives a processed window to the destination and returns how much of
// the disk it wrote.
func (c *copier) write(t *task) (int64, error) {
	var n int64
	start, k := 0, 0
	for _, r := range t.runs {
		if c.encoded == nil {
			if _, err := c.dst.WriteAt(t.buf[r.Off:r.End()], t.off+r.Off); err != nil {
				return n, err
			}
			n += r.Len
			continue
		}
		for off := r.Off; off < r.End(); off += c.granule {
			if err := c.encoded.WriteEncoded(t.off+off, t.enc[start:t.ends[k]]); err != nil {
				return n, err
			}
			start, k = t.ends[k], k+1
		}
		n += r.Len
	}
	return n, nil
}

// readFull fills p from off.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read of %d bytes at %d: %w", len(p), off, err)
}

var zeroPage [64 << 10]byte

// isZero reports whether b is all zeros. bytes.Equal compares with vector
// instructions; the first test spares it most data.
func isZero(b []byte) bool {
	if len(b) > 0 && (b[0] != 0 || b[len(b)/2] != 0 || b[len(b)-1] != 0) {
		return false
	}
	for len(b) > len(zeroPage) {
		if !bytes.Equal(b[:len(zeroPage)], zeroPage[:]) {
			return false
		}
		b = b[len(zeroPage):]
	}
	return bytes.Equal(b, zeroPage[:len(b)])
}
