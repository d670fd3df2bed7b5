package atomicfile

import (
	"os"
	"path/filepath"
	"testing"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	ents, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range ents {
		all = append(all, e.Name())
	}
	return all
}

func TestNothingBeforeCommit(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	f, err := Create(path, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("new"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("the file is there before Commit")
	}
	f.Abort()
	f.Abort()
	if n := names(t, dir); len(n) != 0 {
		t.Errorf("after Abort the folder has %q", n)
	}
}

func TestCommit(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	for _, want := range []string{"one", "two, in place of one"} {
		if err := WriteFile(path, []byte(want), 0o640); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("read %q, %v, want %q", got, err, want)
		}
	}
	if n := names(t, dir); len(n) != 1 {
		t.Errorf("the folder has %q", n)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != 0o640 {
		t.Errorf("mode %v, %v, want -rw-r-----", fi.Mode(), err)
	}
}

// The named fallback must behave as the unnamed file does.
func TestNamedFallback(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	for _, commit := range []bool{false, true} {
		f := &File{path: path, dir: dir}
		err := f.withName(func(tmp string) (err error) {
			f.File, err = os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("x"); err != nil {
			t.Fatal(err)
		}
		if !commit {
			f.Abort()
			if n := names(t, dir); len(n) != 0 {
				t.Errorf("after Abort the folder has %q", n)
			}
			continue
		}
		if err := f.Commit(); err != nil {
			t.Fatal(err)
		}
		if n := names(t, dir); len(n) != 1 || n[0] != "out" {
			t.Errorf("after Commit the folder has %q", n)
		}
	}
}

func TestSymlinkIsFollowed(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	if err := os.WriteFile(target, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("target", link); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(link, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(target); string(got) != "new" {
		t.Errorf("target has %q, want new", got)
	}
	if fi, err := os.Lstat(link); err != nil || fi.Mode().Type() != os.ModeSymlink {
		t.Errorf("the link became %v, %v", fi.Mode(), err)
	}
}

func TestRefusesWhatIsNotAFile(t *testing.T) {
	for _, path := range []string{t.TempDir(), "/dev/null"} {
		if f, err := Create(path, 0o600); err == nil {
			f.Abort()
			t.Errorf("Create(%q) was accepted", path)
		}
	}
	if f, err := Create(filepath.Join(t.TempDir(), "no", "such", "folder"), 0o600); err == nil {
		f.Abort()
		t.Error("Create in a missing folder was accepted")
	}
}

// When the place can't be taken, Commit fails and leaves nothing.
func TestCommitFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	f, err := Create(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); err == nil {
		t.Error("Commit over a folder succeeded")
	}
	if n := names(t, dir); len(n) != 1 || n[0] != "out" {
		t.Errorf("the folder has %q, want out alone", n)
	}
}
