package main

import (
	"github.com/urfave/cli/v2"

	"imgmaint/formats"
	"imgmaint/formats/open"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "check the metadata of an image",
		ArgsUsage: "IMAGE",
		Flags:     []cli.Flag{formatFlag, jsonFlag},
		Action: func(c *cli.Context) error {
			args, err := operands(c, 1, 1)
			if err != nil {
				return err
			}
			report, format, err := open.Check(args[0], c.String("format"))
			if err != nil {
				return err
			}
			if c.Bool("json") {
				err = printJSON(c.App.Writer, struct {
					Image  string `json:"image"`
					Format string `json:"format"`
					*formats.CheckReport
				}{args[0], format, report})
			} else {
				err = printCheck(&textWriter{w: c.App.Writer}, report)
			}
			switch {
			case err != nil:
				return err
			case report.Corruptions > 0:
				return statusError{code: exitCorrupt}
			case report.Leaks > 0:
				return statusError{code: exitProblems}
			}
			return nil
		},
	}
}

func printCheck(w *textWriter, r *formats.CheckReport) error {
	for _, f := range r.Findings {
		if f.Off >= 0 {
			w.printf("%s: %s at %#x: %s\n", f.Severity, f.Field, f.Off, f.Detail)
		} else {
			w.printf("%s: %s: %s\n", f.Severity, f.Field, f.Detail)
		}
	}
	if more := r.Corruptions + r.Leaks - int64(len(r.Findings)); more > 0 {
		w.printf("and %d more\n", more)
	}
	if r.Corruptions+r.Leaks == 0 {
		w.printf("No errors were found on the image.\n")
	} else {
		w.printf("%d corruptions and %d leaks were found on the image.\n", r.Corruptions, r.Leaks)
	}
	if r.TotalClusters > 0 {
		w.printf("%d/%d = %.2f%% allocated, %d compressed\n", r.AllocatedClusters, r.TotalClusters,
			100*float64(r.AllocatedClusters)/float64(r.TotalClusters), r.CompressedClusters)
	}
	if r.ImageEnd > 0 {
		w.printf("Image end offset: %d\n", r.ImageEnd)
	}
	return w.err
}
