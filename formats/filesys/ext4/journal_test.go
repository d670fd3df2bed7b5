package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"imgmaint/formats"
	"imgmaint/internal/testimg"
)

// copyFile copies a sparse image.
func copyFile(t testing.TB, src string) string {
	t.Helper()
	dst := filepath.Join(t.TempDir(), "copy.img")
	testimg.Run(t, "cp", "--sparse=always", src, dst)
	return dst
}

// fsck repairs img with e2fsck; it fails the test if that is not possible.
func fsck(t testing.TB, img string) {
	t.Helper()
	out, err := testimg.Try(t, "e2fsck", "-fy", img)
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode()&^3 != 0) {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
}

// compareRecovered compares img, which has an unclean journal, as it is read
// here with what e2fsck makes of it.
func compareRecovered(t *testing.T, img string) {
	t.Helper()
	f := openImage(t, img, nil)
	got, err := readTree(f)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.overlay) == 0 {
		t.Error("the journal replaced nothing")
	}
	if u := f.Usage(); u.State != "needs recovery" || !strings.Contains(strings.Join(u.Problems, "\n"), "replayed") {
		t.Errorf("state %q, problems %q", u.State, u.Problems)
	}
	mended := copyFile(t, img)
	fsck(t, mended)
	m := openImage(t, mended, nil)
	want, err := readTree(m)
	if err != nil {
		t.Fatal(err)
	}
	diffTrees(t, got, want, nil)
	if u, w := f.Usage(), m.Usage(); u.FreeInodes > w.FreeInodes || u.Type != w.Type {
		t.Errorf("free inodes %d, after e2fsck %d", u.FreeInodes, w.FreeInodes)
	}
}

// TestKernelJournal copies file systems while a kernel works on them.
func TestKernelJournal(t *testing.T) {
	for _, tt := range []struct {
		name, opts string
		args       []string
	}{
		{"ext4", "", []string{"-t", "ext4"}},
		{"ext4-1k", "", []string{"-t", "ext4", "-b", "1024", "-J", "size=1"}},
		{"wrap", "", []string{"-t", "ext4", "-b", "4096", "-J", "size=4"}},
		{"ext3", "", []string{"-t", "ext3", "-b", "1024", "-J", "size=1"}},
		{"no-csum", "", []string{"-t", "ext4", "-O", "^metadata_csum,^64bit"}},
		{"checksum-v1", "journal_checksum", []string{"-t", "ext4", "-O", "^metadata_csum"}},
		{"async", "journal_async_commit", []string{"-t", "ext4"}},
		{"data-journal", "data=journal", []string{"-t", "ext4"}},
		{"orphan_file", "", []string{"-t", "ext4", "-O", "orphan_file"}},
		{"csum_seed", "", []string{"-t", "ext4", "-O", "metadata_csum_seed,inline_data,ea_inode"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			img := mkfs(t, 32<<20, tt.args...)
			dir, unmount, ok := mount(t, img, strings.TrimPrefix(tt.opts+",noatime", ","))
			if !ok {
				t.Skip("needs root and a kernel mount; TestDebugfsJournal needs neither")
			}
			work(t, dir)
			// Files without a name that are still open are orphans.
			var open []*os.File
			for i := range 3 {
				name := filepath.Join(dir, fmt.Sprintf("orphan%d", i))
				f, err := os.Create(name)
				if err != nil {
					t.Fatal(err)
				}
				open = append(open, f)
				f.Write(bytes.Repeat([]byte("orphan"), 5000))
				f.Sync()
				os.Remove(name)
			}
			testimg.Run(t, "sync", "-f", dir)
			dirty := copyFile(t, img)
			os.WriteFile(filepath.Join(dir, "after"), []byte("never committed"), 0o600)
			torn := copyFile(t, img)
			for _, f := range open {
				f.Close()
			}
			unmount()
			for _, f := range []string{dirty, torn} {
				compareRecovered(t, f)
			}
		})
	}
}

// work changes a mounted file system such that its journal goes round, and
// blocks of directories become blocks of files, which are revoked.
func work(t *testing.T, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for round := range 12 {
		d := filepath.Join(dir, "d"+strconv.Itoa(round))
		must(os.Mkdir(d, 0o755))
		for i := range 80 {
			must(os.WriteFile(filepath.Join(d, fmt.Sprintf("%d-%s", i, strings.Repeat("x", 50))), bytes.Repeat([]byte{byte(i)}, i*50), 0o644))
		}
		f, err := os.Create(filepath.Join(d, "magic"))
		must(err)
		magic := make([]byte, 64<<10)
		for i := 0; i < len(magic); i += 1024 {
			copy(magic[i:], "\xc0\x3b\x39\x98\x00\x00\x00\x01")
		}
		f.Write(magic)
		must(f.Sync())
		f.Close()
		if round%3 == 2 {
			must(os.RemoveAll(filepath.Join(dir, "d"+strconv.Itoa(round-1))))
			f, err := os.Create(filepath.Join(dir, "reuse"+strconv.Itoa(round)))
			must(err)
			f.Write(bytes.Repeat([]byte("again"), 50000))
			must(f.Sync())
			f.Close()
		}
		setHostXattr(d, "user.round", []byte{byte(round)})
		must(os.Rename(filepath.Join(d, "magic"), filepath.Join(dir, "magic"+strconv.Itoa(round))))
	}
}

