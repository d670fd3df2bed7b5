package fat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"imgmaint/formats"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

// volume makes a volume with mkfs.fat and returns its path.
func volume(t testing.TB, size int64, args ...string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "fat.img")
	if err := os.WriteFile(p, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(p, size); err != nil {
		t.Fatal(err)
	}
	testimg.Run(t, "mkfs.fat", append(args, p)...)
	return p
}

func open(t testing.TB, p string) *FS {
	t.Helper()
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// tree writes files to a host folder: an EFI partition as systems have it,
// names of every kind, and sizes around the cluster sizes.
func tree(t testing.TB) (dir string, files map[string][]byte) {
	t.Helper()
	dir = t.TempDir()
	files = map[string][]byte{
		"EFI/BOOT/BOOTX64.EFI":            testimg.Disk(100_001, 1),
		"EFI/debian/grub.cfg":             []byte("search.fs_uuid x root\n"),
		"EFI/debian/shimx64.efi":          testimg.Disk(70_000, 2),
		"loader/entries/6.1.0-amd64.conf": []byte("title Debian\n"),
		"empty":                           {},
		"one":                             {1},
		"README.TXT":                      []byte("UPPER"),
		"lower.txt":                       []byte("lower"),
		"Mixed.Case.Name.conf":            []byte("mixed"),
		"exactly13char":                   []byte("13"),
		"exactly26characters-abcdefg":     []byte("26"),
		"größe-日本語.txt":                   []byte("unicode"),
		strings.Repeat("n", 200) + ".txt": []byte("long"),
		"a.b.c.d":                         []byte("dots"),
		".hidden":                         []byte("hidden"),
		"with space.txt":                  []byte("space"),
	}
	for _, n := range []int{511, 512, 513, 2047, 2048, 2049, 4096, 65535, 65536, 65537} {
		files[fmt.Sprintf("sizes/f%d.bin", n)] = testimg.Disk(int64(n), uint64(n))
	}
	for i := range 300 { // a directory of many clusters
		files[fmt.Sprintf("many/file number %03d", i)] = fmt.Appendf(nil, "%d", i)
	}
	when := time.Date(2021, 3, 4, 5, 6, 8, 0, time.UTC)
	for name, b := range files {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(p, when, when); err != nil {
			t.Fatal(err)
		}
	}
	return dir, files
}

func mcopy(t testing.TB, img, dir string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"LC_ALL=C.UTF-8", testimg.Tool(t, "mcopy"), "-smQ", "-i", img}
	for _, e := range list {
		args = append(args, filepath.Join(dir, e.Name()))
	}
	testimg.Run(t, "env", append(args, "::/")...)
}

// freeClusters is what fsck.fat counts.
func freeClusters(t testing.TB, img string) (used, total int64) {
	t.Helper()
	out := testimg.Run(t, "fsck.fat", "-n", img)
	m := regexp.MustCompile(`files, (\d+)/(\d+) clusters`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("fsck.fat: %s", out)
	}
	fmt.Sscan(m[1], &used)
	fmt.Sscan(m[2], &total)
	return used, total
}

