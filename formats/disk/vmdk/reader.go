package vmdk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zlib"

	"imgmaint/formats"
)

// Options tune Open. The zero value is ready to use.
type Options struct {
	// Resolve opens the parent of a disk that has one. Without it such a
	// disk is refused as unsupported. The Reference has the parent's CID, in
	// hexadecimal, as ID.
	Resolve formats.Resolver
}

// An Image is a VMDK opened for reading.
type Image struct {
	*layout
	gd     []uint32 // sector of each grain table, 0 for none
	tabs   [tableSlots]atomic.Pointer[table]
	grains [grainSlots]atomic.Pointer[grain]
	pool   sync.Pool // of *inflater
	parent formats.Image
}

var (
	_ formats.Image     = (*Image)(nil)
	_ formats.Layered   = (*Image)(nil)
	_ formats.Describer = (*Image)(nil)
	_ formats.Checker   = (*Image)(nil)
)

const (
	// tableSlots is how many grain tables are kept: 512 KiB, for 8 GiB of
	// disk with grains of 64 KiB.
	tableSlots = 256
	// grainSlots is how many inflated grains are kept for reads of parts.
	grainSlots = 16
)

// Open opens the VMDK of size bytes in r.
func Open(r io.ReaderAt, size int64, opts *Options) (*Image, error) {
	if opts == nil {
		opts = new(Options)
	}
	l, err := parse(r, size)
	if err != nil {
		return nil, err
	}
	m := &Image{layout: l}
	if err := m.chooseDirectory(); err != nil {
		return nil, err
	}
	if l.hasParent() {
		if err := m.openParent(opts.Resolve); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Describe returns what the file says about itself. It opens no parent.
func Describe(r io.ReaderAt, size int64) (formats.Info, error) {
	l, err := parse(r, size)
	if err != nil {
		return formats.Info{}, err
	}
	return l.Info(), nil
}

// chooseDirectory reads the grain directory, or the redundant one where that
// is damaged.
func (m *Image) chooseDirectory() error {
	var err error
	if m.gd, err = m.readDirectory(m.head.gdOffset, "gdOffset", offGD); err == nil {
		return nil
	}
	if !errors.Is(err, formats.ErrCorrupt) || m.head.flags&flagRedundant == 0 {
		return err
	}
	gd, err2 := m.readDirectory(m.head.rgdOffset, "rgdOffset", offRGD)
	if err2 != nil {
		return err
	}
	m.gd = gd
	m.problem(offGD, "gdOffset", "%v: the redundant grain directory is used", err)
	return nil
}

func (m *Image) openParent(resolve formats.Resolver) error {
	ref := m.reference()
	if resolve == nil {
		return formats.Unsupported(Name, m.descOff, "parentFileNameHint", "a disk over %q, which is not opened without leave", ref.Name)
	}
	if m.desc.parentCID == m.desc.cid {
		return corrupt(m.descOff, "parentCID", "%s is the disk's own", ref.ID)
	}
	parent, err := resolve(ref)
	if err != nil {
		return formats.At(Name, m.descOff, "parentFileNameHint", fmt.Errorf("%q: %w", ref.Name, err))
	}
	if parent == nil {
		return formats.Unsupported(Name, m.descOff, "parentFileNameHint", "%q was not resolved", ref.Name)
	}
	if p, ok := parent.(*Image); ok && p.desc.cid != m.desc.parentCID {
		return corrupt(m.descOff, "parentCID", "%s, but %q has %08x", ref.ID, ref.Name, p.desc.cid)
	}
	m.parent = parent
	return nil
}

// CID is the content id, which a child has as its parentCID.
func (m *Image) CID() uint32 { return m.desc.cid }

// Size is the virtual size in bytes, a multiple of 512.
func (m *Image) Size() int64 { return m.size }

// Backing is the parent, or nil.
func (m *Image) Backing() formats.Image { return m.parent }

// A table is a grain table.
type table struct {
	index   int64
	entries [gtEntries]uint32
}

// table returns the grain table of an index whose directory entry is not 0.
func (m *Image) table(index int64) (*table, error) {
	slot := &m.tabs[index%tableSlots]
	if t := slot.Load(); t != nil && t.index == index {
		return t, nil
	}
	t := &table{index: index}
	var b [gtSize]byte
	off := int64(m.gd[index]) * sectorSize
	if err := m.f.ReadFull(b[:], off, "grain table"); err != nil {
		return nil, err
	}
	for i := range t.entries {
		n := index*gtEntries + int64(i)
		if n*m.grain >= m.size {
			break // what follows the end of the disk says nothing
		}
		e := le.Uint32(b[4*i:])
		if msg := m.checkEntry(e, n); msg != "" {
			return nil, corrupt(off+4*int64(i), fmt.Sprintf("grain table entry %d", n), "%s", msg)
		}
		t.entries[i] = e
	}
	slot.Store(t)
	return t, nil
}

// entry returns the table entry of grain n.
func (m *Image) entry(n int64) (uint32, error) {
	if m.gd[n/gtEntries] == 0 {
		return entryHole, nil
	}
	t, err := m.table(n / gtEntries)
	if err != nil {
		return 0, err
	}
	return t.entries[n%gtEntries], nil
}

// ReadAt implements io.ReaderAt.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("vmdk: read at negative offset %d", off)
	}
	if off >= m.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > m.size-off {
		p, eof = p[:m.size-off], io.EOF
	}
	var inf *inflater
	defer func() {
		if inf != nil {
			m.pool.Put(inf)
		}
	}()
	for n := 0; n < len(p); {
		at := off + int64(n)
		g, in := at/m.grain, at%m.grain
		q := p[n:min(int64(len(p)), int64(n)+m.grain-in)]
		e, err := m.entry(g)
		switch {
		case err != nil:
		case e == entryHole:
			err = m.readBelow(q, at)
		case e == entryZero:
			clear(q)
		case !m.compressed:
			err = m.f.ReadFull(q, int64(e)*sectorSize+in, "grain")
		default:
			if inf == nil {
				inf, _ = m.pool.Get().(*inflater)
				if inf == nil {
					inf = new(inflater)
				}
			}
			err = m.readCompressed(inf, q, g, in, e)
		}
		if err != nil {
			return n, err
		}
		n += len(q)
	}
	return len(p), eof
}