// TestDebugfsJournal writes transactions with debugfs, with each checksum
// version, and needs no kernel.
func TestDebugfsJournal(t *testing.T) {
	for _, tt := range []struct {
		name, open string
		args       []string
		revoke     bool
	}{
		{"none", "jo", []string{"-t", "ext3"}, true},
		{"v1", "jo", []string{"-t", "ext4", "-O", "^metadata_csum,^64bit"}, true},
		{"v2", "jo -c -v 2", []string{"-t", "ext4", "-O", "^64bit"}, true},
		{"v2-64bit", "jo -c -v 2", []string{"-t", "ext4", "-O", "64bit"}, true},
		{"v3", "jo -c -v 3", []string{"-t", "ext4", "-O", "^64bit"}, true},
		{"v3-64bit", "jo -c -v 3", []string{"-t", "ext4", "-O", "64bit"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			const bs = 1024
			dir := t.TempDir()
			content := bytes.Repeat([]byte("old contents of the file\n"), 400)[:8*bs]
			src := testimg.WriteFile(t, "file", content)
			img := mkfs(t, 8<<20, append([]string{"-b", "1024"}, tt.args...)...)
			testimg.Run(t, "debugfs", "-w", "-R", "write "+src+" file", img)
			var blocks []string
			for _, b := range strings.Fields(testimg.Run(t, "debugfs", "-R", "blocks /file", img)) {
				if n, _ := strconv.Atoi(b); n >= 20 {
					blocks = append(blocks, b)
				}
			}
			if tt.args[1] == "ext3" { // without extents the list has no tree blocks before 8
				blocks = blocks[:8]
			}
			if len(blocks) != 8 {
				t.Fatalf("blocks %q", blocks)
			}
			put := func(name string, fill string) string {
				b := bytes.Repeat([]byte(fill), bs/len(fill)+1)[:bs]
				p := filepath.Join(dir, name)
				if err := os.WriteFile(p, b, 0o600); err != nil {
					t.Fatal(err)
				}
				return p
			}
			a, b := put("a", "first transaction "), put("b", "\xc0\x3b\x39\x98\x00\x00\x00\x02")
			three := filepath.Join(dir, "three")
			if err := os.WriteFile(three, bytes.Repeat([]byte("three"), 3*bs/5+1)[:3*bs], 0o600); err != nil {
				t.Fatal(err)
			}
			script := tt.open + "\n" +
				"jw -b " + blocks[0] + " " + a + "\n" +
				"jw -b " + blocks[1] + " " + b + "\n" +
				"jw -b " + blocks[4] + "," + blocks[2] + "," + blocks[3] + " " + three + "\n" +
				"jw -b " + blocks[5] + " " + a + "\n" +
				"jw -b " + blocks[6] + " " + a + "\n" +
				"jw -r " + blocks[5] + "\n" +
				"jw -b " + blocks[6] + " " + b + "\n" +
				"jw -b " + blocks[7] + " -c " + a + "\n" + // no commit
				"jc\n"
			out := testimg.Run(t, "debugfs", "-w", "-f", testimg.WriteFile(t, "script", []byte(script)), img)
			if strings.Contains(out, "error") {
				t.Fatal(out)
			}
			compareRecovered(t, img)
			f := openImage(t, img, nil)
			got, err := f.ReadFile("file")
			if err != nil {
				t.Fatal(err)
			}
			first, _ := os.ReadFile(a)
			second, _ := os.ReadFile(b)
			want := slices.Clone(content)
			copy(want, first)
			copy(want[bs:], second)
			x, _ := os.ReadFile(three)
			copy(want[4*bs:], x[:bs])
			copy(want[2*bs:], x[bs:])
			copy(want[6*bs:], second)
			if !bytes.Equal(got, want) {
				for i := range 8 {
					if !bytes.Equal(got[i*bs:(i+1)*bs], want[i*bs:(i+1)*bs]) {
						t.Errorf("block %d is %.20q, want %.20q", i, got[i*bs:], want[i*bs:])
					}
				}
			}
			// As it is on disk.
			plain := openImage(t, img, &Options{NoReplay: true})
			if got, err := plain.ReadFile("file"); err != nil || !bytes.Equal(got, content) {
				t.Errorf("without replay: %v, %.30q", err, got)
			}
			if u := plain.Usage(); u.State != "needs recovery" {
				t.Errorf("without replay: state %q", u.State)
			}
			testFlippedJournal(t, img)
			testFlippedCommit(t, img, content)
		})
	}
}

