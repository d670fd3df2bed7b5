package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"imgmaint/inspect"
)

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "tell what is in an image: partitions, file systems, system, packages",
		ArgsUsage: "IMAGE",
		Description: "Every byte of the disk is accounted for. What could not be read is listed as a\n" +
			"problem, and the exit code is 7.",
		Flags: sourceFlags(jsonFlag),
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
			report, err := inspect.Disk(c.Context, img, nil)
			if err != nil {
				return err
			}
			info := img.Info()
			report.Container = &info
			if c.Bool("json") {
				err = printJSON(c.App.Writer, report)
			} else {
				err = report.WriteText(c.App.Writer)
			}
			if err != nil || len(report.Problems) == 0 {
				return err
			}
			return statusError{exitProblems, fmt.Sprintf("%s: %d problems, listed in the report", args[0], len(report.Problems))}
		},
	}
}
