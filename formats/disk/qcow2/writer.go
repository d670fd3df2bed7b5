package qcow2

import (
	"errors"
	"fmt"
	"io"

	"imgmaint/formats"
)

const (
	// DefaultClusterSize is QEMU's, too.
	DefaultClusterSize = 64 << 10
	// groupBytes is the least that L2 tables and refcount blocks are
	// allocated in, so that small clusters do not scatter them among the
	// data: the tables of a group follow each other.
	groupBytes = 64 << 10
	// refBits are the bits of a refcount: 16, the only width of version 2.
	refBits = 16
)

// Compression methods.
const (
	Zlib = "zlib"
	Zstd = "zstd"
)

// WriterOptions describe a new image. Nil is the zero value: version 3, with
// clusters of 64 KiB, without a backing file.
type WriterOptions struct {
	Version     int   // 2 or 3; 0 is 3
	ClusterSize int64 // bytes, a power of two from 512 to 2 MiB; 0 is 64 KiB

	// Backing makes an overlay: the name and the format of the image that is
	// read where nothing is written. The format must be given.
	Backing *formats.Reference
	// BackingImage is that image. It is needed only to complete clusters
	// that are written in part.
	BackingImage formats.Image

	// Compression is the method of a CompressedWriter, Zlib or Zstd; "" is
	// Zlib. Zstd needs version 3.
	Compression string
	// Level is 1 (fast) to 9 (small) for Zlib and 1 to 22 for Zstd, where 10
	// and above are done as 9 to keep memory small; 0 is a
	// default that takes about as much space as QEMU's.
	Level int
}

// A Writer writes an image whose clusters are stored as they are.
//
// The file is written in one pass: the L2 tables of a run of disk before its
// data, refcount blocks as they fill up, and at last the refcount table, the
// L1 table and the header. What a Writer keeps in memory is the L1 table, the
// refcount table and some clusters. The file must be empty: parts of it that
// are not needed are not written.
type Writer struct {
	out      io.WriterAt
	size     int64 // of the disk, as the caller gave it
	opts     WriterOptions
	bits     uint32
	cluster  int64
	pos      int64 // of the disk: writes may begin here
	err      error // sticky: what failed first
	closed   bool
	alloc    allocator
	l1       []uint64
	l1Off    int64
	group    l2Group
	part     []byte // a cluster that is written in part, or empty
	partAt   int64  // its offset on the disk
	zeroFill []byte // a cluster of zeros, for version 2

	// store puts one whole cluster into the file and returns its L2 entry.
	store func(cluster []byte) (uint64, error)
}

// l2Group are the L2 tables that are being filled.
type l2Group struct {
	index int64 // of the group; -1: none
	off   int64 // in the file
	b     []byte
}

var _ formats.Writer = (*Writer)(nil)

// NewWriter returns a writer of a disk of size bytes to w, an empty file. The
// disk in the file is a multiple of 512 bytes long, since QEMU does not see
// the rest of a longer one.
func NewWriter(w io.WriterAt, size int64, opts *WriterOptions) (*Writer, error) {
	if opts != nil && opts.Compression != "" {
		return nil, fmt.Errorf("qcow2: compression %q is for a CompressedWriter", opts.Compression)
	}
	return newWriter(w, size, opts)
}

