package inspect

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"imgmaint/internal/testimg"
)

// listing is every file below a folder of the host: name, type, mode, owner,
// links (of a folder they depend on the file system of the host), time in
// nanoseconds, target.
func listing(t *testing.T, dir string) string {
	t.Helper()
	out := testimg.Run(t, "find", dir, "-mindepth", "1", "!", "-type", "s", "(", "-type", "d", "-printf", `%P|%y|%m|%U|%G|-|%T@|\n`,
		"-o", "-printf", `%P|%y|%m|%U|%G|%n|%T@|%l\n`, ")")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// strangeTree is a folder of the host with every kind of file.
func strangeTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	script := `set -e; cd "$1"
mkdir -p d/e empty "sp ace" ; chmod 1777 d; chmod 2750 d/e
echo content > d/file; chmod 4755 d/file; ln d/file d/e/second; ln d/file third
touch -d '2021-02-03 04:05:06.123456789' d/file; : > none
ln -s ../file d/e/rel; ln -s /d/file abs; ln -s nowhere dangling; ln -s "$(printf %0200d 0)" longlink
mkfifo pipe; truncate -s 5M sparse; printf end | dd of=sparse bs=1 seek=3000000 conv=notrunc status=none
printf 'new\nline' > "$(printf 'a\nb')"; : > "$(printf '\377bytes')"; ln -s "$(printf '\377bytes')" rawlink
mkdir -p "$(printf %0100d 1)/$(printf %0100d 2)/$(printf %0100d 3)"; echo deep > "$(printf %0100d 1)/$(printf %0100d 2)/$(printf %0100d 3)/f"
`
	testimg.Run(t, "sh", "-c", script, "sh", dir)
	if os.Getuid() == 0 {
		testimg.Run(t, "sh", "-c", `set -e; cd "$1"; mknod c1 c 1 3; mknod b1 b 259 1048575; chown 70000:70001 none; chown -h 5:6 abs`, "sh", dir)
	}
	return dir
}

