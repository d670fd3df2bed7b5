package manifest

import (
	"encoding/hex"
	"hash"
	"slices"
)

// A Digester computes several digests of one stream.
type Digester struct {
	algs   []Algorithm
	hashes []hash.Hash
	limits []int64 // bytes that count, or -1
	n      int64
}

// NewDigester returns a Digester of the given algorithms; unknown ones and
// repetitions are left out.
func NewDigester(algs ...Algorithm) *Digester {
	d := &Digester{}
	for _, a := range algs {
		if h := a.New(); h != nil && !slices.Contains(d.algs, a) {
			d.algs, d.hashes, d.limits = append(d.algs, a), append(d.hashes, h), append(d.limits, -1)
		}
	}
	return d
}

// First has the digest a, which must not be one of NewDigester's, cover the
// first n bytes of the stream only. Call it before Write.
func (d *Digester) First(a Algorithm, n int64) {
	if h := a.New(); h != nil {
		d.algs, d.hashes, d.limits = append(d.algs, a+first), append(d.hashes, h), append(d.limits, n)
	}
}

// first marks an algorithm whose digest covers the beginning.
const first = "/first"

// Write implements io.Writer; it never fails.
func (d *Digester) Write(p []byte) (int, error) {
	for i, h := range d.hashes {
		q := p
		if l := d.limits[i]; l >= 0 {
			q = p[:max(0, min(int64(len(p)), l-d.n))]
		}
		h.Write(q)
	}
	d.n += int64(len(p))
	return len(p), nil
}

// Size is the number of bytes written.
func (d *Digester) Size() int64 { return d.n }

// Sum is the digest of what was written in lower-case hexadecimal; "" for an
// algorithm that was not asked for.
func (d *Digester) Sum(a Algorithm) string {
	if i := slices.Index(d.algs, a); i >= 0 {
		return hex.EncodeToString(d.hashes[i].Sum(nil))
	}
	return ""
}

// SumFirst is the digest that First asked for.
func (d *Digester) SumFirst(a Algorithm) string { return d.Sum(a + first) }
