package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"imgmaint/formats"
	"imgmaint/formats/open"
)

func infoCommand() *cli.Command {
	return &cli.Command{
		Name:      "info",
		Usage:     "show the format of an image and its properties",
		ArgsUsage: "IMAGE",
		Flags:     []cli.Flag{formatFlag, jsonFlag},
		Action: func(c *cli.Context) error {
			args, err := operands(c, 1, 1)
			if err != nil {
				return err
			}
			// References are named, not opened: info needs no --backing-dir.
			info, err := open.Describe(args[0], c.String("format"))
			if err != nil {
				return err
			}
			// A disk of a package has no file of its own: its package is told.
			file, _, _ := open.Split(args[0])
			r := infoReport{Image: args[0], Info: info}
			if r.FileSize, r.ActualSize, err = hostSize(file); err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, r)
			}
			return r.writeText(c.App.Writer)
		},
	}
}

// hostSize is the size of a host file and what it occupies, in bytes; of a
// block device both are its size.
func hostSize(name string) (size, actual int64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	if fi.Mode()&fs.ModeDevice == 0 {
		return fi.Size(), allocated(fi), nil
	}
	size, err = f.Seek(0, io.SeekEnd)
	return size, size, err
}

type infoReport struct {
	Image string `json:"image"`
	formats.Info
	FileSize   int64 `json:"file-size"`
	ActualSize int64 `json:"actual-size"`
}

func (r infoReport) writeText(out io.Writer) error {
	w := &textWriter{w: out}
	w.printf("image: %s\n", r.Image)
	w.printf("file format: %s\n", r.Format)
	if r.Subformat != "" {
		w.printf("subformat: %s\n", r.Subformat)
	}
	w.printf("virtual size: %s (%d bytes)\n", humanSize(r.VirtualSize), r.VirtualSize)
	w.printf("file size: %s (%d bytes)\n", humanSize(r.FileSize), r.FileSize)
	w.printf("disk size: %s\n", humanSize(r.ActualSize))
	if r.ClusterSize > 0 {
		w.printf("cluster_size: %d\n", r.ClusterSize)
	}
	if r.Encrypted != "" {
		w.printf("encrypted: %s\n", r.Encrypted)
	}
	for _, ref := range r.References {
		w.printf("%s: %q", ref.Kind, ref.Name)
		if ref.Format != "" {
			w.printf(" (format %q)", ref.Format)
		}
		w.printf("\n")
	}
	for i, p := range r.Properties {
		if i == 0 {
			w.printf("format specific information:\n")
		}
		w.printf("    %s: %v\n", p.Name, p.Value)
	}
	for i, s := range r.Snapshots {
		if i == 0 {
			w.printf("snapshots:\n    %-6s %-24s %10s  %-20s\n", "id", "name", "vm state", "date")
		}
		w.printf("    %-6s %-24s %10s  %-20s\n", s.ID, s.Name, humanSize(s.VMStateSize), s.Time.UTC().Format(time.RFC3339))
	}
	for i, b := range r.Bitmaps {
		if i == 0 {
			w.printf("bitmaps:\n")
		}
		w.printf("    %q granularity %d %v\n", b.Name, b.Granularity, b.Flags)
	}
	for _, p := range r.Problems {
		w.printf("problem: %s\n", p)
	}
	return w.err
}

// A textWriter prints text for people, safe for their terminals, and keeps
// the first error.
type textWriter struct {
	w   io.Writer
	err error
}

func (t *textWriter) printf(format string, args ...any) {
	if t.err == nil {
		_, t.err = io.WriteString(t.w, printable(fmt.Sprintf(format, args...)))
	}
}