// testFlippedJournal damages each block of the journal in use: reading never
// fails in another way than as corrupt, and with checksums a damaged
// transaction never shows.
func testFlippedJournal(t *testing.T, img string) {
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	f := openImage(t, img, &Options{NoReplay: true})
	j := &journal{fs: f}
	if err := j.open(journalIno); err != nil {
		t.Fatal(err)
	}
	for n := range uint32(24) {
		off, err := j.pos(n)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int64{0, 3, 5, 11, 12, 15, 17, 20, 24, 28, 31, 36, 43, 60, 80, 252, 700, 1020} {
			b[off+at] ^= 0x41
			f, err := Open(bytes.NewReader(b), int64(len(b)), nil)
			if err == nil {
				_, err = readTree(f)
			}
			if err != nil && !errors.Is(err, formats.ErrCorrupt) && !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("journal block %d byte %d: %v", n, at, err)
			}
			if j.csum() && err == nil {
				got, _ := f.ReadFile("file")
				for _, piece := range []int{0, 6} {
					if p := got[piece*1024:][:4]; string(p) != "firs" && string(p) != "\xc0\x3b\x39\x98" && !bytes.Contains([]byte("old contents of the file\nold contents"), p) {
						t.Errorf("journal block %d byte %d: shows %q", n, at, p)
					}
				}
			}
			b[off+at] ^= 0x41
		}
	}
}

