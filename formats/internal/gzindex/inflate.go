package gzindex

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	"imgmaint/formats"
)

// state is what comes next in the stream.
type state uint8

const (
	atHeader  state = iota // a gzip header, or the end of the file
	atBlock                // a block header
	inStored               // bytes of a stored block
	inCodes                // symbols of a compressed block
	atTrailer              // CRC32 and ISIZE
)

// An inflater decodes a gzip file. Its state between two calls of fill can be
// taken as a point and put into another one.
type inflater struct {
	src    io.ReaderAt
	size   int64 // of src
	format string

	in           [inputSize + 8]byte
	inPos, inEnd int
	inNext       int64  // offset in src of in[inEnd]
	bits         uint64 // those not used, lowest first; above nb they may be set, to what in[inPos:] says
	nb           uint   // how many of them count

	// out holds up to a window of what came before, then what was decoded.
	out   [windowSize + chunkSize + slack]byte
	w     int // end of what was decoded
	taken int // end of what the user has seen
	hist  int // where the present gzip member begins in out, 0 if before it

	state  state
	last   bool  // the present block is the last of its member
	stored int   // bytes left of a stored block
	block  int64 // bit offset in src of the present block's header

	lit      [litTable]uint32
	dist     [distTable]uint32
	fixed    bool // the present block has the fixed code
	lens     [litSyms + distSyms]uint8
	clTable  [1 << clBits]uint32
	crc, isz uint32 // of the last trailer
}

// bitPos is the offset in src of the next bit.
func (d *inflater) bitPos() int64 {
	return (d.inNext-int64(d.inEnd-d.inPos))*8 - int64(d.nb)
}

func (d *inflater) corrupt(field, msg string, args ...any) error {
	return formats.Corrupt(d.format, max(0, d.bitPos())/8, field, msg, args...)
}

func (d *inflater) truncated(field string) error {
	return d.corrupt(field, "the file ends at %d", d.size)
}

// seekBit has the next bit be the one at bit offset off in src.
func (d *inflater) seekBit(off int64) error {
	d.inPos, d.inEnd, d.inNext, d.bits, d.nb = 0, 0, off/8, 0, 0
	if n := uint(off & 7); n > 0 {
		if err := d.need(n, "deflate"); err != nil {
			return err
		}
		d.drop(n)
	}
	return nil
}

// more reads input; false at the end of the file. Eight bytes before inPos
// are kept, so that unused bits can be given back.
func (d *inflater) more() (bool, error) {
	left := d.size - d.inNext
	if left <= 0 {
		return false, nil
	}
	keep := min(d.inPos, 8)
	n := copy(d.in[:], d.in[d.inPos-keep:d.inEnd])
	d.inPos, d.inEnd = keep, n
	p := d.in[n:min(int64(len(d.in)), int64(n)+left)]
	k, err := d.src.ReadAt(p, d.inNext)
	if k < len(p) {
		if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return false, formats.Corrupt(d.format, d.inNext+int64(k), "data", "the file ended while it was read")
		}
		return false, formats.At(d.format, d.inNext, "data", err)
	}
	d.inEnd += k
	d.inNext += int64(k)
	return true, nil
}

// need has at least n bits, n up to 32, counted in nb.
func (d *inflater) need(n uint, field string) error {
	for d.nb < n {
		if d.inPos == d.inEnd {
			if ok, err := d.more(); err != nil {
				return err
			} else if !ok {
				return d.truncated(field)
			}
		}
		d.bits |= uint64(d.in[d.inPos]) << d.nb
		d.inPos++
		d.nb += 8
	}
	return nil
}

func (d *inflater) drop(n uint) { d.bits >>= n; d.nb -= n }

// get takes n bits.
func (d *inflater) get(n uint, field string) (int, error) {
	if err := d.need(n, field); err != nil {
		return 0, err
	}
	v := int(d.bits & (1<<n - 1))
	d.drop(n)
	return v, nil
}

// align drops the bits up to the next byte of the input, and gives whole bytes
// back.
func (d *inflater) align() {
	d.inPos -= int(d.nb / 8)
	d.bits, d.nb = 0, 0
}

func (d *inflater) bytes(p []byte, field string) error {
	for len(p) > 0 {
		if d.inPos == d.inEnd {
			if ok, err := d.more(); err != nil {
				return err
			} else if !ok {
				return d.truncated(field)
			}
		}
		n := copy(p, d.in[d.inPos:d.inEnd])
		d.inPos += n
		p = p[n:]
	}
	return nil
}

