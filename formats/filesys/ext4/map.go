package ext4

import (
	"math"

	"imgmaint/formats"
)

// A run is a piece of a file's map: n blocks from logical block lblk, at
// physical block pblk when kind is Data.
type run struct {
	lblk, n int64
	pblk    uint64
	kind    formats.Kind
}

// What a cached block was verified as; the inode number goes above it.
const (
	checkedExtents = iota + 1
	checkedDirLeaf
	checkedXattr
)

// mapRun returns the run of in that starts at block lblk. It is as long as
// one block of the map shows and merges what lies together on disk.
func (f *FS) mapRun(in *inode, lblk int64) (run, error) {
	r, err := f.mapDisk(in, lblk)
	if err == nil && f.fast != nil {
		r, err = f.fastRun(in.ino, r)
	}
	return r, err
}

func (f *FS) mapDisk(in *inode, lblk int64) (run, error) {
	if in.flags&flagExtents != 0 {
		return f.mapExtents(in, lblk)
	}
	return f.mapIndirect(in, lblk)
}

// maxSize is the largest size in bytes that the map of in can describe.
func (f *FS) maxSize(in *inode) int64 {
	if in.flags&flagExtents != 0 {
		return 1 << 32 << f.sb.blockBits
	}
	p := f.sb.blockSize / 4
	blocks := 12 + p + p*p + p*p*p
	if blocks > math.MaxInt64>>f.sb.blockBits {
		return math.MaxInt64
	}
	return blocks << f.sb.blockBits
}

// An extentNode is a verified node of an extent tree (ext4 doc, "Extent
// Tree"): a header of 12 bytes and entries of 12.
type extentNode struct {
	off     int64  // on disk
	data    []byte // entries only
	entries int
	depth   int
}

// key is ei_block or ee_block of entry i.
func (n *extentNode) key(i int) int64 { return int64(le.Uint32(n.data[12*i:])) }

// child is the block that index entry i points to: ei_leaf_lo, ei_leaf_hi.
func (n *extentNode) child(i int) uint64 {
	e := n.data[12*i:]
	return uint64(le.Uint32(e[4:])) | uint64(le.Uint16(e[8:]))<<32
}

// extent is leaf entry i: ee_block, ee_len, ee_start_hi, ee_start_lo. A
// length above 32768 marks an unwritten extent.
func (n *extentNode) extent(i int) run {
	e := n.data[12*i:]
	r := run{lblk: int64(le.Uint32(e)), n: int64(le.Uint16(e[4:])), kind: formats.Data}
	r.pblk = uint64(le.Uint32(e[8:])) | uint64(le.Uint16(e[6:]))<<32
	if r.n > maxExtentLen {
		r.n -= maxExtentLen
		r.kind = formats.Zero
	}
	return r
}

