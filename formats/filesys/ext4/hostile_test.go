package ext4

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"imgmaint/formats"
	"imgmaint/internal/testimg"
)

// touch reads all that f gives, up to bounds, goes on after errors, and
// returns a digest of what it saw and the first error.
func touch(f *FS) (digest uint32, first error) {
	h := crc32.NewIEEE()
	note := func(err error) {
		// An entry whose name has changed is not where its hash says, and one
		// whose type has is no directory; Linux answers the same.
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrInvalid) {
			err = nil
		}
		if err != nil && first == nil {
			first = err
		}
	}
	n, total := 0, int64(0)
	fs.WalkDir(f, ".", func(name string, d fs.DirEntry, err error) error {
		note(err)
		if n++; n > 3000 || total > 8<<20 {
			return fs.SkipAll
		}
		if d == nil || err != nil {
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			note(err)
			return nil
		}
		st := fi.Sys().(*formats.Stat)
		all, err := st.Xattrs()
		note(err)
		fmt.Fprintln(h, name, fi.Mode(), fi.Size(), fi.ModTime().Unix(), st.Ino, st.Nlink, st.UID, st.GID, st.Major, st.Minor, st.Blocks, st.Atime.Unix(), st.Ctime.Unix(), st.Flags, xattrText(all))
		if _, err := f.Lstat(name); err != nil {
			note(err)
		}
		switch fi.Mode().Type() {
		case fs.ModeSymlink:
			target, err := f.ReadLink(name)
			note(err)
			fmt.Fprintln(h, target)
		case 0:
			file, err := f.Open(name)
			if err != nil {
				note(err)
				return nil
			}
			img := file.(formats.File)
			runs := 0
			for e, err := range formats.Extents(img, 0) {
				note(err)
				if err != nil || runs > 1000 {
					break
				}
				runs++
				fmt.Fprintln(h, e)
			}
			buf := make([]byte, min(fi.Size(), 1<<20))
			k, err := img.ReadAt(buf, 0)
			if err != io.EOF {
				note(err)
			}
			total += int64(k)
			h.Write(buf[:k])
		}
		return nil
	})
	fmt.Fprintln(h, f.Usage().Size)
	return h.Sum32(), first
}

// classed reports whether err is of a class that a damaged image may give.
func classed(err error) bool {
	return errors.Is(err, formats.ErrCorrupt) || errors.Is(err, formats.ErrUnknown) || errors.Is(err, formats.ErrLimit) ||
		errors.Is(err, errors.ErrUnsupported)
}

// seed returns an image of testdata; README.md there says how it was made.
func seed(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var seeds = []string{"ext2.img.gz", "ext4.img.gz", "plain.img.gz", "inline.img.gz"}

// A countingReader counts the bytes read.
type countingReader struct {
	b []byte
	n int64
}

func (r *countingReader) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(r.b)) {
		return 0, io.EOF
	}
	n := copy(p, r.b[off:])
	if r.n += int64(n); n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// TestFlippedBytes changes bytes in every block in use. Nothing may panic,
// hang or fail in another class; with metadata_csum nothing but contents of
// files may change without an error.
func TestFlippedBytes(t *testing.T) {
	for _, name := range seeds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := seed(t, name)
			f, err := Open(bytes.NewReader(b), int64(len(b)), nil)
			if err != nil {
				t.Fatal(err)
			}
			want, err := touch(f)
			if err != nil {
				t.Fatal(err)
			}
			data := dataBlocks(t, f)
			bs := f.sb.blockSize
			silent := 0
			for blk := range int64(len(b)) / bs {
				block := b[blk*bs : (blk+1)*bs]
				if len(bytes.Trim(block, "\x00")) == 0 || data[blk] {
					continue
				}
				for at := int64(0); at < bs; at++ {
					// A part of the bytes in use and fewer of the others.
					old := block[at]
					if n := at + 3*blk; old == 0 && n%53 != 0 || old != 0 && n%7 != 0 {
						continue
					}
					for _, v := range []byte{old ^ 0xFF, old + 1}[at%2:][:1] {
						block[at] = v
						r := &countingReader{b: b}
						f, err := Open(r, int64(len(b)), nil)
						var got uint32
						if err == nil {
							got, err = touch(f)
						}
						// A clock would measure the machine.
						if r.n > 32<<20 {
							t.Errorf("block %d byte %d = %#x: read %d bytes", blk, at, v, r.n)
						}
						if err != nil && !classed(err) {
							t.Errorf("block %d byte %d = %#x: %v", blk, at, v, err)
						}
						if err == nil && got != want {
							silent++
							if f.sb.metadataCsum() {
								t.Errorf("block %d byte %d = %#x: changed without an error", blk, at, v)
							}
						}
					}
					block[at] = old
				}
			}
			if !f.sb.metadataCsum() && silent == 0 {
				t.Error("no change was ever visible: the test looks at nothing")
			}
		})
	}
}

