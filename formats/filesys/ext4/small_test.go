package ext4

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/quick"
	"unicode/utf8"

	"imgmaint/formats"
	"imgmaint/internal/testimg"
)

func TestEscapeName(t *testing.T) {
	for _, tt := range []struct{ raw, want string }{
		{"plain", "plain"},
		{"über", "über"},
		{"\xff", "\uefff"},
		{"a\x80b", "a\uef80b"},
		{"\uef80", "\uefee\uefbe\uef80"},
		{"�", "�"},
		{"half\xe2\x82", "half\uefe2\uef82"},
	} {
		got := EscapeName([]byte(tt.raw))
		if got != tt.want || !utf8.ValidString(got) {
			t.Errorf("EscapeName(%q) = %q, want %q", tt.raw, got, tt.want)
		}
		if raw, ok := UnescapeName(got); !ok || string(raw) != tt.raw {
			t.Errorf("UnescapeName(%q) = %q, %v, want %q", got, raw, ok, tt.raw)
		}
	}
	// What EscapeName never returns.
	for _, name := range []string{"\xff", "\uefc3\uefbc", "\uef80\xff", "\uefe2\uef82\uefac"} {
		if raw, ok := UnescapeName(name); ok {
			t.Errorf("UnescapeName(%q) = %q", name, raw)
		}
	}
	if err := quick.Check(func(raw []byte) bool {
		back, ok := UnescapeName(EscapeName(raw))
		return ok && string(back) == string(raw) && utf8.ValidString(EscapeName(raw))
	}, nil); err != nil {
		t.Error(err)
	}
}

