package qcow2

import (
	"math/bits"
)

// The kinds of a run.
const (
	runHole = iota // not in this file
	runZero
	runData
	runCompressed
)

// A run is a part of the disk that is found in one way.
type run struct {
	kind  uint8
	n     int64 // bytes
	host  int64 // runData: offset of its first byte; runCompressed: of the cluster's compressed data
	csize int64 // runCompressed: bytes at host, up to the end of a sector
}

// An l2Slice is a part of an L2 table as it is in the file. It is never
// changed once it is in the cache.
type l2Slice struct {
	off int64 // in the file
	b   []byte
}

// slice returns the slice at off of the L2 table of L1 entry i; n is its
// number among all slices of the disk. Slices are cached by that number,
// without locks: whoever misses reads, and the last one to do so is kept.
func (m *Image) slice(off, n int64) ([]byte, error) {
	slot := &m.slices[uint64(n)%uint64(len(m.slices))]
	if s := slot.Load(); s != nil && s.off == off {
		return s.b, nil
	}
	s := &l2Slice{off: off, b: make([]byte, 1<<m.sliceBits)}
	if err := m.f.ReadFull(s.b, off, "L2 table"); err != nil {
		return nil, err
	}
	slot.Store(s)
	return s.b, nil
}

// l2Table returns the offset of the L2 table of L1 entry i, or 0.
func (m *Image) l2Table(i int64) (int64, error) {
	if i >= int64(len(m.l1)) { // only in snapshots
		return 0, nil
	}
	off := int64(m.l1[i])
	if off == 0 {
		return 0, nil
	}
	if off&(m.clusterSize-1) != 0 {
		return 0, corrupt(off, "L1 table entry", "entry %d: the L2 table is not on a cluster boundary", i)
	}
	if off > m.f.Size-m.clusterSize {
		return 0, corrupt(off, "L1 table entry", "entry %d: the L2 table is not within the file of %d bytes", i, m.f.Size)
	}
	for j := range m.tables {
		if m.tables[j].overlaps(off, m.clusterSize) {
			return 0, corrupt(off, "L1 table entry", "entry %d: the L2 table overlaps the %s", i, m.tables[j].name)
		}
	}
	return off, nil
}

// walk returns the run at off, at most limit bytes of it. When exact is set
// the run lies in one piece in the file, or is one compressed cluster; else
// runData stands for all that has data.
func (m *Image) walk(off, limit int64, exact bool) (run, error) {
	var (
		cb       = m.clusterBits
		tableLen = int64(1) << (cb + m.l2Bits()) // bytes of disk of an L2 table
		entry    = int64(1) << m.entryBits()
		extended = m.incompatible&incompatExtendedL2 != 0
		r        run
		end      = off + limit
		at       = off
		steps    = 0
	)
	for at < end && steps < maxWalk {
		table, err := m.l2Table(at / tableLen)
		if err != nil {
			return r.orError(err)
		}
		if table == 0 {
			next := min(at-at%tableLen+tableLen, end)
			if !r.extend(run{kind: runHole, n: next - at}, exact) {
				return r, nil
			}
			at = next
			steps++
			continue
		}
		// Byte offset of the entry in the table, and of its slice.
		pos := (at % tableLen) >> cb * entry
		start := pos &^ (1<<m.sliceBits - 1)
		number := (at/tableLen)<<(cb-m.sliceBits) + start>>m.sliceBits
		b, err := m.slice(table+start, number)
		if err != nil {
			return r.orError(err)
		}
		b = b[pos-start:]
		for len(b) > 0 && at < end {
			e := be.Uint64(b)
			var next run
			n := min(m.clusterSize-at&(m.clusterSize-1), end-at)
			if extended {
				next, err = m.subclusterRun(e, be.Uint64(b[8:]), at, n)
			} else {
				next, err = m.clusterRun(e, at, n)
			}
			if err != nil {
				return r.orError(err)
			}
			if !r.extend(next, exact) {
				return r, nil
			}
			at += next.n
			steps++
			if at&(m.clusterSize-1) == 0 {
				b = b[entry:]
			}
		}
	}
	return r, nil
}

// orError gives what was found before an error; the error comes back when the
// walk begins there.
func (r run) orError(err error) (run, error) {
	if r.n > 0 {
		return r, nil
	}
	return run{}, err
}

// extend adds next to r if it is more of the same.
func (r *run) extend(next run, exact bool) bool {
	if r.n == 0 {
		*r = next
		if !exact && r.kind == runCompressed {
			r.kind = runData
		}
		return true
	}
	if !exact {
		if next.kind == runCompressed {
			next.kind = runData
		}
		if r.kind != next.kind {
			return false
		}
		r.n += next.n
		return true
	}
	if r.kind != next.kind || r.kind == runCompressed || r.kind == runData && r.host+r.n != next.host {
		return false
	}
	r.n += next.n
	return true
}

