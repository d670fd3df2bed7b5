package convert

import (
	"bytes"
	"context"

	"imgmaint/formats"
)

// A Difference is where two disks part.
type Difference struct {
	// Off is the first byte that differs, or the size of the shorter disk
	// when only the sizes do.
	Off int64 `json:"offset"`
	// SizeOnly is true when the longer disk has nothing but zeros after the
	// end of the shorter one.
	SizeOnly bool `json:"size-only"`
}

// Compare reads a and b and returns where they first differ, or nil if they
// hold the same bytes. Where one disk is longer its rest is compared with
// zeros; a Difference in size alone is told only if there is no other.
func Compare(ctx context.Context, a, b formats.Image, o *Options) (*Difference, error) {
	if o == nil {
		o = new(Options)
	}
	size := max(a.Size(), b.Size())
	var found *Difference
	err := ordered(ctx, o.workers(), func() *pair { return new(pair) }, planWindows(window, a, b),
		func() func(*pair) error { return func(p *pair) error { return p.process(a, b) } },
		func(p *pair) error {
			if p.diff >= 0 {
				found = &Difference{Off: p.off + p.diff}
				return errStop
			}
			if o.Progress != nil {
				o.Progress(min(p.off+window, size), size)
			}
			return nil
		})
	if err != nil && err != errStop {
		return nil, err
	}
	if found == nil && a.Size() != b.Size() {
		found = &Difference{Off: min(a.Size(), b.Size()), SizeOnly: true}
	}
	if o.Progress != nil {
		o.Progress(size, size)
	}
	return found, nil
}

// errStop ends a pipeline whose answer is known.
var errStop = stop{}

type stop struct{}

func (stop) Error() string { return "stopped" }

type pair struct {
	span
	bufs [2][]byte
	diff int64 // relative to off, or -1
}

func (p *pair) process(a, b formats.Image) error {
	p.diff = -1
	for _, e := range p.data {
		for i, img := range []formats.Image{a, b} {
			if int64(cap(p.bufs[i])) < e.Len {
				p.bufs[i] = make([]byte, window)
			}
			buf := p.bufs[i][:e.Len]
			p.bufs[i] = buf
			n := max(0, min(e.Len, img.Size()-p.off-e.Off))
			clear(buf[n:])
			if err := readFull(img, buf[:n], p.off+e.Off); err != nil {
				return err
			}
		}
		x, y := p.bufs[0], p.bufs[1]
		if bytes.Equal(x, y) {
			continue
		}
		for i := range x {
			if x[i] != y[i] {
				p.diff = e.Off + int64(i)
				return nil
			}
		}
	}
	return nil
}
