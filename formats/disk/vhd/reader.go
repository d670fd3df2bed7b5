package vhd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync/atomic"
	"syscall"

	"imgmaint/formats"
)

// Options tune Open. The zero value is ready to use.
type Options struct {
	// Resolve opens the parent of a differencing disk. Without it a
	// differencing disk is refused as unsupported. The Reference has the
	// parent's unique id as ID and the best of its names, the relative one
	// with slashes where there is one.
	Resolve formats.Resolver
	// ForceSize overrides the choice between the two sizes of the footer:
	// "chs" takes the geometry, "current" takes current_size, "" chooses by
	// the creator. The largest geometry always means current_size.
	ForceSize string
}

// An Image is a VHD opened for reading.
type Image struct {
	*layout
	bat    []uint32 // sector of each block, or unusedEntry; nil for a fixed disk
	maps   [mapSlots]atomic.Pointer[sectorMap]
	parent formats.Image
	seek   io.Seeker // of a fixed disk in a file that knows its holes
}

var (
	_ formats.Image     = (*Image)(nil)
	_ formats.Layered   = (*Image)(nil)
	_ formats.Describer = (*Image)(nil)
	_ formats.Checker   = (*Image)(nil)
)

// mapSlots is how many sector bitmaps are kept: 32 KiB with blocks of 2 MiB.
const mapSlots = 64

// Whence values of lseek(2), as Linux, FreeBSD and illumos number them.
const (
	seekData = 3
	seekHole = 4
)

// Sniff reports whether the file is a VHD by its cookie: at the start, or in
// the last 512 or 511 bytes. head is the start of the file.
func Sniff(head []byte, r io.ReaderAt, size int64) bool {
	if bytes.HasPrefix(head, []byte(footerCookie)) {
		return true
	}
	for _, n := range []int64{footerSize, oldFooterSize} {
		var b [len(footerCookie)]byte
		if size < n {
			continue
		}
		if _, err := r.ReadAt(b[:], size-n); err == nil && string(b[:]) == footerCookie {
			return true
		}
	}
	return false
}