// search returns the last entry whose key is at most lblk, or -1.
func (n *extentNode) search(lblk int64) int {
	lo, hi := 0, n.entries
	for lo < hi {
		m := int(uint(lo+hi) / 2)
		if n.key(m) <= lblk {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo - 1
}

// parseExtentNode checks the header in b, which is read from off on disk.
func parseExtentNode(in *inode, b []byte, off int64) (extentNode, error) {
	n := extentNode{off: off, data: b[12:], entries: int(le.Uint16(b[2:])), depth: int(le.Uint16(b[6:]))}
	if m := le.Uint16(b); m != extentMagic {
		return n, formats.Corrupt(Name, off, "eh_magic", "%#x in inode %d", m, in.ino)
	}
	max := int(le.Uint16(b[4:]))
	if max > len(b)/12-1 || n.entries > max {
		return n, formats.Corrupt(Name, off+2, "eh_entries", "%d of %d in %d bytes in inode %d", n.entries, max, len(b), in.ino)
	}
	if n.depth > maxExtentDepth {
		return n, formats.Corrupt(Name, off+6, "eh_depth", "%d in inode %d", n.depth, in.ino)
	}
	return n, nil
}

// validate checks the entries of a node: ascending, within [lo, hi), apart,
// and pointing into the file system.
func (n *extentNode) validate(s *superblock, in *inode, lo, hi int64) error {
	prev := lo
	for i := range n.entries {
		at := n.off + 12 + 12*int64(i)
		k := n.key(i)
		if k < prev || k >= hi {
			return formats.Corrupt(Name, at, "ee_block", "%d outside [%d, %d) in inode %d", k, prev, hi, in.ino)
		}
		if n.depth > 0 {
			if b := n.child(i); b < uint64(s.firstDataBlock) || b >= s.blocksCount {
				return formats.Corrupt(Name, at+4, "ei_leaf", "block %d of %d in inode %d", b, s.blocksCount, in.ino)
			}
			prev = k + 1
			continue
		}
		e := n.extent(i)
		if e.n == 0 || e.lblk+e.n > hi {
			return formats.Corrupt(Name, at+4, "ee_len", "%d blocks at %d in inode %d", e.n, k, in.ino)
		}
		if e.pblk < uint64(s.firstDataBlock) || e.pblk >= s.blocksCount || uint64(e.n) > s.blocksCount-e.pblk {
			return formats.Corrupt(Name, at+8, "ee_start", "%d blocks at %d of %d in inode %d", e.n, e.pblk, s.blocksCount, in.ino)
		}
		prev = e.lblk + e.n
	}
	return nil
}

func (f *FS) mapExtents(in *inode, lblk int64) (run, error) {
	lo, hi := int64(0), int64(1)<<32
	n, err := parseExtentNode(in, in.block[:], in.off+0x28)
	if err != nil {
		return run{}, err
	}
	if err := n.validate(f.sb, in, lo, hi); err != nil {
		return run{}, err
	}
	for n.depth > 0 {
		i := n.search(lblk)
		if i < 0 {
			// Before the first key: a hole.
			end := hi
			if n.entries > 0 {
				end = n.key(0)
			}
			return run{lblk: lblk, n: end - lblk, kind: formats.Hole}, nil
		}
		lo = n.key(i)
		if i+1 < n.entries {
			hi = n.key(i + 1)
		}
		if n, err = f.extentChild(in, n.child(i), n.depth-1, lo, hi); err != nil {
			return run{}, err
		}
	}
	i := n.search(lblk)
	end := hi
	if i+1 < n.entries {
		end = n.key(i + 1)
	}
	if i < 0 {
		return run{lblk: lblk, n: end - lblk, kind: formats.Hole}, nil
	}
	e := n.extent(i)
	skip := lblk - e.lblk
	if skip >= e.n {
		return run{lblk: lblk, n: end - lblk, kind: formats.Hole}, nil
	}
	r := run{lblk: lblk, n: e.n - skip, pblk: e.pblk + uint64(skip), kind: e.kind}
	for i++; i < n.entries; i++ {
		next := n.extent(i)
		if next.kind != r.kind || next.lblk != r.lblk+r.n || r.kind == formats.Data && next.pblk != r.pblk+uint64(r.n) {
			break
		}
		r.n += next.n
	}
	return r, nil
}

// extentChild reads a node below the root: it must be depth levels above the
// leaves, which rules out loops, and map only [lo, hi).
func (f *FS) extentChild(in *inode, blk uint64, depth int, lo, hi int64) (extentNode, error) {
	what := uint64(in.ino)<<8 | checkedExtents
	b, checked, err := f.metaBlock(blk, "extent block")
	if err != nil {
		return extentNode{}, err
	}
	off := int64(blk) << f.sb.blockBits
	n, err := parseExtentNode(in, b, off)
	if err != nil {
		return n, err
	}
	if n.depth != depth {
		return n, formats.Corrupt(Name, off+6, "eh_depth", "%d, want %d in inode %d", n.depth, depth, in.ino)
	}
	if checked == what {
		// The range is the parent's word, which may have been another.
		if n.entries == 0 || n.key(0) >= lo && n.key(n.entries-1) < hi {
			return n, nil
		}
	}
	if f.sb.metadataCsum() {
		max := int(le.Uint16(b[4:]))
		if 12+12*max+extentTail > len(b) {
			return n, formats.Corrupt(Name, off+4, "eh_max", "%d leaves no room for the checksum in inode %d", max, in.ino)
		}
		tail := 12 + 12*max
		sum := extentChecksum(f.sb.inodeSeed(in.ino, in.generation), b, max)
		if got := le.Uint32(b[tail:]); got != sum {
			return n, formats.Corrupt(Name, off+int64(tail), "et_checksum", "%#x, computed %#x in inode %d", got, sum, in.ino)
		}
	}
	if err := n.validate(f.sb, in, lo, hi); err != nil {
		return n, err
	}
	f.blocks.mark(blk, what)
	return n, nil
}

// mapIndirect maps through i_block as ext2 does: twelve direct blocks, then
// trees of one, two and three levels (ext4 doc, "Direct/Indirect Block
// Addressing"). The depth is fixed, so there can be no loop.
func (f *FS) mapIndirect(in *inode, lblk int64) (run, error) {
	p := f.sb.blockSize / 4 // pointers in a block
	if lblk < 12 {
		return f.indirectRun(in, in.block[:48], in.off+0x28, lblk, lblk)
	}
	rel, span := lblk-12, int64(1) // span: blocks below one pointer of a level
	for level := range 3 {
		covers := span * p
		if rel >= covers {
			rel -= covers
			span = covers
			continue
		}
		at := in.off + 0x28 + int64(48+4*level)
		blk := uint64(le.Uint32(in.block[48+4*level:]))
		for {
			if blk == 0 {
				left := span*p - rel%(span*p)
				return run{lblk: lblk, n: left, kind: formats.Hole}, nil
			}
			if blk < uint64(f.sb.firstDataBlock) || blk >= f.sb.blocksCount {
				return run{}, formats.Corrupt(Name, at, "i_block", "indirect block %d of %d in inode %d", blk, f.sb.blocksCount, in.ino)
			}
			b, _, err := f.metaBlock(blk, "indirect block")
			if err != nil {
				return run{}, err
			}
			base := int64(blk) << f.sb.blockBits
			if span == 1 {
				return f.indirectRun(in, b, base, rel%p, lblk)
			}
			i := rel / span % p
			at = base + 4*i
			blk = uint64(le.Uint32(b[4*i:]))
			span /= p
		}
	}
	return run{}, formats.Corrupt(Name, in.off+0x4, "i_size", "block %d is beyond what inode %d can map", lblk, in.ino)
}

// indirectRun merges the pointers in b, read from off, from number i on.
func (f *FS) indirectRun(in *inode, b []byte, off, i, lblk int64) (run, error) {
	ptr := func(i int64) uint64 { return uint64(le.Uint32(b[4*i:])) }
	r := run{lblk: lblk, n: 1, pblk: ptr(i), kind: formats.Data}
	if r.pblk == 0 {
		r.kind = formats.Hole
	}
	count := int64(len(b) / 4)
	for j := i + 1; j < count; j++ {
		want := uint64(0)
		if r.kind == formats.Data {
			want = r.pblk + uint64(r.n)
		}
		if ptr(j) != want {
			break
		}
		r.n++
	}
	if r.kind == formats.Data && (r.pblk < uint64(f.sb.firstDataBlock) || r.pblk+uint64(r.n) > f.sb.blocksCount) {
		return run{}, formats.Corrupt(Name, off+4*i, "i_block", "block %d of %d in inode %d", r.pblk, f.sb.blocksCount, in.ino)
	}
	return r, nil
}
