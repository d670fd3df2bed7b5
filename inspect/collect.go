package inspect

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"imgmaint/formats"
)

const (
	// maxSmall bounds the files that are read whole: configuration and
	// version files, all of a few hundred bytes on real systems.
	maxSmall = 256 << 10
	// maxValue bounds one value taken from the guest.
	maxValue = 4096
	// maxLine bounds a line of a package database; the longest field of a
	// Debian package is about 50 KiB.
	maxLine = 1 << 20
	// maxListed bounds the entries of a folder that are looked at.
	maxListed = 4096
)

// A collector finds the records of one kind. What it returns as an error is
// listed, and the next one runs.
type collector struct {
	where string
	run   func(c *collection) error
}

var collectors = []collector{
	{"/etc/os-release", collectOS},
	{"/etc/fstab", collectFstab},
	{"/etc/hostname", collectHostname},
	{"/etc/machine-id", collectMachineID},
	{"/etc/localtime", collectTimezone},
	{"/etc/locale.conf", collectLocale},
	{"/etc/passwd", collectUsers},
	{"/sbin/init", collectInit},
	{"/var/lib/dpkg", collectDpkg},
	{"/lib/apk/db/installed", collectApk},
	{"/var/lib/rpm", collectForeign},
	{"packages", checkPackages},
	{"architecture", collectArchitecture},
	{"/etc/apt", collectSources},
	{"/boot", collectKernels},
	{"/boot", collectBoot},
	{"EFI system partition", collectEFI},
}

// A collection is the work of all collectors on one guest.
type collection struct {
	*Root
	guest *guest
	rep   *Report
	it    *Items
	kept  int64 // bytes of package records
}

// collect runs the collectors. The error is that of ctx.
func collect(ctx context.Context, rep *Report, g *guest) error {
	c := &collection{Root: g.root, guest: g, rep: rep, it: &rep.Items}
	for _, k := range collectors {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := k.run(c); err != nil {
			rep.problem(whereOf(k.where, err), err)
		}
	}
	return nil
}

// whereOf is the file an error names, or else where the collector looks.
func whereOf(where string, err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) && pe == err && pe.Path != "" {
		return "/" + strings.TrimPrefix(pe.Path, "/")
	}
	return where
}

// small reads a small file; a missing one is nil and no error. Any other
// failure is listed.
func (c *collection) small(name string) []byte {
	b, err := c.Read(name, maxSmall)
	if err != nil {
		c.failed(name, err)
		return nil
	}
	return b
}

// failed lists an error unless it says that the file is not there.
func (c *collection) failed(name string, err error) {
	if !absent(err) {
		c.rep.problem("/"+name, err)
	}
}

// absent reports whether err says that there is no such file. A link that
// leads nowhere is no file either.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotDir)
}

// exists reports whether the named file is there, whatever it is.
func (c *collection) exists(name string) bool {
	_, err := c.Stat(name)
	if err != nil {
		c.failed(name, err)
	}
	return err == nil
}

// list returns the names in a folder; a missing one has none.
func (c *collection) list(dir string) []string { return listDir(c.rep, c.Root, "", dir) }

func listDir(rep *Report, r *Root, where, dir string) (names []string) {
	list, err := r.ReadDir(dir)
	if err != nil {
		if !absent(err) {
			rep.problem(where+"/"+dir, err)
		}
		return nil
	}
	if len(list) > maxListed {
		rep.problem(where+"/"+dir, fmt.Errorf("%w: %d entries, %d looked at", formats.ErrLimit, len(list), maxListed))
		list = list[:maxListed]
	}
	for _, d := range list {
		names = append(names, d.Name())
	}
	return names
}

// value bounds a string taken from the guest.
func value(s string) string {
	if len(s) > maxValue {
		return strings.ToValidUTF8(s[:maxValue], "\ufffd") + "..."
	}
	return strings.ToValidUTF8(s, "\ufffd")
}

// firstLine is the first line of b without spaces around it.
func firstLine(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimLeft(string(b), "\n"), "\n")
	return value(strings.TrimSpace(line))
}

// lines calls f for each line of r without its end, until f fails. A line
// longer than maxLine is cut, and cut is true for it.
func lines(r io.Reader, limit int64, f func(line []byte, cut bool) error) error {
	lr := &io.LimitedReader{R: r, N: limit + 1}
	br := bufio.NewReaderSize(lr, 64<<10)
	var long []byte
	for {
		b, err := br.ReadSlice('\n')
		if lr.N <= 0 {
			return fmt.Errorf("%w: more than %d bytes", formats.ErrLimit, limit)
		}
		full := err != bufio.ErrBufferFull
		if !full || long != nil {
			long = append(long, b[:min(len(b), maxLine-min(len(long), maxLine))]...)
			b = long
		}
		if !full {
			continue
		}
		if err != nil && err != io.EOF {
			return err
		}
		if len(b) > 0 {
			n := len(b)
			if b[n-1] == '\n' {
				n--
			}
			if e := f(b[:n], len(b) >= maxLine); e != nil {
				return e
			}
		}
		long = nil
		if err == io.EOF {
			return nil
		}
	}
}

// sortedBy sorts by the key of each element.
func sortedBy[T any](list []T, key func(T) string) {
	slices.SortStableFunc(list, func(a, b T) int { return strings.Compare(key(a), key(b)) })
}
