package deflate

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

const (
	litSyms   = 286
	distSyms  = 30
	codeSyms  = 19
	endSym    = 256
	maxBits   = 15 // of a literal, length or distance code
	maxCLBits = 7  // of a code length code
)

// Length and distance codes (RFC 1951, section 3.2.5).
var (
	lenSym   [256]uint8 // by length less 3, less 257
	lenBase  [29]uint16 // length less 3
	lenExtra = [29]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	// Extra bits of a distance code: its number halved, less 1.
	codeOrder = [codeSyms]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
)

var (
	fixedLit  [litSyms + 2]symbol
	fixedDist [distSyms + 2]symbol
)

func init() {
	at := 0
	for s := range lenBase {
		if s == 28 {
			at = 255 // 258 has a code of its own
		}
		lenBase[s] = uint16(at)
		for range 1 << lenExtra[s] {
			if at < 256 {
				lenSym[at] = uint8(s)
			}
			at++
		}
	}
	for i := range fixedLit {
		switch {
		case i < 144:
			fixedLit[i].n = 8
		case i < 256:
			fixedLit[i].n = 9
		case i < 280:
			fixedLit[i].n = 7
		default:
			fixedLit[i].n = 8
		}
	}
	for i := range fixedDist {
		fixedDist[i].n = 5
	}
	assign(fixedLit[:])
	assign(fixedDist[:])
}

// distSym is the code of a distance less 1.
func distSym(d uint32) uint32 {
	if d < 2 {
		return d
	}
	n := uint32(bits.Len32(d))
	return 2*(n-1) | d>>(n-2)&1
}

func distExtra(sym uint32) uint32 { return max(sym>>1, 1) - 1 }

// A symbol has how often it appears and its code, the first bit lowest.
type symbol struct {
	freq uint32
	code uint16
	n    uint8 // bits of the code; 0 when it does not appear
}

// A blockCoder chooses the codes of a block and writes it.
type blockCoder struct {
	lit   [litSyms]symbol
	dist  [distSyms]symbol
	cl    [codeSyms]symbol
	runs  []uint16 // code length symbols, their extra bits from bit 5
	build builder
}

// write writes a block in the smallest of the three forms, and forgets the
// frequencies. Src is what the tokens stand for.
func (c *blockCoder) write(w *bitWriter, tokens []uint32, src []byte, final bool) {
	c.lit[endSym].freq++
	c.build.lengths(c.lit[:], maxBits)
	c.build.lengths(c.dist[:], maxBits)
	nlit, ndist := max(used(c.lit[:]), 257), max(used(c.dist[:]), 1)
	headBits, ncl := c.header(nlit, ndist)
	dynamic, fixed := headBits, 0
	for i, s := range c.lit {
		extra := 0
		if i > endSym {
			extra = int(lenExtra[i-257])
		}
		dynamic += int(s.freq) * (int(s.n) + extra)
		fixed += int(s.freq) * (int(fixedLit[i].n) + extra)
	}
	for i, s := range c.dist {
		extra := int(distExtra(uint32(i)))
		dynamic += int(s.freq) * (int(s.n) + extra)
		fixed += int(s.freq) * (5 + extra)
	}
	stored := 8*len(src) + (len(src)/65535+1)*40
	last := uint64(0)
	if final {
		last = 1
	}
	switch {
	case stored <= dynamic && stored <= fixed:
		w.stored(src, final)
	case fixed <= dynamic:
		w.put(last|1<<1, 3)
		w.tokens(tokens, fixedLit[:litSyms], fixedDist[:distSyms])
	default:
		assign(c.lit[:])
		assign(c.dist[:])
		w.put(last|2<<1, 3)
		w.put(uint64(nlit-257)|uint64(ndist-1)<<5|uint64(ncl-4)<<10, 14)
		for _, s := range codeOrder[:ncl] {
			w.put(uint64(c.cl[s].n), 3)
		}
		for _, r := range c.runs {
			s := c.cl[r&31]
			w.put(uint64(s.code)|uint64(r>>5)<<s.n, uint(s.n)+clExtra(r&31))
		}
		w.tokens(tokens, c.lit[:], c.dist[:])
	}
	for i := range c.lit {
		c.lit[i].freq = 0
	}
	for i := range c.dist {
		c.dist[i].freq = 0
	}
}

func used(syms []symbol) int {
	n := len(syms)
	for n > 0 && syms[n-1].n == 0 {
		n--
	}
	return n
}

