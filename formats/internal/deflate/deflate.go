// Package deflate compresses independent blocks of data, such as the clusters
// of a disk image, into raw deflate streams (RFC 1951). Unlike general
// encoders it takes the whole input at once, keeps distances within a window
// that the decoder of the image's format has, and spends nothing on the start
// of a stream.
package deflate

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Limits of deflate.
const (
	MinWindow = 256
	MaxWindow = 32768
	minMatch  = 3
	maxMatch  = 258
)

const (
	hashBits4 = 13
	hashBits3 = 11
	// blockTokens is the most of a block: what zlib has at its largest.
	blockTokens = 32768
	// maxInput keeps positions far from the end of their 32 bits.
	maxInput = 1 << 28
)

// effort is what a level means.
type effort struct {
	depth int // candidates looked at for one match
	nice  int // length from which a match is taken as it is
	lazy  int // positions ahead that may have a better one: 0, 1 or 2
	good  int // length from which they are not looked at
}

// The levels, from fast to small.
var efforts = [...]effort{
	1: {depth: 2, nice: 16},
	2: {depth: 4, nice: 32},
	3: {depth: 10, nice: 48},
	4: {depth: 6, nice: 48, lazy: 1, good: 16},
	5: {depth: 12, nice: 64, lazy: 1, good: 24},
	6: {depth: 28, nice: 128, lazy: 1, good: 48},
	7: {depth: 64, nice: 192, lazy: 1, good: 96},
	8: {depth: 160, nice: maxMatch, lazy: 2, good: maxMatch},
	9: {depth: 1024, nice: maxMatch, lazy: 2, good: maxMatch},
}

// MaxLevel is the highest level.
const MaxLevel = len(efforts) - 1

// An Encoder compresses one block at a time. It is not safe for concurrent
// use; its memory is about 220 KiB and is used again.
type Encoder struct {
	effort
	window uint32
	// Tables of positions, of which the low 16 bits are kept, so that they
	// stay in the processor's nearest cache. What an entry says is only ever
	// a hint: distances are checked against the window and bytes compared,
	// so that one that is stale does no harm.
	head4 [1 << hashBits4]uint16 // last position of a hash of 4 bytes
	head3 [1 << hashBits3]uint16 // last position of a hash of 3 bytes
	prev  [MaxWindow]uint16      // position before, with the same hash of 4

	tokens []uint32
	look   int // number of tokens at which endBlock looks again
	split  splitter
	huff   blockCoder
	out    bitWriter
}

// New returns an encoder of a level from 1 to MaxLevel that looks back at
// most window bytes, a power of two.
func New(level int, window int) (*Encoder, error) {
	if level < 1 || level > MaxLevel {
		return nil, fmt.Errorf("deflate: level %d is not from 1 to %d", level, MaxLevel)
	}
	if window < MinWindow || window > MaxWindow || window&(window-1) != 0 {
		return nil, fmt.Errorf("deflate: window of %d bytes", window)
	}
	return &Encoder{
		effort: efforts[level],
		window: uint32(window),
		tokens: make([]uint32, 0, blockTokens),
		look:   splitEvery,
	}, nil
}

// A token is a literal, or a match: matchFlag, its length less 3 from bit 16
// and its distance less 1 below.
const matchFlag = 1 << 31

func hash4(v uint32) uint32 { return v * 0x9e3779b1 >> (32 - hashBits4) }
func hash3(v uint32) uint32 { return v << 8 * 0x9e3779b1 >> (32 - hashBits3) }

// Encode appends the deflate stream of src to dst. The result depends on src
// and the settings alone. Src may have up to 256 MiB.
func (e *Encoder) Encode(dst, src []byte) []byte {
	if len(src) > maxInput {
		panic("deflate: input too large")
	}
	// Hints of an earlier block would do no harm to the data, but make the
	// stream depend on it.
	clear(e.head4[:])
	clear(e.head3[:])
	e.out.reset(dst, len(src))
	if e.lazy == 0 {
		e.greedy(src)
	} else {
		e.parse(src)
	}
	return e.out.finish()
}

