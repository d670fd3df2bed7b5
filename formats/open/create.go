package open

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"strings"
	"time"

	"imgmaint/formats"
)

// CreateOptions describe a new disk image. Only Format is needed.
type CreateOptions struct {
	Format      string
	Subformat   string
	Compression string // zlib or zstd
	Level       int    // 0 is the format's default
	ClusterSize int64  // bytes; 0 is the format's default
	Compat      string // qcow2: "0.10" or "1.1"
	Azure       bool
	// Time is the time stamp of formats that have one; zero stands for the
	// earliest the format knows, so that the output depends on the input
	// alone.
	Time time.Time
}

// createFields say which options a format has.
type createFields struct {
	subformats  []string
	compression []string
	maxLevel    map[string]int // by compression; "" without one
	clusters    [2]int64       // smallest and largest cluster size
	compat      []string
	azure       bool
}

// Validate reports an option that the format does not have or a value it does
// not take.
func (o *CreateOptions) Validate() error {
	d, err := byName(o.Format)
	if err != nil {
		return err
	}
	if d.create == nil {
		return fmt.Errorf("disk format %s can't be written: %w", d.name, errors.ErrUnsupported)
	}
	f := d.options
	oneOf := func(what, value string, allowed []string) error {
		switch {
		case value == "" || slices.Contains(allowed, value):
			return nil
		case len(allowed) == 0:
			return fmt.Errorf("%s has no %s", d.name, what)
		}
		return fmt.Errorf("%s of %s is %s, not %q", what, d.name, strings.Join(allowed, " or "), value)
	}
	if err := errors.Join(
		oneOf("subformat", o.Subformat, f.subformats),
		oneOf("compression", o.Compression, f.compression),
		oneOf("compat", o.Compat, f.compat)); err != nil {
		return err
	}
	if most := f.maxLevel[o.Compression]; o.Level != 0 && (o.Level < 1 || o.Level > most) {
		if most == 0 {
			return fmt.Errorf("%s has no level without compression", d.name)
		}
		return fmt.Errorf("level is 1 to %d, not %d", most, o.Level)
	}
	if c := o.ClusterSize; c != 0 && (c < f.clusters[0] || c > f.clusters[1] || bits.OnesCount64(uint64(c)) != 1) {
		if f.clusters[1] == 0 {
			return fmt.Errorf("%s has no cluster size to choose", d.name)
		}
		return fmt.Errorf("cluster size of %s is a power of two from %d to %d, not %d", d.name, f.clusters[0], f.clusters[1], c)
	}
	if o.Azure && (!f.azure || o.Subformat == "dynamic") {
		return errors.New("azure takes vhd, fixed, only")
	}
	if o.Compression == "zstd" && o.Compat == "0.10" {
		return errors.New("compat 0.10 has no zstd")
	}
	return nil
}

// Create returns a writer of a new image of size bytes to w, an empty file.
func Create(w io.WriterAt, size int64, o *CreateOptions) (formats.Writer, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	d, err := byName(o.Format)
	if err != nil {
		return nil, err
	}
	return d.create(w, size, o)
}

// Streams reports whether an image of the format is written from its start to
// its end, without seeking.
func Streams(format string) bool {
	d, err := byName(format)
	return err == nil && d.streams
}

// DiskFormats are the names of the disk formats there are.
func DiskFormats() []string {
	var names []string
	for _, d := range diskFormats {
		names = append(names, d.name)
	}
	return names
}
