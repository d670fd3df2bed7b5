package qcow2

// An allocator hands out the clusters of a new file in ascending order and
// keeps their refcounts. It holds a window of them: when all clusters of the
// window have been given out its refcount blocks are written and the window
// moves on.
type allocator struct {
	w      *Writer
	bits   uint32
	next   int64 // cluster to give out
	base   int64 // first cluster of the window
	counts []byte
	blocks int64 // refcount blocks of a window
	// beforeMove is called before the refcounts of the window are written:
	// no cluster of it may be shared after that.
	beforeMove func()

	table         []uint64 // offsets of refcount blocks
	tableOff      int64    // set by finish
	tableClusters int64    // set by finish
}

func (a *allocator) init(w *Writer, bits uint32) {
	a.w, a.bits = w, bits
	a.counts = make([]byte, max(groupBytes, 1<<bits))
	a.blocks = int64(len(a.counts)) >> bits
}

// window is the number of clusters of a window.
func (a *allocator) window() int64 { return int64(len(a.counts)) / (refBits / 8) }

// take gives out n clusters that follow each other, with a refcount of one,
// and returns the offset of the first.
func (a *allocator) take(n int64) (int64, error) {
	first := a.next
	a.next += n
	for from := first; from < a.next; {
		to := min(a.next, a.base+a.window())
		for i := from; i < to; i++ {
			be.PutUint16(a.counts[2*(i-a.base):], 1)
		}
		from = to
		if from == a.base+a.window() {
			// The blocks come after what was taken, so that stays in one
			// piece; they are counted as the loop goes on.
			if err := a.move(); err != nil {
				return 0, err
			}
		}
	}
	return first << a.bits, nil
}

// share counts one more reference to a cluster that was given out. It reports
// false if its refcount can no longer change.
func (a *allocator) share(cluster int64) bool {
	if cluster < a.base {
		return false
	}
	at := 2 * (cluster - a.base)
	n := be.Uint16(a.counts[at:])
	if n == 1<<refBits-1 {
		return false
	}
	be.PutUint16(a.counts[at:], n+1)
	return true
}

// move writes the refcount blocks of the window, which is full.
func (a *allocator) move() error {
	if a.beforeMove != nil {
		a.beforeMove()
	}
	at := a.next
	a.next += a.blocks
	if err := a.add(at, a.blocks); err != nil {
		return err
	}
	if _, err := a.w.out.WriteAt(a.counts, at<<a.bits); err != nil {
		return err
	}
	clear(a.counts)
	a.base += a.window()
	return nil
}

// add enters n refcount blocks from the cluster at into the table.
func (a *allocator) add(at, n int64) error {
	if 8*(int64(len(a.table))+n) > maxRefTableBytes {
		return limit(-1, "refcount_table_clusters", "the file grows over %d bytes", a.base<<a.bits)
	}
	for i := range n {
		a.table = append(a.table, uint64(at+i)<<a.bits)
	}
	return nil
}

// finish writes the last refcount blocks and the refcount table, which are
// part of what they count.
func (a *allocator) finish() error {
	perBlock := int64(1) << a.bits / (refBits / 8)
	cluster := int64(1) << a.bits
	blocks, table := int64(1), int64(1)
	for {
		end := a.next + blocks + table
		b := (end - a.base + perBlock - 1) / perBlock
		t := (8*(int64(len(a.table))+b) + cluster - 1) >> a.bits
		if b <= blocks && t <= table {
			break
		}
		blocks, table = max(b, blocks), max(t, table)
	}
	at := a.next
	end := at + blocks + table
	counts := make([]byte, blocks<<a.bits)
	copy(counts, a.counts)
	for i := at; i < end; i++ {
		be.PutUint16(counts[2*(i-a.base):], 1)
	}
	if err := a.add(at, blocks); err != nil {
		return err
	}
	if _, err := a.w.out.WriteAt(counts, at<<a.bits); err != nil {
		return err
	}
	a.next = end
	a.tableOff, a.tableClusters = (at+blocks)<<a.bits, table
	b := make([]byte, table<<a.bits)
	for i, e := range a.table {
		be.PutUint64(b[8*i:], e)
	}
	_, err := a.w.out.WriteAt(b, a.tableOff)
	return err
}