// dataBlocks returns the blocks with contents of files and symbolic links.
func dataBlocks(t *testing.T, f *FS) map[int64]bool {
	t.Helper()
	data := make(map[int64]bool)
	for ino := uint32(11); ino <= f.sb.inodesCount; ino++ {
		var in inode
		if _, err := f.readInode(ino, &in); err != nil || in.links == 0 || in.isDir() || in.flags&flagInlineData != 0 {
			continue
		}
		if in.mode&modeFmt != modeReg && (in.mode&modeFmt != modeLink || f.isFastLink(&in)) {
			continue
		}
		for l := int64(0); l < (in.size+f.sb.blockSize-1)>>f.sb.blockBits; {
			r, err := f.mapRun(&in, l)
			if err != nil {
				t.Fatal(err)
			}
			for i := range r.n {
				if r.kind == formats.Data {
					data[int64(r.pblk)+i] = true
				}
			}
			l += r.n
		}
	}
	return data
}

// patched returns a copy of b with bytes replaced.
func patched(b []byte, off int, p ...byte) []byte {
	b = bytes.Clone(b)
	copy(b[off:], p)
	return b
}

// TestHostileSuperblock has one crafted field in each line.
func TestHostileSuperblock(t *testing.T) {
	for _, tt := range []struct {
		name  string
		off   int
		bytes []byte
		class error
	}{
		{"magic", 0x38, []byte{0, 0}, formats.ErrUnknown},
		{"inodes count", 0x0, []byte{0xFF, 0xFF, 0xFF, 0xFF}, formats.ErrCorrupt},
		{"blocks count", 0x4, []byte{0xFF, 0xFF, 0xFF, 0xFF}, formats.ErrCorrupt},
		{"no blocks", 0x4, []byte{0, 0, 0, 0}, formats.ErrCorrupt},
		{"first data block", 0x14, []byte{0xFF, 0xFF, 0xFF, 0x7F}, formats.ErrCorrupt},
		{"log block size", 0x18, []byte{200, 0, 0, 0}, formats.ErrCorrupt},
		{"log block size 7", 0x18, []byte{7, 0, 0, 0}, formats.ErrCorrupt},
		{"blocks per group 0", 0x20, []byte{0, 0, 0, 0}, formats.ErrCorrupt},
		{"blocks per group", 0x20, []byte{0xFF, 0xFF, 0xFF, 0xFF}, formats.ErrCorrupt},
		{"inodes per group 0", 0x28, []byte{0, 0, 0, 0}, formats.ErrCorrupt},
		{"inodes per group", 0x28, []byte{0xFF, 0xFF, 0xFF, 0xFF}, formats.ErrCorrupt},
		{"first inode", 0x54, []byte{0xFF, 0xFF, 0xFF, 0xFF}, formats.ErrCorrupt},
		{"inode size 0", 0x58, []byte{0, 0}, formats.ErrCorrupt},
		{"inode size 129", 0x58, []byte{129, 0}, formats.ErrCorrupt},
		{"inode size 32768", 0x58, []byte{0, 0x80}, formats.ErrCorrupt},
		{"compression", 0x60, []byte{0x3}, errors.ErrUnsupported},
		{"journal device", 0x60, []byte{0xA}, errors.ErrUnsupported},
		{"dirdata", 0x61, []byte{0x10}, errors.ErrUnsupported},
		{"unknown feature", 0x63, []byte{0x80}, errors.ErrUnsupported},
		{"descriptor size", 0x60, []byte{0xC2}, formats.ErrCorrupt}, // 64bit, with s_desc_size 0
		{"checksum type", 0x65, []byte{4}, errors.ErrUnsupported},   // metadata_csum, with type 0
		{"cluster size", 0x65, []byte{2}, formats.ErrCorrupt},       // bigalloc, with 8 blocks to each
		{"first meta group", 0x60, []byte{0x12}, formats.ErrCorrupt},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := patched(seed(t, "plain.img.gz"), superblockOff+tt.off, tt.bytes...)
			switch tt.name {
			case "cluster size":
				copy(b[superblockOff+0x1C:], []byte{200})
			case "first meta group":
				copy(b[superblockOff+0x104:], []byte{0xFF, 0xFF, 0xFF, 0xFF})
			case "descriptor size":
				copy(b[superblockOff+0xFE:], []byte{0, 0})
			case "checksum type":
				copy(b[superblockOff+0x175:], []byte{0})
			}
			var err error
			got := allocated(func() { _, err = Open(bytes.NewReader(b), int64(len(b)), nil) })
			if !errors.Is(err, tt.class) {
				t.Errorf("Open = %v, want %v", err, tt.class)
			}
			if got > 1<<20 {
				t.Errorf("allocated %d bytes", got)
			}
		})
	}
	if _, err := Open(bytes.NewReader(nil), 0, nil); !errors.Is(err, formats.ErrUnknown) {
		t.Errorf("an empty disk: %v", err)
	}
	b := seed(t, "ext4.img.gz")
	if _, err := Open(bytes.NewReader(b[:len(b)/2]), int64(len(b)/2), nil); !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("half a disk: %v", err)
	}
	f, err := Open(bytes.NewReader(b[:len(b)/4]), int64(len(b)), nil)
	if err == nil {
		_, err = touch(f)
	}
	if !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("a disk that shrinks while it is read: %v", err)
	}
}

