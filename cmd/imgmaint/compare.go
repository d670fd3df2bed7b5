package main

import (
	"github.com/urfave/cli/v2"

	"imgmaint/convert"
	"imgmaint/formats/open"
)

func compareCommand() *cli.Command {
	return &cli.Command{
		Name:      "compare",
		Usage:     "compare the content of two disks",
		ArgsUsage: "IMAGE1 IMAGE2",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "`FORMAT` of the first image"},
			&cli.StringFlag{Name: "format2", Aliases: []string{"F"}, Usage: "`FORMAT` of the second image"},
			backingFlag,
			&cli.BoolFlag{Name: "strict", Aliases: []string{"s"}, Usage: "a longer disk differs even if the rest is zeros"},
			jsonFlag,
		},
		Action: func(c *cli.Context) error {
			args, err := operands(c, 2, 2)
			if err != nil {
				return err
			}
			var disks [2]*open.Image
			for i, f := range []string{"format", "format2"} {
				disks[i], err = open.Disk(args[i], &open.DiskOptions{Format: c.String(f), BackingDir: c.String("backing-dir")})
				if err != nil {
					return err
				}
				defer disks[i].Close()
			}
			bar := newProgress(c, "comparing")
			diff, err := convert.Compare(c.Context, disks[0], disks[1], &convert.Options{Progress: bar.update})
			bar.end()
			if err != nil {
				return err
			}
			return printDifference(c, diff)
		},
	}
}

func printDifference(c *cli.Context, diff *convert.Difference) error {
	same := diff == nil || diff.SizeOnly && !c.Bool("strict")
	if c.Bool("json") {
		err := printJSON(c.App.Writer, struct {
			Identical  bool                `json:"identical"`
			Difference *convert.Difference `json:"difference,omitempty"`
		}{same, diff})
		if err != nil || same {
			return err
		}
		return statusError{code: exitOther}
	}
	w := &textWriter{w: c.App.Writer}
	if diff != nil && diff.SizeOnly {
		w.printf("Image sizes differ: one ends at %d, the rest of the other is zeros\n", diff.Off)
	}
	if same {
		w.printf("Images are identical.\n")
		return w.err
	}
	if !diff.SizeOnly {
		w.printf("Content mismatch at offset %d!\n", diff.Off)
	}
	if w.err != nil {
		return w.err
	}
	return statusError{code: exitOther}
}
