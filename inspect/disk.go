package inspect

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"imgmaint/formats"
	"imgmaint/formats/open"
)

const (
	gptEntries = 16 << 10 // bytes of the usual entry array of a GPT
	biosBoot   = "21686148-6449-6e6f-744e-656564454649"
	prepBoot   = "9e1a2d38-c612-4316-aa26-8b49521e5a8b"
	espType    = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
)

// Options say how to inspect. There is nothing to choose yet; nil is as good.
type Options struct{}

// Disk inspects a disk. The error is for what made any report impossible:
// the disk cannot be read at all, or ctx is done. Everything else is in the
// report.
func Disk(ctx context.Context, img formats.Image, opts *Options) (*Report, error) {
	d, err := layout(ctx, img)
	if err != nil {
		return nil, err
	}
	rep := d.rep
	g := d.guest()
	if g != nil {
		rep.State = Understood
		if err := collect(ctx, rep, g); err != nil {
			return nil, err
		}
	} else {
		rep.noSystem()
	}
	d.bootCode()
	rep.finish()
	return rep, nil
}

// FS inspects the file system of a guest.
func FS(ctx context.Context, fsys fs.ReadLinkFS, opts *Options) (*Report, error) {
	rep := new(Report)
	root := NewRoot(fsys)
	if score(root) == 0 {
		rep.State = NoSystem
		rep.problem("file system", errors.New("no operating system found"))
		rep.finish()
		return rep, nil
	}
	rep.State = Understood
	if err := collect(ctx, rep, &guest{root: root}); err != nil {
		return nil, err
	}
	rep.finish()
	return rep, nil
}

// noSystem sets the state of a disk on which no system was found.
func (r *Report) noSystem() {
	r.State = NoSystem
	for _, g := range r.Disk.Ranges {
		if g.State == Unsupported || g.State == Encrypted {
			r.State = NotUnderstood
		}
	}
	if r.State == NotUnderstood {
		r.problem("disk", errors.New("no operating system found in what could be read: what is installed is not known"))
		return
	}
	r.problem("disk", errors.New("no operating system found"))
}

// finish makes lists that must not be null in JSON, and says how many
// problems are not listed.
func (r *Report) finish() {
	if r.dropped > 0 {
		r.Problems = append(r.Problems, Problem{"report", fmt.Sprintf("%d more problems", r.dropped)})
		r.dropped = 0
	}
	if r.Problems == nil {
		r.Problems = []Problem{}
	}
	if r.Items.Packages == nil {
		r.Items.Packages = []Package{}
	}
}

// A disk is a disk being inspected.
type disk struct {
	img  formats.Image
	rep  *Report
	vols []*volume
}

// A volume is a partition, or the disk as a whole.
type volume struct {
	formats.Volume
	content open.Content
	fsys    formats.FS // nil when it is not read
	rng     int        // index in the ranges, or -1
	err     error      // why it is not read
}

// name is how messages call the volume.
func (v *volume) name() string {
	if v.Index == 0 {
		return "disk"
	}
	return fmt.Sprintf("partition %d", v.Index)
}