func TestTarOut(t *testing.T) {
	dir := strangeTree(t)
	img := filepath.Join(t.TempDir(), "fs.img")
	if err := os.WriteFile(img, make([]byte, 16*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	testimg.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-d", dir, img)
	testimg.Run(t, "debugfs", "-w", "-R", `ea_set /d/file user.note value`, img)
	testimg.Run(t, "debugfs", "-w", "-R", `ea_set /d security.selinux system_u:object_r:bin_t:s0`, img)
	// mke2fs of this version stores whole seconds: 123456789 ns by hand.
	testimg.Run(t, "debugfs", "-w", "-R", `set_inode_field /none mtime_extra 0x1d6f3454`, img)
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	tree, _, err := Tree(context.Background(), mem(b), 0)
	if err != nil {
		t.Fatal(err)
	}
	var first bytes.Buffer
	for range 2 {
		var w bytes.Buffer
		if err := TarOut(context.Background(), &w, tree, "/", nil); err != nil {
			t.Fatal(err)
		}
		if first.Len() > 0 && !bytes.Equal(first.Bytes(), w.Bytes()) {
			t.Error("two archives of one tree differ")
		}
		first = w
	}
	archive := testimg.WriteFile(t, "a.tar", first.Bytes())
	out := t.TempDir()
	testimg.Run(t, "tar", "-C", out, "--numeric-owner", "-xpf", archive)
	if err := os.RemoveAll(filepath.Join(out, "lost+found")); err != nil {
		t.Fatal(err)
	}
	touch := []string{"-d", "2020-01-01 00:00:00 UTC", filepath.Join(dir, "none"), filepath.Join(out, "none")}
	testimg.Run(t, "touch", touch...) // compared below
	if got, want := listing(t, out), trimNanos(t, listing(t, dir), tree); got != want {
		t.Errorf("the unpacked tree differs:\n%s", firstDiff(strings.Split(got, "\n"), strings.Split(want, "\n")))
	}
	if os.Getuid() == 0 {
		for _, n := range []string{"c1", "b1"} {
			a, b := testimg.Run(t, "stat", "-c", "%F %t %T", filepath.Join(out, n)), testimg.Run(t, "stat", "-c", "%F %t %T", filepath.Join(dir, n))
			if a != b {
				t.Errorf("%s: %s, want %s", n, a, b)
			}
		}
	}
	for _, p := range []string{"/\xffbytes", "/rawlink"} { // a link to a name that is not UTF-8
		if err := Cat(context.Background(), io.Discard, tree, p); err != nil {
			t.Error(err)
		}
	}
	for _, n := range []string{"d/file", "sparse", "a\nb", strings.Repeat("0", 99) + "1"} {
		testimg.Run(t, "diff", "-r", "--no-dereference", filepath.Join(dir, n), filepath.Join(out, n))
	}
	found := map[string]string{}
	links := 0
	for tr := tar.NewReader(&first); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "./none" && h.ModTime.Nanosecond() != 123456789 {
			t.Errorf("time of ./none = %v", h.ModTime)
		}
		if h.Typeflag == tar.TypeLink {
			links++
		}
		for k, v := range h.PAXRecords {
			if strings.HasPrefix(k, "SCHILY.xattr.") {
				found[h.Name+" "+k] = v
			}
		}
	}
	if links != 2 || found["./d/ SCHILY.xattr.security.selinux"] != "system_u:object_r:bin_t:s0" || found["./d/e/second SCHILY.xattr.user.note"] != "value" {
		t.Errorf("%d hard links, xattrs %q", links, found)
	}
	if v := testimg.Run(t, "tar", "--xattrs", "-tvvf", archive); !strings.Contains(v, "user.note") {
		t.Errorf("GNU tar shows no attributes:\n%s", v)
	}
}

// trimNanos gives the files of want the times that the image has: mke2fs
// stores whole seconds.
func trimNanos(t *testing.T, want string, tree *Root) string {
	t.Helper()
	fi, err := tree.Lstat("d/file")
	if err != nil {
		t.Fatal(err)
	}
	if fi.ModTime().Nanosecond() != 0 {
		return want
	}
	var out []string
	for line := range strings.SplitSeq(want, "\n") {
		if f := strings.Split(line, "|"); len(f) == 8 {
			sec, _, _ := strings.Cut(f[6], ".")
			f[6] = sec + ".0000000000"
			line = strings.Join(f, "|")
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

func TestTarOutOfFile(t *testing.T) {
	r := NewRoot(fstest.MapFS{"d/f": file("x"), "l": link("d/f"), "s": &fstest.MapFile{Mode: fs.ModeSocket | 0o755}, "mnt": dir()})
	if err := r.Mount("mnt", fstest.MapFS{"inner": file("y")}); err != nil {
		t.Fatal(err)
	}
	names := func(path string, o *TarOptions) string {
		var b bytes.Buffer
		if err := TarOut(context.Background(), &b, r, path, o); err != nil {
			t.Fatal(err)
		}
		var n []string
		for tr := tar.NewReader(&b); ; {
			h, err := tr.Next()
			if err != nil {
				return strings.Join(n, " ")
			}
			n = append(n, h.Name)
		}
	}
	skipped := ""
	o := &TarOptions{Skipped: func(name string, err error) { skipped += name }, OneFileSystem: true}
	for _, c := range []struct {
		path string
		o    *TarOptions
		want string
	}{{"/d/f", nil, "./f"}, {"/l", nil, "./l"}, {"/d", nil, "./ ./f"}, {"/", nil, "./ ./d/ ./d/f ./l ./mnt/ ./mnt/inner"}, {"/", o, "./ ./d/ ./d/f ./l"}, {"mnt", o, "./ ./inner"}} {
		if got := names(c.path, c.o); got != c.want {
			t.Errorf("%s: %s, want %s", c.path, got, c.want)
		}
	}
	if skipped != "s" {
		t.Errorf("skipped = %q", skipped)
	}
	if err := TarOut(context.Background(), &failWriter{700}, r, "/", nil); !errors.Is(err, errMedium) {
		t.Errorf("failing writer: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := TarOut(ctx, io.Discard, r, "/", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestList(t *testing.T) {
	r := NewRoot(fstest.MapFS{"d/sub/f": file("xyz"), "d/l": link("sub/f"), "d/ev\x1bil": file(""), "d/su": &fstest.MapFile{Mode: fs.ModeSetuid | fs.ModeSticky | 0o755}, "tod": link("d")})
	list := func(path string, o *ListOptions) string {
		var b bytes.Buffer
		if err := List(context.Background(), &b, r, path, o); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	for _, c := range []struct {
		path string
		o    *ListOptions
		want string
	}{
		{"/d", nil, "ev\\x1bil\nl\nsu\nsub\n"},
		{"/tod", &ListOptions{Recursive: true}, "ev\\x1bil\nl\nsu\nsub\nsub/f\n"},
		{"/d/sub/f", nil, "f\n"},
		{"/d/l", &ListOptions{Long: true}, "lrwxrwxrwx   1     0     0          5 0001-01-01 00:00:00 l -> sub/f\n"},
	} {
		if got := list(c.path, c.o); got != c.want {
			t.Errorf("%s: %q, want %q", c.path, got, c.want)
		}
	}
	if got := list("d", &ListOptions{Long: true}); !strings.Contains(got, "-rwsr-xr-t ") {
		t.Errorf("long = %s", got)
	}
	for _, path := range []string{"d", "d/sub/f"} {
		var v struct {
			Path    string
			Entries []FileInfo
		}
		if err := json.Unmarshal([]byte(list(path, &ListOptions{JSON: true, Recursive: true})), &v); err != nil || v.Path != "/"+path || len(v.Entries) == 0 {
			t.Errorf("JSON of %s: %+v, %v", path, v, err)
		}
	}
	if err := List(context.Background(), io.Discard, r, "none", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("List of nothing: %v", err)
	}
}
