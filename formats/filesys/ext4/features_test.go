package ext4

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

// featureSets are the arguments of mke2fs for every way a file system can be
// laid out that this package reads.
var featureSets = []struct {
	name string
	args []string
}{
	{"ext2", []string{"-t", "ext2"}},
	{"ext3", []string{"-t", "ext3"}},
	{"ext4", []string{"-t", "ext4"}},
	{"rev0", []string{"-t", "ext2", "-r", "0"}},
	{"no-extents", []string{"-t", "ext4", "-O", "^extents,^64bit"}},
	{"no-64bit", []string{"-t", "ext4", "-O", "^64bit"}},
	{"uninit_bg", []string{"-t", "ext4", "-O", "^metadata_csum,uninit_bg"}},
	{"uninit_bg-64bit", []string{"-t", "ext4", "-O", "^metadata_csum,uninit_bg,64bit"}},
	{"no-csum", []string{"-t", "ext4", "-O", "^metadata_csum,^uninit_bg"}},
	{"csum_seed", []string{"-t", "ext4", "-O", "metadata_csum_seed"}},
	{"inline_data", []string{"-t", "ext4", "-O", "inline_data", "-I", "256"}},
	{"inline_data-1024", []string{"-t", "ext4", "-O", "inline_data", "-I", "1024"}},
	{"bigalloc", []string{"-t", "ext4", "-O", "bigalloc", "-C", "16384"}},
	{"meta_bg", []string{"-t", "ext4", "-O", "meta_bg,^resize_inode", "-g", "2048"}},
	{"sparse_super2", []string{"-t", "ext4", "-O", "sparse_super2", "-g", "4096"}},
	{"no-flex_bg", []string{"-t", "ext4", "-O", "^flex_bg", "-g", "8192"}},
	{"no-filetype", []string{"-t", "ext4", "-O", "^filetype"}},
	{"large_dir", []string{"-t", "ext4", "-O", "large_dir"}},
	{"ea_inode", []string{"-t", "ext4", "-O", "ea_inode"}},
	{"hash-legacy", []string{"-t", "ext4"}},
	{"hash-tea", []string{"-t", "ext4"}},
	{"no-dir_index", []string{"-t", "ext4", "-O", "^dir_index"}},
	{"casefold", []string{"-t", "ext4", "-O", "casefold", "-E", "encoding=utf8"}},
	{"encrypt", []string{"-t", "ext4", "-O", "encrypt"}},
	{"orphan_file", []string{"-t", "ext4", "-O", "orphan_file"}},
	{"quota", []string{"-t", "ext4", "-O", "quota,project,verity,stable_inodes"}},
	{"no-journal", []string{"-t", "ext4", "-O", "^has_journal"}},
	{"inode-128", []string{"-t", "ext4", "-I", "128", "-O", "^project,^quota"}},
	{"inode-512", []string{"-t", "ext4", "-I", "512"}},
	{"inode-1024", []string{"-t", "ext4", "-I", "1024"}},
}

// big reports whether the long form of the tests was asked for: 20,000
// entries on every feature set and block size. It takes some minutes.
func big() bool { return os.Getenv("IMGMAINT_BIG_TESTS") == "1" }

// TestFeatures makes the same tree on every feature set and block size, with
// a kernel where there is one, else with mke2fs and debugfs, and compares
// every entry.
func TestFeatures(t *testing.T) {
	for _, bs := range []int64{1024, 2048, 4096} {
		for i, fset := range featureSets {
			long := big() || fset.name == "ext4" && bs == 2048
			// The short form tries each feature set with one block size.
			if !long && bs != 1024<<(i%3) {
				continue
			}
			t.Run(fset.name+"-"+strconv.FormatInt(bs, 10), func(t *testing.T) {
				t.Parallel()
				_, alg, _ := strings.Cut(fset.name, "hash-")
				testFeature(t, fset.args, bs, long, alg)
			})
		}
	}
}

