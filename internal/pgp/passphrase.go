package pgp

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"imgmaint/formats"
)

// PassphraseFromFD reads a passphrase from an open file descriptor up to the end
// of its first line, which is not part of it, or to the end of file. The
// descriptor is closed.
func PassphraseFromFD(fd int) func() ([]byte, error) {
	return func() ([]byte, error) {
		if fd < 0 {
			return nil, fmt.Errorf("passphrase: file descriptor %d", fd)
		}
		f := os.NewFile(uintptr(fd), "passphrase descriptor")
		if f == nil {
			return nil, fmt.Errorf("passphrase: file descriptor %d is not open", fd)
		}
		defer f.Close()
		buf := make([]byte, 0, maxPassphrase+2)
		for len(buf) < cap(buf) && !bytes.Contains(buf, []byte("\n")) {
			n, err := f.Read(buf[len(buf):cap(buf)])
			buf = buf[:len(buf)+n]
			if err == io.EOF {
				break
			}
			if err != nil {
				return nil, err
			}
		}
		return firstLine(buf)
	}
}

// PassphraseFromEnv takes a passphrase from an environment variable. That it is
// empty is an answer, that it is not set an error.
func PassphraseFromEnv(name string) func() ([]byte, error) {
	return func() ([]byte, error) {
		v, ok := os.LookupEnv(name)
		if !ok {
			return nil, fmt.Errorf("passphrase: environment variable %s is not set", name)
		}
		return firstLine([]byte(v))
	}
}

func firstLine(b []byte) ([]byte, error) {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) > maxPassphrase {
		return nil, formats.Limit(format, -1, "passphrase", "more than %d bytes", maxPassphrase)
	}
	return line, nil
}
