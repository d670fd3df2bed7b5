package qcow2

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"imgmaint/formats"
)

// Options say how to open an image. Nil is the zero value.
type Options struct {
	// Resolve opens the backing file and the external data file. Without it
	// an image that has one is refused.
	Resolve formats.Resolver
	// Snapshot is the id or else the name of an internal snapshot to read in
	// place of the active disk.
	Snapshot string
	// LayerOnly opens the image without its backing file: what it does not
	// hold reads as zeros.
	LayerOnly bool
}

// An Image is a disk in a qcow2 file: the active one or that of a snapshot.
// Its methods are safe for concurrent use, and its memory does not grow with
// the disk but by the L1 table: 8 bytes for each 512 MiB at 64 KiB clusters.
type Image struct {
	*layout
	size     int64
	l1       []uint64
	data     io.ReaderAt // holds the data clusters
	dataSize int64
	external bool // data is an external data file
	below    formats.Image
	tables   []region // no L2 table may lie here
	meta     []region // no data cluster may lie here

	sliceBits uint32 // logarithm of l2SliceBytes, or of the cluster size
	slices    []atomic.Pointer[l2Slice]
	inflate   inflater
}

var (
	_ formats.Image     = (*Image)(nil)
	_ formats.Layered   = (*Image)(nil)
	_ formats.Describer = (*Image)(nil)
	_ formats.Checker   = (*Image)(nil)
)

// Open opens the image of size bytes in r. Images that are encrypted, have
// features that are not known, or need a file that opts gives no way to open
// are errors.ErrUnsupported. Images marked dirty are read as they are, since
// reading needs no refcounts; images marked corrupt too, as QEMU does; Info
// lists both.
func Open(r io.ReaderAt, size int64, opts *Options) (*Image, error) {
	if opts == nil {
		opts = new(Options)
	}
	l, err := parse(r, size)
	if err != nil {
		return nil, err
	}
	if err := l.readable(); err != nil {
		return nil, err
	}
	m := &Image{layout: l, size: int64(l.size), data: r, dataSize: size, tables: l.regions()}
	l1Off, l1Size := l.l1Off, l.l1Size
	if opts.Snapshot != "" {
		s, err := l.find(opts.Snapshot)
		if err != nil {
			return nil, err
		}
		if err := s.validate(l); err != nil {
			return nil, err
		}
		m.size, l1Off, l1Size = int64(s.diskSize), s.l1Off, s.l1Size
		m.tables = append(m.tables, region{int64(s.l1Off), 8 * int64(s.l1Size), "snapshot's L1 table"})
	}
	// What lies after the end of the disk is the state of a machine.
	if err := m.readL1(int64(l1Off), int64(min(uint64(l1Size), l.l1Needed(uint64(m.size))))); err != nil {
		return nil, err
	}
	m.meta = m.tables
	m.sliceBits = min(l.clusterBits, log2(l2SliceBytes))
	m.slices = make([]atomic.Pointer[l2Slice], l2CacheBytes>>m.sliceBits)
	m.inflate.init(l.clusterSize, l.compression)
	if err := m.resolve(opts); err != nil {
		return nil, err
	}
	return m, nil
}

func log2(n int) uint32 {
	var b uint32
	for ; n > 1; n >>= 1 {
		b++
	}
	return b
}

// readL1 reads the first n entries of the L1 table at off.
func (m *Image) readL1(off, n int64) error {
	m.l1 = make([]uint64, n)
	var buf [4096]byte
	for i := int64(0); i < n; {
		b := buf[:min(int64(len(buf)), 8*(n-i))]
		if err := m.f.ReadFull(b, off+8*i, "L1 table"); err != nil {
			return err
		}
		for ; len(b) > 0; b = b[8:] {
			m.l1[i] = be.Uint64(b) & offsetMask
			i++
		}
	}
	return nil
}