// header reads a gzip header; io.EOF at the end of the file.
func (d *inflater) header(first bool) error {
	d.align()
	if d.inPos == d.inEnd && d.inNext >= d.size && !first {
		return io.EOF
	}
	start := d.bitPos() / 8
	var sum uint32
	bytes := func(p []byte, field string) error {
		err := d.bytes(p, field)
		sum = crc32.Update(sum, crc32.IEEETable, p)
		return err
	}
	var h [10]byte
	if err := bytes(h[:2], "ID1"); err != nil {
		return err
	}
	if h[0] != 0x1f || h[1] != 0x8b {
		if first {
			return formats.Unknown(d.format, -1, "", "no gzip header")
		}
		return formats.Corrupt(d.format, start, "ID1", "no gzip member follows, but more bytes")
	}
	if err := bytes(h[2:], "header"); err != nil {
		return err
	}
	if h[2] != 8 {
		return formats.Unsupported(d.format, start+2, "CM", "method %d", h[2])
	}
	flags := h[3]
	if flags&flagReserved != 0 {
		return formats.Corrupt(d.format, start+3, "FLG", "%#x", flags)
	}
	if flags&flagExtra != 0 {
		var n [2]byte
		if err := bytes(n[:], "XLEN"); err != nil {
			return err
		}
		var b [256]byte
		for left := int(binary.LittleEndian.Uint16(n[:])); left > 0; left -= len(b) {
			if err := bytes(b[:min(left, len(b))], "XLEN"); err != nil {
				return err
			}
		}
	}
	for _, f := range []struct {
		flag byte
		name string
	}{{flagName, "FNAME"}, {flagComment, "FCOMMENT"}} {
		var b [1]byte
		for n := 0; flags&f.flag != 0; n++ {
			if n > maxHeaderField {
				return formats.Limit(d.format, start, f.name, "more than %d bytes", maxHeaderField)
			}
			if err := bytes(b[:], f.name); err != nil {
				return err
			}
			if b[0] == 0 {
				break
			}
		}
	}
	if flags&flagHCRC != 0 {
		var b [2]byte
		want := uint16(sum)
		if err := bytes(b[:], "CRC16"); err != nil {
			return err
		}
		if got := binary.LittleEndian.Uint16(b[:]); got != want {
			return formats.Corrupt(d.format, start, "CRC16", "%04x, the header has %04x", got, want)
		}
	}
	d.hist = d.w
	d.state, d.last = atBlock, false
	return nil
}

// trailer reads CRC32 and ISIZE.
func (d *inflater) trailer() error {
	d.align()
	var b [8]byte
	if err := d.bytes(b[:], "CRC32"); err != nil {
		return err
	}
	d.crc, d.isz = binary.LittleEndian.Uint32(b[:]), binary.LittleEndian.Uint32(b[4:])
	d.state = atHeader
	return nil
}

// slide makes room in out: what was decoded becomes the window.
func (d *inflater) slide() {
	shift := d.w - windowSize
	if shift <= 0 {
		return
	}
	copy(d.out[:], d.out[shift:d.w])
	d.w, d.taken = windowSize, max(0, d.taken-shift)
	d.hist = max(0, d.hist-shift)
}

