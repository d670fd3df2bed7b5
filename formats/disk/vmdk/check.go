package vmdk

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"imgmaint/formats"
)

// Check checks the metadata of the VMDK of size bytes in r. Unlike Open it
// goes on past entries that are wrong, and it needs no parent.
func Check(r io.ReaderAt, size int64) (*formats.CheckReport, error) {
	l, err := parse(r, size)
	if err != nil {
		return nil, err
	}
	return l.Check()
}

// A run is a part of the file that is in use, bytes.
type run struct{ off, end int64 }

// A checker collects what is in use.
type checker struct {
	*layout
	rep  *formats.CheckReport
	used []run
}

// Check implements formats.Checker. It reads all tables and, of compressed
// grains, the markers; not the data.
func (l *layout) Check() (*formats.CheckReport, error) {
	c := checker{layout: l, rep: new(formats.CheckReport)}
	for _, p := range l.problems {
		c.rep.Add(p)
	}
	c.rep.TotalClusters = (l.size + l.grain - 1) / l.grain
	if err := c.all(); err != nil {
		return nil, err
	}
	return c.rep, nil
}

func (c *checker) all() error {
	h := &c.head
	for _, u := range []run{{0, headerSize}, {c.descOff, c.descOff + int64(h.descriptorSize)*sectorSize}} {
		if err := c.use(u); err != nil {
			return err
		}
	}
	if c.footer >= 0 {
		if err := c.use(run{c.footer, c.footer + 3*sectorSize}); err != nil {
			return err
		}
	}
	if h.flags&flagRedundant != 0 {
		if err := c.redundant(); err != nil {
			return err
		}
	}
	err := c.directory(h.gdOffset, "gdOffset", offGD, func(i, tab int64) error {
		return c.grains(i, tab)
	})
	if err != nil {
		return err
	}
	c.overlaps()
	return c.leaks()
}

func (c *checker) bad(off int64, field, msg string, args ...any) {
	c.rep.Add(formats.Finding{Severity: formats.Corruption, Off: off, Field: field, Detail: fmt.Sprintf(msg, args...)})
}

// use notes a run. Runs that follow each other are joined.
func (c *checker) use(u run) error {
	if n := len(c.used); n > 0 && c.used[n-1].end == u.off {
		c.used[n-1].end = u.end
		return nil
	}
	if len(c.used) == maxRuns {
		return formats.Limit(Name, u.off, "grain", "more than %d separate runs", maxRuns)
	}
	c.used = append(c.used, u)
	return nil
}

// directory calls do with the index and offset of each table in a directory.
func (c *checker) directory(sector uint64, field string, fieldOff int64, do func(i, tab int64) error) error {
	n := c.tables()
	if sector == 0 || sector > uint64(c.f.Size/sectorSize) || c.f.Check(int64(sector)*sectorSize, 4*n, field, 4*maxDirectory) != nil {
		c.bad(fieldOff, field, "a directory of %d tables at sector %#x in a file of %d bytes", n, sector, c.f.Size)
		return nil
	}
	at := int64(sector) * sectorSize
	if err := c.use(run{at, at + max(sectorSize, alignUp(4*n, sectorSize))}); err != nil {
		return err
	}
	buf := make([]byte, min(64<<10, 4*n))
	for i := int64(0); i < n; {
		p := buf[:min(int64(len(buf)), 4*(n-i))]
		if err := c.f.ReadFull(p, at+4*i, field); err != nil {
			return err
		}
		for ; len(p) > 0; p = p[4:] {
			e := le.Uint32(p)
			if msg := c.checkTable(e); msg != "" {
				c.bad(at+4*i, fmt.Sprintf("%s entry %d", field, i), "%s", msg)
			} else if e != 0 {
				if err := do(i, int64(e)*sectorSize); err != nil {
					return err
				}
			}
			i++
		}
	}
	return nil
}

