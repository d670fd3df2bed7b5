package main

import (
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"imgmaint/convert"
	"imgmaint/formats/open"
)

func convertCommand() *cli.Command {
	return &cli.Command{
		Name:      "convert",
		Usage:     "copy a disk into a new image of another format",
		ArgsUsage: "SRC DST",
		Description: "DST appears whole or not at all, in place of a file that may stand there. '-' as DST\n" +
			"streams to standard output (raw and vmdk).",
		Flags: sourceFlags(
			&cli.StringFlag{Name: "to", Aliases: []string{"O"}, Usage: "`FORMAT` of DST: raw, qcow2, vhd or vmdk"},
			&cli.StringFlag{Name: "subformat", Usage: "vhd: dynamic or fixed; vmdk: streamOptimized"},
			&cli.StringFlag{Name: "compress", Aliases: []string{"c"}, Usage: "qcow2: compress clusters with zlib or zstd"},
			&cli.IntFlag{Name: "level", Usage: "compression level: 1 to 9; for zstd up to 22, where 10 and above act as 9"},
			&cli.StringFlag{Name: "cluster-size", Usage: "qcow2: `SIZE` of clusters, 512 to 2M"},
			&cli.StringFlag{Name: "compat", Usage: "qcow2: 1.1 (version 3) or 0.10 (version 2)"},
			&cli.BoolFlag{Name: "azure", Usage: "vhd: fixed, its size rounded up to 1 MiB"},
			&cli.BoolFlag{Name: "keep-zeros", Usage: "write zeros that the source holds as data"},
			&cli.BoolFlag{Name: "verify", Usage: "read the new image and compare it with the source"},
			&cli.BoolFlag{Name: "no-space-check", Usage: "start even if the data may not fit"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "no progress bar"},
			jsonFlag,
		),
		Action: convertAction,
	}
}

func convertAction(c *cli.Context) error {
	args, err := operands(c, 2, 2)
	if err != nil {
		return err
	}
	o := &convert.FileOptions{Verify: c.Bool("verify"), NoSpaceCheck: c.Bool("no-space-check")}
	if o.Create, err = createOptions(c); err != nil {
		return err
	}
	if args[1] == "-" && (o.Verify || c.Bool("json")) {
		return usagef("--verify and --json need a DST that is a file")
	}
	src, err := openSource(c, args[0])
	if err != nil {
		return err
	}
	defer src.Close()
	bar := newProgress(c, "converting")
	o.KeepZeros, o.Progress = c.Bool("keep-zeros"), bar.update
	defer bar.end()
	if args[1] == "-" {
		_, err = convert.Stream(c.Context, c.App.Writer, src, o)
		return err
	}
	st, err := convert.File(c.Context, args[1], src, o)
	if err != nil || !c.Bool("json") {
		return err
	}
	return printJSON(c.App.Writer, st)
}

// createOptions reads the flags that describe the new image.
func createOptions(c *cli.Context) (open.CreateOptions, error) {
	if c.String("to") == "" {
		return open.CreateOptions{}, usagef("convert needs --to FORMAT, one of %s", strings.Join(open.DiskFormats(), ", "))
	}
	o := open.CreateOptions{
		Format:      c.String("to"),
		Subformat:   c.String("subformat"),
		Compression: c.String("compress"),
		Level:       c.Int("level"),
		Compat:      c.String("compat"),
		Azure:       c.Bool("azure"),
	}
	if s := c.String("cluster-size"); s != "" {
		n, err := parseSize(s)
		if err != nil {
			return o, usagef("--cluster-size %q: %v", s, err)
		}
		o.ClusterSize = n
	}
	if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return o, usagef("SOURCE_DATE_EPOCH %q is not a number of seconds", s)
		}
		o.Time = time.Unix(n, 0)
	}
	if err := o.Validate(); err != nil {
		return o, usageError{err}
	}
	return o, nil
}