// allocated is the number of bytes that fn allocates.
func allocated(fn func()) uint64 {
	var a, b runtime.MemStats
	runtime.ReadMemStats(&a)
	fn()
	runtime.ReadMemStats(&b)
	return b.TotalAlloc - a.TotalAlloc
}

// debugged runs debugfs commands on an image of testdata and returns it.
func debugged(t *testing.T, name string, commands ...string) []byte {
	t.Helper()
	img := testimg.WriteFile(t, "x.img", seed(t, name))
	script := testimg.WriteFile(t, "script", []byte(strings.Join(commands, "\n")+"\n"))
	testimg.Run(t, "debugfs", "-w", "-f", script, img)
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestHostileTrees has images that a tool was made to write.
func TestHostileTrees(t *testing.T) {
	for _, tt := range []struct {
		name     string
		image    string
		commands []string
		class    error
	}{
		{"directory in itself", "plain.img.gz", []string{"ln /dir /dir/again"}, formats.ErrCorrupt},
		{"root in a directory", "plain.img.gz", []string{"ln / /dir/root"}, formats.ErrCorrupt},
		{"directory twice", "plain.img.gz", []string{"ln /dir /other"}, formats.ErrCorrupt},
		{"two directories crossed", "plain.img.gz", []string{"mkdir /a", "mkdir /a/b", "ln /a /a/b/a"}, formats.ErrCorrupt},
		{"name of a free inode", "plain.img.gz", []string{"ln <110> /ghost"}, formats.ErrCorrupt},
		{"name of a reserved inode", "plain.img.gz", []string{"ln <7> /ghost"}, formats.ErrCorrupt},
		{"directory of exabytes", "plain.img.gz", []string{"sif /dir size 0x7ffffc00"}, formats.ErrCorrupt},
		{"directory with an odd size", "plain.img.gz", []string{"sif /dir size 1000"}, formats.ErrCorrupt},
		{"link of no length", "plain.img.gz", []string{"sif /fast size 0"}, formats.ErrCorrupt},
		{"link longer than a block", "plain.img.gz", []string{"sif /slow size 5000"}, formats.ErrCorrupt},
		{"file beyond its map", "ext2.img.gz", []string{"sif /small size 0x7fffffffffffffff"}, formats.ErrCorrupt},
		{"block out of range", "ext2.img.gz", []string{"sif /small block[0] 0x7fffffff"}, formats.ErrCorrupt},
		{"indirect block out of range", "ext2.img.gz", []string{"sif /large block[IND] 0x7fffffff"}, formats.ErrCorrupt},
		{"unknown type", "plain.img.gz", []string{"sif /small mode 0110644"}, formats.ErrCorrupt},
		{"encrypted file", "plain.img.gz", []string{"sif /small flags 0x80800"}, errors.ErrUnsupported},
		{"encrypted directory", "plain.img.gz", []string{"sif /dir flags 0x80800"}, errors.ErrUnsupported},
		{"attribute block out of range", "plain.img.gz", []string{"sif /small file_acl 0x7fffffff"}, formats.ErrCorrupt},
		{"no attribute block", "plain.img.gz", []string{"sif /small file_acl 1"}, formats.ErrCorrupt},
		{"extra size", "ext4.img.gz", []string{"sif /small extra_isize 0xfff0"}, formats.ErrCorrupt},
		{"inode table out of range", "ext4.img.gz", []string{"set_bg 0 inode_table 0x7fffffff", "set_bg 0 checksum calc"}, formats.ErrCorrupt},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := debugged(t, tt.image, tt.commands...)
			start := time.Now()
			var err error
			got := allocated(func() {
				var f *FS
				if f, err = Open(bytes.NewReader(b), int64(len(b)), nil); err == nil {
					_, err = touch(f)
				}
			})
			if !errors.Is(err, tt.class) {
				t.Errorf("%v, want %v", err, tt.class)
			}
			if d := time.Since(start); d > 5*time.Second { // 1 s on a machine of its own
				t.Errorf("took %v", d)
			}
			if got > 64<<20 {
				t.Errorf("allocated %d bytes", got)
			}
		})
	}
}