func newWriter(out io.WriterAt, size int64, opts *WriterOptions) (*Writer, error) {
	w := &Writer{out: out, size: size}
	if opts != nil {
		w.opts = *opts
	}
	o := &w.opts
	if o.Version == 0 {
		o.Version = 3
	}
	if o.ClusterSize == 0 {
		o.ClusterSize = DefaultClusterSize
	}
	w.cluster, w.bits = o.ClusterSize, log2(int(max(o.ClusterSize, 0)))
	switch {
	case o.Version != 2 && o.Version != 3:
		return nil, fmt.Errorf("qcow2: version %d: %w", o.Version, errors.ErrUnsupported)
	case w.bits < minClusterBits || w.bits > maxClusterBits || w.cluster != 1<<w.bits:
		return nil, fmt.Errorf("qcow2: cluster size %d is not a power of two from %d to %d", w.cluster, 1<<minClusterBits, 1<<maxClusterBits)
	case size < 0:
		return nil, fmt.Errorf("qcow2: disk of %d bytes", size)
	}
	if b := o.Backing; b != nil {
		switch {
		case b.Name == "" || b.Format == "":
			return nil, fmt.Errorf("qcow2: backing file %q of format %q: both must be given", b.Name, b.Format)
		case len(b.Name) > maxBackingName || int64(len(w.header())) > w.cluster:
			return nil, formats.Limit(Name, -1, "backing file name", "%d bytes do not fit", len(b.Name))
		case len(b.Format) > maxFormatName:
			return nil, formats.Limit(Name, -1, "backing format name", "%q, at most %d bytes", b.Format, maxFormatName)
		}
	}
	l1 := int64(0)
	if size > 0 {
		l1 = (size-1)>>(2*w.bits-3) + 1
	}
	if l1 > maxL1Bytes/8 {
		return nil, formats.Limit(Name, -1, "l1_size", "a disk of %d bytes needs %d entries, at most %d", size, l1, maxL1Bytes/8)
	}
	w.l1 = make([]uint64, l1)
	w.group.index = -1
	w.alloc.init(w, w.bits)
	// The header is at the start, and the L1 table follows it. QEMU wants
	// one even for an empty disk.
	w.alloc.take(1)
	n := max(w.clusters(8*l1), 1)
	at, err := w.alloc.take(n)
	w.l1Off = at
	w.store = w.storePlain
	return w, err
}

// ClusterSize is the size of a cluster in bytes: writes of whole clusters at
// its multiples are passed on without a copy.
func (w *Writer) ClusterSize() int64 { return w.cluster }

// clusters is the number of clusters n bytes take.
func (w *Writer) clusters(n int64) int64 { return (n + w.cluster - 1) >> w.bits }

func (w *Writer) fail(err error) error {
	if err != nil && w.err == nil {
		w.err = err
	}
	return err
}

var errClosed = errors.New("qcow2: the writer is closed")

// begin checks a write of n bytes at off.
func (w *Writer) begin(off, n int64) error {
	switch {
	case w.err != nil:
		return w.err
	case w.closed:
		return errClosed
	case off < w.pos || n < 0 || n > w.size-off:
		return fmt.Errorf("qcow2: write of %d bytes at %d: written up to %d of %d", n, off, w.pos, w.size)
	}
	return nil
}

// WriteAt implements io.WriterAt. Offsets must ascend. Where a cluster is
// written in part the rest of it is zeros, or in an overlay what
// WriterOptions.BackingImage has; an overlay without that takes whole
// clusters only.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	if err := w.begin(off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		q, at := p[done:], off+int64(done)
		within := at & (w.cluster - 1)
		if within == 0 && int64(len(q)) >= w.cluster {
			n, err := w.writeClusters(q[:int64(len(q))&^(w.cluster-1)], at)
			if err != nil {
				return done, w.fail(err)
			}
			done += n
			w.pos = at + int64(n)
			continue
		}
		n := min(int64(len(q)), w.cluster-within)
		if err := w.writePart(q[:n], at); err != nil {
			return done, w.fail(err)
		}
		done += int(n)
		w.pos = at + n
	}
	return done, nil
}

// writeClusters writes the clusters p at off, or as many of them as one group
// of L2 tables covers, and returns their bytes.
func (w *Writer) writeClusters(p []byte, off int64) (int, error) {
	if err := w.flushPart(); err != nil {
		return 0, err
	}
	if w.opts.Compression != "" {
		e, err := w.store(p[:w.cluster])
		if err != nil {
			return 0, err
		}
		return int(w.cluster), w.setEntry(off>>w.bits, e)
	}
	first := off >> w.bits
	if err := w.openGroup(first); err != nil {
		return 0, err
	}
	covers := int64(len(w.group.b)) / 8
	n := min(int64(len(p))>>w.bits, covers-first%covers)
	at, err := w.alloc.take(n)
	if err != nil {
		return 0, err
	}
	p = p[:n<<w.bits]
	if _, err := w.out.WriteAt(p, at); err != nil {
		return 0, err
	}
	for i := range n {
		be.PutUint64(w.group.b[8*((first+i)%covers):], oflagCopied|uint64(at+i<<w.bits))
	}
	return len(p), nil
}

// storePlain stores a cluster as it is.
func (w *Writer) storePlain(cluster []byte) (uint64, error) {
	at, err := w.alloc.take(1)
	if err != nil {
		return 0, err
	}
	_, err = w.out.WriteAt(cluster, at)
	return oflagCopied | uint64(at), err
}

