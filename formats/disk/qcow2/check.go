package qcow2

import (
	"fmt"
	"io"

	"imgmaint/formats"
)

const (
	// checkWindow is the number of clusters whose references are counted at a
	// time, in 2 bytes each: all of a file of 1 TiB in 64 KiB clusters. A
	// larger file is gone through once for each window.
	checkWindow = 16 << 20
	// maxCheckWindows bounds the time of a check: 64 TiB at 64 KiB clusters.
	maxCheckWindows = 64
	// What one pass may read of tables: tables that are used over and over,
	// by each of thousands of snapshots, are 64 MiB at least before they
	// are too much, and 4 times the file's size where that is more. In real
	// files tables are a ten-thousandth of the data.
	checkBudget      = 64 << 20
	checkBudgetTimes = 4
)

// Check checks the metadata of the image of size bytes in r, of that file
// alone. Unlike Open it needs nothing the image refers to, and answers for
// encrypted images too.
func Check(r io.ReaderAt, size int64) (*formats.CheckReport, error) {
	l, err := parse(r, size)
	if err != nil {
		return nil, err
	}
	if u := l.unknownFeatures(); u != 0 {
		return nil, formats.Unsupported(Name, hdrIncompatible, "incompatible_features", "%s", l.featureList(u))
	}
	return l.Check()
}

// Check implements formats.Checker. References from the header, the L1 and L2
// tables of the active disk and of all snapshots, the refcount structures,
// the snapshot table, the encryption header and the bitmaps are counted and
// compared with the refcounts that the file keeps. What counts as an error
// and what as a leak is as in "qemu-img check". Memory is at most 40 MiB and
// does not depend on the image.
func (l *layout) Check() (*formats.CheckReport, error) {
	c := &checker{layout: l, rep: new(formats.CheckReport), first: true}
	c.nb = (l.f.Size + l.clusterSize - 1) >> l.clusterBits
	// A reference may reach less than a cluster beyond the end of the file.
	total := c.nb + 1
	if total > checkWindow*maxCheckWindows {
		return nil, limit(-1, "clusters", "%d, at most %d", total, int64(checkWindow*maxCheckWindows))
	}
	c.counts = make([]uint16, min(total, checkWindow))
	c.rep.TotalClusters = (int64(l.size) + l.clusterSize - 1) >> l.clusterBits
	if l.incompatible&incompatCorrupt != 0 {
		c.bad(hdrIncompatible, "incompatible_features", "the image is marked as corrupt")
	}
	for c.base = 0; c.base < total; c.base += checkWindow {
		clear(c.counts)
		c.budget = checkBudget + checkBudgetTimes*min(c.f.Size, 1<<60)
		if err := c.count(); err != nil {
			return nil, err
		}
		if err := c.compare(min(total-c.base, checkWindow)); err != nil {
			return nil, err
		}
		c.first = false
	}
	return c.rep, c.checkCopied()
}

// A checker counts the references to the clusters of one window.
type checker struct {
	*layout
	rep    *formats.CheckReport
	nb     int64    // clusters of the file
	base   int64    // first cluster of the window
	counts []uint16 // references; 65535 stands for all above too
	first  bool     // first pass: findings other than of counts are told
	budget int64    // bytes of tables this pass may still read

	l2       []byte // buffer of one L2 table
	refBlock []byte // refcount block of refBase
	refBase  int64  // index of refBlock + 1; 0: none
}

func (c *checker) bad(off int64, field, msg string, args ...any) {
	if c.first {
		c.rep.Add(formats.Finding{Severity: formats.Corruption, Off: off, Field: field, Detail: fmt.Sprintf(msg, args...)})
	}
}

// use counts a reference to each cluster of the n bytes at off, which the
// field at pos makes.
func (c *checker) use(pos int64, field string, off, n int64) {
	if n <= 0 {
		return
	}
	if off < 0 || off > c.f.Size+c.clusterSize || n >= c.f.Size+c.clusterSize-off {
		c.bad(pos, field, "%d bytes at %#x, a cluster or more after the end of the file", n, off)
		return
	}
	from := max(off>>c.clusterBits-c.base, 0)
	to := min((off+n-1)>>c.clusterBits-c.base, int64(len(c.counts))-1)
	for i := from; i <= to; i++ {
		if most := c.maxRefcount(); uint64(c.counts[i]) == most {
			c.rep.Add(formats.Finding{Severity: formats.Corruption, Off: pos, Field: field,
				Detail: fmt.Sprintf("cluster %d has more references than a refcount of %d can tell", c.base+i, most)})
		} else if c.counts[i] < 65535 {
			c.counts[i]++
		}
	}
}