// TestDirHash compares the hashes with those of debugfs.
func TestDirHash(t *testing.T) {
	const seedText = "6b6e6f77-6e20-7365-6564-000000000001"
	var seed [4]uint32
	raw := []byte("\x6b\x6e\x6f\x77\x6e\x20\x73\x65\x65\x64\x00\x00\x00\x00\x00\x01")
	for i := range seed {
		seed[i] = le.Uint32(raw[4*i:])
	}
	names := []string{"a", "ab", "abc", "abcd", "file-00001", strings.Repeat("x", 16), strings.Repeat("long name ", 25),
		"über", "\xff\xfe\x80\x81", strings.Repeat("\xe9", 33), strings.Repeat("z", 32)}
	for version, alg := range []string{"legacy", "half_md4", "tea", "legacy_unsigned", "half_md4_unsigned", "tea_unsigned"} {
		var script strings.Builder
		for _, n := range names {
			fmt.Fprintf(&script, "dx_hash -h %d -s %s \"%s\"\n", version, seedText, n)
		}
		out := testimg.Run(t, "debugfs", "-f", testimg.WriteFile(t, "script", []byte(script.String())))
		i := 0
		for line := range strings.Lines(out) {
			_, rest, ok := strings.Cut(line, " is 0x")
			if !ok {
				continue
			}
			hex, _, _ := strings.Cut(rest, " ")
			want, err := strconv.ParseUint(hex, 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			if got := dirHash(uint8(version), &seed, []byte(names[i])); got != uint32(want) {
				t.Errorf("%s of %q = %#x, want %#x", alg, names[i], got, want)
			}
			i++
		}
		if i != len(names) {
			t.Fatalf("debugfs gave %d hashes:\n%s", i, out)
		}
	}
}

// TestSamples reads a file system by other hands, in three containers.
func TestSamples(t *testing.T) {
	for name, format := range map[string]string{"dfvfs-ext2.qcow2": "qcow2", "dfvfs-ext2.vhd": "vpc", "dfvfs-ext2.vmdk": "vmdk"} {
		raw := filepath.Join(t.TempDir(), "raw")
		testimg.Run(t, "qemu-img", "convert", "-f", format, "-O", "raw", testimg.Sample(t, name), raw)
		f := openImage(t, raw, nil)
		got, err := readTree(f)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		listing := testimg.Run(t, "debugfs", "-R", "ls -p /", raw)
		for line := range strings.Lines(listing) {
			part := strings.Split(line, "/") // /ino/mode/uid/gid/name/size/
			if len(part) < 7 || part[5] == "." || part[5] == ".." || part[1] == "0" {
				continue
			}
			r, ok := got[part[5]]
			if !ok || strconv.FormatUint(r.ino, 10) != part[1] || fmt.Sprintf("%06o", r.mode) != part[2] {
				t.Errorf("%s: %q is %+v, debugfs has %q", name, part[5], r, line)
			}
		}
		if u := f.Usage(); u.Type != "ext2" || len(got) < 3 {
			t.Errorf("%s: %+v, %d files", name, u, len(got))
		}
	}
}

// TestUsage compares with dumpe2fs, and reads the birth time that debugfs
// shows.
func TestUsage(t *testing.T) {
	img := mkfs(t, 64<<20, "-t", "ext4", "-L", "a label")
	testimg.Run(t, "debugfs", "-w", "-R", "write /dev/null file", img)
	u := openImage(t, img, nil).Usage()
	out := testimg.Run(t, "dumpe2fs", "-h", img)
	field := func(name string) string {
		_, v, _ := strings.Cut(out, name+":")
		v, _, _ = strings.Cut(v, "\n")
		return strings.TrimSpace(v)
	}
	for name, got := range map[string]string{
		"Filesystem volume name": u.Label, "Filesystem UUID": u.UUID, "Filesystem features": strings.Join(u.Features, " "),
		"Inode count": fmt.Sprint(u.Inodes), "Free inodes": fmt.Sprint(u.FreeInodes), "Filesystem state": u.State,
		"Block count": fmt.Sprint(u.Size / u.BlockSize), "Free blocks": fmt.Sprint(u.Free / u.BlockSize), "Block size": fmt.Sprint(u.BlockSize),
	} {
		if want := field(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	f := openImage(t, img, nil)
	fi, err := f.Stat("file")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(testimg.Run(t, "debugfs", "-R", "stat file", img))
	for i, w := range want {
		if w == "crtime:" {
			hex, _, _ := strings.Cut(strings.TrimPrefix(want[i+1], "0x"), ":")
			sec, _ := strconv.ParseInt(hex, 16, 64)
			if got := fi.Sys().(*formats.Stat).Btime.Unix(); got != sec {
				t.Errorf("birth time %d, want %d", got, sec)
			}
			return
		}
	}
	t.Error("debugfs shows no birth time")
}

// TestConcurrent walks one FS from several goroutines, for the race detector.
func TestConcurrent(t *testing.T) {
	img := testimg.WriteFile(t, "x.img", seed(t, "plain.img.gz"))
	f := openImage(t, img, nil)
	want, err := readTree(f)
	if err != nil {
		t.Fatal(err)
	}
	file, err := f.Open("large")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			got, err := readTree(f)
			if err != nil {
				t.Error(err)
			}
			diffTrees(t, got, want, nil)
			f.Usage()
			if _, err := sumFile(file.(io.ReaderAt), 20000); err != nil {
				t.Error(err)
			}
			if _, err := fs.Stat(f, "dir/sub/file"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestCheck(t *testing.T) {
	for _, fset := range featureSets {
		if fset.name == "rev0" || strings.HasPrefix(fset.name, "hash") {
			continue
		}
		img := mkfs(t, 32<<20, fset.args...)
		f := openImage(t, img, nil)
		r, err := f.Check()
		if err != nil || r.Corruptions != 0 || r.TotalClusters == 0 {
			t.Errorf("%s: %+v, %v", fset.name, r, err)
			continue
		}
		d, err := f.groupDesc(0)
		if err != nil {
			t.Fatal(err)
		}
		for i, blk := range []uint64{d.blockBitmap, d.inodeBitmap} {
			b := make([]byte, 32<<20)
			if _, err := f.dev.R.ReadAt(b, 0); err != nil {
				t.Fatal(err)
			}
			b[int64(blk)<<f.sb.blockBits] ^= 1
			bad, err := Open(bytes.NewReader(b), int64(len(b)), nil)
			if err != nil {
				t.Fatal(err)
			}
			if r, err := bad.Check(); err != nil || r.Corruptions != 1 || len(r.Findings) != 1 {
				t.Errorf("%s: bitmap %d damaged: %+v, %v", fset.name, i, r, err)
			}
		}
	}
}