// grains checks the table of index i at tab.
func (c *checker) grains(i, tab int64) error {
	if err := c.use(run{tab, tab + gtSize}); err != nil {
		return err
	}
	var b [gtSize]byte
	if err := c.f.ReadFull(b[:], tab, "grain table"); err != nil {
		return err
	}
	for k := range int64(gtEntries) {
		g := i*gtEntries + k
		e := le.Uint32(b[4*k:])
		if g*c.grain >= c.size {
			break
		}
		field := fmt.Sprintf("grain table entry %d", g)
		if msg := c.checkEntry(e, g); msg != "" {
			c.bad(tab+4*k, field, "%s", msg)
			continue
		}
		if e == entryHole || e == entryZero && c.head.flags&flagZeroGrain != 0 {
			continue
		}
		c.rep.AllocatedClusters++
		u := run{off: int64(e) * sectorSize}
		u.end = u.off + c.grain
		if c.compressed {
			c.rep.CompressedClusters++
			head, size, err := c.grainHeader(u.off, g)
			if err != nil {
				c.bad(u.off, field, "%v", err)
				continue
			}
			u.end = alignUp(u.off+head+size, sectorSize)
		}
		if err := c.use(u); err != nil {
			return err
		}
	}
	return nil
}

// redundant compares the redundant directory's tables with the first ones. A
// stream has room for it but need not fill it in.
func (c *checker) redundant() error {
	first := map[int64]int64{}
	const most = 1 << 16 // tables compared, of 32 MiB each
	err := (&checker{layout: c.layout, rep: new(formats.CheckReport)}).directory(c.head.gdOffset, "gdOffset", offGD, func(i, tab int64) error {
		if len(first) < most {
			first[i] = tab
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.directory(c.head.rgdOffset, "rgdOffset", offRGD, func(i, tab int64) error {
		if err := c.use(run{tab, tab + gtSize}); err != nil {
			return err
		}
		at, ok := first[i]
		if !ok || at == tab {
			return nil
		}
		var a, b [gtSize]byte
		if err := c.f.ReadFull(a[:], at, "grain table"); err != nil {
			return err
		}
		if err := c.f.ReadFull(b[:], tab, "redundant grain table"); err != nil {
			return err
		}
		if a != b {
			c.bad(tab, "redundant grain table", "differs from the table at %#x", at)
		}
		return nil
	})
}

// overlaps sorts the runs and finds those that share a byte.
func (c *checker) overlaps() {
	slices.SortFunc(c.used, func(a, b run) int { return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.end, b.end)) })
	end := int64(0)
	for _, u := range c.used {
		if u.off < end {
			c.bad(u.off, "file", "used twice, up to %#x", min(u.end, end))
		}
		end = max(end, u.end)
	}
}

// leaks finds the parts of the file that nothing uses. Between the runs of a
// stream there are markers.
func (c *checker) leaks() error {
	// The grains start where overHead says, or on the next grain.
	end := alignUp(int64(min(c.head.overHead, uint64(c.f.Size)/sectorSize))*sectorSize, c.grain)
	gap := func(to int64) error {
		if to-end < sectorSize {
			return nil
		}
		if !c.compressed {
			if to-end < c.grain {
				return nil
			}
		} else {
			off := end
			for off < to {
				n, err := c.markerAt(off)
				if err != nil {
					return err
				}
				if n == 0 {
					break
				}
				off += n
			}
			if off >= to {
				return nil
			}
		}
		c.rep.Add(formats.Finding{Severity: formats.Leak, Off: end, Field: "file", Detail: fmt.Sprintf("%d bytes nothing uses", to-end)})
		return nil
	}
	for _, u := range c.used {
		if err := gap(u.off); err != nil {
			return err
		}
		end = max(end, u.end)
	}
	c.rep.ImageEnd = min(end, c.f.Size)
	return gap(c.f.Size)
}

// markerAt returns the length of the metadata marker at off, 0 if there is
// none.
func (c *checker) markerAt(off int64) (int64, error) {
	if off > c.f.Size-sectorSize {
		return 0, nil
	}
	var b [16]byte
	if err := c.f.ReadFull(b[:], off, "marker"); err != nil {
		return 0, err
	}
	if m := parseMarker(b[:]); m.size != 0 || m.kind > markerFooter {
		return 0, nil
	}
	return sectorSize, nil
}