func (c *checker) maxRefcount() uint64 {
	if c.refcountOrder == 6 {
		return 1<<64 - 1
	}
	return 1<<(1<<c.refcountOrder) - 1
}

// count goes through all metadata.
func (c *checker) count() error {
	c.use(0, "header", 0, c.clusterSize)
	if err := c.countL1(int64(c.l1Off), int64(c.l1Size), "L1 table", true); err != nil {
		return err
	}
	for i := range c.snapshots {
		s := &c.snapshots[i]
		field := fmt.Sprintf("snapshot %q", s.id)
		n := 8 * int64(s.l1Size)
		if s.l1Size > maxL1Bytes/8 {
			c.bad(s.pos+8, field+" l1_size", "%d entries, at most %d", s.l1Size, maxL1Bytes/8)
			continue
		}
		if err := c.table(s.pos, field+" l1_table_offset", s.l1Off, n); err != nil {
			c.bad(s.pos, field+" l1_table_offset", "%d entries at %#x", s.l1Size, s.l1Off)
			continue
		}
		if err := c.countL1(int64(s.l1Off), int64(s.l1Size), field+" L1 table", false); err != nil {
			return err
		}
	}
	c.use(hdrSnapshotsOff, "snapshots_offset", int64(c.snapshotsOff), c.snapshotsSize)
	c.use(hdrRefTableOff, "refcount_table_offset", int64(c.refTableOff), int64(c.refTableSize)<<c.clusterBits)
	c.use(-1, "full disk encryption header pointer", c.crypto.off, c.crypto.n)
	if err := c.countBitmaps(); err != nil {
		return err
	}
	return c.countRefBlocks()
}

// spend takes n bytes from the budget of the pass.
func (c *checker) spend(off, n int64, field string) error {
	if c.budget -= n; c.budget < 0 {
		return limit(off, field, "the tables of the image take more than %d bytes to read", checkBudget+checkBudgetTimes*c.f.Size)
	}
	return nil
}

// eachEntry calls do with the entries that are not 0 of the n of 8 bytes at
// off.
func (c *checker) eachEntry(off, n int64, field string, do func(i int64, pos int64, e uint64) error) error {
	if err := c.spend(off, 8*n, field); err != nil {
		return err
	}
	var buf [4096]byte
	for i := int64(0); i < n; {
		b := buf[:min(int64(len(buf)), 8*(n-i))]
		if err := c.f.ReadFull(b, off+8*i, field); err != nil {
			return err
		}
		for ; len(b) > 0; b = b[8:] {
			if e := be.Uint64(b); e != 0 {
				if err := do(i, off+8*i, e); err != nil {
					return err
				}
			}
			i++
		}
	}
	return nil
}

func (c *checker) countL1(off, n int64, field string, active bool) error {
	c.use(off, field, off, 8*n)
	return c.eachEntry(off, n, field, func(i, pos int64, e uint64) error {
		if e&l1Reserved != 0 {
			c.bad(pos, field, "entry %d: %#x has reserved bits", i, e)
		}
		at := int64(e & offsetMask)
		if at == 0 {
			return nil
		}
		c.use(pos, field, at, c.clusterSize)
		if at&(c.clusterSize-1) != 0 {
			c.bad(pos, field, "entry %d: the L2 table at %#x is not on a cluster boundary", i, at)
			return nil
		}
		ok, err := c.loadL2(at)
		if err != nil {
			return err
		}
		if !ok {
			if at < c.f.Size { // else use has told
				c.bad(pos, field, "entry %d: the file ends within the L2 table at %#x", i, at)
			}
			return nil
		}
		c.countL2(at, i, active)
		return nil
	})
}

// loadL2 reads the L2 table at off; false if the file does not hold it.
func (c *checker) loadL2(off int64) (bool, error) {
	if c.l2 == nil {
		c.l2 = make([]byte, c.clusterSize)
	}
	if off > c.f.Size-c.clusterSize {
		return false, nil
	}
	if err := c.spend(off, c.clusterSize, "L2 table"); err != nil {
		return false, err
	}
	return true, c.f.ReadFull(c.l2, off, "L2 table")
}