// readBelow reads what this file does not hold: the parent, or zeros.
func (m *Image) readBelow(p []byte, off int64) error {
	n := 0
	if m.parent != nil {
		n = int(max(0, min(int64(len(p)), m.parent.Size()-off)))
		k, err := m.parent.ReadAt(p[:n], off)
		if k < n {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	clear(p[n:])
	return nil
}

// grainLen is how much of grain g is disk.
func (m *Image) grainLen(g int64) int64 { return min(m.grain, m.size-g*m.grain) }

// A grain is an inflated one, kept for the next read of a part of it.
type grain struct {
	index int64
	b     []byte
}

// readCompressed fills p from byte in of grain g at sector e.
func (m *Image) readCompressed(inf *inflater, p []byte, g, in int64, e uint32) error {
	if in == 0 && int64(len(p)) == m.grain {
		return m.inflate(inf, p, g, e)
	}
	slot := &m.grains[g%grainSlots]
	c := slot.Load()
	if c == nil || c.index != g {
		c = &grain{g, make([]byte, m.grain)}
		if err := m.inflate(inf, c.b, g, e); err != nil {
			return err
		}
		slot.Store(c)
	}
	copy(p, c.b[in:])
	return nil
}

// An inflater holds what inflating needs, to be used again.
type inflater struct {
	in  []byte
	src bytes.Reader
	z   io.ReadCloser // and zlib.Resetter
}

// maxStored is the most a grain can be stored in: deflate adds 5 bytes to
// each 64 KiB of what does not compress, bad encoders some more.
func (l *layout) maxStored() int64 { return l.grain + l.grain/8 + 1024 }

// inflate fills p, of the length of a grain, from the grain g at sector e.
// The stream must have a whole grain, or what is left of the disk.
func (m *Image) inflate(inf *inflater, p []byte, g int64, e uint32) error {
	off := int64(e) * sectorSize
	head, size, err := m.grainHeader(off, g)
	if err != nil {
		return err
	}
	if int64(cap(inf.in)) < size {
		inf.in = make([]byte, m.maxStored())
	}
	in := inf.in[:size]
	if err := m.f.ReadFull(in, off+head, "compressed grain"); err != nil {
		return err
	}
	inf.src.Reset(in)
	if inf.z == nil {
		inf.z, err = zlib.NewReader(&inf.src)
	} else {
		err = inf.z.(zlib.Resetter).Reset(&inf.src, nil)
	}
	if err != nil {
		return corrupt(off+head, "compressed grain", "%v", err)
	}
	n, err := io.ReadFull(inf.z, p)
	if err == nil {
		// The end of the stream holds the checksum; and a byte more than a
		// grain is one too many.
		var one [1]byte
		if k, end := inf.z.Read(one[:]); k > 0 {
			return corrupt(off+head, "compressed grain", "inflates to more than %d bytes", len(p))
		} else if end != io.EOF {
			return corrupt(off+head, "compressed grain", "%v", end)
		}
	}
	switch {
	case err == nil:
		return nil
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) && inf.atEnd():
		if int64(n) == m.grainLen(g) {
			clear(p[n:])
			return nil
		}
		return corrupt(off+head, "compressed grain", "inflates to %d bytes, want %d", n, len(p))
	}
	return corrupt(off+head, "compressed grain", "%v", err)
}

// atEnd reports whether the stream ended by itself and not for want of input.
func (inf *inflater) atEnd() bool {
	var one [1]byte
	_, err := inf.z.Read(one[:])
	return err == io.EOF
}

// grainHeader reads what stands before the compressed bytes of grain g at off
// and returns its length and theirs.
func (l *layout) grainHeader(off, g int64) (head, size int64, err error) {
	var b [grainHead]byte
	head = grainHead
	if !l.markers { // only the size, as qemu and open-vmdk read it
		head = 4
	}
	if err := l.f.ReadFull(b[:head], off, "grain marker"); err != nil {
		return 0, 0, err
	}
	if l.markers {
		if lba := le.Uint64(b[:]); lba != uint64(g)*l.head.grainSize {
			return 0, 0, corrupt(off, "lba", "%d, want %d", lba, uint64(g)*l.head.grainSize)
		}
	}
	size = int64(le.Uint32(b[head-4:]))
	switch {
	case size == 0 || size > l.maxStored():
		return 0, 0, corrupt(off+head-4, "size", "%d bytes of a compressed grain of %d", size, l.grain)
	case size > l.f.Size-off-head:
		return 0, 0, corrupt(off+head-4, "size", "%d bytes, the file ends at %d", size, l.f.Size)
	}
	return head, size, nil
}

// ExtentAt implements formats.Image.
func (m *Image) ExtentAt(off int64) (formats.Extent, error) {
	e, err := m.LayerExtentAt(off)
	if err != nil || e.Kind != formats.Hole || m.parent == nil || off >= m.parent.Size() {
		return e, err
	}
	below, err := m.parent.ExtentAt(off)
	if err != nil {
		return formats.Extent{}, err
	}
	below.Len = min(below.Len, e.Len)
	return below, nil
}

// LayerExtentAt implements formats.Layered: a hole is what this file does not
// hold.
func (m *Image) LayerExtentAt(off int64) (formats.Extent, error) {
	if off < 0 || off >= m.size {
		return formats.Extent{}, io.EOF
	}
	g := off / m.grain
	kind, next, err := m.kind(g)
	if err != nil {
		return formats.Extent{}, err
	}
	// Within one table, and over all the tables that are missing.
	for next*m.grain < m.size && (next%gtEntries != 0 || kind == formats.Hole && m.gd[next/gtEntries] == 0) {
		k, after, err := m.kind(next)
		if err != nil {
			return formats.Extent{}, err
		}
		if k != kind {
			break
		}
		next = after
	}
	return formats.Extent{Off: off, Len: min(next*m.grain, m.size) - off, Kind: kind}, nil
}

// kind returns what grain g is and the first grain that may be something else.
func (m *Image) kind(g int64) (formats.Kind, int64, error) {
	if m.gd[g/gtEntries] == 0 {
		return formats.Hole, (g/gtEntries + 1) * gtEntries, nil
	}
	e, err := m.entry(g)
	switch {
	case err != nil:
		return 0, 0, err
	case e == entryHole:
		return formats.Hole, g + 1, nil
	case e == entryZero:
		return formats.Zero, g + 1, nil
	}
	return formats.Data, g + 1, nil
}
