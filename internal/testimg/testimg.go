// Package testimg makes disks and runs reference tools for tests.
package testimg

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// Tool returns the path of a reference tool. When it is missing the test is
// skipped by name, or fails if IMGMAINT_REQUIRE_TOOLS is 1.
func Tool(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		p, err = exec.LookPath(filepath.Join(dir, name))
	}
	if err != nil {
		if os.Getenv("IMGMAINT_REQUIRE_TOOLS") == "1" {
			t.Fatalf("reference tool %s is missing and IMGMAINT_REQUIRE_TOOLS=1", name)
		}
		t.Skipf("reference tool %s is not installed", name)
	}
	return p
}

// Run runs a reference tool and returns its standard output; a failure of the
// tool fails the test with what it said.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := Try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// Try is Run that returns the failure. On failure the output has standard
// error too.
func Try(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(Tool(t, name), args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String() + errs.String(), err
	}
	return out.String(), nil
}

// Sample returns the path of an image another tool wrote. Samples live in the
// folder that IMGMAINT_SAMPLES names; without the variable the test is
// skipped, with it a missing sample fails.
func Sample(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("IMGMAINT_SAMPLES")
	if dir == "" {
		t.Skipf("IMGMAINT_SAMPLES is not set: sample %s is not tested", name)
	}
	p := filepath.Join(dir, name)
	if _, err := os.Stat(p); err != nil {
		t.Fatal(err)
	}
	return p
}

// WriteFile writes b to name in a new temporary folder and returns its path.
func WriteFile(t testing.TB, name string, b []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// Disk returns size bytes that look like a disk in use: runs of zeros, of
// random bytes, of text that compresses, and lone bytes next to boundaries.
// The same arguments give the same bytes.
func Disk(size int64, seed uint64) []byte {
	b := make([]byte, size)
	rnd := rand.New(rand.NewPCG(seed, seed))
	for off := int64(0); off < size; {
		n := min(1+rnd.Int64N(1<<(9+rnd.IntN(10))), size-off)
		run := b[off : off+n]
		switch rnd.IntN(8) {
		case 0, 1: // random
			for i := range run {
				run[i] = byte(rnd.Uint32())
			}
		case 2, 3: // text
			word := []byte("golden image 0123456789\n")
			word[rnd.IntN(len(word))] ^= byte(rnd.Uint32())
			for i := range run {
				run[i] = word[i%len(word)]
			}
		case 4: // one byte at an edge
			run[rnd.IntN(2)*(len(run)-1)] = 1
		}
		off += n
		if rnd.IntN(2) == 0 { // back to a 4 KiB boundary
			off = min((off+4095)&^4095, size)
		}
	}
	return b
}

// ErrInjected is what faulty readers and writers return.
var ErrInjected = errors.New("injected fault")

// A FaultyReader fails every read that touches the byte at Bad.
type FaultyReader struct {
	R   io.ReaderAt
	Bad int64
}

// ReadAt implements io.ReaderAt.
func (f FaultyReader) ReadAt(p []byte, off int64) (int, error) {
	if off <= f.Bad && f.Bad < off+int64(len(p)) {
		n, _ := f.R.ReadAt(p[:f.Bad-off], off)
		return n, ErrInjected
	}
	return f.R.ReadAt(p, off)
}

// A FaultyWriter fails the write number FailAt (from 0) and all later ones,
// after writing half of it.
type FaultyWriter struct {
	W      io.WriterAt
	FailAt int64
	n      atomic.Int64
}

// WriteAt implements io.WriterAt.
func (f *FaultyWriter) WriteAt(p []byte, off int64) (int, error) {
	if f.n.Add(1)-1 >= f.FailAt {
		n, _ := f.W.WriteAt(p[:len(p)/2], off)
		return n, ErrInjected
	}
	return f.W.WriteAt(p, off)
}

// Writes is the number of writes seen.
func (f *FaultyWriter) Writes() int64 { return f.n.Load() }