// TestNameInErrors: what is unsupported is named.
func TestNameInErrors(t *testing.T) {
	b := patched(seed(t, "plain.img.gz"), superblockOff+0x60, 0x43, 0x10, 0, 0x80)
	_, err := Open(bytes.NewReader(b), int64(len(b)), nil)
	for _, want := range []string{"compression", "dirdata", "FEATURE_I31", "s_feature_incompat at 0x460"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

func TestHostileExtents(t *testing.T) {
	b := seed(t, "plain.img.gz")
	f, err := Open(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	var in inode
	if _, err := f.resolve("deep", &in); err != nil {
		t.Fatal(err)
	}
	root := int(in.off + 0x28)
	if le.Uint16(b[root+6:]) != 1 {
		t.Fatalf("the depth of deep is %d, want 1", le.Uint16(b[root+6:]))
	}
	leafBlock := le.Uint32(b[root+12+4:])
	leaf := int(leafBlock) << f.sb.blockBits
	u16 := func(v int) []byte { return le.AppendUint16(nil, uint16(v)) }
	for _, tt := range []struct {
		name  string
		off   int
		bytes []byte
	}{
		{"magic", root, u16(0)},
		{"more entries than room", root + 2, u16(5)},
		{"room beyond the inode", root + 4, u16(100)},
		{"depth 6", root + 6, u16(6)},
		{"loop", leaf + 6, u16(1)}, // the leaf becomes an index whose first child is what was an extent
		{"child out of range", root + 12 + 4, []byte{0xFF, 0xFF, 0xFF, 0x7F}},
		{"child is no node", root + 12 + 4, []byte{1, 0, 0, 0}},
		{"leaf magic", leaf, u16(0)},
		{"leaf entries", leaf + 2, u16(60000)},
		{"length 0", leaf + 12 + 4, u16(0)},
		{"overlap", leaf + 12 + 4, u16(30000)},
		{"descending", leaf + 24, []byte{0, 0, 0, 0}},
		{"start out of range", leaf + 12 + 8, []byte{0xFF, 0xFF, 0xFF, 0x7F}},
	} {
		f, err := Open(bytes.NewReader(patched(b, tt.off, tt.bytes...)), int64(len(b)), nil)
		if err == nil {
			_, err = f.ReadFile("deep")
		}
		if !errors.Is(err, formats.ErrCorrupt) {
			t.Errorf("%s: %v, want corrupt", tt.name, err)
		}
	}
	// A node that is its own child.
	loop := patched(b, leaf+6, 1, 0)
	copy(loop[leaf+12+4:], le.AppendUint32(nil, leafBlock))
	copy(loop[root+6:], u16(2))
	if f, err = Open(bytes.NewReader(loop), int64(len(loop)), nil); err == nil {
		_, err = f.ReadFile("deep")
	}
	if !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("a node that is its own child: %v", err)
	}
}

// TestLimits asks for more than the limits allow.
func TestLimits(t *testing.T) {
	b := debugged(t, "plain.img.gz", "sif /small size 0x10000000000")
	f, err := Open(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	got := allocated(func() { _, err = f.ReadFile("small") })
	if !errors.Is(err, formats.ErrLimit) || got > 1<<20 {
		t.Errorf("ReadFile of a terabyte: %v, %d bytes allocated", err, got)
	}
	j := &journal{fs: f, revoked: make(map[uint64]uint32)}
	for i := range uint64(maxRevoke) {
		j.revoked[i] = 1
	}
	rec := make([]byte, 1024)
	be.PutUint32(rec[12:], 20)
	be.PutUint32(rec[16:], maxRevoke+5)
	if err := j.revoke(rec, 0, 1); !errors.Is(err, formats.ErrLimit) {
		t.Errorf("too many revoked blocks: %v", err)
	}
	j = &journal{fs: f, tagSize: 8, first: 1, end: 1024, last: run{n: 1 << 20, kind: formats.Data}}
	for i := range uint64(2*maxReplay - 1) {
		j.blocks = append(j.blocks, journaled{1<<20 + i, 0})
	}
	be.PutUint32(rec[12:], 1) // a tag for block 1, the last
	be.PutUint32(rec[16:], jbdTagLast|jbdTagSameUUID)
	if err := j.replayBlocks(rec, 1, 1); !errors.Is(err, formats.ErrLimit) {
		t.Errorf("too many blocks in the journal: %v", err)
	}
	for i := range j.blocks { // many copies of few blocks are fine
		j.blocks[i].blk %= 1000
	}
	for len(j.blocks) < 2*maxReplay-1 {
		j.blocks = append(j.blocks, journaled{5, 0})
	}
	if err := j.replayBlocks(rec, 1, 1); err != nil || len(j.blocks) > 1001 {
		t.Errorf("few blocks, often: %v, %d left", err, len(j.blocks))
	}
}

// TestOrphanLoop: the orphan list leads back to where it was.
func TestOrphanLoop(t *testing.T) {
	b := debugged(t, "plain.img.gz", "ssv last_orphan 13", "sif <13> dtime 14", "sif <14> dtime 13")
	start := time.Now()
	f, err := Open(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := strings.Join(f.Usage().Problems, ""); !strings.Contains(p, "wait to be released") {
		t.Errorf("problems %q", p)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
}

// TestFaultyReader fails reads at every place that is read: the error of the
// reader comes out.
func TestFaultyReader(t *testing.T) {
	b := seed(t, "ext4.img.gz")
	used := 0
	for off := int64(0); off < int64(len(b)); off += 1024 {
		f, err := Open(testimg.FaultyReader{R: bytes.NewReader(b), Bad: off + 500}, int64(len(b)), nil)
		if err == nil {
			_, err = touch(f)
		}
		if err != nil {
			used++
			if !errors.Is(err, testimg.ErrInjected) {
				t.Errorf("bad byte at %d: %v", off+500, err)
			}
		}
	}
	if used < 20 {
		t.Errorf("only %d blocks are ever read", used)
	}
}

// TestBackup damages the primary superblock.
func TestBackup(t *testing.T) {
	img := mkfs(t, 16<<20, "-t", "ext4", "-b", "1024", "-L", "label")
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	b[superblockOff+0x28] ^= 0xFF
	f, err := Open(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	u := f.Usage()
	if u.Label != "label" || len(u.Problems) != 1 || !strings.Contains(u.Problems[0], "backup at 0x800400") {
		t.Errorf("label %q, problems %q", u.Label, u.Problems)
	}
	if _, err := touch(f); err != nil {
		t.Error(err)
	}
	clear(b[1024:2048])
	if _, err := Open(bytes.NewReader(b), int64(len(b)), nil); !errors.Is(err, formats.ErrUnknown) {
		t.Errorf("without a primary superblock: %v", err)
	}
	f, err = Open(bytes.NewReader(b), int64(len(b)), &Options{SuperblockOffset: 8193 * 1024})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := touch(f); err != nil {
		t.Error(err)
	}
}
