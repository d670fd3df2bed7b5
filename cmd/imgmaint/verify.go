package main

import (
	"crypto/x509"
	"errors"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"imgmaint/formats/open"
	"imgmaint/internal/pgp"
	"imgmaint/patch/release"
)

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "check the digests and signatures of a package",
		ArgsUsage: "PKG",
		Description: "Only keys and certificates that are given are trusted. The exit code is 5 when\n" +
			"something is not as listed or signed, 7 when not all of it is listed.",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "keyring", Usage: "trust the OpenPGP keys in `FILE`"},
			&cli.StringSliceFlag{Name: "trust", Usage: "trust the X.509 certificates in `FILE`, in PEM"},
			&cli.BoolFlag{Name: "require-signature", Usage: "refuse what nobody trusted has signed"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "no progress bar"},
			jsonFlag,
		},
		Action: func(c *cli.Context) error {
			args, err := operands(c, 1, 1)
			if err != nil {
				return err
			}
			o := &release.VerifyOptions{RequireSignature: c.Bool("require-signature"), Keyring: &pgp.Keyring{}, Roots: x509.NewCertPool()}
			err = errors.Join(
				readFiles(c.StringSlice("keyring"), o.Keyring.Read),
				readFiles(c.StringSlice("trust"), func(r io.Reader) error { return release.AddRoots(o.Roots, r) }))
			if err != nil {
				return err
			}
			p, err := open.Package(args[0], nil)
			if err != nil {
				return err
			}
			defer p.Close()
			bar := newProgress(c, "verifying")
			o.Progress = bar.update
			r, err := release.Verify(c.Context, p, o)
			bar.end()
			if err != nil {
				return err
			}
			return printVerification(c, r)
		},
	}
}

// readFiles gives the content of every file to read.
func readFiles(names []string, read func(io.Reader) error) error {
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = read(f)
		f.Close()
		if err != nil {
			return namedError{name, err}
		}
	}
	return nil
}

// A namedError says which file an error is about.
type namedError struct {
	name string
	err  error
}

func (e namedError) Error() string { return e.name + ": " + e.err.Error() }
func (e namedError) Unwrap() error { return e.err }

func printVerification(c *cli.Context, r *release.Report) error {
	var err error
	if c.Bool("json") {
		err = printJSON(c.App.Writer, r)
	} else {
		err = r.WriteText(printableWriter{c.App.Writer})
	}
	switch {
	case err != nil:
		return err
	case r.Err() != nil:
		return statusError{exitSignature, r.Package + ": " + r.Refused}
	case r.Verdict == open.Incomplete || r.Verdict == open.Unverifiable:
		return statusError{code: exitProblems}
	}
	return nil
}

// A printableWriter escapes what a terminal would act on. What is written at
// once must not end within a character.
type printableWriter struct{ w io.Writer }

func (p printableWriter) Write(b []byte) (int, error) {
	if _, err := io.WriteString(p.w, printable(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}