// writePart writes a part of one cluster.
func (w *Writer) writePart(p []byte, off int64) error {
	base := off &^ (w.cluster - 1)
	if len(w.part) > 0 && w.partAt != base {
		if err := w.flushPart(); err != nil {
			return err
		}
	}
	if len(w.part) == 0 {
		if err := w.openPart(base, off, int64(len(p))); err != nil {
			return err
		}
	}
	copy(w.part[off-base:], p)
	if end := off + int64(len(p)); end == base+w.cluster {
		return w.flushPart()
	}
	return nil
}

// openPart begins the cluster at base, of which n bytes at off come first.
func (w *Writer) openPart(base, off, n int64) error {
	if int64(cap(w.part)) < w.cluster {
		w.part = make([]byte, w.cluster)
	}
	w.part, w.partAt = w.part[:w.cluster], base
	clear(w.part)
	if w.opts.Backing == nil || off == base && n >= w.size-base {
		return nil
	}
	img := w.opts.BackingImage
	if img == nil {
		w.part = w.part[:0]
		return fmt.Errorf("qcow2: write of %d bytes at %d: an overlay takes whole clusters of %d bytes unless its backing image is given", n, off, w.cluster)
	}
	have := min(w.cluster, img.Size()-base, w.size-base)
	if have <= 0 {
		return nil
	}
	if k, err := img.ReadAt(w.part[:have], base); int64(k) < have {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("qcow2: backing image: %w", err)
	}
	return nil
}

// flushPart stores the cluster that was written in part.
func (w *Writer) flushPart() error {
	if len(w.part) == 0 {
		return nil
	}
	e, err := w.store(w.part)
	w.part = w.part[:0]
	if err != nil {
		return err
	}
	return w.setEntry(w.partAt>>w.bits, e)
}

// WriteZeros writes n zeros at off. Without a backing image whole clusters of
// them take no space; in an overlay they hide it: as zero clusters in version
// 3, as data in version 2.
func (w *Writer) WriteZeros(off, n int64) error {
	if err := w.begin(off, n); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	if w.zeroFill == nil {
		w.zeroFill = make([]byte, w.cluster)
	}
	for end := off + n; off < end; {
		within := off & (w.cluster - 1)
		if within == 0 && (end-off >= w.cluster || end == w.size) {
			if err := w.flushPart(); err != nil {
				return w.fail(err)
			}
			if w.opts.Backing == nil {
				if n = (end - off) &^ (w.cluster - 1); end == w.size {
					n = end - off
				}
			} else {
				if err := w.zeroCluster(off); err != nil {
					return w.fail(err)
				}
				n = min(w.cluster, end-off)
			}
		} else {
			n = min(end-off, w.cluster-within)
			if w.opts.Backing == nil && (len(w.part) == 0 || w.partAt != off-within) {
				// nothing there yet, and nothing is needed
			} else if err := w.writePart(w.zeroFill[:n], off); err != nil {
				return w.fail(err)
			}
		}
		off += n
		w.pos = off
	}
	return nil
}

// zeroCluster makes the cluster at off one of zeros.
func (w *Writer) zeroCluster(off int64) error {
	e := uint64(oflagZero)
	if w.opts.Version < 3 {
		var err error
		if e, err = w.store(w.zeroFill); err != nil {
			return err
		}
	}
	return w.setEntry(off>>w.bits, e)
}

// setEntry sets the L2 entry of a cluster of the disk.
func (w *Writer) setEntry(cluster int64, e uint64) error {
	if err := w.openGroup(cluster); err != nil {
		return err
	}
	be.PutUint64(w.group.b[8*(cluster%(int64(len(w.group.b))/8)):], e)
	return nil
}

// openGroup makes the L2 tables that have the entry of a cluster the current
// ones. They get their place in the file, and the ones before are written.
func (w *Writer) openGroup(cluster int64) error {
	g := &w.group
	if g.b == nil {
		g.b = make([]byte, max(groupBytes, w.cluster))
	}
	covers := int64(len(g.b)) / 8
	index := cluster / covers
	if g.index == index {
		return nil
	}
	if err := w.flushGroup(); err != nil {
		return err
	}
	perGroup := int64(len(g.b)) >> w.bits
	first := index * perGroup
	n := min(perGroup, int64(len(w.l1))-first)
	at, err := w.alloc.take(n)
	if err != nil {
		return err
	}
	for i := range n {
		w.l1[first+i] = oflagCopied | uint64(at+i<<w.bits)
	}
	clear(g.b)
	g.index, g.off = index, at
	return nil
}

