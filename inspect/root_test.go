package inspect

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"imgmaint/formats"
)

func link(target string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte(target), Mode: fs.ModeSymlink | 0o777}
}

func file(content string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte(content), Mode: 0o644}
}

func dir() *fstest.MapFile { return &fstest.MapFile{Mode: fs.ModeDir | 0o755} }

func TestResolve(t *testing.T) {
	chain := fstest.MapFS{"end": file("x")}
	for i := range 60 {
		to := "end"
		if i > 0 {
			to = "l" + strings.Repeat("i", i-1)
		}
		chain["l"+strings.Repeat("i", i)] = link(to)
	}
	tree := fstest.MapFS{
		"usr/bin/dash": file("elf"), "bin": link("usr/bin"), "usr/bin/sh": link("dash"), "etc/passwd": file("guest"),
		"abs": link("/etc/passwd"), "up": link("../../../../etc/passwd"), "absup": link("/../../etc/passwd"),
		"a/b/c/rel": link("../../../etc"), "loop": link("loop"), "x": link("y"), "y": link("x"), "dangling": link("/no/such"),
		"todir": link("/etc/"), "file/": nil, "f": file("f"), "throughfile": link("f/x"), "dot": link("."), "empty": link(""),
		"nul": link("a\x00b"), "deep": link("a/b/c/rel/passwd"), "tomount": link("/mnt/in"), "mnt": dir(), "outof": file("o"),
		"selfdir": link("selfdir/x"), "long": link(strings.Repeat("a/../", 1000)),
	}
	delete(tree, "file/")
	mounted := fstest.MapFS{"in": file("mounted"), "toroot": link("/etc/passwd"), "updir": link("../outof"), "sub/x": file("x")}
	for _, c := range []struct {
		name string
		want string
		err  error
	}{
		{".", ".", nil}, {"bin/sh", "usr/bin/dash", nil}, {"bin", "usr/bin", nil}, {"abs", "etc/passwd", nil},
		{"up", "etc/passwd", nil}, {"absup", "etc/passwd", nil}, {"a/b/c/rel/passwd", "etc/passwd", nil}, {"deep", "etc/passwd", nil},
		{"todir/passwd", "etc/passwd", nil}, {"dot/dot/dot/f", "f", nil},
		{"tomount", "mnt/in", nil}, {"mnt/toroot", "etc/passwd", nil}, {"mnt/updir", "outof", nil}, {"mnt/sub/x", "mnt/sub/x", nil},
		{"loop", "", errLoop}, {"x", "", errLoop}, {"loop/more", "", errLoop}, {"dangling", "", fs.ErrNotExist}, {"throughfile", "", errNotDir},
		{"f/x", "", errNotDir}, {"empty", "", fs.ErrNotExist}, {"nul", "", fs.ErrNotExist}, {"selfdir", "", errLoop}, {"long", "", errTooLong},
		{"../etc", "", fs.ErrInvalid}, {"/etc", "", fs.ErrInvalid},
	} {
		r := NewRoot(tree)
		if err := r.Mount("mnt", mounted); err != nil {
			t.Fatal(err)
		}
		got, err := r.Resolve(c.name)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("Resolve(%q) = %q, %v, want %q, %v", c.name, got, err, c.want, c.err)
		}
	}
	r := NewRoot(chain)
	if _, err := r.Resolve("l" + strings.Repeat("i", 39)); err != nil {
		t.Errorf("40 links: %v", err)
	}
	if _, err := r.Resolve("l" + strings.Repeat("i", 40)); !errors.Is(err, errLoop) {
		t.Errorf("41 links: %v, want %v", err, errLoop)
	}
}

func TestRootFS(t *testing.T) {
	root := fstest.MapFS{"usr": dir(), "var": dir(), "etc/hosts": file("h"), "lib": link("usr/lib"), "l": link("etc/hosts"), "var/log/hidden": file("no")}
	usr := fstest.MapFS{"lib/os-release": file("ID=x\n")}
	varfs := fstest.MapFS{"log": dir(), "lib/x": file("x")}
	logs := fstest.MapFS{"syslog": file("s")}
	r := NewRoot(root)
	for _, m := range []struct {
		dir  string
		fsys fs.ReadLinkFS
	}{{"usr", usr}, {"var", varfs}, {"var/log", logs}} {
		if err := r.Mount(m.dir, m.fsys); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Mount("l", usr); !errors.Is(err, errNotDir) {
		t.Errorf("mount over a file: %v", err)
	}
	if err := r.Mount("none", usr); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("mount over nothing: %v", err)
	}
	for name, want := range map[string]string{"lib/os-release": "ID=x\n", "var/log/syslog": "s", "l": "h", "var/lib/x": "x"} {
		if b, err := fs.ReadFile(r, name); string(b) != want || err != nil {
			t.Errorf("%s = %q, %v, want %q", name, b, err, want)
		}
	}
	if _, err := r.Stat("var/log/hidden"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file below a mount: %v", err)
	}
	fi, err := r.Lstat("lib")
	if err != nil || fi.Mode().Type() != fs.ModeSymlink {
		t.Errorf("Lstat(lib) = %v, %v", fi, err)
	}
	if fi, err = r.Stat("lib"); err != nil || !fi.IsDir() || fi.Name() != "lib" {
		t.Errorf("Stat(lib) = %v, %v", fi, err)
	}
	if fi, err = r.Stat("var/log"); err != nil || fi.Name() != "log" {
		t.Errorf("Stat(var/log) = %v, %v", fi, err)
	}
	if s, err := r.ReadLink("lib"); s != "usr/lib" || err != nil {
		t.Errorf("ReadLink = %q, %v", s, err)
	}
	plain := NewRoot(fstest.MapFS{"a/b/c": file("1"), "a/d": file("2"), "mnt": dir()})
	if err := plain.Mount("mnt", fstest.MapFS{"m/n": file("3")}); err != nil {
		t.Fatal(err)
	}
	if err := fstest.TestFS(plain, "a/b/c", "a/d", "mnt/m/n"); err != nil {
		t.Error(err)
	}
}

func TestRead(t *testing.T) {
	r := NewRoot(fstest.MapFS{"f": file("0123456789"), "d": dir(), "fifo": &fstest.MapFile{Mode: fs.ModeNamedPipe}})
	if b, err := r.Read("f", 10); string(b) != "0123456789" || err != nil {
		t.Errorf("Read = %q, %v", b, err)
	}
	if _, err := r.Read("f", 9); !errors.Is(err, formats.ErrLimit) {
		t.Errorf("Read of too much: %v", err)
	}
	for _, name := range []string{"d", "fifo"} {
		if _, err := r.Read(name, 10); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}

func TestGuestPath(t *testing.T) {
	for in, want := range map[string]string{"/": ".", "": ".", "/etc/": "etc", "etc//hosts/.": "etc/hosts", "../../x": "x", "/a/../../b": "b"} {
		if got := GuestPath(in); got != want || !fs.ValidPath(got) {
			t.Errorf("GuestPath(%q) = %q, want %q", in, got, want)
		}
	}
}