// Open opens the VHD of size bytes in r.
func Open(r io.ReaderAt, size int64, opts *Options) (*Image, error) {
	if opts == nil {
		opts = new(Options)
	}
	l, err := parse(r, size, opts.ForceSize)
	if err != nil {
		return nil, err
	}
	m := &Image{layout: l}
	if l.foot.diskType == typeFixed {
		// A file system that does not know the call answers EINVAL.
		if s, ok := r.(io.Seeker); ok && l.size > 0 {
			if _, err := s.Seek(0, seekHole); err == nil {
				m.seek = s
			}
		}
		return m, nil
	}
	if err := m.readBAT(); err != nil {
		return nil, err
	}
	if l.foot.diskType == typeDifferencing {
		if err := m.openParent(opts.Resolve); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Describe returns what the file says about itself. It opens no parent.
func Describe(r io.ReaderAt, size int64) (formats.Info, error) {
	l, err := parse(r, size, "")
	if err != nil {
		return formats.Info{}, err
	}
	return l.Info(), nil
}

// readBAT reads and validates the entries of the blocks of the disk. Entries
// after them are of no use to a reader.
func (m *Image) readBAT() error {
	m.bat = make([]uint32, m.blocks())
	for i := range m.bat {
		m.bat[i] = unusedEntry
	}
	meta := m.metaRegions()
	return m.eachEntry(int64(len(m.bat)), func(i int64, e uint32) error {
		m.bat[i] = e
		if msg := m.checkEntry(e, meta); msg != "" {
			return corrupt(int64(m.head.tableOffset)+4*i, fmt.Sprintf("BAT entry %d", i), "%s", msg)
		}
		return nil
	})
}

func (m *Image) openParent(resolve formats.Resolver) error {
	at := int64(m.foot.dataOffset)
	ref := m.reference()
	if resolve == nil {
		return formats.Unsupported(Name, at+headParentName, "parent", "a differencing disk of %q, which is not opened without leave", ref.Name)
	}
	parent, err := resolve(ref)
	if err != nil {
		return formats.At(Name, at+headParentName, "parent", fmt.Errorf("%q: %w", ref.Name, err))
	}
	if parent == nil {
		return formats.Unsupported(Name, at+headParentName, "parent", "%q was not resolved", ref.Name)
	}
	if p, ok := parent.(*Image); ok && p.foot.uniqueID != m.head.parentID {
		return corrupt(at+headParentID, "parent_unique_id", "%s, but %q is %s", ref.ID, ref.Name, formatID(p.foot.uniqueID))
	}
	m.parent = parent
	return nil
}

// UniqueID identifies the disk; a differencing child has it as its parent's.
func (m *Image) UniqueID() [16]byte { return m.foot.uniqueID }

// Size is the virtual size in bytes.
func (m *Image) Size() int64 { return m.size }

// Backing is the parent of a differencing disk, else nil.
func (m *Image) Backing() formats.Image { return m.parent }

// ReadAt implements io.ReaderAt.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("vhd: read at negative offset %d", off)
	}
	if off >= m.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > m.size-off {
		p, eof = p[:m.size-off], io.EOF
	}
	if m.bat == nil {
		if err := m.f.ReadFull(p, off, "data"); err != nil {
			return 0, err
		}
		return len(p), eof
	}
	for n := 0; n < len(p); {
		from, to, present, err := m.run(off+int64(n), off+int64(len(p)))
		if err != nil {
			return n, err
		}
		q := p[n : n+int(to-from)]
		if present {
			err = m.f.ReadFull(q, m.fileOffset(from), "data block")
		} else {
			err = m.readBelow(q, from)
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

// fileOffset is where the byte off of the disk lies; its block must be there.
func (m *Image) fileOffset(off int64) int64 {
	bs := int64(m.head.blockSize)
	return int64(m.bat[off/bs])*sectorSize + bitmapSize(bs) + off%bs
}

// run returns the longest run from off, within one block and before end, that
// this file holds or does not hold. Runs of absent blocks are joined.
func (m *Image) run(off, end int64) (from, to int64, present bool, err error) {
	bs := int64(m.head.blockSize)
	block := off / bs
	if m.bat[block] == unusedEntry {
		to := (block + 1) * bs
		for to < end && m.bat[to/bs] == unusedEntry {
			to += bs
		}
		return off, min(to, end), false, nil
	}
	end = min(end, (block+1)*bs)
	sm, err := m.sectorMap(block)
	if err != nil {
		return 0, 0, false, err
	}
	if sm.bits == nil {
		return off, end, sm.full, nil
	}
	set, last := sm.run((off-block*bs)/sectorSize, (end-block*bs+sectorSize-1)/sectorSize)
	return off, min(end, block*bs+last*sectorSize), set, nil
}

// A sectorMap is the bitmap of one block: a set bit is a sector whose data is
// in the block; the most significant bit comes first.
type sectorMap struct {
	block int64
	bits  []byte // nil when all the block's bits are equal to full
	full  bool
}

// run returns the kind of the sector at and the end of its run, at most end.
func (s *sectorMap) run(at, end int64) (set bool, last int64) {
	set = s.bits[at/8]&(0x80>>(at%8)) != 0
	for at < end {
		w := be.Uint64(s.bits[at/64*8:])
		if set {
			w = ^w
		}
		shift := at % 64
		n := int64(bits.LeadingZeros64(w << shift))
		if n < 64-shift {
			return set, min(at+n, end)
		}
		at += 64 - shift
	}
	return set, end
}

// sectorMap reads the bitmap of a block that is present, or takes it from the
// few that are kept.
func (m *Image) sectorMap(block int64) (*sectorMap, error) {
	slot := &m.maps[block%mapSlots]
	if s := slot.Load(); s != nil && s.block == block {
		return s, nil
	}
	bs := int64(m.head.blockSize)
	b, err := m.f.Bytes(int64(m.bat[block])*sectorSize, bitmapSize(bs), "sector bitmap", bitmapSize(maxBlockSize))
	if err != nil {
		return nil, err
	}
	s := &sectorMap{block: block, bits: b}
	if set, last := s.run(0, bs/sectorSize); last == bs/sectorSize {
		s.full, s.bits = set, nil
	}
	slot.Store(s)
	return s, nil
}

// ExtentAt implements formats.Image: what a differencing disk does not hold is
// as its parent says.
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

// LayerExtentAt implements formats.Layered: data is what this file holds.
func (m *Image) LayerExtentAt(off int64) (formats.Extent, error) {
	if off < 0 || off >= m.size {
		return formats.Extent{}, io.EOF
	}
	if m.bat == nil {
		return m.fixedExtent(off)
	}
	from, to, present, err := m.run(off, m.size)
	if err != nil {
		return formats.Extent{}, err
	}
	e := formats.Extent{Off: from, Len: to - from, Kind: formats.Hole}
	if present {
		e.Kind = formats.Data
	}
	return e, nil
}

// fixedExtent is the hole or the data at off of a fixed disk, by the holes of
// its file.
func (m *Image) fixedExtent(off int64) (formats.Extent, error) {
	e := formats.Extent{Off: off, Len: m.size - off, Kind: formats.Data}
	if m.seek == nil {
		return e, nil
	}
	data, err := m.seek.Seek(off, seekData)
	switch {
	case errors.Is(err, syscall.ENXIO): // the file ends before the footer
		return formats.Extent{}, corrupt(off, "data", "the file ended while it was read")
	case err != nil:
		return formats.Extent{}, formats.At(Name, off, "SEEK_DATA", err)
	case data > off:
		e.Kind = formats.Hole
		e.Len = min(e.Len, data-off)
		return e, nil
	}
	hole, err := m.seek.Seek(off, seekHole)
	if err != nil {
		return formats.Extent{}, formats.At(Name, off, "SEEK_HOLE", err)
	}
	if hole > off {
		e.Len = min(e.Len, hole-off)
	}
	return e, nil
}

// subformat names the disk type.
func (l *layout) subformat() string {
	switch l.foot.diskType {
	case typeFixed:
		return "fixed"
	case typeDynamic:
		return "dynamic"
	}
	return "differencing"
}

// Info implements formats.Describer.
func (l *layout) Info() formats.Info {
	f := &l.foot
	rule := "current_size"
	if l.byCHS {
		rule = "geometry"
	}
	info := formats.Info{
		Format:      Name,
		Subformat:   l.subformat(),
		VirtualSize: l.size,
		Properties: []formats.Property{
			{Name: "creator-application", Value: string(bytes.TrimRight(f.creatorApp[:], " \x00"))},
			{Name: "creator-version", Value: fmt.Sprintf("%d.%d", f.creatorVersion>>16, f.creatorVersion&0xffff)},
			{Name: "creator-host-os", Value: string(bytes.TrimRight(f.creatorOS[:], " \x00"))},
			{Name: "time-stamp", Value: stamp(f.timestamp).Format("2006-01-02T15:04:05Z")},
			{Name: "original-size", Value: int64(f.originalSize)},
			{Name: "current-size", Value: int64(f.currentSize)},
			{Name: "geometry", Value: fmt.Sprintf("%d/%d/%d", f.cylinders, f.heads, f.sectors)},
			{Name: "size-from", Value: rule},
			{Name: "unique-id", Value: formatID(f.uniqueID)},
			{Name: "saved-state", Value: f.savedState != 0},
		},
	}
	if f.diskType != typeFixed {
		info.ClusterSize = int64(l.head.blockSize)
	}
	if f.diskType == typeDifferencing {
		info.References = []formats.Reference{l.reference()}
		info.Properties = append(info.Properties,
			formats.Property{Name: "parent-time-stamp", Value: stamp(l.head.parentTimestamp).Format("2006-01-02T15:04:05Z")})
		for _, p := range l.parents {
			info.Properties = append(info.Properties, formats.Property{Name: "parent-" + p.code, Value: p.name})
		}
	}
	for _, p := range l.problems {
		info.Problems = append(info.Problems, fmt.Sprintf("%s at %#x: %s", p.Field, p.Off, p.Detail))
	}
	if f.savedState != 0 {
		info.Problems = append(info.Problems, "the virtual machine is in a saved state: the disk alone is not consistent")
	}
	return info
}