// clExtra is the number of extra bits of a code length symbol.
func clExtra(sym uint16) uint {
	switch sym {
	case 16:
		return 2
	case 17:
		return 3
	case 18:
		return 7
	}
	return 0
}

// header prepares the code lengths of a dynamic block, and returns the bits
// they take and the number of code length codes.
func (c *blockCoder) header(nlit, ndist int) (size, ncl int) {
	var lens [litSyms + distSyms]uint8
	for i := range nlit {
		lens[i] = c.lit[i].n
	}
	for i := range ndist {
		lens[nlit+i] = c.dist[i].n
	}
	for i := range c.cl {
		c.cl[i] = symbol{}
	}
	c.runs = c.runs[:0]
	emit := func(sym, extra int) {
		c.runs = append(c.runs, uint16(sym|extra<<5))
		c.cl[sym].freq++
	}
	all := lens[:nlit+ndist]
	for i := 0; i < len(all); {
		v, n := all[i], 1
		for i+n < len(all) && all[i+n] == v {
			n++
		}
		i += n
		if v == 0 {
			for n >= 11 {
				k := min(n, 138)
				emit(18, k-11)
				n -= k
			}
			if n >= 3 {
				emit(17, n-3)
				n = 0
			}
		} else if n >= 4 {
			emit(int(v), 0)
			n--
			for n >= 3 {
				k := min(n, 6)
				if n-k == 1 || n-k == 2 { // 3 at least for the rest
					if n-3 <= 6 && n-3 >= 3 {
						k = n - 3
					}
				}
				emit(16, k-3)
				n -= k
			}
		}
		for ; n > 0; n-- {
			emit(int(v), 0)
		}
	}
	c.build.lengths(c.cl[:], maxCLBits)
	assign(c.cl[:])
	ncl = codeSyms
	for ncl > 4 && c.cl[codeOrder[ncl-1]].n == 0 {
		ncl--
	}
	size = 3 + 14 + 3*ncl
	for i, s := range c.cl {
		size += int(s.freq) * (int(s.n) + int(clExtra(uint16(i))))
	}
	return size, ncl
}

// assign gives the symbols their canonical codes (RFC 1951, section 3.2.2).
func assign(syms []symbol) {
	var next [maxBits + 2]uint16
	for _, s := range syms {
		if s.n > 0 {
			next[s.n+1]++
		}
	}
	code := uint16(0)
	for n := 1; n <= maxBits; n++ {
		code = (code + next[n]) << 1
		next[n] = code
	}
	for i := range syms {
		if n := syms[i].n; n > 0 {
			syms[i].code = bits.Reverse16(next[n]) >> (16 - n)
			next[n]++
		}
	}
}

// A builder finds code lengths.
type builder struct {
	leaves []uint64 // frequency from bit 16, symbol below
	weight [2 * (litSyms + 2)]uint32
	parent [2 * (litSyms + 2)]uint16
}

// lengths gives each symbol that appears the length of its Huffman code, at
// most limit. Where only one appears it gets one bit, and where none does the
// first does too: decoders want a code.
func (b *builder) lengths(syms []symbol, limit int) {
	b.leaves = b.leaves[:0]
	for i := range syms {
		syms[i].n = 0
		if f := syms[i].freq; f > 0 {
			b.leaves = append(b.leaves, uint64(f)<<16|uint64(i))
		}
	}
	n := len(b.leaves)
	if n < 2 {
		if n == 1 {
			syms[b.leaves[0]&0xffff].n = 1
		} else {
			syms[0].n = 1
		}
		return
	}
	slices.Sort(b.leaves)
	for i, l := range b.leaves {
		b.weight[i] = uint32(l >> 16)
	}
	// Leaves are in order, and so are the inner nodes as they are made: the
	// two lightest nodes are always at the heads of the two queues.
	leaf, inner := 0, n
	for next := n; next < 2*n-1; next++ {
		sum := uint32(0)
		for range 2 {
			if leaf < n && (inner >= next || b.weight[leaf] <= b.weight[inner]) {
				sum += b.weight[leaf]
				b.parent[leaf] = uint16(next)
				leaf++
			} else {
				sum += b.weight[inner]
				b.parent[inner] = uint16(next)
				inner++
			}
		}
		b.weight[next] = sum
	}
	// From here weights are depths.
	var count [maxBits + 1]int
	b.weight[2*n-2] = 0
	for i := 2*n - 3; i >= 0; i-- {
		b.weight[i] = b.weight[b.parent[i]] + 1
		if i < n {
			count[min(int(b.weight[i]), limit)]++
		}
	}
	// Cutting codes to the limit makes too many of them: lengthen others, the
	// least loss first, until they fit.
	space := 0
	for k, c := range count[:limit+1] {
		space += c << (limit - k)
	}
	space -= count[0] << limit
	for space > 1<<limit {
		k := limit - 1
		for count[k] == 0 {
			k--
		}
		count[k]--
		count[k+1] += 2
		count[limit]--
		space--
	}
	// The rarest symbols get the longest codes.
	i := 0
	for k := limit; k > 0; k-- {
		for range count[k] {
			syms[b.leaves[i]&0xffff].n = uint8(k)
			i++
		}
	}
}

