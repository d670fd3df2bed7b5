package qcow2

import (
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"imgmaint/formats"
	"imgmaint/formats/internal/deflate"
)

const (
	// zlibWindow is the window of QEMU's decoder (windowBits -12).
	zlibWindow = 4096
	// defaultZlibLevel takes as much space as level 6 of zlib, which QEMU
	// uses, in half the time; measured on a root file system.
	defaultZlibLevel = 4
	// defaultZstdLevel is that of zstd itself.
	defaultZstdLevel = 3
	maxZstdLevel     = 22
	// outBytes is how much of the file a CompressedWriter writes at once.
	outBytes = 1 << 20
)

// A CompressedWriter writes an image of compressed clusters. Those that do
// not get smaller are stored as they are.
type CompressedWriter struct {
	*Writer
	level int

	packOff int64 // where the next compressed bytes may go; 0: nowhere
	out     []byte
	outOff  int64 // of out in the file
	enc     formats.Encoder
	buf     []byte
}

var _ formats.ClusterWriter = (*CompressedWriter)(nil)

// NewCompressedWriter is NewWriter for an image that is compressed by the
// method of opts.
func NewCompressedWriter(w io.WriterAt, size int64, opts *WriterOptions) (*CompressedWriter, error) {
	var o WriterOptions
	if opts != nil {
		o = *opts
	}
	most, level := deflate.MaxLevel, defaultZlibLevel
	switch o.Compression {
	case "":
		o.Compression = Zlib
	case Zlib:
	case Zstd:
		most, level = maxZstdLevel, defaultZstdLevel
		if o.Version == 2 {
			return nil, formats.Unsupported(Name, -1, "compression_type", "zstd in a version 2 image")
		}
	default:
		return nil, fmt.Errorf("qcow2: compression %q is not %s or %s", o.Compression, Zlib, Zstd)
	}
	if o.Level != 0 {
		level = o.Level
	}
	if level < 1 || level > most {
		return nil, fmt.Errorf("qcow2: level %d of %s is not from 1 to %d", level, o.Compression, most)
	}
	c := &CompressedWriter{level: level}
	var err error
	c.Writer, err = newWriter(w, size, &o)
	if err != nil {
		return nil, err
	}
	c.store = c.storeEncoded
	c.alloc.beforeMove = func() { c.packOff = 0 }
	c.enc = c.NewEncoder()
	return c, nil
}

// NewEncoder implements formats.ClusterWriter. An encoded cluster that is as
// long as a cluster is not compressed.
func (c *CompressedWriter) NewEncoder() formats.Encoder {
	if c.opts.Compression == Zstd {
		return &zstdEncoder{cluster: int(c.cluster), level: c.level}
	}
	return &zlibEncoder{cluster: int(c.cluster), level: c.level}
}

// pad completes the cluster at the end of a disk with zeros.
func pad(tail *[]byte, cluster []byte, size int) ([]byte, error) {
	switch {
	case len(cluster) == size:
		return cluster, nil
	case len(cluster) > size || len(cluster) == 0:
		return nil, fmt.Errorf("qcow2: encode: %d bytes are not a cluster of %d", len(cluster), size)
	}
	*tail = append((*tail)[:0], cluster...)
	*tail = append(*tail, make([]byte, size-len(cluster))...)
	return *tail, nil
}

// choose returns dst with the shorter of what an encoder appended to it and
// the cluster itself.
func choose(dst []byte, start int, cluster []byte) []byte {
	if len(dst)-start >= len(cluster) {
		dst = append(dst[:start], cluster...)
	}
	return dst
}

type zlibEncoder struct {
	cluster, level int
	e              *deflate.Encoder
	tail           []byte
}

func (z *zlibEncoder) Encode(dst, cluster []byte) ([]byte, error) {
	cluster, err := pad(&z.tail, cluster, z.cluster)
	if err != nil {
		return nil, err
	}
	if z.e == nil {
		if z.e, err = deflate.New(z.level, zlibWindow); err != nil {
			return nil, err
		}
	}
	return choose(z.e.Encode(dst, cluster), len(dst), cluster), nil
}

// maxZstdEffort is the highest level that is done as such: the tables of those
// above take 36 MiB an encoder, for 5 % less on a file system of programs.
const maxZstdEffort = 9

type zstdEncoder struct {
	cluster, level int
	e              *zstd.Encoder
	tail           []byte
}