// countL2 counts what the L2 table in c.l2 refers to.
func (c *checker) countL2(table, l1Index int64, active bool) {
	const field = "L2 table entry"
	step := 1 << c.entryBits()
	extended := step == 16
	external := c.incompatible&incompatDataFile != 0
	for i := 0; i < len(c.l2); i += step {
		e := be.Uint64(c.l2[i:])
		var sub uint64
		if extended {
			sub = be.Uint64(c.l2[i+8:])
		}
		if e == 0 && sub == 0 {
			continue
		}
		pos := table + int64(i)
		if e&oflagCompressed != 0 {
			switch {
			case external:
				c.bad(pos, field, "%#x: a compressed cluster in an image with an external data file", e)
				continue
			case e&oflagCopied != 0:
				c.bad(pos, field, "%#x: a compressed cluster with the copied flag", e)
			case sub != 0:
				c.bad(pos, field, "%#x: a compressed cluster with subclusters %#x", e, sub)
			}
			shift := 62 - (c.clusterBits - 8)
			host := int64(e&(1<<shift-1)) &^ 511
			sectors := int64(e>>shift&(1<<(c.clusterBits-8)-1)) + 1
			c.use(pos, field, host, sectors*512)
			c.allocated(active, true)
			continue
		}
		if e&l2Reserved != 0 || extended && e&oflagZero != 0 {
			c.bad(pos, field, "%#x has reserved bits", e)
		}
		if c.version < 3 && e&oflagZero != 0 {
			c.bad(pos, field, "%#x: a zero cluster in a version 2 image", e)
		}
		host := int64(e & offsetMask)
		present := host != 0 || external && e&oflagCopied != 0
		if extended {
			if alloc, zero := uint32(sub), uint32(sub>>32); alloc&zero != 0 || !present && alloc != 0 {
				c.bad(pos, field, "%#x: subclusters %#x cannot be", e, sub)
			}
		}
		if !present {
			continue
		}
		if host&(c.clusterSize-1) != 0 {
			c.bad(pos, field, "%#x: the data cluster is not on a cluster boundary", e)
		}
		if external {
			guest := (l1Index<<c.l2Bits() + int64(i)>>c.entryBits()) << c.clusterBits
			if c.autoclear&autoclearDataFileRaw != 0 && host != guest && active {
				c.bad(pos, field, "%#x: the cluster at %#x of a raw data file stands for %#x of the disk", e, host, guest)
			}
		} else {
			c.use(pos, field, host, c.clusterSize)
		}
		c.allocated(active, false)
	}
}

func (c *checker) allocated(active, compressed bool) {
	if !active || !c.first {
		return
	}
	c.rep.AllocatedClusters++
	if compressed {
		c.rep.CompressedClusters++
	}
}