// A bitWriter appends bits, the first lowest, to a slice.
type bitWriter struct {
	b   []byte // with room for 8 bytes after at
	at  int
	acc uint64
	n   uint // bits in acc, less than 8 between calls
}

// reset begins to append to dst what src bytes will need.
func (w *bitWriter) reset(dst []byte, src int) {
	w.at, w.acc, w.n = len(dst), 0, 0
	w.b = dst[:cap(dst)]
	w.grow(src/2 + 1024)
}

// grow makes room for n more bytes.
func (w *bitWriter) grow(n int) {
	if need := w.at + n + 16; need > len(w.b) {
		b := make([]byte, max(need, 2*len(w.b)))
		copy(b, w.b[:w.at])
		w.b = b
	}
}

func (w *bitWriter) put(v uint64, n uint) {
	w.acc |= v << w.n
	w.n += n
	if w.at+8 > len(w.b) {
		w.grow(1024)
	}
	binary.LittleEndian.PutUint64(w.b[w.at:], w.acc)
	k := w.n >> 3
	w.at += int(k)
	w.acc >>= k * 8
	w.n &= 7
}

// tokens writes tokens and the end of the block.
func (w *bitWriter) tokens(tokens []uint32, lit, dist []symbol) {
	lits := (*[litSyms]symbol)(lit)
	dists := (*[distSyms]symbol)(dist)
	acc, n, at, b := w.acc, w.n, w.at, w.b
	for _, t := range tokens {
		// A token takes 48 bits at most.
		if at+16 > len(b) {
			w.at = at
			w.grow(len(b)/2 + 1024)
			b = w.b
		}
		if t&matchFlag == 0 {
			s := &lits[t]
			acc |= uint64(s.code) << n
			n += uint(s.n)
			if n < 32 {
				continue
			}
		} else {
			if n >= 8 {
				binary.LittleEndian.PutUint64(b[at:], acc)
				k := n >> 3
				at += int(k)
				acc >>= k * 8
				n &= 7
			}
			length := t >> 16 & 0xff
			ls := lenSym[length]
			s := &lits[257+int(ls)]
			acc |= uint64(s.code) << n
			n += uint(s.n)
			acc |= uint64(length-uint32(lenBase[ls])) << n
			n += uint(lenExtra[ls])
			d := t & 0xffff
			ds := distSym(d)
			p := &dists[ds]
			acc |= uint64(p.code) << n
			n += uint(p.n)
			if x := distExtra(ds); x > 0 {
				acc |= uint64(d&(1<<x-1)) << n
				n += uint(x)
			}
		}
		binary.LittleEndian.PutUint64(b[at:], acc)
		k := n >> 3
		at += int(k)
		acc >>= k * 8
		n &= 7
	}
	binary.LittleEndian.PutUint64(b[at:], acc)
	k := n >> 3
	w.acc, w.n, w.at = acc>>(k*8), n&7, at+int(k)
	w.put(uint64(lits[endSym].code), uint(lits[endSym].n))
}

// stored writes src as stored blocks of up to 65,535 bytes.
func (w *bitWriter) stored(src []byte, final bool) {
	for {
		p := src[:min(len(src), 65535)]
		src = src[len(p):]
		last := uint64(0)
		if final && len(src) == 0 {
			last = 1
		}
		w.put(last, 3)
		if w.n > 0 {
			w.put(0, 8-w.n)
		}
		w.grow(len(p) + 8)
		binary.LittleEndian.PutUint16(w.b[w.at:], uint16(len(p)))
		binary.LittleEndian.PutUint16(w.b[w.at+2:], ^uint16(len(p)))
		copy(w.b[w.at+4:], p)
		w.at += 4 + len(p)
		if len(src) == 0 {
			return
		}
	}
}

// finish ends the stream on a byte and returns all that was appended to.
func (w *bitWriter) finish() []byte {
	if w.n > 0 {
		w.put(0, 8-w.n)
	}
	b := w.b[:w.at]
	w.b = nil
	return b
}