func (z *zstdEncoder) Encode(dst, cluster []byte) ([]byte, error) {
	cluster, err := pad(&z.tail, cluster, z.cluster)
	if err != nil {
		return nil, err
	}
	if z.e == nil {
		z.e, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
			zstd.WithWindowSize(max(z.cluster, zstd.MinWindowSize)), zstd.WithLowerEncoderMem(true),
			zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(min(z.level, maxZstdEffort))))
		if err != nil {
			return nil, err
		}
	}
	return choose(z.e.EncodeAll(cluster, dst), len(dst), cluster), nil
}

// storeEncoded compresses and stores a whole cluster.
func (c *CompressedWriter) storeEncoded(cluster []byte) (uint64, error) {
	var err error
	if c.buf, err = c.enc.Encode(c.buf[:0], cluster); err != nil {
		return 0, err
	}
	return c.put(c.buf)
}

// WriteEncoded implements formats.ClusterWriter.
func (c *CompressedWriter) WriteEncoded(off int64, enc []byte) error {
	n := min(c.cluster, c.size-off)
	if err := c.begin(off, n); err != nil {
		return err
	}
	if off&(c.cluster-1) != 0 || n == 0 || len(enc) == 0 || int64(len(enc)) > c.cluster {
		return fmt.Errorf("qcow2: encoded cluster of %d bytes at %d", len(enc), off)
	}
	if err := c.flushPart(); err != nil {
		return c.fail(err)
	}
	e, err := c.put(enc)
	if err == nil {
		err = c.setEntry(off>>c.bits, e)
	}
	if err == nil {
		c.pos = off + n
	}
	return c.fail(err)
}

// put stores an encoded cluster and returns its L2 entry.
func (c *CompressedWriter) put(enc []byte) (uint64, error) {
	n := int64(len(enc))
	if n == c.cluster {
		at, err := c.alloc.take(1)
		if err != nil {
			return 0, err
		}
		return oflagCopied | uint64(at), c.append(at, enc)
	}
	at, err := c.pack(n)
	if err != nil {
		return 0, err
	}
	if err := c.append(at, enc); err != nil {
		return 0, err
	}
	sectors := uint64((at+n-1)>>9 - at>>9)
	shift := 62 - (c.bits - 8)
	return oflagCompressed | sectors<<shift | uint64(at), nil
}

// pack finds room for n compressed bytes, less than a cluster: after those
// before, in what is left of their cluster and the one after it if that is
// free, and in a new cluster otherwise.
func (c *CompressedWriter) pack(n int64) (int64, error) {
	if at := c.packOff; at != 0 {
		last := at >> c.bits // it has a byte left
		if left := (last+1)<<c.bits - at; n <= left {
			if c.alloc.share(last) {
				c.advance(at + n)
				return at, nil
			}
		} else if c.alloc.next == last+1 && c.alloc.share(last) {
			if _, err := c.alloc.take(1); err != nil {
				return 0, err
			}
			c.advance(at + n)
			return at, nil
		}
	}
	at, err := c.alloc.take(1)
	if err != nil {
		return 0, err
	}
	c.advance(at + n)
	return at, nil
}

// advance makes end the place for the next compressed bytes, unless its
// cluster is full or its refcount is written.
func (c *CompressedWriter) advance(end int64) {
	if c.packOff = end; end&(c.cluster-1) == 0 || end>>c.bits < c.alloc.base {
		c.packOff = 0
	}
}

// append puts b at off in the file, together with what was put before it.
func (c *CompressedWriter) append(off int64, b []byte) error {
	if c.out == nil {
		c.out = make([]byte, 0, outBytes+3*c.cluster)
	}
	end := c.outOff + int64(len(c.out))
	switch {
	case off >= c.outOff && off < end && len(c.out) > 0:
		// What is left of a cluster before others; it was filled with zeros.
		copy(c.out[off-c.outOff:], b)
		return nil
	case len(c.out) > 0 && off-end < c.cluster && off >= end:
		c.out = append(c.out, make([]byte, off-end)...)
	default:
		if err := c.flush(); err != nil {
			return err
		}
		c.outOff = off
	}
	c.out = append(c.out, b...)
	if len(c.out) >= outBytes {
		return c.flush()
	}
	return nil
}

func (c *CompressedWriter) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.Writer.out.WriteAt(c.out, c.outOff)
	c.out = c.out[:0]
	return err
}

// Close completes the file: it is valid only after Close returned nil.
func (c *CompressedWriter) Close() error { return c.close(c.flush) }