// testFlippedCommit damages the first commit block: the transaction and all
// later ones must be left out when it has a checksum.
func testFlippedCommit(t *testing.T, img string, old []byte) {
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	f := openImage(t, img, &Options{NoReplay: true})
	j := &journal{fs: f}
	if err := j.open(journalIno); err != nil || !j.csum() {
		return
	}
	for n := j.start; ; n++ {
		off, err := j.pos(n)
		if err != nil {
			t.Fatal(err)
		}
		if be.Uint32(b[off:]) == jbdMagic && be.Uint32(b[off+4:]) == jbdCommit {
			b[off+700] ^= 1
			break
		}
	}
	f, err = Open(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := f.ReadFile("file"); err != nil || !bytes.Equal(got, old) {
		t.Errorf("after a damaged commit block: %v, %.30q", err, got)
	}
	if p := strings.Join(f.Usage().Problems, "\n"); !strings.Contains(p, "bad checksum") {
		t.Errorf("problems %q", p)
	}
}

// TestChecksumV1 damages a data block of a journal whose commit blocks hold a
// sum over the whole transaction.
func TestChecksumV1(t *testing.T) {
	img := mkfs(t, 32<<20, "-t", "ext4", "-b", "4096", "-O", "^metadata_csum")
	dir, unmount, ok := mount(t, img, "journal_checksum")
	if !ok {
		t.Skip("needs root and a kernel mount")
	}
	for i := range 5 {
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		testimg.Run(t, "sync", "-f", dir)
	}
	dirty := copyFile(t, img)
	unmount()
	b, err := os.ReadFile(dirty)
	if err != nil {
		t.Fatal(err)
	}
	f := openImage(t, dirty, nil)
	j := &journal{fs: f}
	if err := j.open(journalIno); err != nil {
		t.Fatal(err)
	}
	if j.compat&jbdCompatChecksum == 0 {
		t.Fatal("the kernel wrote no checksums of version 1")
	}
	if err := j.scan(); err != nil {
		t.Fatal(err)
	}
	whole := j.endSequence
	n, commits := j.start, 0
	var off int64
	for commits < 2 { // to the first data block of the third transaction
		if off, err = j.pos(n); err != nil {
			t.Fatal(err)
		}
		if be.Uint32(b[off:]) == jbdMagic && be.Uint32(b[off+4:]) == jbdCommit {
			commits++
		}
		n++
	}
	if off, err = j.pos(n + 1); err != nil {
		t.Fatal(err)
	}
	b[off+100] ^= 1
	if err := os.WriteFile(dirty, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f = openImage(t, dirty, nil)
	j = &journal{fs: f}
	if err := errors.Join(j.open(journalIno), j.scan()); err != nil {
		t.Fatal(err)
	}
	if j.endSequence != j.sequence+2 || whole <= j.endSequence {
		t.Errorf("from %d to %d, without damage %d", j.sequence, j.endSequence, whole)
	}
	compareRecovered(t, dirty)
}

// TestFastCommit compares fast commits with what a kernel makes of them:
// e2fsck 1.47.0 fails on directories made in them.
func TestFastCommit(t *testing.T) {
	for _, bs := range []string{"1024", "4096"} {
		t.Run(bs, func(t *testing.T) {
			img := mkfs(t, 64<<20, "-t", "ext4", "-b", bs, "-O", "fast_commit", "-J", "size=16")
			dir, unmount, ok := mount(t, img, "noatime")
			if !ok {
				t.Skip("needs root and a kernel mount")
			}
			if err := os.Mkdir(filepath.Join(dir, "first"), 0o755); err != nil {
				t.Fatal(err)
			}
			testimg.Run(t, "sync", "-f", dir)
			fast := func(name string, b []byte, at int64) {
				f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o640)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if _, err := f.WriteAt(b, at); err != nil {
					t.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 30 {
				fast(fmt.Sprintf("first/%d", i), bytes.Repeat([]byte("fast"), i*300), int64(i%3)*50000)
			}
			os.Remove(filepath.Join(dir, "first/1"))
			os.Rename(filepath.Join(dir, "first/2"), filepath.Join(dir, "renamed"))
			os.Link(filepath.Join(dir, "first/3"), filepath.Join(dir, "linked"))
			fast("first/3", []byte("changed"), 3)
			os.Mkdir(filepath.Join(dir, "new"), 0o700)
			fast("new/inside", []byte("inside"), 0)
			os.Truncate(filepath.Join(dir, "first/20"), 100)
			fast("first/20", []byte("x"), 10)
			fast("first/21", []byte("rewritten"), 0)
			dirty := copyFile(t, img)
			unmount()

			f := openImage(t, dirty, nil)
			if f.fast == nil {
				t.Fatal("no fast commits were found")
			}
			got, err := readTree(f)
			if err != nil {
				t.Fatal(err)
			}
			lookupFast(t, f, got)
			kernel := copyFile(t, dirty)
			dir, unmount, ok = mount(t, kernel, "noatime")
			if !ok {
				t.Fatal("no second mount")
			}
			want, err := hostTree(dir)
			unmount()
			if err != nil {
				t.Fatal(err)
			}
			diffTrees(t, got, want, func(_ string, r record) record {
				if r.mode&modeFmt == modeDir { // the kernel makes entries anew, and does not count them
					r.mtime, r.ctime, r.nlink, r.blocks = "", "", 0, 0
				}
				return r
			})
			b, err := os.ReadFile(dirty)
			if err != nil {
				t.Fatal(err)
			}
			j := &journal{fs: f}
			if err := j.open(journalIno); err != nil {
				t.Fatal(err)
			}
			whole := f.fast.changes
			off, err := j.pos(j.fcFirst)
			if err != nil {
				t.Fatal(err)
			}
			b[off+20] ^= 1
			if f, err := Open(bytes.NewReader(b), int64(len(b)), nil); err != nil || f.fast != nil {
				t.Errorf("a damaged fast commit was replayed: %v", err)
			}
			b[off+20] ^= 1
			// The last complete one, alone.
			var tails []int64
			left := whole
			if err := j.fastTags(func(tag uint16, _ []byte, off int64) (bool, error) {
				if tag == fcTail {
					tails = append(tails, off)
				}
				left--
				return left > 0, nil
			}); err != nil {
				t.Fatal(err)
			}
			if len(tails) > 1 {
				off = tails[len(tails)-1] + fcTagSize // fc_tid
				b[off] ^= 1
				if f, err := Open(bytes.NewReader(b), int64(len(b)), nil); err != nil || f.fast == nil || f.fast.changes >= whole {
					t.Errorf("with the last of %d damaged: %v", len(tails), err)
				}
				b[off] ^= 1
			}
			for n := j.fcFirst; n < j.fcFirst+4; n++ {
				off, err := j.pos(n)
				if err != nil {
					t.Fatal(err)
				}
				for at := int64(0); at < f.sb.blockSize; at += 131 {
					b[off+at] ^= 0x10
					f, err := Open(bytes.NewReader(b), int64(len(b)), nil)
					if err == nil {
						_, err = readTree(f)
					}
					if err != nil && !errors.Is(err, formats.ErrCorrupt) && !errors.Is(err, errors.ErrUnsupported) {
						t.Errorf("fast commit block %d byte %d: %v", n, at, err)
					}
					b[off+at] ^= 0x10
				}
			}
		})
	}
}

func lookupFast(t *testing.T, f *FS, all tree) {
	t.Helper()
	for name := range all {
		if _, err := f.Lstat(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"first/1", "first/2", "new/outside"} {
		if _, err := f.Lstat(name); err == nil {
			t.Errorf("%s is there", name)
		}
	}
}
