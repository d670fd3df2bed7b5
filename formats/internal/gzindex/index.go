package gzindex

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io"
	"slices"

	"imgmaint/formats"
	"imgmaint/formats/internal/deflate"
)

// Options change what Open takes and does.
type Options struct {
	// Format names the format in errors; "" is "gzip".
	Format string
	// MaxSize bounds the inflated size in bytes: one byte more is ErrLimit.
	// 0 is DefaultMaxSize.
	MaxSize int64
	// Memory bounds what is kept of the file in bytes, beside some 300 KiB for
	// each reader at work. 0 is DefaultMemory; less than 1 MiB is not possible.
	Memory int64
	// Tee receives the inflated stream during the pass, for digests. An error
	// of it ends the pass. What it received is known to be right only when
	// Open succeeds.
	Tee io.Writer
}

// A point is a state of the inflater from which it can go on.
type point struct {
	off    int64 // in the inflated stream
	bit    int64 // of the next bit in the file
	block  int64 // of the header of the block, when in codes
	stored int32
	state  state
	last   bool
	raw    bool   // window is not compressed
	window []byte // what matches may reach back to
}

// An Image is an indexed gzip file, read as what it inflates to. Its methods
// are safe for concurrent use if the reader is.
type Image struct {
	src    io.ReaderAt
	csize  int64
	format string
	size   int64
	points []point
	zeros  []run // ascending, apart
	pool   pool
}

var _ formats.Image = (*Image)(nil)

// A run is off up to end of the inflated stream.
type run struct{ off, end int64 }

// builder is the state of the pass.
type builder struct {
	d       *inflater
	m       *Image
	tee     io.Writer
	max     int64
	enc     *deflate.Encoder
	scratch []byte
	spacing int64
	cost    int
	memory  int // that cost may reach
	// Zeros: where the present run began or -1, and whether the present block
	// of zeroBlock has had anything else.
	zeroFrom int64
	dirty    bool
	minRun   int64
}

// Open inflates r, a gzip file of size bytes, once, and returns an image of
// what is inside. Nothing of the inflated bytes is kept. Errors are
// ErrUnknown for what is no gzip file, ErrCorrupt for one that is cut, that
// goes on with something else or whose sums are wrong, and ErrLimit past
// MaxSize.
func Open(r io.ReaderAt, size int64, opts *Options) (*Image, error) {
	if opts == nil {
		opts = &Options{}
	}
	m := &Image{src: r, csize: size, format: opts.Format}
	if m.format == "" {
		m.format = Name
	}
	enc, err := deflate.New(1, deflate.MaxWindow)
	if err != nil {
		return nil, err
	}
	b := builder{d: m.newInflater(), m: m, tee: opts.Tee, max: opts.MaxSize, enc: enc,
		spacing: firstSpacing, zeroFrom: -1, minRun: firstZeroRun}
	if b.max <= 0 {
		b.max = DefaultMaxSize
	}
	memory := opts.Memory
	if memory <= 0 {
		memory = DefaultMemory
	}
	memory = max(memory, minMemory)
	b.memory = int(memory - memory/3)
	if err := b.run(); err != nil {
		return nil, err
	}
	m.pool.init(b.d, int(memory/3/chunkSize))
	return m, nil
}

func (m *Image) newInflater() *inflater {
	return &inflater{src: m.src, size: m.csize, format: m.format}
}

func (b *builder) run() error {
	d := b.d
	var crc, isize uint32
	for first := true; ; first = false {
		if d.state == atHeader {
			err := d.header(first)
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			crc, isize = 0, 0
		}
		if n := len(b.m.points); n == 0 || b.m.size-b.m.points[n-1].off >= b.spacing {
			b.mark()
		}
		const limit = windowSize + chunkSize
		if d.w >= limit {
			d.slide()
		}
		from := d.w
		if err := d.fill(limit); err != nil {
			return err
		}
		p := d.out[from:d.w]
		if int64(len(p)) > b.max-b.m.size {
			return formats.Limit(d.format, -1, "inflated size", "more than %d bytes", b.max)
		}
		crc = crc32.Update(crc, crc32.IEEETable, p)
		isize += uint32(len(p))
		b.scan(p)
		if b.tee != nil {
			if _, err := b.tee.Write(p); err != nil {
				return err
			}
		}
		if d.state == atTrailer {
			if err := d.trailer(); err != nil {
				return err
			}
			if d.crc != crc {
				return d.corrupt("CRC32", "%08x, the data has %08x", d.crc, crc)
			}
			if d.isz != isize {
				return d.corrupt("ISIZE", "%d, the data has %d modulo 4 GiB", d.isz, isize)
			}
		}
	}
	if b.m.size%zeroBlock != 0 && b.dirty {
		b.endRun(b.m.size &^ (zeroBlock - 1))
	}
	b.endRun(b.m.size)
	d.taken = d.w
	return nil
}