// resolve opens what the image refers to.
func (m *Image) resolve(opts *Options) error {
	open := func(ref formats.Reference, pos int64, field string) (formats.Image, error) {
		if opts.Resolve == nil {
			return nil, formats.Unsupported(Name, pos, field, "needs %q, and no other files may be opened", ref.Name)
		}
		img, err := opts.Resolve(ref)
		if err == nil && img == nil {
			err = formats.Unsupported(Name, pos, field, "%q was not resolved", ref.Name)
		}
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", field, ref.Name, err)
		}
		return img, nil
	}
	if m.incompatible&incompatDataFile != 0 {
		if m.dataFile.Name == "" {
			return formats.Unsupported(Name, hdrIncompatible, "external data file", "the image does not name it")
		}
		img, err := open(m.dataFile, hdrIncompatible, "external data file")
		if err != nil {
			return err
		}
		m.data, m.dataSize, m.external, m.meta = img, img.Size(), true, nil
	}
	if m.backing.Name != "" && !opts.LayerOnly {
		img, err := open(m.backing, hdrBackingOff, "backing file")
		if err != nil {
			return err
		}
		m.below = img
	}
	return nil
}

// Size is the size of the disk in bytes.
func (m *Image) Size() int64 { return m.size }

// Backing is the image below, or nil.
func (m *Image) Backing() formats.Image { return m.below }

// ReadAt implements io.ReaderAt. Clusters that follow each other in the file
// are read at once.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("qcow2: read at negative offset %d", off)
	}
	if off >= m.size {
		return 0, io.EOF
	}
	var atEnd error
	if int64(len(p)) > m.size-off {
		p, atEnd = p[:m.size-off], io.EOF
	}
	done := 0
	for done < len(p) {
		q := p[done:]
		run, err := m.walk(off, int64(len(q)), true)
		if err != nil {
			return done, err
		}
		q = q[:run.n]
		switch run.kind {
		case runData:
			err = m.readData(q, run.host)
		case runCompressed:
			err = m.readCompressed(q, run.host, run.csize, off&(m.clusterSize-1))
		case runHole:
			err = m.readBelow(q, off)
		default:
			clear(q)
		}
		if err != nil {
			return done, err
		}
		done += len(q)
		off += int64(len(q))
	}
	return done, atEnd
}

// readData reads data clusters that follow each other in the file. A file may
// end within the last of them: what is missing reads as zeros, as QEMU has
// it, whose own files end like that. walk made sure that each cluster begins
// within the file.
func (m *Image) readData(p []byte, host int64) error {
	if have := m.dataSize - host; int64(len(p)) > have {
		have = max(have, 0)
		clear(p[have:])
		p = p[:have]
	}
	if len(p) == 0 {
		return nil
	}
	n, err := m.data.ReadAt(p, host)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return corrupt(host+int64(n), "data cluster", "the file ended while it was read")
	}
	return formats.At(Name, host, "data cluster", err)
}

// readBelow reads from the backing image, which may be shorter.
func (m *Image) readBelow(p []byte, off int64) error {
	n := 0
	if m.below != nil && off < m.below.Size() {
		want := int(min(int64(len(p)), m.below.Size()-off))
		var err error
		n, err = m.below.ReadAt(p[:want], off)
		if n < want {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("backing file %q: %w", m.backing.Name, err)
		}
	}
	clear(p[n:])
	return nil
}

// ExtentAt implements formats.Image for the chain.
func (m *Image) ExtentAt(off int64) (formats.Extent, error) {
	e, err := m.LayerExtentAt(off)
	if err != nil || e.Kind != formats.Hole || m.below == nil || off >= m.below.Size() {
		return e, err
	}
	b, err := m.below.ExtentAt(off)
	if err != nil {
		return formats.Extent{}, fmt.Errorf("backing file %q: %w", m.backing.Name, err)
	}
	e.Kind = b.Kind
	e.Len = min(e.Len, b.Len)
	return e, nil
}

// LayerExtentAt implements formats.Layered. Compressed clusters are Data.
func (m *Image) LayerExtentAt(off int64) (formats.Extent, error) {
	if off < 0 || off >= m.size {
		return formats.Extent{}, io.EOF
	}
	run, err := m.walk(off, m.size-off, false)
	if err != nil {
		return formats.Extent{}, err
	}
	e := formats.Extent{Off: off, Len: run.n, Kind: formats.Data}
	switch run.kind {
	case runHole:
		e.Kind = formats.Hole
	case runZero:
		e.Kind = formats.Zero
	}
	return e, nil
}