// testFeature uses mke2fs with args, and another hash for directories when alg
// is not empty.
func testFeature(t *testing.T, args []string, bs int64, long bool, alg string) {
	p := populator{bs: bs, files: 300, dirs: 10, root: os.Geteuid() == 0}
	size, inodes := int64(48<<20), "2000"
	if long {
		p.files, p.dirs, inodes = 10000, 1000, "24000"
		size = 192 << 20
		if slices.Contains(args, "bigalloc") {
			size = 768 << 20
		}
	}
	args = append([]string{"-b", strconv.FormatInt(bs, 10), "-N", inodes}, args...)
	img := mkfs(t, size, args...)
	if alg != "" {
		testimg.Run(t, "tune2fs", "-E", "hash_alg="+alg, img)
	}
	var want tree
	// The kernel counts a block for data it keeps in the inode.
	inline := slices.Contains(args, "inline_data")
	mask := func(_ string, r record) record {
		if inline && r.size <= 1024 {
			r.blocks = 0
		}
		return r
	}
	if dir, unmount, ok := mount(t, img, "noatime"); ok {
		p.dir = dir
		if err := p.fill(); err != nil {
			t.Fatal(err)
		}
		unmount()
		dir, unmount, ok := mount(t, img, "ro,noatime")
		if !ok {
			t.Fatal("no second mount")
		}
		var err error
		if want, err = hostTree(dir); err != nil {
			t.Fatal(err)
		}
		unmount()
	} else {
		want, mask = offlineTree(t, &p, img, args)
	}
	f := openImage(t, img, nil)
	start := time.Now()
	got, err := readTree(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d entries read in %v", len(got), time.Since(start))
	diffTrees(t, got, want, mask)
	if long && len(got) < 20000 {
		t.Errorf("%d entries, want 20000", len(got))
	}
	lookupAll(t, f, got)
	if u := f.Usage(); len(u.Problems) != 0 || u.State != "clean" {
		t.Errorf("state %q, problems %q", u.State, u.Problems)
	}
}

// TestConformance needs no kernel.
func TestConformance(t *testing.T) {
	for _, args := range [][]string{
		{"-t", "ext2", "-b", "1024"},
		{"-t", "ext4", "-b", "4096", "-O", "inline_data", "-I", "512"},
		{"-t", "ext4", "-b", "2048", "-O", "bigalloc,^metadata_csum", "-C", "8192"},
		{"-t", "ext4", "-b", "65536"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			t.Parallel()
			p := populator{bs: 1024, files: 120, dirs: 2, plain: true, small: true}
			img := mkfs(t, 64<<20)
			offlineTree(t, &p, img, args)
			f := openImage(t, img, nil)
			if err := formatstest.TestFS(f, "sizes/0", "links/one", "big/file-00000"); err != nil {
				t.Error(err)
			}
		})
	}
}

// lookupAll finds every file again by its path, on a new FS so that no
// listing helps, and some that are not there.
func lookupAll(t *testing.T, f *FS, all tree) {
	t.Helper()
	f.dirs = dirCache{}
	for name, want := range all {
		fi, err := f.Lstat(EscapeName([]byte(name)))
		if err != nil {
			t.Fatal(err)
		}
		if fi.Size() != want.size {
			t.Fatalf("%q: size %d, want %d", name, fi.Size(), want.size)
		}
	}
	for _, name := range []string{"nothing", "big/file-99999", "big/x", "names/\uef80", "sizes/0/x", "links/s10/x", "gone/0"} {
		if fi, err := f.Lstat(name); err == nil {
			t.Errorf("%q is there: %v", name, fi)
		}
	}
}

// offlineTree makes the tree without a kernel: mke2fs copies it, debugfs adds
// what a user may not make. The mask leaves out what copying does not keep.
func offlineTree(t *testing.T, p *populator, img string, args []string) (tree, func(string, record) record) {
	p.small = true // more than mke2fs can copy
	p.dir = filepath.Join(t.TempDir(), "tree")
	if err := os.Mkdir(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := p.fill(); err != nil {
		t.Fatal(err)
	}
	testimg.Run(t, "mke2fs", append(append([]string{"-q", "-F", "-d", p.dir}, args...), img)...)
	var b strings.Builder
	b.WriteString("cd /special\nmknod newchar c 300 700\nmknod newblk b 8 1\n")
	b.WriteString("ea_set /xattr/caps security.test value\n")
	b.WriteString("sif /times/9 mtime_extra 0x1d6f3454\nsif /times/8 mtime 0x10\n")
	script := testimg.WriteFile(t, "script", []byte(b.String()))
	testimg.Run(t, "debugfs", "-w", "-f", script, img)
	want, err := hostTree(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	caps := want["xattr/caps"]
	caps.xattrs = strings.TrimSpace(caps.xattrs + " security.test=\"value\"")
	want["xattr/caps"] = caps
	want["lost+found"] = record{mode: modeDir}
	want["special/newchar"] = record{mode: modeChar, major: 300, minor: 700}
	want["special/newblk"] = record{mode: modeBlk, major: 8, minor: 1}
	// mke2fs 1.47.0 cuts sparse files short when it starts them inline, and
	// revision 0 has no attributes.
	inline, rev0 := slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, "inline_data") }), slices.Contains(args, "-r")
	return want, func(name string, r record) record {
		if inline && strings.HasPrefix(name, "sparse/") {
			r.size, r.hash = 0, ""
		}
		if rev0 {
			r.xattrs = ""
		}
		r.ino, r.blocks, r.nlink, r.atime, r.mtime, r.ctime = 0, 0, 0, "", "", ""
		if r.mode&modeFmt == modeDir {
			r.size = 0
		}
		if name == "." {
			r.uid, r.gid = 0, 0
		}
		if name == "lost+found" || strings.HasPrefix(name, "special/new") {
			r.mode &= modeFmt
			r.uid, r.gid = 0, 0
		}
		return r
	}
}