// layout reads the partition table, looks into every volume, and accounts
// for every byte.
func layout(ctx context.Context, img formats.Image) (*disk, error) {
	d := &disk{img: img, rep: &Report{Disk: &Layout{Size: img.Size()}}}
	if img.Size() == 0 {
		d.rep.problem("disk", errors.New("the disk has no bytes"))
		return d, nil
	}
	table, err := open.Table(img)
	switch {
	case err != nil && !ours(err):
		return nil, err
	case err != nil:
		d.rep.problem("partition table", err)
		d.rep.Disk.Ranges = []Range{{Off: 0, Len: img.Size(), State: Unsupported, Type: "disk", Note: "the partition table could not be read"}}
		return d, nil
	}
	d.rep.Disk.Table = table
	if table == nil {
		d.vols = []*volume{{Volume: formats.Volume{Len: img.Size()}}}
	} else {
		for _, p := range table.Problems {
			d.rep.problem("partition table", errors.New(p))
		}
		for _, v := range table.Volumes {
			if !extended(v) {
				d.vols = append(d.vols, &volume{Volume: v})
			}
		}
		if c, err := open.Probe(img); err != nil {
			return nil, err
		} else if c.Type != "" {
			d.rep.problem("disk", fmt.Errorf("has the signature of %s besides its partition table: read by the table", c.Type))
		}
	}
	slices.SortStableFunc(d.vols, func(a, b *volume) int { return cmp.Compare(a.Off, b.Off) })
	var end int64
	for _, v := range d.vols {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		v.rng = -1
		if v.Off > end {
			if err := d.gap(end, v.Off); err != nil {
				return nil, err
			}
		}
		if err := d.probe(v); err != nil {
			return nil, err
		}
		if from, to := max(v.Off, end), v.Off+v.Len; from < to { // else it lies within others
			r := d.volumeRange(v)
			r.Off, r.Len = from, to-from
			if from > v.Off {
				r.Note = join(r.Note, "its start is in the partition before it")
			}
			v.rng = len(d.rep.Disk.Ranges)
			rest, err := d.slack(v, &r)
			if err != nil {
				return nil, err
			}
			d.rep.Disk.Ranges = append(append(d.rep.Disk.Ranges, r), rest...)
			end = to
		}
	}
	if end < img.Size() {
		if err := d.gap(end, img.Size()); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// slack takes from r, the range of v, what is behind the end of its file
// system. That of FAT is not known: its size counts clusters alone.
func (d *disk) slack(v *volume, r *Range) ([]Range, error) {
	if r.State != Read || r.Type == "vfat" || r.Off != v.Off || r.Usage.Size <= 0 || r.Usage.Size >= r.Len {
		return nil, nil
	}
	rest := Range{Off: r.Off + r.Usage.Size, Len: r.Len - r.Usage.Size, State: Empty, Type: "slack", Partition: v.Index, Note: "behind the file system"}
	img, err := formats.Section(d.img, rest.Off, rest.Len)
	if err != nil {
		return nil, err
	}
	zero, err := open.IsZero(img)
	if err != nil {
		return nil, err
	}
	if !zero {
		rest.State = Unsupported
	}
	r.Len = r.Usage.Size
	return []Range{rest}, nil
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

func extended(v formats.Volume) bool {
	return v.Index < 5 && (v.Type == "0x05" || v.Type == "0x0f" || v.Type == "0x85")
}

// ours reports whether err is about the content and not about reading it.
func ours(err error) bool {
	return errors.Is(err, formats.ErrCorrupt) || errors.Is(err, formats.ErrLimit) || errors.Is(err, formats.ErrUnknown) || errors.Is(err, errors.ErrUnsupported)
}

// probe looks at what fills v, and opens it when it can be read.
func (d *disk) probe(v *volume) error {
	img, err := formats.Section(d.img, v.Off, v.Len)
	if err != nil {
		v.err = err
		return nil
	}
	if v.content, err = open.Probe(img); err != nil {
		if !ours(err) {
			return err
		}
		v.err = err
		return nil
	}
	if v.content.Class != open.FileSystem {
		return nil
	}
	v.fsys, v.err = v.content.Open(img)
	if v.err != nil {
		v.fsys = nil
		if !ours(v.err) {
			return v.err
		}
	}
	return nil
}

// volumeRange describes v, and lists what keeps it from being read.
func (d *disk) volumeRange(v *volume) Range {
	r := Range{Partition: v.Index, Type: v.content.Type, Label: v.content.Label, UUID: v.content.UUID}
	for _, also := range v.content.Also {
		d.rep.problem(v.name(), fmt.Errorf("has the signature of %s as well: taken for %s", also, v.content.Type))
	}
	boot := v.Type == biosBoot || v.Type == prepBoot || v.Type == "0x41"
	switch {
	case v.fsys != nil:
		u := v.fsys.Usage()
		r.State, r.Usage = Read, &u
		r.Type, r.Label, r.UUID = u.Type, u.Label, u.UUID
		for _, p := range u.Problems {
			d.rep.problem(v.name(), errors.New(p))
		}
	case v.err != nil:
		r.State, r.Note = Unsupported, reason(v.err)
		if r.Type == "" {
			r.Type = "unknown"
		}
		d.rep.problem(v.name(), v.err)
	case v.content.Class == open.Empty:
		r.State, r.Type = Empty, "zeros"
	case v.content.Class == open.Swap:
		r.State = Metadata
	case v.content.Class == open.Encrypted:
		r.State = Encrypted
		d.rep.problem(v.name(), fmt.Errorf("encrypted (%s): not read", v.content.Type))
	case v.content.Class == open.Unrecognised && boot:
		r.State, r.Type = Metadata, "boot loader"
	default:
		r.State = Unsupported
		if r.Type == "" {
			r.Type = "unknown"
			if v.TypeName != "" {
				r.Note = "the table says " + v.TypeName
			}
			d.rep.problem(v.name(), errors.New("the content is of no type that we know: not read"))
		} else {
			d.rep.problem(v.name(), fmt.Errorf("%s (%s): not read", v.content.Type, v.content.Class))
		}
	}
	return r
}

// gap accounts for the bytes between partitions.
func (d *disk) gap(from, to int64) error {
	t := d.rep.Disk.Table
	if t == nil {
		return nil
	}
	add := func(r Range) {
		if r.Len > 0 {
			d.rep.Disk.Ranges = append(d.rep.Disk.Ranges, r)
		}
	}
	head, tail := t.SectorSize, int64(0)
	if t.Scheme == "gpt" {
		head, tail = 2*t.SectorSize+gptEntries, t.SectorSize+gptEntries
	}
	if from < head {
		n := min(head, to) - from
		add(Range{Off: from, Len: n, State: Metadata, Type: t.Scheme})
		from += n
	}
	last := d.img.Size() - tail
	rest := int64(0)
	if to > last && tail > 0 {
		rest = to - max(last, from)
		to -= rest
	}
	if from < to {
		r, err := d.unallocated(from, to)
		if err != nil {
			return err
		}
		add(r)
	}
	add(Range{Off: to, Len: rest, State: Metadata, Type: t.Scheme, Note: "backup"})
	return nil
}

// unallocated describes bytes that belong to no partition.
func (d *disk) unallocated(from, to int64) (Range, error) {
	r := Range{Off: from, Len: to - from, State: Empty, Type: "unallocated"}
	img, err := formats.Section(d.img, from, to-from)
	if err != nil {
		return r, err
	}
	zero, err := open.IsZero(img)
	if err != nil || zero {
		return r, err
	}
	t := d.rep.Disk.Table
	for _, v := range t.Volumes {
		if extended(v) && from < v.Off+v.Len && to > v.Off {
			r.State, r.Type = Metadata, "extended boot records"
			return r, nil
		}
	}
	// A boot loader lives between an MBR and the first partition.
	if from <= 2*t.SectorSize+gptEntries && to-from <= 16<<20 {
		b := make([]byte, min(to-from, 4096))
		if n, err := img.ReadAt(b, 0); n == len(b) {
			if grubCore(b) {
				r.State, r.Type, r.Note = Metadata, "boot loader", "GRUB"
				return r, nil
			}
		} else if err != nil {
			return r, err
		}
	}
	r.State = Unsupported
	r.Note = "data outside of any partition"
	d.rep.problem(fmt.Sprintf("bytes %d to %d", from, to-1), errors.New("data outside of any partition: not read"))
	return r, nil
}

// grubCore recognises the first sector of GRUB's core image by its messages.
func grubCore(b []byte) bool {
	b = b[:min(len(b), 512)]
	return bytes.Contains(b, []byte("loading\x00")) && bytes.Contains(b, []byte("Geom\x00"))
}

// bootCode finds boot loaders that are not files.
func (d *disk) bootCode() {
	it := &d.rep.Items
	read := func(off int64) []byte {
		b := make([]byte, 512)
		if n, _ := d.img.ReadAt(b, off); n < len(b) {
			return nil
		}
		return b
	}
	if d.rep.Disk.Table != nil {
		if b := read(0); b != nil {
			if name := bootSector(b[:440]); name != "" {
				it.BootLoaders = append(it.BootLoaders, BootLoader{Name: name, Kind: "bios", Where: "boot sector"})
			}
		}
	}
	for _, v := range d.vols {
		if v.Type != biosBoot {
			continue
		}
		if b := read(v.Off); b != nil && grubCore(b) {
			it.BootLoaders = append(it.BootLoaders, BootLoader{Name: "grub", Kind: "bios", Where: v.name()})
		}
	}
	sortBootLoaders(it.BootLoaders)
}

func bootSector(b []byte) string {
	for _, s := range []struct{ text, name string }{
		{"GRUB ", "grub"}, {"LILO", "lilo"}, {"SYSLINUX", "syslinux"}, {"isolinux", "isolinux"}, {"Missing operating system", "mbr"}, {"limine", "limine"},
	} {
		if bytes.Contains(b, []byte(s.text)) {
			return s.name
		}
	}
	return ""
}