func TestAgainstMtools(t *testing.T) {
	dir, files := tree(t)
	for _, c := range []struct {
		name string
		size int64
		args []string
		bits string
	}{
		{"fat12", 1440 << 10, []string{"-n", "FLOPPY", "-i", "0badcafe"}, "FAT12"},
		{"fat12 odd", 3<<20 + 1536, []string{"-F", "12", "-s", "4"}, "FAT12"},
		{"fat16", 16 << 20, []string{"-F", "16", "-s", "2"}, "FAT16"},
		{"fat32", 36 << 20, []string{"-F", "32", "-s", "1", "-n", "ESP"}, "FAT32"},
		{"one table", 16 << 20, []string{"-F", "16", "-f", "1"}, "FAT16"},
		{"sectors of 4096", 300 << 20, []string{"-F", "32", "-S", "4096", "-s", "1"}, "FAT32"},
		{"clusters of 64K", 300 << 20, []string{"-F", "16", "-s", "128"}, "FAT16"},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := volume(t, c.size, c.args...)
			mcopy(t, img, dir)
			testimg.Run(t, "mdel", "-i", img, "::/one")
			m := open(t, img)
			for name, want := range files {
				got, err := fs.ReadFile(m, name)
				if name == "one" {
					if !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("deleted file: %v", err)
					}
					continue
				}
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%q: %d bytes, %v, want %d", name, len(got), err, len(want))
				}
			}
			n := 0
			err := fs.WalkDir(m, ".", func(name string, d fs.DirEntry, err error) error {
				if err == nil && !d.IsDir() {
					n++
					if _, ok := files[name]; !ok {
						t.Errorf("file %q is not one of ours", name)
					}
				}
				return err
			})
			if err != nil || n != len(files)-1 {
				t.Errorf("walk found %d files of %d, %v", n, len(files)-1, err)
			}
			u := m.Usage()
			used, total := freeClusters(t, img)
			if u.Features[0] != c.bits || u.Free != (total-used)*u.BlockSize || u.Size != total*u.BlockSize || u.Problems != nil {
				t.Errorf("usage = %+v, want %d of %d clusters used", u, used, total)
			}
			if blkid, err := testimg.Try(t, "blkid", "-p", "-o", "export", img); err == nil {
				id, lab := "UUID="+u.UUID+"\n", "LABEL="+u.Label+"\n"
				if !strings.Contains(blkid, id) || u.Label != "" && !strings.Contains(blkid, lab) || u.Label == "" && strings.Contains(blkid, "\nLABEL=") {
					t.Errorf("usage %+v, blkid says\n%s", u, blkid)
				}
			} else {
				t.Error(err)
			}
			if c.size < 20<<20 {
				if err := formatstest.TestFS(m, "EFI/BOOT/BOOTX64.EFI", "empty"); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A FAT32 volume with fewer clusters than the specification wants: mkfs.fat
// makes it, Linux mounts it, mtools does not.
func TestSmallFAT32(t *testing.T) {
	img := volume(t, 8<<20, "-F", "32", "-s", "8")
	used, total := freeClusters(t, img)
	if u := open(t, img).Usage(); u.Features[0] != "FAT32" || u.Free != (total-used)*u.BlockSize || u.Problems != nil {
		t.Errorf("usage = %+v, want %d of %d clusters used", u, used, total)
	}
}

func TestMetadata(t *testing.T) {
	dir, _ := tree(t)
	img := volume(t, 1440<<10)
	mcopy(t, img, dir)
	testimg.Run(t, "mattrib", "-i", img, "+r", "::/lower.txt")
	testimg.Run(t, "mlabel", "-i", img, "::Later")
	m := open(t, img)
	fi, err := m.Lstat("lower.txt")
	if err != nil || fi.Mode() != 0o444 || fi.Size() != 5 || !fi.ModTime().Equal(time.Date(2021, 3, 4, 5, 6, 8, 0, time.UTC)) {
		t.Errorf("lower.txt: %v, %v", fi, err)
	}
	if l := m.Usage().Label; l != "LATER" {
		t.Errorf("label = %q", l)
	}
	for _, name := range []string{"efi/boot/bootx64.efi", "Efi/Boot/BootX64.efi", "MIXEDC~1.CON"} {
		if _, err := m.Lstat(name); err != nil {
			t.Error(err)
		}
	}
	for name, want := range map[string]error{
		"nothing": fs.ErrNotExist, "lower.txt/x": errNotDir, "/abs": fs.ErrInvalid, "EFI/../EFI": fs.ErrInvalid, "": fs.ErrInvalid,
	} {
		if _, err := m.Open(name); !errors.Is(err, want) {
			t.Errorf("Open(%q) = %v, want %v", name, err, want)
		}
	}
	if _, err := m.ReadLink("lower.txt"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("ReadLink: %v", err)
	}
}

// Files in pieces: every other file is deleted and the gaps filled.
func TestFragmented(t *testing.T) {
	dir := t.TempDir()
	img := volume(t, 1440<<10, "-s", "1")
	var del []string
	for i := range 40 {
		p := filepath.Join(dir, fmt.Sprintf("f%02d", i))
		if err := os.WriteFile(p, bytes.Repeat([]byte{byte(i)}, 1500), 0o600); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			del = append(del, "::/"+filepath.Base(p))
		}
	}
	mcopy(t, img, dir)
	testimg.Run(t, "mdel", append([]string{"-i", img}, del...)...)
	big := testimg.Disk(1200_000, 9)
	p := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(p, big, 0o600); err != nil {
		t.Fatal(err)
	}
	testimg.Run(t, "mcopy", "-i", img, p, "::/")
	m := open(t, img)
	f, err := m.Open("big")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(f.(*file).runs); n < 10 {
		t.Errorf("the file has %d fragments only", n)
	}
	if err := formatstest.TestImage(f.(formats.File), big); err != nil {
		t.Error(err)
	}
}

// patched is a FAT12 volume with a directory and two files, edited.
func patched(t testing.TB, edit func(b []byte, s *super)) []byte {
	t.Helper()
	img := volume(t, 360<<10, "-F", "12")
	dir := t.TempDir()
	for _, n := range []string{"a", "d/b", "d/e/c"} {
		p := filepath.Join(dir, n)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, testimg.Disk(5000, 3), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mcopy(t, img, dir)
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(b, m.s)
	}
	return b
}

