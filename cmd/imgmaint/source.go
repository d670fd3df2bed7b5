package main

import (
	"encoding/json"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"imgmaint/formats/open"
)

// Flags that most verbs share.
var (
	jsonFlag     = &cli.BoolFlag{Name: "json", Usage: "print one JSON object"}
	formatFlag   = &cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "`FORMAT` of the image; without it the content tells"}
	backingFlag  = &cli.StringFlag{Name: "backing-dir", Usage: "open backing and data files, but only inside `DIR`"}
	snapshotFlag = &cli.StringFlag{Name: "snapshot", Usage: "read the internal snapshot of this `NAME` or number"}
)

func sourceFlags(more ...cli.Flag) []cli.Flag {
	return append(more, formatFlag, backingFlag, snapshotFlag)
}

// openSource opens an image as the shared flags say.
func openSource(c *cli.Context, path string) (*open.Image, error) {
	return open.Disk(path, &open.DiskOptions{
		Format:     c.String("format"),
		BackingDir: c.String("backing-dir"),
		Snapshot:   c.String("snapshot"),
	})
}

// printJSON writes v as one object with a line feed.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// parseSize reads a number of bytes with an optional binary suffix: 64K, 2M,
// 1G, 1T.
func parseSize(s string) (int64, error) {
	shift := 0
	if s != "" {
		if i := strings.IndexByte("KMGTP", s[len(s)-1]&^0x20); i >= 0 {
			shift, s = 10*(i+1), s[:len(s)-1]
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64>>shift {
		return 0, errors.New("not a size")
	}
	return n << shift, nil
}

// humanSize writes n bytes as qemu-img does: three significant digits and a
// binary unit.
func humanSize(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	f, u := float64(n), 0
	for f >= 1000 && u < len(units)-1 {
		f /= 1024
		u++
	}
	digits := 2
	switch {
	case f >= 100 || u == 0:
		digits = 0
	case f >= 10:
		digits = 1
	}
	p := math.Pow10(digits)
	return strconv.FormatFloat(math.Round(f*p)/p, 'f', -1, 64) + " " + units[u]
}
