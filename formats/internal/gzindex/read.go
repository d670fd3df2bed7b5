package gzindex

import (
	"fmt"
	"io"
	"slices"
	"sync"
)

// pool holds the decoders between reads, and decoded chunks.
type pool struct {
	mu      sync.Mutex
	changed *sync.Cond
	idle    []*decoder // the one used last at the end
	busy    []*decoder
	chunks  []cached
	room    int // chunks that may be kept
	clock   uint64
}

// noOffset is where a decoder stands that must be put to a point.
const noOffset = 1<<63 - 1

// A decoder is an inflater that stands at off in the inflated stream.
type decoder struct {
	*inflater
	off          int64
	buf          []byte // of chunkSize, for the chunk being decoded
	from, target int64  // of the run it decodes while busy
}

// cached is a decoded chunk.
type cached struct {
	off  int64
	b    []byte // as long as the chunk
	used uint64
}

// init takes over the inflater of the pass, which stands at the end.
func (p *pool) init(d *inflater, chunks int) {
	p.room = max(chunks, 2)
	p.changed = sync.NewCond(&p.mu)
	p.idle = append(p.idle, &decoder{inflater: d, off: noOffset})
}

// ReadAt implements io.ReaderAt. It inflates from the nearest point or from
// where an earlier read stopped, whichever is nearer.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("%s: read at negative offset %d", m.format, off)
	}
	if off >= m.size {
		return 0, io.EOF
	}
	short := int64(len(p)) > m.size-off
	if short {
		p = p[:m.size-off]
	}
	n := 0
	for n < len(p) {
		at := off + int64(n)
		rest := p[n:]
		z := m.zeroRun(at)
		if z.off <= at {
			k := int(min(int64(len(rest)), z.end-at))
			clear(rest[:k])
			n += k
			continue
		}
		rest = rest[:min(int64(len(rest)), z.off-at)]
		k, err := m.readChunk(rest, at)
		n += k
		if err != nil {
			return n, err
		}
	}
	if short {
		return n, io.EOF
	}
	return n, nil
}

// readChunk copies to p what the chunk around off has of it.
func (m *Image) readChunk(p []byte, off int64) (int, error) {
	start := off &^ (chunkSize - 1)
	q := &m.pool
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if b := q.find(start); b != nil {
			return copy(p, b[off-start:]), nil
		}
		pt := m.pointBefore(start)
		d := q.acquire(pt, start)
		if d == nil { // another read is on its way there
			q.changed.Wait()
			continue
		}
		q.mu.Unlock()
		err := m.decode(d, pt, start)
		q.mu.Lock()
		q.release(d, err == nil)
		if err != nil {
			return 0, err
		}
		n := int64(copy(p, d.buf[off-start:m.chunkEnd(start)-start]))
		d.buf = q.keep(start, d.buf[:m.chunkEnd(start)-start])
		return int(n), nil
	}
}

func (m *Image) chunkEnd(start int64) int64 { return min(start+chunkSize, m.size) }

// decode leaves the chunk at start in d.buf.
func (m *Image) decode(d *decoder, pt *point, start int64) error {
	if d.inflater == nil {
		d.inflater = m.newInflater()
	}
	if d.buf == nil {
		d.buf = make([]byte, chunkSize)
	}
	if d.off > start || d.off < pt.off {
		if err := d.restore(pt, m); err != nil {
			return err
		}
		d.off = pt.off
	}
	for d.off < start {
		n := min(chunkSize-d.off&(chunkSize-1), start-d.off)
		if err := d.read(d.buf[:n]); err != nil {
			return err
		}
		d.off += n
		// Who reads here reads nearby soon.
		if n == chunkSize && start-d.off < int64(min(8, m.pool.room/2))*chunkSize {
			q := &m.pool
			q.mu.Lock()
			d.buf = q.keep(d.off-n, d.buf)
			q.mu.Unlock()
			if d.buf == nil {
				d.buf = make([]byte, chunkSize)
			}
		}
	}
	end := m.chunkEnd(start)
	if err := d.read(d.buf[:end-start]); err != nil {
		return err
	}
	d.off = end
	return nil
}

// find returns a chunk from the cache, or nil.
func (q *pool) find(off int64) []byte {
	for i := range q.chunks {
		if c := &q.chunks[i]; c.off == off {
			q.clock++
			c.used = q.clock
			return c.b
		}
	}
	return nil
}

// keep puts a chunk into the cache, and returns a buffer in its place, or nil
// when one must be made.
func (q *pool) keep(off int64, b []byte) []byte {
	if q.find(off) != nil {
		return b[:cap(b)]
	}
	q.clock++
	c := cached{off, b, q.clock}
	if len(q.chunks) < q.room {
		q.chunks = append(q.chunks, c)
		return nil
	}
	old := 0
	for i := range q.chunks {
		if q.chunks[i].used < q.chunks[old].used {
			old = i
		}
	}
	b = q.chunks[old].b
	q.chunks[old] = c
	return b[:cap(b)]
}

// acquire returns a decoder for the chunk at start: the idle one that stands
// nearest before it, or any, to be put to the point pt. It is nil when a busy
// one will come by, and the caller had better wait.
func (q *pool) acquire(pt *point, start int64) *decoder {
	best := -1
	for i, d := range q.idle {
		if d.off <= start && d.off >= pt.off && (best < 0 || d.off > q.idle[best].off) {
			best = i
		}
	}
	var d *decoder
	switch {
	case best >= 0:
		d = q.idle[best]
		d.from = d.off
	default:
		for _, b := range q.busy {
			if b.from <= start && b.target >= pt.off {
				return nil
			}
		}
		if len(q.idle)+len(q.busy) < maxIdle || len(q.idle) == 0 {
			d = &decoder{off: noOffset}
		} else {
			best, d = 0, q.idle[0]
		}
		d.from = pt.off
	}
	if best >= 0 {
		q.idle = slices.Delete(q.idle, best, best+1)
	}
	d.target = start + chunkSize
	q.busy = append(q.busy, d)
	return d
}

// release ends the use of a decoder; after an error it is dropped.
func (q *pool) release(d *decoder, good bool) {
	if i := slices.Index(q.busy, d); i >= 0 {
		q.busy = slices.Delete(q.busy, i, i+1)
	}
	if good {
		if len(q.idle) == maxIdle {
			q.idle = slices.Delete(q.idle, 0, 1)
		}
		q.idle = append(q.idle, d)
	}
	q.changed.Broadcast()
}
