package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"imgmaint/formats"
)

// An inflater decompresses clusters. Its buffers and decoders are used again;
// reads of parts of a cluster find it decompressed if it was so lately.
type inflater struct {
	clusterSize int64
	method      uint8
	decoders    sync.Pool // of *decoder
	kept        []inflated
}

// inflated is a cluster that was decompressed for a read of a part of it.
type inflated struct {
	mu   sync.Mutex
	host int64 // 0 when there is none: the header is there
	b    []byte
}

type decoder struct {
	in  []byte
	src bytes.Reader
	fl  io.ReadCloser
	zs  *zstd.Decoder
}

func (f *inflater) init(clusterSize int64, method uint8) {
	f.clusterSize, f.method = clusterSize, method
	f.decoders.New = func() any { return new(decoder) }
	f.kept = make([]inflated, min(max(inflatedBytes/clusterSize, 1), 64))
}

// readCompressed fills p from byte skip of the cluster whose compressed data
// are the csize bytes at host.
func (m *Image) readCompressed(p []byte, host, csize, skip int64) error {
	f := &m.inflate
	if int64(len(p)) == f.clusterSize {
		return m.decompress(p, host, csize)
	}
	k := &f.kept[uint64(host)*0x9e3779b97f4a7c15>>32%uint64(len(f.kept))]
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.host != host {
		if k.b == nil {
			k.b = make([]byte, f.clusterSize)
		}
		k.host = 0
		if err := m.decompress(k.b, host, csize); err != nil {
			return err
		}
		k.host = host
	}
	copy(p, k.b[skip:])
	return nil
}

// decompress fills dst, a whole cluster.
func (m *Image) decompress(dst []byte, host, csize int64) error {
	f := &m.inflate
	d := f.decoders.Get().(*decoder)
	defer f.decoders.Put(d)
	if int64(cap(d.in)) < csize {
		d.in = make([]byte, csize)
	}
	d.in = d.in[:csize]
	if err := m.f.ReadFull(d.in, host, "compressed cluster"); err != nil {
		return err
	}
	var err error
	if f.method == compressionZstd {
		err = d.zstd(dst)
	} else {
		err = d.deflate(dst)
	}
	if err != nil {
		return formats.At(Name, host, "compressed cluster", err)
	}
	return nil
}

// deflate decompresses raw deflate. What follows the cluster in the last
// sector belongs to others, and is not looked at.
func (d *decoder) deflate(dst []byte) (err error) {
	defer guard(&err)
	d.src.Reset(d.in)
	if d.fl == nil {
		d.fl = flate.NewReader(&d.src)
	} else if err := d.fl.(flate.Resetter).Reset(&d.src, nil); err != nil {
		return err
	}
	if n, err := io.ReadFull(d.fl, dst); err != nil {
		return fmt.Errorf("%w: deflate, %d of %d bytes: %w", formats.ErrCorrupt, n, len(dst), err)
	}
	return nil
}

// zstd decompresses the frames that make up a cluster (RFC 8878). Each is
// measured first, since what follows the last one belongs to others.
func (d *decoder) zstd(dst []byte) (err error) {
	defer guard(&err)
	if d.zs == nil {
		d.zs, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true),
			zstd.WithDecoderMaxMemory(maxZstdWindow), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return err
		}
	}
	in, out := d.in, dst[:0:len(dst)]
	for len(out) < len(dst) {
		n, err := frameSize(in)
		if err != nil {
			return err
		}
		out, err = d.zs.DecodeAll(in[:n], out)
		switch {
		case errors.Is(err, zstd.ErrDecoderSizeExceeded), errors.Is(err, zstd.ErrWindowSizeExceeded):
			return fmt.Errorf("%w: zstd: %w", formats.ErrLimit, err)
		case err != nil:
			return fmt.Errorf("%w: zstd: %w", formats.ErrCorrupt, err)
		}
		in = in[n:]
	}
	return nil
}

// frameSize is the size of the zstd frame that b starts with.
func frameSize(b []byte) (int, error) {
	short := fmt.Errorf("%w: zstd: the frame does not end in the cluster's sectors", formats.ErrCorrupt)
	var h zstd.Header
	if err := h.Decode(b); err != nil {
		return 0, fmt.Errorf("%w: zstd: %w", formats.ErrCorrupt, err)
	}
	if h.Skippable {
		if n := int64(8) + int64(h.SkippableSize); n <= int64(len(b)) {
			return int(n), nil
		}
		return 0, short
	}
	n := h.HeaderSize
	for last := false; !last; {
		if len(b)-n < 3 {
			return 0, short
		}
		block := int(b[n]) | int(b[n+1])<<8 | int(b[n+2])<<16
		last = block&1 != 0
		size := block >> 3
		if block>>1&3 == 1 { // RLE
			size = 1
		}
		n += 3
		if size > len(b)-n {
			return 0, short
		}
		n += size
	}
	if h.HasCheckSum {
		n += 4
	}
	if n > len(b) {
		return 0, short
	}
	return n, nil
}

// guard turns a panic of a decoder on hostile input into an error.
func guard(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("%w: decoder: %v", formats.ErrCorrupt, r)
	}
}