// clusterRun explains a standard L2 entry, for n bytes of its cluster from
// the disk's offset at.
func (m *Image) clusterRun(e uint64, at, n int64) (run, error) {
	if e&oflagCompressed != 0 {
		return m.compressedRun(e, at, n)
	}
	if e&oflagZero != 0 {
		if m.version < 3 {
			return run{}, m.badEntry(at, e, "a zero cluster in a version 2 image")
		}
		return run{kind: runZero, n: n}, nil
	}
	host := int64(e & offsetMask)
	if host == 0 && !(m.external && e&oflagCopied != 0) {
		return run{kind: runHole, n: n}, nil
	}
	if err := m.checkData(e, host, at); err != nil {
		return run{}, err
	}
	return run{kind: runData, n: n, host: host + at&(m.clusterSize-1)}, nil
}

// subclusterRun explains an extended L2 entry: the run of subclusters of one
// kind from the disk's offset at, at most n bytes.
func (m *Image) subclusterRun(e, bitmap uint64, at, n int64) (run, error) {
	if e&oflagCompressed != 0 {
		return m.compressedRun(e, at, n)
	}
	alloc, zero := uint32(bitmap), uint32(bitmap>>32)
	if alloc&zero != 0 {
		return run{}, m.badEntry(at, e, "subclusters both allocated and zero")
	}
	host := int64(e & offsetMask)
	present := host != 0 || m.external && e&oflagCopied != 0
	if !present && alloc != 0 {
		return run{}, m.badEntry(at, e, "allocated subclusters without a cluster")
	}
	sub := m.clusterBits - 5 // logarithm of the size of a subcluster
	within := at & (m.clusterSize - 1)
	i := uint32(within >> sub)
	r := run{kind: runHole}
	same := ^(alloc | zero) // subclusters like that of at
	switch {
	case alloc>>i&1 != 0:
		if err := m.checkData(e, host, at); err != nil {
			return run{}, err
		}
		r.kind, r.host, same = runData, host+within, alloc
	case zero>>i&1 != 0:
		r.kind, same = runZero, zero
	}
	last := i + uint32(bits.TrailingZeros32(^(same >> i)))
	last = min(last, subclusters)
	r.n = min(n, int64(last)<<sub-within)
	return r, nil
}

// compressedRun explains an L2 entry of a compressed cluster (spec,
// "Compressed Clusters Descriptor").
func (m *Image) compressedRun(e uint64, at, n int64) (run, error) {
	if m.external {
		return run{}, m.badEntry(at, e, "a compressed cluster in an image with an external data file")
	}
	shift := 62 - (m.clusterBits - 8)
	host := int64(e & (1<<shift - 1))
	sectors := int64(e>>shift&(1<<(m.clusterBits-8)-1)) + 1
	csize := sectors*512 - host&511
	if host < m.clusterSize || host >= m.f.Size {
		return run{}, m.badEntry(at, e, "compressed data at %#x in a file of %d bytes", host, m.f.Size)
	}
	// The last sector is counted whole, and the file may end within it.
	if over := host + csize - m.f.Size; over > 0 {
		csize -= over
	}
	for _, r := range m.tables {
		if r.overlaps(host, csize) {
			return run{}, m.badEntry(at, e, "compressed data in the %s", r.name)
		}
	}
	return run{kind: runCompressed, n: n, host: host, csize: csize}, nil
}

// checkData checks where the data cluster of entry e is.
func (m *Image) checkData(e uint64, host, at int64) error {
	if host&(m.clusterSize-1) != 0 {
		return m.badEntry(at, e, "the data cluster is not on a cluster boundary")
	}
	if host >= m.dataSize {
		return m.badEntry(at, e, "the data cluster is after the end of the file of %d bytes", m.dataSize)
	}
	for i := range m.meta {
		if m.meta[i].overlaps(host, m.clusterSize) {
			return m.badEntry(at, e, "the data cluster overlaps the %s", m.meta[i].name)
		}
	}
	return nil
}

func (m *Image) badEntry(at int64, e uint64, msg string, args ...any) error {
	args = append([]any{at >> m.clusterBits, e}, args...)
	table, _ := m.l2Table(at >> (m.clusterBits + m.l2Bits()))
	pos := table + (at>>m.clusterBits)&(1<<m.l2Bits()-1)<<m.entryBits()
	return corrupt(pos, "L2 table entry", "cluster %d: %#x: "+msg, args...)
}
