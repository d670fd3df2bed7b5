// Command imgmaint inspects, converts and maintains offline disk images.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"imgmaint/formats"
)

// version is set by the linker for releases.
var version = ""

func main() {
	os.Exit(run(context.Background(), os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// run is main without the process: it returns the exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errw io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Memory stays flat whatever the image: the buffers in use are few and
	// long-lived, so collect early rather than grow.
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(memoryLimit)
	app := newApp(in, out, errw)
	args, err := arrange(app, args)
	if err == nil {
		err = app.RunContext(ctx, args)
	}
	if err != nil {
		if text := err.Error(); text != "" {
			fmt.Fprintf(errw, "imgmaint: %s\n", printable(text))
		}
		var usage usageError
		if errors.As(err, &usage) {
			fmt.Fprintln(errw, "Try 'imgmaint help'.")
		}
	}
	return exitCode(err)
}

// memoryLimit makes the collector work harder rather than let the process
// grow; it is soft, and half of what a conversion is promised to need.
const memoryLimit = 40 << 20

func newApp(in io.Reader, out, errw io.Writer) *cli.App {
	app := &cli.App{
		Name:                      "imgmaint",
		Usage:                     "inspect, convert and maintain offline disk images",
		Version:                   versionString(),
		HideHelpCommand:           false,
		Reader:                    in,
		Writer:                    out,
		ErrWriter:                 errw,
		ExitErrHandler:            func(*cli.Context, error) {}, // run decides
		OnUsageError:              asUsageError,
		DisableSliceFlagSeparator: true,
		Commands: []*cli.Command{
			inspectCommand(), lsCommand(), catCommand(), tarOutCommand(),
			infoCommand(), mapCommand(), checkCommand(), compareCommand(), convertCommand(),
			showCommand(), verifyCommand(),
		},
	}
	for _, c := range app.Commands {
		c.OnUsageError = asUsageError // cli asks each command for its own
		c.HideHelpCommand = true
	}
	return app
}

func versionString() string {
	if version != "" {
		return version
	}
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" {
		return bi.Main.Version
	}
	return "(devel)"
}

// A usageError is a command line that makes no sense.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func asUsageError(_ *cli.Context, err error, _ bool) error { return usageError{err} }

// A guestError is about a file of the guest, not of the host.
type guestError struct{ error }

func (e guestError) Unwrap() error { return nil }

// A statusError ends the program with a code of its own; its text may be
// empty when stdout has said all.
type statusError struct {
	code int
	text string
}

func (e statusError) Error() string { return e.text }

// Exit codes, as README.md lists them.
const (
	exitOther       = 1
	exitUsage       = 2
	exitUnsupported = 3
	exitCorrupt     = 4
	exitSignature   = 5
	exitHost        = 6
	exitProblems    = 7
	exitInterrupted = 130
)

// exitCode is the one place where errors become exit codes.
func exitCode(err error) int {
	var status statusError
	var usage usageError
	var guest guestError
	var path *fs.PathError
	var link *os.LinkError
	var sys *os.SyscallError
	var errno syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return status.code
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &guest):
		return exitOther
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, formats.ErrCorrupt), errors.Is(err, formats.ErrLimit), errors.Is(err, io.ErrUnexpectedEOF):
		return exitCorrupt
	case errors.As(err, &errno) && errno == syscall.ENOTSUP:
		return exitHost // matches ErrUnsupported too, but the host said it
	case errors.Is(err, formats.ErrUnknown), errors.Is(err, errors.ErrUnsupported):
		return exitUnsupported
	case errors.As(err, &path), errors.As(err, &link), errors.As(err, &sys), errors.As(err, &errno):
		return exitHost
	}
	return exitOther
}

// printable escapes what a terminal would act on.
func printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r == '\n' || r == '\t' || r >= ' ' && r != 0x7f && (r < 0x80 || r > 0x9f) && r != 0xfffd && !bidi(r) {
			b.WriteRune(r)
			continue
		}
		fmt.Fprintf(&b, "\\x%02x", r)
	}
	return b.String()
}

// bidi reports whether r changes the direction of the text around it.
func bidi(r rune) bool {
	return r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x200e || r == 0x200f
}
