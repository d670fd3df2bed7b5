package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"imgmaint/internal/testimg"
)

// program returns a path under which the test binary acts as imgmaint.
func program(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "imgmaint")
	if err := os.Symlink(exe, link); err != nil {
		t.Fatal(err)
	}
	return link
}

// A scene is a folder with a source disk, and what must hold of it after a
// run that failed.
type scene struct {
	dir, src, dst string
	before        []byte
	old           []byte // content of dst before, nil when there was none
}

func newScene(t testing.TB, size int64, old []byte) *scene {
	t.Helper()
	s := &scene{dir: t.TempDir(), before: testimg.Disk(size, 4), old: old}
	s.src, s.dst = filepath.Join(s.dir, "src.raw"), filepath.Join(s.dir, "dst")
	if err := os.WriteFile(s.src, s.before, 0o600); err != nil {
		t.Fatal(err)
	}
	if old != nil {
		if err := os.WriteFile(s.dst, old, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// unchanged reports what a failed run changed: nothing may be.
func (s *scene) unchanged() error {
	want := "src.raw"
	if s.old != nil {
		want = "dst src.raw"
		if got, err := os.ReadFile(s.dst); err != nil || !bytes.Equal(got, s.old) {
			return fmt.Errorf("the old destination is damaged: %v", err)
		}
	}
	if got, err := os.ReadFile(s.src); err != nil || !bytes.Equal(got, s.before) {
		return fmt.Errorf("the source changed: %v", err)
	}
	ents, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range ents {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != want {
		return fmt.Errorf("the folder holds %q, want %q", got, want)
	}
	return nil
}

var faultTargets = []string{"raw", "vhd", "qcow2", "vmdk"}

// Every system call that reads, writes or publishes fails once, in turn, and
// the process is killed at each of them: no output appears, what was there
// stays, and the exit code is that of a host file.
func TestEverySystemCallFails(t *testing.T) {
	if testing.Short() {
		t.Skip("hundreds of runs under strace: not with -short")
	}
	strace := testimg.Tool(t, "strace")
	bin := program(t)
	for _, to := range faultTargets {
		for _, old := range [][]byte{nil, []byte("the old artefact")} {
			for _, fault := range []struct{ call, inject string }{
				{"pwrite64", "error=ENOSPC"},
				{"pread64", "error=EIO"},
				{"fsync", "error=EIO"},
				{"ftruncate", "error=ENOSPC"},
				{"linkat", "error=EACCES"},
				{"renameat", "error=EACCES"},
				{"pwrite64", "signal=KILL"},
				{"fsync", "signal=KILL"},
			} {
				s := newScene(t, 3<<20, old)
				calls := 0
				for n := 1; ; n++ {
					log := filepath.Join(t.TempDir(), "log")
					args := []string{"-f", "-qq", "-o", log, "-e", "trace=" + fault.call,
						"-e", fmt.Sprintf("inject=%s:%s:when=%d", fault.call, fault.inject, n)}
					if fault.call == "pread64" { // of the source, not of shared libraries
						args = append(args, "-P", s.src)
					}
					cmd := exec.Command(strace, append(args, bin, "convert", s.src, s.dst, "--to", to)...)
					out, err := cmd.CombinedOutput()
					trace, readErr := os.ReadFile(log)
					if readErr != nil {
						t.Fatalf("strace: %v, %v\n%s", err, readErr, out)
					}
					hit := strings.Contains(string(trace), "(INJECTED)") || strings.Contains(string(trace), "SIGKILL")
					if !hit {
						break // there is no n-th call
					}
					calls++
					if err == nil {
						t.Fatalf("%s: %s number %d: %s: the run succeeded\n%s", to, fault.call, n, fault.inject, out)
					}
					if code := cmd.ProcessState.ExitCode(); strings.HasPrefix(fault.inject, "error") && code != exitHost {
						t.Errorf("%s: %s number %d: %s: exit code %d, want %d\n%s", to, fault.call, n, fault.inject, code, exitHost, out)
					}
					if fault.call == "fsync" && published(s) {
						// The last sync is of the folder: the new file stands, and must be whole.
						if out, err := exec.Command(bin, "compare", s.src, s.dst).CombinedOutput(); err != nil {
							t.Fatalf("%s: %s number %d: %s: %v\n%s", to, fault.call, n, fault.inject, err, out)
						}
						continue
					}
					if err := s.unchanged(); err != nil {
						t.Fatalf("%s: %s number %d: %s: %v\n%s", to, fault.call, n, fault.inject, err, out)
					}
				}
				if calls == 0 && (fault.call == "pwrite64" || fault.call == "fsync" || fault.call == "pread64") {
					t.Errorf("%s: no %s was hit: the test tests nothing", to, fault.call)
				}
			}
		}
	}
}

// published reports whether the run had put the new file in its place before
// the fault struck: the sync of the folder comes after that.
func published(s *scene) bool {
	got, err := os.ReadFile(s.dst)
	if err != nil || bytes.Equal(got, s.old) {
		return false
	}
	return true
}

// A process killed at any moment leaves nothing behind.
func TestKilledAtAnyMoment(t *testing.T) {
	bin := program(t)
	for i := range 24 {
		s := newScene(t, 48<<20, nil)
		cmd := exec.Command(bin, "convert", s.src, s.dst, "--to", faultTargets[i%len(faultTargets)])
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(i*i)*time.Millisecond/4, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		timer.Stop()
		if err == nil {
			continue // it was faster
		}
		if !strings.Contains(err.Error(), "killed") {
			t.Fatalf("run %d: %v", i, err)
		}
		if published(s) { // killed after the end: then it is whole
			if out, err := exec.Command(bin, "compare", s.src, s.dst).CombinedOutput(); err != nil {
				t.Errorf("killed after %d/4 ms: %v\n%s", i*i, err, out)
			}
			continue
		}
		if err := s.unchanged(); err != nil {
			t.Errorf("killed after %d/4 ms: %v", i*i, err)
		}
	}
}

// An interrupt ends the run with 130 and leaves nothing behind.
func TestInterrupted(t *testing.T) {
	bin := program(t)
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		s := newScene(t, 48<<20, nil)
		// A reader that never comes keeps the stream, and so the run, alive.
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(bin, "convert", s.src, "-", "--to", "raw")
		cmd.Stdout = w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		if _, err := r.Read(make([]byte, 4096)); err != nil { // it is at work
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { // let a blocked write go on
			defer close(done)
			buf := make([]byte, 1<<16)
			for {
				if _, err := r.Read(buf); err != nil {
					return
				}
			}
		}()
		err = cmd.Wait()
		<-done
		r.Close()
		if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
			t.Errorf("%v: exit code %d, %v, want %d", sig, code, err, exitInterrupted)
		}
		if err := s.unchanged(); err != nil {
			t.Errorf("%v: %v", sig, err)
		}
	}
}

// A limit on the size of files acts as a full disk does.
func TestFileSizeLimit(t *testing.T) {
	bin := program(t)
	for _, to := range faultTargets {
		s := newScene(t, 8<<20, nil)
		cmd := exec.Command("sh", "-c", `ulimit -f 2048; exec "$0" convert "$1" "$2" --to "$3"`, bin, s.src, s.dst, to)
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != exitHost {
			t.Errorf("%s: exit code %d, %v, want %d\n%s", to, code, err, exitHost, out)
		}
		if err := s.unchanged(); err != nil {
			t.Errorf("%s: %v", to, err)
		}
	}
}
