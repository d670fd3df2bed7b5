package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"imgmaint/formats"
	"imgmaint/inspect"
	"imgmaint/internal/atomicfile"
)

func lsCommand() *cli.Command {
	return &cli.Command{
		Name:      "ls",
		Usage:     "list files of the guest",
		ArgsUsage: "IMAGE[:PARTITION] [PATH]",
		Flags: sourceFlags(
			&cli.BoolFlag{Name: "long", Aliases: []string{"l"}, Usage: "with mode, owner, size and time"},
			&cli.BoolFlag{Name: "recursive", Aliases: []string{"R"}, Usage: "with all folders below"},
			jsonFlag,
		),
		Action: func(c *cli.Context) error {
			o := &inspect.ListOptions{Long: c.Bool("long"), Recursive: c.Bool("recursive"), JSON: c.Bool("json")}
			return withTree(c, 1, func(root *inspect.Root, path string) error {
				return inspect.List(c.Context, c.App.Writer, root, path, o)
			})
		},
	}
}

func catCommand() *cli.Command {
	return &cli.Command{
		Name:      "cat",
		Usage:     "write a file of the guest to standard output",
		ArgsUsage: "IMAGE[:PARTITION] PATH",
		Flags:     sourceFlags(),
		Action: func(c *cli.Context) error {
			return withTree(c, 2, func(root *inspect.Root, path string) error {
				return inspect.Cat(c.Context, c.App.Writer, root, path)
			})
		},
	}
}

func tarOutCommand() *cli.Command {
	return &cli.Command{
		Name:      "tar-out",
		Usage:     "write a folder of the guest as a tar archive",
		ArgsUsage: "IMAGE[:PARTITION] PATH",
		Flags: sourceFlags(
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE`, whole or not at all"},
			&cli.BoolFlag{Name: "one-file-system", Usage: "leave out what is mounted below the folder"},
		),
		Action: func(c *cli.Context) error {
			skipped := 0
			o := &inspect.TarOptions{
				OneFileSystem: c.Bool("one-file-system"),
				Skipped: func(name string, err error) {
					skipped++
					fmt.Fprintf(c.App.ErrWriter, "imgmaint: %s: %s\n", printable(name), printable(err.Error()))
				},
			}
			err := withTree(c, 2, func(root *inspect.Root, path string) error {
				return toFile(c, func(w io.Writer) error { return inspect.TarOut(c.Context, w, root, path, o) })
			})
			if err == nil && skipped > 0 {
				err = statusError{exitProblems, fmt.Sprintf("%d files have no place in an archive", skipped)}
			}
			return err
		},
	}
}

// toFile runs write on the file of --output, or on standard output.
func toFile(c *cli.Context, write func(io.Writer) error) error {
	if c.String("output") == "" {
		return write(c.App.Writer)
	}
	f, err := atomicfile.Create(c.String("output"), 0o644)
	if err != nil {
		return err
	}
	defer f.Abort()
	b := bufio.NewWriterSize(f, 1<<20)
	if err := errors.Join(write(b), b.Flush()); err != nil {
		return err
	}
	return f.Commit()
}

// withTree opens the files of the guest that the operands name and calls do.
// The path is "/" when there are only as few operands as least says.
func withTree(c *cli.Context, least int, do func(root *inspect.Root, path string) error) error {
	args, err := operands(c, least, 2)
	if err != nil {
		return err
	}
	path := "/"
	if len(args) == 2 {
		path = args[1]
	}
	name, partition := splitPartition(args[0])
	img, err := openSource(c, name)
	if err != nil {
		return err
	}
	defer img.Close()
	root, problems, err := inspect.Tree(c.Context, img, partition)
	if err != nil {
		return err
	}
	for _, p := range problems {
		fmt.Fprintf(c.App.ErrWriter, "imgmaint: %s: %s\n", printable(p.Where), printable(p.What))
	}
	if err := do(root, path); err != nil {
		return ofGuest(err)
	}
	if len(problems) > 0 {
		return statusError{code: exitProblems}
	}
	return nil
}

// splitPartition splits IMAGE:N. A file that has such a name is the image.
func splitPartition(arg string) (string, int) {
	i := strings.LastIndexByte(arg, ':')
	if i < 0 {
		return arg, 0
	}
	n, err := strconv.Atoi(arg[i+1:])
	if err != nil || n < 1 {
		return arg, 0
	}
	if _, err := os.Lstat(arg); err == nil {
		return arg, 0
	}
	return arg[:i], n
}

// ofGuest marks an error about a path as one of the guest's, so that it isn't
// taken for a file of the host. Damage and writing errors stay what they are.
func ofGuest(err error) error {
	var pe *fs.PathError
	switch {
	case !errors.As(err, &pe), errors.Is(err, formats.ErrCorrupt), errors.Is(err, formats.ErrLimit), errors.Is(err, errors.ErrUnsupported):
		return err
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrInvalid), pe.Op != "write":
		return guestError{err}
	}
	return err
}