func (w *Writer) flushGroup() error {
	g := &w.group
	if g.index < 0 {
		return nil
	}
	perGroup := int64(len(g.b)) >> w.bits
	n := min(perGroup, int64(len(w.l1))-g.index*perGroup)
	g.index = -1
	_, err := w.out.WriteAt(g.b[:n<<w.bits], g.off)
	return err
}

// Close completes the file: it is valid only after Close returned nil.
func (w *Writer) Close() error { return w.close(func() error { return nil }) }

// close completes the file; drain writes what a CompressedWriter holds back.
func (w *Writer) close(drain func() error) error {
	switch {
	case w.err != nil:
		return w.err
	case w.closed:
		return errClosed
	}
	w.closed = true
	steps := []func() error{w.flushPart, w.flushGroup, drain, w.alloc.finish, w.writeL1, w.writeHeader}
	for _, step := range steps {
		if err := step(); err != nil {
			return w.fail(err)
		}
	}
	return nil
}

func (w *Writer) writeL1() error {
	b := make([]byte, min(w.clusters(8*int64(len(w.l1)))<<w.bits, max(w.cluster, 1<<20)))
	if len(b) == 0 {
		b = make([]byte, w.cluster)
	}
	at := w.l1Off
	for rest := w.l1; ; {
		clear(b)
		n := min(len(rest), len(b)/8)
		for i, e := range rest[:n] {
			be.PutUint64(b[8*i:], e)
		}
		rest = rest[n:]
		out := b
		if len(rest) == 0 {
			out = b[:max(w.clusters(int64(8*n)), 1)<<w.bits]
		}
		if _, err := w.out.WriteAt(out, at); err != nil || len(rest) == 0 {
			return err
		}
		at += int64(len(out))
	}
}

// writeHeader writes the header at last, and nothing else with it: without a
// part of it the file is not an image.
func (w *Writer) writeHeader() error {
	_, err := w.out.WriteAt(w.header(), 0)
	return err
}

// header is the header with its extensions and the backing file name.
func (w *Writer) header() []byte {
	b := make([]byte, headerSizeV2, 512)
	copy(b, magic)
	be.PutUint32(b[hdrVersion:], uint32(w.opts.Version))
	be.PutUint32(b[hdrClusterBits:], w.bits)
	be.PutUint64(b[hdrSize:], uint64(w.size+511)&^511)
	be.PutUint32(b[hdrL1Size:], uint32(max(len(w.l1), 1)))
	be.PutUint64(b[hdrL1Off:], uint64(w.l1Off))
	be.PutUint64(b[hdrRefTableOff:], uint64(w.alloc.tableOff))
	be.PutUint32(b[hdrRefTableSize:], uint32(w.alloc.tableClusters))
	if w.opts.Version >= 3 {
		b = append(b, make([]byte, headerSizeCurrent-headerSizeV2)...)
		be.PutUint32(b[hdrRefcountOrder:], log2(refBits))
		be.PutUint32(b[hdrHeaderLength:], headerSizeCurrent)
		if w.opts.Compression == Zstd {
			be.PutUint64(b[hdrIncompatible:], incompatCompression)
			b[hdrCompression] = compressionZstd
		}
	}
	ext := func(kind uint32, data []byte) {
		b = be.AppendUint32(b, kind)
		b = be.AppendUint32(b, uint32(len(data)))
		b = append(b, data...)
		b = append(b, make([]byte, -len(data)&7)...)
	}
	if w.opts.Backing != nil {
		ext(extBackingFormat, []byte(w.opts.Backing.Format))
	}
	if w.opts.Compression == Zstd {
		// For programs that do not know the bit.
		name := make([]byte, 48)
		name[1] = byte(log2(incompatCompression))
		copy(name[2:], "compression type")
		ext(extFeatureNames, name)
	}
	ext(extEnd, nil)
	if w.opts.Backing != nil {
		be.PutUint64(b[hdrBackingOff:], uint64(len(b)))
		be.PutUint32(b[hdrBackingSize:], uint32(len(w.opts.Backing.Name)))
		b = append(b, w.opts.Backing.Name...)
	}
	return b
}