// fill decodes until out holds limit bytes, or a few more, or the gzip member
// ends: then the state is atTrailer. The state must not be atHeader.
func (d *inflater) fill(limit int) error {
	for d.w < limit {
		var err error
		switch d.state {
		case atBlock:
			if d.last {
				d.state = atTrailer
				return nil
			}
			err = d.blockHeader()
		case inStored:
			n := min(d.stored, limit-d.w)
			err = d.bytes(d.out[d.w:d.w+n], "stored block")
			d.w += n
			if d.stored -= n; d.stored == 0 {
				d.state = atBlock
			}
		case inCodes:
			if d.fixed {
				err = d.codes(limit, &fixedLit, &fixedDist)
			} else {
				err = d.codes(limit, &d.lit, &d.dist)
			}
		default:
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// blockHeader reads a block header with the code it brings (RFC 1951, section
// 3.2.3).
func (d *inflater) blockHeader() error {
	d.block = d.bitPos()
	v, err := d.get(3, "BTYPE")
	if err != nil {
		return err
	}
	d.last = v&1 != 0
	switch v >> 1 {
	case 0:
		d.align()
		var b [4]byte
		if err := d.bytes(b[:], "LEN"); err != nil {
			return err
		}
		n := binary.LittleEndian.Uint16(b[:])
		if n != ^binary.LittleEndian.Uint16(b[2:]) {
			return d.corrupt("LEN", "NLEN is not its complement")
		}
		d.stored, d.state = int(n), inStored
		if n == 0 {
			d.state = atBlock
		}
		return nil
	case 1:
		d.fixed, d.state = true, inCodes
		return nil
	case 2:
		if err := d.dynamic(); err != nil {
			return err
		}
		d.fixed, d.state = false, inCodes
		return nil
	}
	return d.corrupt("BTYPE", "3")
}

// dynamic reads the codes of a block (section 3.2.7).
func (d *inflater) dynamic() error {
	v, err := d.get(14, "HLIT")
	if err != nil {
		return err
	}
	nlit, ndist, ncl := v&31+257, v>>5&31+1, v>>10+4
	if nlit > 286 || ndist > 30 {
		return d.corrupt("HLIT", "%d literal and length codes, %d distance codes", nlit, ndist)
	}
	var cl [19]uint8
	for _, s := range clOrder[:ncl] {
		v, err := d.get(3, "code lengths")
		if err != nil {
			return err
		}
		cl[s] = uint8(v)
	}
	if !build(d.clTable[:], clBits, cl[:], clEntry[:]) {
		return d.corrupt("code lengths", "no prefix code")
	}
	for i := 0; i < nlit+ndist; {
		// The longest code with its extra bits has 14; a stream always has
		// that many before it ends, but for crafted ones.
		if d.nb < 14 {
			if err := d.need(14, "code lengths"); err != nil {
				return err
			}
		}
		e := d.clTable[d.bits&(1<<clBits-1)]
		if e&entExcept != 0 {
			return d.corrupt("code lengths", "no such code")
		}
		d.drop(uint(e & 255))
		s := uint8(e >> 16)
		if s < 16 {
			d.lens[i] = s
			i++
			continue
		}
		n, extra, prev := 3, uint(2), uint8(0)
		switch s {
		case 16:
			if i == 0 {
				return d.corrupt("code lengths", "repeats before the first")
			}
			prev = d.lens[i-1]
		case 17:
			extra = 3
		case 18:
			n, extra = 11, 7
		}
		n += int(d.bits & (1<<extra - 1))
		d.drop(extra)
		if n > nlit+ndist-i {
			return d.corrupt("code lengths", "repeats past the last")
		}
		for range n {
			d.lens[i] = prev
			i++
		}
	}
	if d.lens[endSym] == 0 {
		return d.corrupt("code lengths", "no end of block")
	}
	if !build(d.lit[:], litBits, d.lens[:nlit], litEntry[:]) || !build(d.dist[:], distBits, d.lens[nlit:nlit+ndist], distEntry[:]) {
		return d.corrupt("code lengths", "no prefix code")
	}
	return nil
}

var errDistance = errors.New("distance")

// codes decodes symbols until out holds limit bytes or the block ends.
func (d *inflater) codes(limit int, lit *[litTable]uint32, dist *[distTable]uint32) error {
	for d.w < limit && d.state == inCodes {
		if d.inEnd-d.inPos < 16 {
			ok, err := d.more()
			if err != nil {
				return err
			}
			if !ok { // the last bytes of the file
				if err := d.symbol(lit, dist); err != nil {
					return err
				}
				continue
			}
		}
		if err := d.fast(limit, lit, dist); err != nil {
			return err
		}
	}
	return nil
}

// fast decodes while sixteen bytes of input are at hand.
func (d *inflater) fast(limit int, lit *[litTable]uint32, dist *[distTable]uint32) error {
	in, out := d.in[:d.inEnd], &d.out
	pos, w, hist := d.inPos, d.w, d.hist
	buf, nb := d.bits, d.nb
	var err error
loop:
	for w < limit && len(in)-pos >= 16 {
		// At least 56 bits: three literals, or a literal before a length
		// with its distance after one more refill.
		buf |= binary.LittleEndian.Uint64(in[pos:]) << (nb & 63)
		pos += int(63-nb) >> 3
		nb |= 56
		e := lit[buf&(1<<litBits-1)]
		if e&entLiteral != 0 {
			buf >>= e & 31
			nb -= uint(e & 31)
			out[w] = byte(e >> 16)
			w++
			e = lit[buf&(1<<litBits-1)]
			if e&entLiteral != 0 {
				buf >>= e & 31
				nb -= uint(e & 31)
				out[w] = byte(e >> 16)
				w++
				e = lit[buf&(1<<litBits-1)]
				if e&entLiteral != 0 {
					buf >>= e & 31
					nb -= uint(e & 31)
					out[w] = byte(e >> 16)
					w++
					continue
				}
			}
			buf |= binary.LittleEndian.Uint64(in[pos:]) << (nb & 63)
			pos += int(63-nb) >> 3
			nb |= 56
		}
		if e&entExcept != 0 {
			if e&entSub != 0 {
				buf >>= litBits
				nb -= litBits
				e = lit[(e>>16&0x7fff)+uint32(buf)&(1<<(e>>8&15)-1)&(litTable-1)]
				if e&entLiteral != 0 {
					buf >>= e & 31
					nb -= uint(e & 31)
					out[w] = byte(e >> 16)
					w++
					continue
				}
			}
			if e&entExcept != 0 {
				if e&entEnd == 0 {
					err = d.corrupt("literal", "no such code")
					break loop
				}
				buf >>= e & 31
				nb -= uint(e & 31)
				d.state = atBlock
				break loop
			}
		}
		length := int(e>>16) + int(buf&(1<<(e&31)-1)>>(e>>8&15))
		buf >>= e & 31
		nb -= uint(e & 31)

		e = dist[buf&(1<<distBits-1)]
		if e&entExcept != 0 {
			if e&entSub != 0 {
				buf >>= distBits
				nb -= distBits
				e = dist[(e>>16&0x7fff)+uint32(buf)&(1<<(e>>8&15)-1)&(distTable-1)]
			}
			if e&entExcept != 0 {
				err = d.corrupt("distance", "no such code")
				break loop
			}
		}
		from := w - int(e>>16) - int(buf&(1<<(e&31)-1)>>(e>>8&15))
		buf >>= e & 31
		nb -= uint(e & 31)
		if from < hist {
			err = errDistance
			break loop
		}
		copyMatch(out, w, from, length)
		w += length
	}
	d.inPos, d.w, d.bits, d.nb = pos, w, buf, nb
	if err == errDistance {
		err = d.corrupt("distance", "before the start")
	}
	return err
}

// copyMatch copies length bytes to w from from, which lies before it. Up to 16
// bytes behind may be written.
func copyMatch(out *[windowSize + chunkSize + slack]byte, w, from, length int) {
	if w-from >= 16 {
		if length <= 16 {
			*(*[16]byte)(out[w:]) = *(*[16]byte)(out[from:])
			return
		}
		if w-from >= length {
			copy(out[w:w+length], out[from:])
			return
		}
	}
	end := w + length
	if w-from == 1 {
		c := out[from]
		p := out[w:end]
		for i := range p {
			p[i] = c
		}
		return
	}
	for w < end {
		w += copy(out[w:end], out[from:w])
	}
}

// symbol decodes one literal or match, with the file's end in sight.
func (d *inflater) symbol(lit *[litTable]uint32, dist *[distTable]uint32) error {
	e, err := d.lookup(lit[:], litBits)
	if err != nil {
		return err
	}
	switch {
	case e&entLiteral != 0:
		d.out[d.w] = byte(e >> 16)
		d.w++
		return nil
	case e&entEnd != 0 && e&entExcept != 0:
		d.state = atBlock
		return nil
	}
	length, err := d.extra(e)
	if err != nil {
		return err
	}
	if e, err = d.lookup(dist[:], distBits); err != nil {
		return err
	}
	n, err := d.extra(e)
	if err != nil {
		return err
	}
	if d.w-n < d.hist {
		return d.corrupt("distance", "before the start")
	}
	copyMatch(&d.out, d.w, d.w-n, length)
	d.w += length
	return nil
}

// lookup takes the bits of one code.
func (d *inflater) lookup(table []uint32, tableBits uint) (uint32, error) {
	for d.nb < 32 && d.inPos < d.inEnd {
		d.bits |= uint64(d.in[d.inPos]) << d.nb
		d.inPos++
		d.nb += 8
	}
	b := d.bits & (1<<d.nb - 1)
	e := table[b&(1<<tableBits-1)]
	n := uint(0)
	if e&entExcept != 0 && e&entSub != 0 {
		n = tableBits
		e = table[int(e>>16&0x7fff)+int(b>>tableBits)&(1<<(e>>8&15)-1)]
	}
	if e&entExcept != 0 && e&entEnd == 0 {
		return 0, d.corrupt("code", "no such code")
	}
	if e&(entLiteral|entExcept) != 0 {
		n += uint(e & 255)
	} else {
		n += uint(e >> 8 & 15)
	}
	if n > d.nb {
		return 0, d.truncated("deflate")
	}
	d.drop(n)
	return e, nil
}

// extra takes the extra bits of a length or distance and adds its base.
func (d *inflater) extra(e uint32) (int, error) {
	n := uint(e&255) - uint(e>>8&15)
	v, err := d.get(n, "deflate")
	return int(e>>16) + v, err
}