// at returns the directory entry of name in b.
func at(t testing.TB, b []byte, name string) []byte {
	t.Helper()
	m, err := Open(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	e, err := m.find("", name)
	if err != nil {
		t.Fatal(err)
	}
	return b[e.off:][:32]
}

func set12(b []byte, s *super, c uint32, v uint16) {
	for n := range s.fats {
		p := b[s.fatOff+n*s.fatLen+int64(c)*3/2:]
		old := binary.LittleEndian.Uint16(p)
		if c&1 == 0 {
			binary.LittleEndian.PutUint16(p, old&0xf000|v)
		} else {
			binary.LittleEndian.PutUint16(p, old&0x000f|v<<4)
		}
	}
}

func TestHostile(t *testing.T) {
	le := binary.LittleEndian
	for _, c := range []struct {
		name string
		edit func(b []byte, s *super)
		want error
	}{
		{"BPB_BytsPerSec 0", func(b []byte, s *super) { le.PutUint16(b[11:], 0) }, formats.ErrCorrupt},
		{"BPB_BytsPerSec 65535", func(b []byte, s *super) { le.PutUint16(b[11:], 65535) }, formats.ErrCorrupt},
		{"BPB_SecPerClus 0", func(b []byte, s *super) { b[13] = 0 }, formats.ErrCorrupt},
		{"BPB_SecPerClus 3", func(b []byte, s *super) { b[13] = 3 }, formats.ErrCorrupt},
		{"BPB_RsvdSecCnt 0", func(b []byte, s *super) { le.PutUint16(b[14:], 0) }, formats.ErrCorrupt},
		{"BPB_NumFATs 0", func(b []byte, s *super) { b[16] = 0 }, formats.ErrCorrupt},
		{"BPB_NumFATs 255", func(b []byte, s *super) { b[16] = 255 }, formats.ErrCorrupt},
		{"BPB_TotSec past the end", func(b []byte, s *super) { le.PutUint16(b[19:], 0); le.PutUint32(b[32:], 1<<32-1) }, formats.ErrCorrupt},
		{"BPB_FATSz16 65535", func(b []byte, s *super) { le.PutUint16(b[22:], 65535) }, formats.ErrCorrupt},
		{"BPB_FATSz32 2^32-1", func(b []byte, s *super) {
			le.PutUint16(b[22:], 0)
			le.PutUint16(b[17:], 0)
			le.PutUint32(b[36:], 1<<32-1)
			le.PutUint16(b[42:], 0)
		}, formats.ErrCorrupt},
		{"BPB_RootEntCnt 65535", func(b []byte, s *super) { le.PutUint16(b[17:], 65535) }, formats.ErrCorrupt},
		{"a chain loops", func(b []byte, s *super) {
			c := uint32(le.Uint16(at(t, b, "a")[26:]))
			set12(b, s, c, uint16(c))
			le.PutUint32(at(t, b, "a")[28:], 1<<32-1)
		}, formats.ErrCorrupt},
		{"a chain ends early", func(b []byte, s *super) { le.PutUint32(at(t, b, "a")[28:], 100_000) }, formats.ErrCorrupt},
		{"a chain leaves the volume", func(b []byte, s *super) { set12(b, s, uint32(le.Uint16(at(t, b, "a")[26:])), 0xfe0) }, formats.ErrCorrupt},
		{"a chain meets a free cluster", func(b []byte, s *super) { set12(b, s, uint32(le.Uint16(at(t, b, "a")[26:])), 0) }, formats.ErrCorrupt},
		{"a first cluster out of range", func(b []byte, s *super) { le.PutUint16(at(t, b, "a")[26:], 0xffff) }, formats.ErrCorrupt},
		{"a directory in itself", func(b []byte, s *super) { copy(at(t, b, "d/e")[26:28], at(t, b, "d")[26:28]) }, formats.ErrCorrupt},
		{"a directory in two places", func(b []byte, s *super) { copy(at(t, b, "a"), at(t, b, "d/e")) }, formats.ErrCorrupt},
		{"a directory chain loops", func(b []byte, s *super) {
			c := uint32(le.Uint16(at(t, b, "d")[26:]))
			for i := range s.cluster / 32 { // no end mark
				if e := b[s.off(c)+32*i:]; e[0] == 0 {
					e[0] = 0xe5
				}
			}
			set12(b, s, c, uint16(c))
		}, formats.ErrCorrupt},
		{"a directory at cluster 0", func(b []byte, s *super) { le.PutUint16(at(t, b, "d")[26:], 0) }, formats.ErrCorrupt},
		{"truncated", func(b []byte, s *super) { clear(b) }, formats.ErrUnknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := patched(t, c.edit)
			var m0, m1 runtime.MemStats
			runtime.ReadMemStats(&m0)
			m, err := Open(bytes.NewReader(b), int64(len(b)), nil)
			if err == nil {
				err = readAll(m)
			}
			runtime.ReadMemStats(&m1)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if n := m1.TotalAlloc - m0.TotalAlloc; n > 16<<20 {
				t.Errorf("%d bytes allocated", n)
			}
		})
	}
}