func (c *checker) countBitmaps() error {
	c.use(-1, "bitmap_directory_offset", int64(c.bitmaps.dirOff), int64(c.bitmaps.dirSize))
	for i := range c.bitmapList {
		m := &c.bitmapList[i]
		field := fmt.Sprintf("bitmap %q", m.name)
		n := 8 * int64(m.tableSize)
		if m.tableSize > maxBitmapTable || c.table(m.pos, field, m.tableOff, n) != nil {
			c.bad(m.pos, field, "a table of %d entries at %#x", m.tableSize, m.tableOff)
			continue
		}
		c.use(m.pos, field, int64(m.tableOff), n)
		err := c.eachEntry(int64(m.tableOff), int64(m.tableSize), field, func(i, pos int64, e uint64) error {
			at := int64(e & offsetMask)
			if e&^(offsetMask|1) != 0 || at != 0 && e&1 != 0 || at&(c.clusterSize-1) != 0 {
				c.bad(pos, field, "entry %d of its table is %#x", i, e)
				return nil
			}
			if at != 0 {
				c.use(pos, field, at, c.clusterSize)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// countRefBlocks counts the refcount blocks, which must have no other
// reference.
func (c *checker) countRefBlocks() error {
	const field = "refcount table"
	n := int64(c.refTableSize) << c.clusterBits / 8
	return c.eachEntry(int64(c.refTableOff), n, field, func(i, pos int64, e uint64) error {
		at := int64(e &^ (1 << 63)) // as an offset; bit 63 is told below
		switch {
		case e&uint64(c.clusterSize-1) != 0:
			c.bad(pos, field, "entry %d: the refcount block at %#x is not on a cluster boundary", i, e)
		case e>>63 != 0 || at>>c.clusterBits >= c.nb:
			c.bad(pos, field, "entry %d: the refcount block at %#x is not within the file", i, e)
		default:
			c.use(pos, field, at, c.clusterSize)
			if k := at>>c.clusterBits - c.base; k >= 0 && k < int64(len(c.counts)) && c.counts[k] != 1 {
				c.rep.Add(formats.Finding{Severity: formats.Corruption, Off: pos, Field: field,
					Detail: fmt.Sprintf("entry %d: the refcount block at %#x has %d references", i, at, c.counts[k])})
			}
		}
		return nil
	})
}

// refcount returns the refcount the file keeps for a cluster; false if its
// refcount block cannot be read.
func (c *checker) refcount(cluster int64) (uint64, bool, error) {
	perBits := c.clusterBits + 3 - c.refcountOrder // logarithm of the entries of a block
	block := cluster >> perBits
	if c.refBase != block+1 {
		if c.refBlock == nil {
			c.refBlock = make([]byte, c.clusterSize)
		}
		c.refBase = 0
		if block >= int64(c.refTableSize)<<c.clusterBits/8 {
			return 0, true, nil
		}
		var b [8]byte
		if err := c.f.ReadFull(b[:], int64(c.refTableOff)+8*block, "refcount table"); err != nil {
			return 0, false, err
		}
		at := be.Uint64(b[:]) & reftableMask
		switch {
		case at == 0:
			clear(c.refBlock)
		case at&uint64(c.clusterSize-1) != 0 || at > uint64(c.f.Size):
			return 0, false, nil
		default:
			// The file may end within its last cluster.
			n := min(c.clusterSize, c.f.Size-int64(at))
			if err := c.f.ReadFull(c.refBlock[:n], int64(at), "refcount block"); err != nil {
				return 0, false, err
			}
			clear(c.refBlock[n:])
		}
		c.refBase = block + 1
	}
	return refcountAt(c.refBlock, c.refcountOrder, cluster&(1<<perBits-1)), true, nil
}

// refcountAt is entry i of a refcount block.
func refcountAt(b []byte, order uint32, i int64) uint64 {
	switch order {
	case 0, 1, 2:
		per := int64(8) >> order
		return uint64(b[i/per]) >> (i % per << order) & (1<<(1<<order) - 1)
	case 3:
		return uint64(b[i])
	case 4:
		return uint64(be.Uint16(b[2*i:]))
	case 5:
		return uint64(be.Uint32(b[4*i:]))
	}
	return be.Uint64(b[8*i:])
}

// compare compares the counts of the first n clusters of the window with the
// refcounts of the file.
func (c *checker) compare(n int64) error {
	for i := range n {
		k := c.base + i
		have, ok, err := c.refcount(k)
		if err != nil {
			return err
		}
		want := uint64(c.counts[i])
		if k >= c.nb && want == 0 {
			continue // not part of the file
		}
		if have > 0 || want > 0 {
			c.rep.ImageEnd = (k + 1) << c.clusterBits
		}
		if have == want || want == 65535 && have > want {
			continue
		}
		f := formats.Finding{Severity: formats.Leak, Off: k << c.clusterBits, Field: "refcount",
			Detail: fmt.Sprintf("cluster %d has refcount %d and %d references", k, have, want)}
		if have < want {
			f.Severity = formats.Corruption
		}
		if !ok {
			f.Detail = fmt.Sprintf("cluster %d has %d references and no refcount block that can be read", k, want)
		}
		c.rep.Add(f)
	}
	return nil
}

// checkCopied checks that the copied flags of the active tables agree with
// the refcounts of the file.
func (c *checker) checkCopied() error {
	c.first = true
	c.budget = checkBudget + checkBudgetTimes*min(c.f.Size, 1<<60)
	external := c.incompatible&incompatDataFile != 0
	wrong := func(at int64, e uint64) (uint64, bool, error) {
		n, ok, err := c.refcount(at >> c.clusterBits)
		return n, ok && (n == 1) != (e&oflagCopied != 0), err
	}
	return c.eachEntry(int64(c.l1Off), int64(c.l1Size), "L1 table", func(i, pos int64, e uint64) error {
		at := int64(e & offsetMask)
		if at == 0 || at&(c.clusterSize-1) != 0 {
			return nil
		}
		n, bad, err := wrong(at, e)
		if err != nil {
			return err
		}
		if bad {
			c.bad(pos, "L1 table", "entry %d: %#x has refcount %d: the copied flag is wrong", i, e, n)
		}
		if ok, err := c.loadL2(at); err != nil || !ok {
			return err
		}
		for k := int64(0); k < int64(len(c.l2)); k += 1 << c.entryBits() {
			e := be.Uint64(c.l2[k:])
			host := int64(e & offsetMask)
			if e&oflagCompressed != 0 || host == 0 || external {
				continue
			}
			n, bad, err := wrong(host, e)
			if err != nil {
				return err
			}
			if bad {
				c.bad(at+k, "L2 table entry", "%#x has refcount %d: the copied flag is wrong", e, n)
			}
		}
		return nil
	})
}
