package open

import (
	"io"

	"imgmaint/formats"
	"imgmaint/formats/disk/qcow2"
	"imgmaint/formats/disk/raw"
	"imgmaint/formats/disk/vhd"
	"imgmaint/formats/disk/vmdk"
)

// A diskFormat is a row of the table of disk formats.
type diskFormat struct {
	name string
	// sniff reports whether the content shows the format; head is the start
	// of the file. Nil: it can't be told by content.
	sniff func(head []byte, r io.ReaderAt, size int64) bool
	open  func(r io.ReaderAt, size int64, o leafOptions) (formats.Image, error)
	// describe answers without opening anything the image refers to.
	describe func(r io.ReaderAt, size int64) (formats.Info, error)
	// check looks at the metadata of this file alone.
	check func(r io.ReaderAt, size int64) (*formats.CheckReport, error)
	// create makes a new image in an empty file.
	create func(w io.WriterAt, size int64, o *CreateOptions) (formats.Writer, error)
	// options are the fields of CreateOptions that have a meaning here.
	options createFields
	streams bool // can be written without seeking
}

// leafOptions are what all leaves are told, in their own types.
type leafOptions struct {
	resolve  formats.Resolver
	snapshot string
}

// noSnapshots refuses what a format without internal snapshots is asked for.
func (o leafOptions) noSnapshots(format string) error {
	if o.snapshot != "" {
		return formats.Unsupported(format, -1, "snapshot", "the format has no internal snapshots")
	}
	return nil
}

// diskFormats is the table of the disk formats there are.
var diskFormats = []diskFormat{
	{
		name: "raw",
		open: func(r io.ReaderAt, size int64, o leafOptions) (formats.Image, error) {
			if err := o.noSnapshots("raw"); err != nil {
				return nil, err
			}
			return raw.Open(r, size)
		},
		describe: func(r io.ReaderAt, size int64) (formats.Info, error) {
			return formats.Info{Format: "raw", VirtualSize: size}, nil
		},
		check: func(r io.ReaderAt, size int64) (*formats.CheckReport, error) {
			return &formats.CheckReport{ImageEnd: size}, nil // nothing that could be wrong
		},
		create: func(w io.WriterAt, size int64, _ *CreateOptions) (formats.Writer, error) {
			return raw.NewWriter(w, size)
		},
		streams: true,
	},
	{
		name:  "qcow2",
		sniff: qcow2.Sniff,
		open: func(r io.ReaderAt, size int64, o leafOptions) (formats.Image, error) {
			return qcow2.Open(r, size, &qcow2.Options{Resolve: o.resolve, Snapshot: o.snapshot})
		},
		describe: qcow2.Describe,
		check:    qcow2.Check,
		create: func(w io.WriterAt, size int64, o *CreateOptions) (formats.Writer, error) {
			wo := &qcow2.WriterOptions{ClusterSize: o.ClusterSize, Compression: o.Compression, Level: o.Level}
			if o.Compat == "0.10" {
				wo.Version = 2
			}
			if o.Compression != "" {
				return qcow2.NewCompressedWriter(w, size, wo)
			}
			return qcow2.NewWriter(w, size, wo)
		},
		options: createFields{
			compression: []string{"zlib", "zstd"},
			maxLevel:    map[string]int{"zlib": 9, "zstd": 22},
			clusters:    [2]int64{512, 2 << 20},
			compat:      []string{"0.10", "1.1"},
		},
	},
	{
		name:  "vhd",
		sniff: vhd.Sniff,
		open: func(r io.ReaderAt, size int64, o leafOptions) (formats.Image, error) {
			if err := o.noSnapshots("vhd"); err != nil {
				return nil, err
			}
			return vhd.Open(r, size, &vhd.Options{Resolve: o.resolve})
		},
		describe: vhd.Describe,
		check:    vhd.Check,
		create: func(w io.WriterAt, size int64, o *CreateOptions) (formats.Writer, error) {
			return vhd.NewWriter(w, size, &vhd.WriterOptions{Subformat: o.Subformat, Azure: o.Azure, Time: o.Time})
		},
		options: createFields{subformats: []string{vhd.Dynamic, vhd.Fixed}, azure: true},
	},
	{
		name:  "vmdk",
		sniff: vmdk.Sniff,
		open: func(r io.ReaderAt, size int64, o leafOptions) (formats.Image, error) {
			if err := o.noSnapshots("vmdk"); err != nil {
				return nil, err
			}
			return vmdk.Open(r, size, &vmdk.Options{Resolve: o.resolve})
		},
		describe: vmdk.Describe,
		check:    vmdk.Check,
		create: func(w io.WriterAt, size int64, o *CreateOptions) (formats.Writer, error) {
			return vmdk.NewWriter(w, size, &vmdk.WriterOptions{Level: o.Level})
		},
		options: createFields{
			subformats: []string{"streamOptimized"},
			maxLevel:   map[string]int{"": 9},
		},
		streams: true,
	},
}