// find looks for a match at i that is longer than best, and enters i. It
// returns the length 0 if there is none. At least 4 bytes follow i.
func (e *Encoder) find(src []byte, i, best, depth int) (length, dist int) {
	v := binary.LittleEndian.Uint32(src[i:])
	mask := e.window - 1
	cur := uint32(i)
	h4, h3 := hash4(v), hash3(v)
	cand, short := e.head4[h4], e.head3[h3]
	e.prev[cur&mask&(MaxWindow-1)] = cand
	e.head4[h4], e.head3[h3] = uint16(cur), uint16(cur)
	furthest := min(e.window, cur)
	maxLen := min(maxMatch, len(src)-i)
	if best >= maxLen {
		return 0, 0
	}
	d := uint32(uint16(cur) - cand) // of the candidate
	last := uint32(0)               // of the candidate before it
	if best <= minMatch {
		// Candidates need no test of the bytes up to best.
		for {
			if d <= last || d > furthest || depth <= 0 {
				if d := uint32(uint16(cur) - short); best < minMatch && d-1 < furthest &&
					(binary.LittleEndian.Uint32(src[cur-d:])^v)<<8 == 0 {
					return minMatch, int(d)
				}
				return 0, 0
			}
			depth--
			at := cur - d
			last = d
			d = uint32(uint16(cur) - e.prev[at&mask&(MaxWindow-1)])
			if binary.LittleEndian.Uint32(src[at:]) == v {
				length, dist = 4+matchLen(src[cur+4:int(cur)+maxLen], src[at+4:]), int(last)
				best = length
				break
			}
		}
	}
	if best >= maxLen || best >= e.nice {
		return length, dist
	}
	tail := binary.LittleEndian.Uint32(src[i+best-3:])
	for d > last && d <= furthest && depth > 0 {
		depth--
		at := cur - d
		last = d
		d = uint32(uint16(cur) - e.prev[at&mask&(MaxWindow-1)])
		if binary.LittleEndian.Uint32(src[int(at)+best-3:]) == tail && binary.LittleEndian.Uint32(src[at:]) == v {
			if n := 4 + matchLen(src[cur+4:int(cur)+maxLen], src[at+4:]); n > best {
				length, dist, best = n, int(last), n
				if n >= maxLen || n >= e.nice {
					break
				}
				tail = binary.LittleEndian.Uint32(src[i+best-3:])
			}
		}
	}
	return length, dist
}

// matchLen is the number of bytes a and b have in common at their start; b is
// at least as long as a.
func matchLen(a, b []byte) int {
	b = b[:len(a)]
	n := 0
	for len(a)-n >= 8 {
		if x := binary.LittleEndian.Uint64(a[n:]) ^ binary.LittleEndian.Uint64(b[n:]); x != 0 {
			return n + bits.TrailingZeros64(x)>>3
		}
		n += 8
	}
	for n < len(a) && a[n] == b[n] {
		n++
	}
	return n
}

// greedy takes each match as it is found.
func (e *Encoder) greedy(src []byte) {
	start := 0 // of the block
	end := len(src) - 4
	for i := 0; i < len(src); {
		n, dist := 0, 0
		if i <= end {
			n, dist = e.find(src, i, minMatch-1, e.depth)
		}
		if n < minMatch {
			e.literal(src[i])
			i++
		} else {
			e.match(n, dist)
			e.skip(src, i+1, i+n)
			i += n
		}
		start = e.endBlock(src, start, i)
	}
	e.block(src[start:], true)
}

// skip enters the positions from i to end, which a match covers.
func (e *Encoder) skip(src []byte, i, end int) {
	mask := e.window - 1
	for end = min(end, len(src)-3); i < end; i++ {
		v := binary.LittleEndian.Uint32(src[i:])
		h := hash4(v)
		e.prev[uint32(i)&mask&(MaxWindow-1)] = e.head4[h]
		e.head4[h], e.head3[hash3(v)] = uint16(i), uint16(i)
	}
}