// readAll reads everything there is; the first error ends it.
func readAll(m *FS) error {
	m.Usage()
	left := int64(32 << 20)
	return fs.WalkDir(m, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := m.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		n, err := io.Copy(io.Discard, io.LimitReader(f, left))
		left -= n
		return err
	})
}

func TestStrangeNames(t *testing.T) {
	b := patched(t, func(b []byte, s *super) {
		e := at(t, b, "a")
		copy(e[:11], "A/B\x00\xe9      ")
		e[12] = 0 // no lower case
	})
	m, err := Open(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	list, err := m.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, d := range list {
		if !fs.ValidPath(d.Name()) || path.Base(d.Name()) != d.Name() {
			t.Errorf("name %q", d.Name())
		}
		if d.Name() == "A\ufffdB\ufffdΘ" {
			found = true
			if _, err := fs.ReadFile(m, d.Name()); err != nil {
				t.Error(err)
			}
		}
	}
	if !found {
		t.Errorf("entries = %v", list)
	}
}

// A long name with a character outside the basic plane, which takes two
// units. mcopy cannot write one.
func TestSurrogates(t *testing.T) {
	img := volume(t, 360<<10, "-F", "12")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "aXYb"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	mcopy(t, img, dir)
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	m := open(t, img)
	e, err := m.find("", "aXYb")
	if err != nil {
		t.Fatal(err)
	}
	long := b[e.off-dirEntry:] // units of the name at 1, 3, 5 and on
	binary.LittleEndian.PutUint16(long[3:], 0xd83d)
	binary.LittleEndian.PutUint16(long[5:], 0xde00)
	list, err := open(t, testimg.WriteFile(t, "v.img", b)).ReadDir(".")
	if err != nil || len(list) != 1 || list[0].Name() != "a😀b" {
		t.Errorf("entries = %v, %v", list, err)
	}
}

func TestDirtyAndCopies(t *testing.T) {
	b := patched(t, func(b []byte, s *super) {
		b[37] |= 1
		b[s.fatOff+s.fatLen+100] ^= 0xff
	})
	m, err := Open(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if u := m.Usage(); u.State != "not cleanly unmounted" || len(u.Problems) != 1 || !strings.Contains(u.Problems[0], "copies of the FAT differ") {
		t.Errorf("usage = %+v", u)
	}
}

func TestReadErrors(t *testing.T) {
	b := patched(t, nil)
	s := open(t, testimg.WriteFile(t, "x", b)).s
	c := int64(binary.LittleEndian.Uint16(at(t, b, "a")[26:]))
	for _, bad := range []int64{0, s.fatOff + 3, s.rootOff, s.off(uint32(c)) + 100} {
		m, err := Open(testimg.FaultyReader{R: bytes.NewReader(b), Bad: bad}, int64(len(b)), nil)
		if err == nil {
			err = readAll(m)
		}
		if !errors.Is(err, testimg.ErrInjected) {
			t.Errorf("fault at %d: %v", bad, err)
		}
	}
	m, err := Open(bytes.NewReader(b[:s.off(uint32(c))+100]), int64(len(b)), nil)
	if err == nil {
		err = readAll(m)
	}
	if !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("shrunken file: %v, want ErrCorrupt", err)
	}
}

func TestNotFAT(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, 100), make([]byte, 4096), bytes.Repeat([]byte("\xeb\x52\x90NTFS    "), 100)} {
		if _, err := Open(bytes.NewReader(b), int64(len(b)), nil); !errors.Is(err, formats.ErrUnknown) {
			t.Errorf("%d bytes: %v, want ErrUnknown", len(b), err)
		}
	}
}

func FuzzFAT(f *testing.F) {
	b := patched(f, nil)
	f.Add(b[:64<<10])
	le := binary.LittleEndian
	small := bytes.Clone(b[:64<<10])
	le.PutUint16(small[19:], 128) // BPB_TotSec16
	f.Add(small)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 256<<10 {
			return
		}
		m, err := Open(bytes.NewReader(b), int64(len(b)), nil)
		if (m == nil) == (err == nil) {
			t.Fatalf("Open = %v, %v", m, err)
		}
		if m == nil {
			return
		}
		if u := m.Usage(); u.Free < 0 || u.Free > u.Size || u.Size > int64(len(b)) {
			t.Fatalf("usage %+v of %d bytes", u, len(b))
		}
		readAll(m)
	})
}
