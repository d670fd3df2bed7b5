package main

import (
	"bufio"
	"context"
	"errors"
	"io"

	"github.com/urfave/cli/v2"

	"imgmaint/formats"
)

func mapCommand() *cli.Command {
	return &cli.Command{
		Name:      "map",
		Usage:     "show which runs of the disk are data, zeros or holes",
		ArgsUsage: "IMAGE",
		Flags:     sourceFlags(jsonFlag),
		Action: func(c *cli.Context) error {
			args, err := operands(c, 1, 1)
			if err != nil {
				return err
			}
			img, err := openSource(c, args[0])
			if err != nil {
				return err
			}
			defer img.Close()
			return printMap(c.Context, c.App.Writer, img.Unwrap(), c.Bool("json"))
		},
	}
}

// A mapRun is a run of the disk with the words of qemu-img map.
type mapRun struct {
	Start   int64 `json:"start"`
	Length  int64 `json:"length"`
	Depth   int   `json:"depth"` // files down the chain
	Present bool  `json:"present"`
	Zero    bool  `json:"zero"`
	Data    bool  `json:"data"`
}

// printMap streams the runs: an image can have millions.
func printMap(ctx context.Context, out io.Writer, img formats.Image, asJSON bool) error {
	b := bufio.NewWriter(out)
	w := &textWriter{w: b}
	if asJSON {
		w.printf("{\"virtual-size\": %d, \"map\": [", img.Size())
	} else {
		w.printf("%-18s %-18s %-5s %s\n", "offset", "length", "depth", "kind")
	}
	sep := ""
	emit := func(r mapRun) {
		if asJSON {
			w.printf("%s\n{\"start\": %d, \"length\": %d, \"depth\": %d, \"present\": %t, \"zero\": %t, \"data\": %t}",
				sep, r.Start, r.Length, r.Depth, r.Present, r.Zero, r.Data)
			sep = ","
			return
		}
		kind := "data"
		if !r.Data {
			kind = "zero"
			if !r.Present {
				kind = "hole"
			}
		}
		w.printf("%#-18x %#-18x %-5d %s\n", r.Start, r.Length, r.Depth, kind)
	}
	var cur mapRun
	for off := int64(0); off < img.Size(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, err := runAt(img, off)
		if err != nil {
			return err
		}
		off += r.Length
		if cur.Length > 0 && cur.Depth == r.Depth && cur.Present == r.Present && cur.Data == r.Data {
			cur.Length += r.Length
			continue
		}
		if cur.Length > 0 {
			emit(cur)
		}
		cur = r
	}
	if cur.Length > 0 {
		emit(cur)
	}
	if asJSON {
		w.printf("\n]}\n")
	}
	return errors.Join(w.err, b.Flush())
}

// runAt finds the run at off and the file of the chain that holds it.
func runAt(img formats.Image, off int64) (mapRun, error) {
	end := img.Size()
	for depth := 0; ; depth++ {
		layer, ok := img.(formats.Layered)
		if !ok {
			e, err := img.ExtentAt(off)
			return newRun(e, depth, end), err
		}
		e, err := layer.LayerExtentAt(off)
		if err != nil {
			return mapRun{}, err
		}
		below := layer.Backing()
		if e.Kind != formats.Hole || below == nil {
			return newRun(e, depth, end), nil
		}
		end = min(end, e.End())
		if off >= below.Size() {
			return newRun(e, depth, end), nil
		}
		end = min(end, below.Size())
		img = below
	}
}

func newRun(e formats.Extent, depth int, end int64) mapRun {
	return mapRun{
		Start: e.Off, Length: min(e.End(), end) - e.Off, Depth: depth,
		Present: e.Kind != formats.Hole, Zero: e.Kind != formats.Data, Data: e.Kind == formats.Data,
	}
}
