package deflate

import "testing"

// distances decodes a stream the slow way and returns the distances in it.
func distances(t testing.TB, b []byte) []int {
	t.Helper()
	var out []int
	pos := 0
	bit := func(n int) int {
		v := 0
		for i := range n {
			v |= int(b[pos>>3]>>(pos&7)&1) << i
			pos++
		}
		return v
	}
	decode := func(lens []int) func() int {
		codes := make(map[[2]int]int)
		code := 0
		for n := 1; n <= maxBits; n++ {
			for s, l := range lens {
				if l == n {
					codes[[2]int{n, code}] = s
					code++
				}
			}
			code <<= 1
		}
		return func() int {
			code := 0
			for n := 1; n <= maxBits; n++ {
				code = code<<1 | bit(1)
				if s, ok := codes[[2]int{n, code}]; ok {
					return s
				}
			}
			t.Fatal("no such code")
			return 0
		}
	}
	for last := 0; last == 0; {
		last = bit(1)
		var lit, dist func() int
		switch bit(2) {
		case 0:
			pos = (pos + 7) &^ 7
			n := bit(16)
			bit(16)
			pos += 8 * n
			continue
		case 1:
			var l, d []int
			for _, s := range fixedLit {
				l = append(l, int(s.n))
			}
			for range 30 {
				d = append(d, 5)
			}
			lit, dist = decode(l), decode(d)
		case 2:
			nlit, ndist, ncl := bit(5)+257, bit(5)+1, bit(4)+4
			cl := make([]int, codeSyms)
			for _, s := range codeOrder[:ncl] {
				cl[s] = bit(3)
			}
			next := decode(cl)
			var lens []int
			for len(lens) < nlit+ndist {
				switch s := next(); s {
				case 16:
					for range 3 + bit(2) {
						lens = append(lens, lens[len(lens)-1])
					}
				case 17:
					lens = append(lens, make([]int, 3+bit(3))...)
				case 18:
					lens = append(lens, make([]int, 11+bit(7))...)
				default:
					lens = append(lens, s)
				}
			}
			lit, dist = decode(lens[:nlit]), decode(lens[nlit:])
		}
		for {
			s := lit()
			if s == endSym {
				break
			}
			if s > endSym {
				bit(int(lenExtra[s-257]))
				d := uint32(dist())
				x := distExtra(d)
				base := int(d) + 1
				if d >= 4 {
					base = int(2|d&1)<<x + 1
				}
				out = append(out, base+bit(int(x)))
			}
		}
	}
	return out
}