// parse looks at the positions after a match too, and puts it off for a
// literal if there is a better one.
func (e *Encoder) parse(src []byte) {
	start := 0
	end := len(src) - 4
	for i := 0; i < len(src); {
		n, dist := 0, 0
		if i <= end {
			n, dist = e.find(src, i, minMatch-1, e.depth)
		}
		if n < minMatch || n == minMatch && dist > 2048 {
			e.literal(src[i])
			i++
			start = e.endBlock(src, start, i)
			continue
		}
		next := i + 1 // first position that is not entered
	better:
		for n < e.good {
			for ahead := 1; ahead <= e.lazy; ahead++ {
				at := i + ahead
				if at < next {
					continue
				}
				if at > end {
					break better
				}
				next = at + 1
				// A match further away must be longer to pay for its bits,
				// and for the literals before it.
				m, d := e.find(src, at, n-1, e.depth>>ahead)
				if m >= minMatch && 4*(m-n)+bits.Len(uint(dist))-bits.Len(uint(d)) > 2+4*(ahead-1) {
					for ; i < at; i++ {
						e.literal(src[i])
					}
					n, dist = m, d
					continue better
				}
			}
			break
		}
		e.match(n, dist)
		e.skip(src, next, i+n)
		i += n
		start = e.endBlock(src, start, i)
	}
	e.block(src[start:], true)
}

func (e *Encoder) literal(c byte) {
	e.tokens = append(e.tokens, uint32(c))
	e.huff.lit[c].freq++
	e.split.add(uint32(c)>>5&6 | uint32(c)&1)
}

func (e *Encoder) match(n, dist int) {
	e.tokens = append(e.tokens, matchFlag|uint32(n-minMatch)<<16|uint32(dist-1))
	e.huff.lit[257+int(lenSym[n-minMatch])].freq++
	e.huff.dist[distSym(uint32(dist-1))].freq++
	e.split.add(8 | uint32(max(0, min(n-8, 1))))
}

// endBlock ends the block if it is full, or the data have changed; it returns
// where the current block starts.
func (e *Encoder) endBlock(src []byte, start, i int) int {
	if len(e.tokens) < e.look {
		return start
	}
	e.look = len(e.tokens) + splitEvery
	if len(e.tokens) < blockTokens-2*splitEvery && (len(src)-i < minBlock || !e.split.changed(i-start)) {
		return start
	}
	e.block(src[start:i], false)
	return i
}

// block writes the tokens as a block.
func (e *Encoder) block(src []byte, final bool) {
	e.huff.write(&e.out, e.tokens, src, final)
	e.tokens = e.tokens[:0]
	e.look = splitEvery
	e.split = splitter{}
}

const (
	// splitEvery is the number of tokens between two looks at the data.
	splitEvery = 512
	// minBlock is the least a block should have: its code takes 50 to 100
	// bytes.
	minBlock = 6000
)

// A splitter finds where data change so much that a code of their own pays:
// it compares how often classes of tokens appear in the last ones with the
// block before them.
type splitter struct {
	now    [16]int // of 10 in use
	before [10]int
	total  int // tokens in before
}

func (s *splitter) add(class uint32) { s.now[class&15]++ }

// changed looks at the last tokens, and adds them to those before. The block
// has size bytes so far.
func (s *splitter) changed(size int) bool {
	recent := 0
	for _, n := range s.now {
		recent += n
	}
	if s.total > 0 && size >= minBlock {
		// Twice the variation distance of the two distributions, times both
		// their sizes.
		delta := 0
		for i, n := range s.now[:10] {
			d := n*s.total - s.before[i]*recent
			delta += max(d, -d)
		}
		// The longer the block, the less a new code costs by comparison.
		if delta*100 >= recent*s.total*max(splitAt-size/splitEase, splitLow) {
			return true
		}
	}
	for i, n := range s.now[:10] {
		s.before[i] += n
	}
	s.total += recent
	s.now = [16]int{}
	return false
}

// How different the last tokens must be, in percent of two distributions that
// have nothing in common being 200: splitAt at the start of a block, a percent
// less for each splitEase bytes of it, and splitLow at least. Found by trial
// on a root file system.
const (
	splitAt   = 45
	splitLow  = 20
	splitEase = 2048
)
