package gzindex

import "math/bits"

const (
	maxMatch = 258
	maxBits  = 15 // of a code (RFC 1951, section 3.2.7)
	litSyms  = 288
	distSyms = 32
	endSym   = 256

	// Bits that index the first table of each code. A code longer than that
	// goes on in a second table behind it. Sizes: the first table and the
	// most that second ones can take for this many symbols (zlib's enough.c:
	// 2342 for 286 symbols, 11 and 15 bits; 402 for 30 symbols, 8 and 15 bits).
	litBits, litTable   = 11, 4096
	distBits, distTable = 8, 512
	clBits              = 7
)

// An entry of a table, by its bits:
//
//	literal:  31 set; 16-23 the byte; 0-7 bits of the code
//	length, distance: 16-30 the base; 8-11 bits of the code; 0-7 the same and
//	          the extra bits behind it
//	second table: 15 and 13 set; 16-30 its place; 8-11 its bits; 0-7 bits of the first
//	end:      15 and 14 set; 0-7 bits of the code
//	no code:  15 set
const (
	entLiteral = 1 << 31
	entExcept  = 1 << 15
	entEnd     = 1 << 14
	entSub     = 1 << 13
)

var (
	litEntry  [litSyms]uint32 // without the bits of the code
	distEntry [distSyms]uint32
	clEntry   [19]uint32
	fixedLit  [litTable]uint32
	fixedDist [distTable]uint32
	// clOrder is the order of the lengths of the code length code.
	clOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
)

func init() {
	for s := range litSyms {
		switch {
		case s < endSym:
			litEntry[s] = entLiteral | uint32(s)<<16
		case s == endSym:
			litEntry[s] = entExcept | entEnd
		case s > 285:
			litEntry[s] = entExcept
		}
	}
	base := uint32(3)
	for s := 257; s < 285; s++ { // RFC 1951, section 3.2.5
		extra := uint32(max(0, (s-261)/4))
		litEntry[s] = base<<16 | extra
		base += 1 << extra
	}
	litEntry[285] = 258 << 16
	base = 1
	for s := range distSyms {
		if s >= 30 {
			distEntry[s] = entExcept
			continue
		}
		extra := uint32(max(0, s/2-1))
		distEntry[s] = base<<16 | extra
		base += 1 << extra
	}
	for s := range clEntry {
		clEntry[s] = entLiteral | uint32(s)<<16
	}
	var lens [litSyms]uint8 // section 3.2.6
	for s := range lens {
		switch {
		case s < 144:
			lens[s] = 8
		case s < 256:
			lens[s] = 9
		case s < 280:
			lens[s] = 7
		default:
			lens[s] = 8
		}
	}
	build(fixedLit[:], litBits, lens[:], litEntry[:])
	for s := range distSyms {
		lens[s] = 5
	}
	build(fixedDist[:], distBits, lens[:distSyms], distEntry[:])
}

// build fills table with the canonical code of the given lengths, and reports
// whether there is one. Codes must be complete, but for a code of one symbol
// of one bit or of none.
func build(table []uint32, tableBits uint, lens []uint8, entries []uint32) bool {
	var count, next [maxBits + 2]int
	for _, n := range lens {
		count[n]++
	}
	used := len(lens) - count[0]
	left := 1 // codes of the present length not yet given away
	for n := 1; n <= maxBits; n++ {
		left = left<<1 - count[n]
		if left < 0 {
			return false
		}
		next[n+1] = next[n] + count[n]
	}
	if left > 0 && (used > 1 || used != count[1]) {
		return false
	}
	if left > 0 {
		for i := range table[:1<<tableBits] {
			table[i] = entExcept
		}
	}
	var sorted [litSyms]uint16
	for s, n := range lens {
		if n != 0 {
			sorted[next[n]] = uint16(s)
			next[n]++
		}
	}

	end := 1 << tableBits // of the tables so far
	code, codeLen := uint32(0), uint(0)
	group, entry := -1, uint32(0) // the second table being filled
	for i := 0; i < used; i++ {
		s := sorted[i]
		n := uint(lens[s])
		code <<= n - codeLen
		codeLen = n
		rev := int(bits.Reverse32(code) >> (32 - n))
		code++
		if n <= tableBits {
			e := withBits(entries[s], n)
			for j := rev; j < 1<<tableBits; j += 1 << n {
				table[j] = e
			}
			continue
		}
		// The codes that share their first bits follow each other, the
		// longest last.
		low := rev & (1<<tableBits - 1)
		if low != group {
			last, c, cl := n, code, n
			for _, t := range sorted[i+1 : used] {
				m := uint(lens[t])
				c <<= m - cl
				cl = m
				if int(bits.Reverse32(c)>>(32-m))&(1<<tableBits-1) != low {
					break
				}
				c++
				last = m
			}
			sub := last - tableBits
			if end+1<<sub > len(table) {
				return false
			}
			group, entry = low, entExcept|entSub|uint32(end)<<16|uint32(sub)<<8|uint32(tableBits)
			table[low] = entry
			end += 1 << sub
		}
		start, sub := int(entry>>16&0x7fff), uint(entry>>8&15)
		v := withBits(entries[s], n-tableBits)
		for j := rev >> tableBits; j < 1<<sub; j += 1 << (n - tableBits) {
			table[start+j] = v
		}
	}
	return true
}

// withBits adds the n bits of a code to an entry.
func withBits(e uint32, n uint) uint32 {
	if e&entExcept != 0 && e&entEnd == 0 {
		return e // no code
	}
	e += uint32(n)
	if e&(entLiteral|entExcept) == 0 {
		e |= uint32(n) << 8
	}
	return e
}
