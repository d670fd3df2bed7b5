package formats

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Classes of failure. Every error from a parser matches one of these, or
// errors.ErrUnsupported, or is an error of the underlying reader.
var (
	// ErrUnknown: the input is of no format we know.
	ErrUnknown = errors.New("unknown format")
	// ErrCorrupt: the input breaks the rules of its format.
	ErrCorrupt = errors.New("corrupt")
	// ErrLimit: the input asks for more than we are willing to spend.
	ErrLimit = errors.New("over limit")
)

// An Error locates a failure in a file of some format. It prints as
// "qcow2: l1_size at 0x24: over limit: 134217728 entries".
type Error struct {
	Format string // "qcow2"
	Off    int64  // byte offset in the file, or -1 when there is none
	Field  string // the specification's name of the field or structure
	Err    error  // wraps one of the classes, or the reader's error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Format)
	b.WriteString(": ")
	if e.Field != "" {
		b.WriteString(e.Field)
		if e.Off >= 0 {
			b.WriteString(" at 0x")
			b.WriteString(strconv.FormatInt(e.Off, 16))
		}
		b.WriteString(": ")
	}
	b.WriteString(e.Err.Error())
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Corrupt returns an *Error of class ErrCorrupt. The message may be empty.
func Corrupt(format string, off int64, field, msg string, args ...any) error {
	return newError(format, off, field, ErrCorrupt, msg, args)
}

// Limit returns an *Error of class ErrLimit.
func Limit(format string, off int64, field, msg string, args ...any) error {
	return newError(format, off, field, ErrLimit, msg, args)
}

// Unsupported returns an *Error of class errors.ErrUnsupported.
func Unsupported(format string, off int64, field, msg string, args ...any) error {
	return newError(format, off, field, errUnsupported, msg, args)
}

// Unknown returns an *Error of class ErrUnknown.
func Unknown(format string, off int64, field, msg string, args ...any) error {
	return newError(format, off, field, ErrUnknown, msg, args)
}

// errUnsupported matches errors.ErrUnsupported and prints shorter.
var errUnsupported = shortUnsupported{}

type shortUnsupported struct{}

func (shortUnsupported) Error() string        { return "unsupported" }
func (shortUnsupported) Is(target error) bool { return target == errors.ErrUnsupported }

func newError(format string, off int64, field string, class error, msg string, args []any) error {
	e := &Error{Format: format, Off: off, Field: field, Err: class}
	if msg != "" {
		e.Err = fmt.Errorf("%w: "+msg, append([]any{class}, args...)...)
	}
	return e
}

// At wraps an error of the underlying reader or of a layer below with the
// place it struck. An *Error passes through unchanged; nil stays nil.
func At(format string, off int64, field string, err error) error {
	if err == nil {
		return nil
	}
	var fe *Error
	if errors.As(err, &fe) {
		return err
	}
	return &Error{Format: format, Off: off, Field: field, Err: err}
}