// mark keeps the present state as a point.
func (b *builder) mark() {
	d := b.d
	p := point{off: b.m.size, bit: d.bitPos(), block: d.block, stored: int32(d.stored), state: d.state, last: d.last}
	if w := d.out[max(d.hist, d.w-windowSize):d.w]; len(w) > 0 {
		b.scratch = b.enc.Encode(b.scratch[:0], w)
		if p.raw = len(b.scratch) >= len(w); p.raw {
			p.window = bytes.Clone(w)
		} else {
			// The inflater may look eight bytes past the end.
			p.window = make([]byte, len(b.scratch)+8)
			copy(p.window, b.scratch)
		}
	}
	b.m.points = append(b.m.points, p)
	b.cost += pointSize + len(p.window)
	for b.cost > b.memory {
		b.spacing *= 2
		b.thin()
	}
}

// thin drops points nearer than spacing to the one before.
func (b *builder) thin() {
	next := int64(0)
	b.m.points = slices.DeleteFunc(b.m.points, func(p point) bool {
		if p.off < next {
			b.cost -= pointSize + len(p.window)
			return true
		}
		next = p.off + b.spacing
		return false
	})
}

var zeroPage [zeroBlock]byte

// scan looks for zeros in p, which follows what was inflated so far, and
// counts it.
func (b *builder) scan(p []byte) {
	for len(p) > 0 {
		in := b.m.size % zeroBlock
		n := min(int64(len(p)), zeroBlock-in)
		if in == 0 {
			b.dirty = false
		}
		if !b.dirty && !bytes.Equal(p[:n], zeroPage[:n]) {
			b.dirty = true
		}
		b.m.size += n
		p = p[n:]
		if in+n < zeroBlock {
			return
		}
		start := b.m.size - zeroBlock
		switch {
		case b.dirty:
			b.endRun(start)
		case b.zeroFrom < 0:
			b.zeroFrom = start
		}
	}
}

// endRun ends a run of zeros, if there is one, at end.
func (b *builder) endRun(end int64) {
	from := b.zeroFrom
	b.zeroFrom = -1
	if from < 0 || end-from < b.minRun {
		return
	}
	if len(b.m.zeros) == maxZeroRuns {
		b.minRun *= 2
		b.m.zeros = slices.DeleteFunc(b.m.zeros, func(r run) bool { return r.end-r.off < b.minRun })
		if end-from < b.minRun {
			return
		}
	}
	b.m.zeros = append(b.m.zeros, run{from, end})
}

// Size is the number of bytes the file inflates to.
func (m *Image) Size() int64 { return m.size }

// zeroRun is the first run of zeros that ends after off, or one past the end.
func (m *Image) zeroRun(off int64) run {
	i, _ := slices.BinarySearchFunc(m.zeros, off, func(r run, off int64) int {
		if r.end <= off {
			return -1
		}
		return 1
	})
	if i == len(m.zeros) {
		return run{m.size, m.size}
	}
	return m.zeros[i]
}

// ExtentAt tells long runs of zeros from data.
func (m *Image) ExtentAt(off int64) (formats.Extent, error) {
	if off < 0 || off >= m.size {
		return formats.Extent{}, io.EOF
	}
	z := m.zeroRun(off)
	if z.off <= off {
		return formats.Extent{Off: off, Len: z.end - off, Kind: formats.Zero}, nil
	}
	return formats.Extent{Off: off, Len: z.off - off, Kind: formats.Data}, nil
}

// pointBefore is the last point at or before off.
func (m *Image) pointBefore(off int64) *point {
	i, found := slices.BinarySearchFunc(m.points, off, func(p point, off int64) int {
		switch {
		case p.off < off:
			return -1
		case p.off > off:
			return 1
		}
		return 0
	})
	if !found {
		i--
	}
	return &m.points[i]
}

// restore puts p into d.
func (d *inflater) restore(p *point, m *Image) error {
	d.w, d.taken, d.hist = 0, 0, 0
	if p.raw {
		d.w = copy(d.out[:], p.window)
	} else if len(p.window) > 0 {
		d.src, d.size = bytes.NewReader(p.window), int64(len(p.window))
		err := d.seekBit(0)
		d.state, d.last = atBlock, false
		if err == nil {
			err = d.fill(windowSize + 1)
		}
		d.src, d.size = m.src, m.csize
		if err != nil {
			return err
		}
	}
	d.taken = d.w
	d.stored, d.state, d.last = int(p.stored), p.state, p.last
	if p.state == inCodes {
		if err := d.seekBit(p.block); err != nil {
			return err
		}
		if err := d.blockHeader(); err != nil {
			return err
		}
		if d.state != inCodes {
			return d.corrupt("data", "the file changed after it was indexed")
		}
	}
	return d.seekBit(p.bit)
}

// read fills p with the inflated bytes that follow.
func (d *inflater) read(p []byte) error {
	for len(p) > 0 {
		if d.taken < d.w {
			n := copy(p, d.out[d.taken:d.w])
			d.taken += n
			p = p[n:]
			continue
		}
		var err error
		switch d.state {
		case atHeader:
			err = d.header(false)
		case atTrailer:
			err = d.trailer()
		default:
			const limit = windowSize + chunkSize
			if d.w >= limit {
				d.slide()
			}
			err = d.fill(limit)
		}
		if errors.Is(err, io.EOF) {
			return d.corrupt("data", "the file changed after it was indexed")
		}
		if err != nil {
			return err
		}
	}
	return nil
}
