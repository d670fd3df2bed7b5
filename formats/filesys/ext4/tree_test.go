package ext4

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"imgmaint/formats"
	"imgmaint/internal/testimg"
)

// A record is all that is compared of one file. Times are Unix nanoseconds as
// text, which holds years that 64 bits do not.
type record struct {
	mode         uint32 // as st_mode
	uid, gid     uint32
	size         int64
	nlink        uint64
	major, minor uint32
	ino          uint64
	blocks       int64 // bytes
	atime        string
	mtime        string
	ctime        string
	target       string
	hash         string
	xattrs       string
}

// A tree is all files of a file system by their raw path; the root is ".".
type tree map[string]record

func nanos(sec, nsec int64) string { return fmt.Sprintf("%d.%09d", sec, nsec) }

func stamps(t time.Time) string { return nanos(t.Unix(), int64(t.Nanosecond())) }

func xattrText(all []formats.Xattr) string {
	var l []string
	for _, x := range all {
		v := string(x.Value)
		if len(v) > 64 {
			s := sha256.Sum256(x.Value)
			v = fmt.Sprintf("%d bytes %x", len(v), s[:8])
		}
		l = append(l, fmt.Sprintf("%s=%q", x.Name, v))
	}
	slices.Sort(l)
	return strings.Join(l, " ")
}

// sumFile hashes the pieces of r that are not zeros, with their places: large
// sparse files cost little.
func sumFile(r io.ReaderAt, size int64) (string, error) {
	h := sha256.New()
	buf, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for off := int64(0); off < size; {
		n := min(int64(len(buf)), size-off)
		k, err := r.ReadAt(buf[:n], off)
		if int64(k) < n {
			return "", fmt.Errorf("at %d: %w", off, err)
		}
		if !bytes.Equal(buf[:n], zeros[:n]) {
			fmt.Fprintln(h, off, n)
			h.Write(buf[:n])
		}
		off += n
	}
	return hex.EncodeToString(h.Sum(nil)[:12]), nil
}

// readTree reads everything in fsys.
func readTree(fsys *FS) (tree, error) {
	all := make(tree)
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*formats.Stat)
		rec := record{mode: statMode(fi.Mode()), uid: st.UID, gid: st.GID, size: fi.Size(), nlink: st.Nlink,
			major: st.Major, minor: st.Minor, ino: st.Ino, blocks: st.Blocks,
			atime: stamps(st.Atime), mtime: stamps(fi.ModTime()), ctime: stamps(st.Ctime)}
		xattrs, err := st.Xattrs()
		if err != nil {
			return err
		}
		rec.xattrs = xattrText(xattrs)
		switch fi.Mode().Type() {
		case fs.ModeSymlink:
			if rec.target, err = fsys.ReadLink(name); err != nil {
				return err
			}
		case 0:
			f, err := fsys.Open(name)
			if err != nil {
				return err
			}
			if rec.hash, err = sumFile(f.(io.ReaderAt), fi.Size()); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		raw, ok := UnescapeName(name)
		if !ok {
			return fmt.Errorf("name %q is no escaped name", name)
		}
		all[string(raw)] = rec
		return nil
	})
	return all, err
}

func statMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for bit, v := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			mode |= v
		}
	}
	switch m.Type() {
	case fs.ModeDir:
		mode |= modeDir
	case fs.ModeSymlink:
		mode |= modeLink
	case fs.ModeNamedPipe:
		mode |= modeFIFO
	case fs.ModeSocket:
		mode |= modeSock
	case fs.ModeDevice:
		mode |= modeBlk
	case fs.ModeDevice | fs.ModeCharDevice:
		mode |= modeChar
	default:
		mode |= modeReg
	}
	return mode
}

// hostTree reads everything below dir on the host.
func hostTree(dir string) (tree, error) {
	all := make(tree)
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(p, &st); err != nil {
			return err
		}
		rec := record{mode: st.Mode, uid: st.Uid, gid: st.Gid, size: st.Size, nlink: uint64(st.Nlink), ino: st.Ino,
			blocks: st.Blocks * 512, atime: nanos(st.Atim.Unix()), mtime: nanos(st.Mtim.Unix()), ctime: nanos(st.Ctim.Unix())}
		if t := st.Mode & modeFmt; t == modeChar || t == modeBlk {
			rec.major = uint32(st.Rdev>>8&0xFFF | st.Rdev>>32&^0xFFF)
			rec.minor = uint32(st.Rdev&0xFF | st.Rdev>>12&^0xFF)
		}
		xattrs, err := hostXattrs(p)
		if err != nil {
			return err
		}
		rec.xattrs = xattrText(xattrs)
		switch st.Mode & modeFmt {
		case modeLink:
			if rec.target, err = os.Readlink(p); err != nil {
				return err
			}
		case modeReg:
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			defer f.Close()
			if rec.hash, err = sumFile(f, st.Size); err != nil {
				return err
			}
		}
		rel, err := filepath.Rel(dir, p)
		all[rel] = rec
		return err
	})
	return all, err
}

func hostXattrs(p string) ([]formats.Xattr, error) {
	path, err := syscall.BytePtrFromString(p)
	if err != nil {
		return nil, err
	}
	names := make([]byte, 64<<10)
	n, _, e := syscall.Syscall(syscall.SYS_LLISTXATTR, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(&names[0])), uintptr(len(names)))
	if e == syscall.ENOTSUP {
		return nil, nil
	} else if e != 0 {
		return nil, e
	}
	var all []formats.Xattr
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		np, _ := syscall.BytePtrFromString(name)
		val := make([]byte, 64<<10)
		n, _, e := syscall.Syscall6(syscall.SYS_LGETXATTR, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(np)),
			uintptr(unsafe.Pointer(&val[0])), uintptr(len(val)), 0, 0)
		if e != 0 {
			return nil, e
		}
		all = append(all, formats.Xattr{Name: name, Value: val[:n]})
	}
	return all, nil
}

func setHostXattr(p, name string, value []byte) error {
	path, _ := syscall.BytePtrFromString(p)
	np, _ := syscall.BytePtrFromString(name)
	var first byte
	vp := &first
	if len(value) > 0 {
		vp = &value[0]
	}
	_, _, e := syscall.Syscall6(syscall.SYS_LSETXATTR, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(np)),
		uintptr(unsafe.Pointer(vp)), uintptr(len(value)), 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// diffTrees reports how got differs from want in the fields that mask keeps.
func diffTrees(t testing.TB, got, want tree, mask func(name string, r record) record) {
	t.Helper()
	bad := 0
	fail := func(msg string, args ...any) {
		if bad++; bad <= 10 {
			t.Errorf(msg, args...)
		}
	}
	for name, w := range want {
		g, ok := got[name]
		if !ok {
			fail("%q is missing", name)
			continue
		}
		if mask != nil {
			g, w = mask(name, g), mask(name, w)
		}
		if g != w {
			fail("%q:\n got %+v\nwant %+v", name, g, w)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			fail("%q is too much", name)
		}
	}
	if bad > 10 {
		t.Errorf("%d differences", bad)
	}
}

// acl is a POSIX ACL as getxattr returns it, with a named user and group.
var acl = []byte("\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" +
	"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x08\x00\x06\x00\xd2\x04\x00\x00" + "\x10\x00\x06\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff")

// capability is security.capability with cap_net_raw, version 2.
var capability = []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")

// A populator fills a directory on the host.
type populator struct {
	dir   string
	bs    int64 // block size the tree is meant for
	files int   // in the large directory
	dirs  int   // small directories of ten files
	plain bool  // only names that testing/fstest accepts
	small bool  // no attributes larger than a block of 1 KiB
	root  bool
	rnd   *rand.Rand
	errs  []error
}

func (p *populator) path(name string) string { return filepath.Join(p.dir, name) }

func (p *populator) check(err error) {
	if err != nil && len(p.errs) < 5 {
		p.errs = append(p.errs, err)
	}
}

func (p *populator) write(name string, b []byte) { p.check(os.WriteFile(p.path(name), b, 0o644)) }

func (p *populator) random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(p.rnd.Uint32())
	}
	return b
}

// fill makes a tree with every kind of inode and every way of mapping.
func (p *populator) fill() error {
	p.rnd = rand.New(rand.NewPCG(uint64(p.bs), 1))
	mkdir := func(name string) { p.check(os.Mkdir(p.path(name), 0o755)) }
	for _, d := range []string{"sizes", "names", "links", "special", "times", "xattr", "sparse", "modes", "empty", "big", "gone"} {
		mkdir(d)
	}
	for _, n := range []int{0, 1, 59, 60, 61, 100, 150, 200, 1023, 1024, 1025, 4095, 4096, 4097, 50000, 300000} {
		p.write(fmt.Sprintf("sizes/%d", n), p.random(n))
	}
	for _, n := range []string{"über", "日本語", "new\nline", "back\\slash", "-dash", " space ", "\xff\xfe\x80", "half\xe2\x82",
		"\xee\xbe\x80escaped", "�", "Case", "case", strings.Repeat("n", 255), strings.Repeat("\xfe", 255), "...", "..x"} {
		if p.plain && strings.Contains(n, "\\") {
			continue
		}
		p.write("names/"+n, []byte(n))
	}
	for _, n := range []int{1, 10, 58, 59, 60, 61, 100, 500, 1000} {
		p.check(os.Symlink(strings.Repeat("x/", n)[:n], p.path(fmt.Sprintf("links/s%d", n))))
	}
	p.check(os.Symlink("\xff\xfe", p.path("links/raw")))
	p.check(os.Symlink("/etc/passwd", p.path("links/absolute")))
	p.write("links/one", []byte("hard"))
	for i := range 20 {
		p.check(os.Link(p.path("links/one"), p.path(fmt.Sprintf("links/hard%d", i))))
	}
	p.check(syscall.Mkfifo(p.path("special/fifo"), 0o600))
	if p.root {
		p.check(syscall.Mknod(p.path("special/socket"), syscall.S_IFSOCK|0o700, 0))
		for i, d := range [][2]int{{1, 3}, {8, 255}, {8, 256}, {300, 1}, {4095, 1048575}, {0, 0}} {
			dev := d[1]&0xFF | d[0]<<8 | d[1]&^0xFF<<12
			p.check(syscall.Mknod(p.path(fmt.Sprintf("special/c%d", i)), syscall.S_IFCHR|0o600, dev))
			p.check(syscall.Mknod(p.path(fmt.Sprintf("special/b%d", i)), syscall.S_IFBLK|0o660, dev))
		}
		for i, id := range []int{1, 1000, 65535, 65536, 1 << 30, 4294967294} {
			name := fmt.Sprintf("modes/owner%d", i)
			p.write(name, nil)
			p.check(os.Chown(p.path(name), id, id-1))
		}
	}
	for _, m := range []uint32{0, 0o777, 0o4755, 0o2755, 0o1777, 0o7777, 0o400} {
		name := fmt.Sprintf("modes/%04o", m)
		if !p.root {
			m |= 0o400 // mke2fs must be able to read it
		}
		p.write(name, nil)
		p.check(syscall.Chmod(p.path(name), m))
		mkdir(name + "d")
		p.check(syscall.Chmod(p.path(name+"d"), m|0o700))
	}
	p.fillXattrs()
	p.fillSparse()
	for i := range p.files {
		p.write(fmt.Sprintf("big/file-%05d", i), p.random(i%7))
	}
	for i := range p.dirs {
		d := fmt.Sprintf("d%d", i)
		if i%5 == 4 {
			d = fmt.Sprintf("d%d/sub/deeper", i-1)
			p.check(os.MkdirAll(p.path(d), 0o755))
		} else {
			mkdir(d)
		}
		for k := range 10 {
			p.write(fmt.Sprintf("%s/f%d", d, k), p.random(p.rnd.IntN(200)))
		}
	}
	for i := range 200 {
		p.write(fmt.Sprintf("gone/%d", i), []byte("x"))
	}
	for i := 0; i < 200; i += 3 {
		p.check(os.Remove(p.path(fmt.Sprintf("gone/%d", i))))
	}
	for i, s := range [][2]int64{{0, 0}, {-1, 999999999}, {-2147483648, 1}, {-1000000000, 5}, {2147483647, 123456789},
		{2147483648, 1}, {4294967296, 2}, {1 << 33, 3}, {15032385535, 999999999}, {1700000000, 123456789}} {
		name := fmt.Sprintf("times/%d", i)
		p.write(name, nil)
		ts := []syscall.Timespec{{Sec: s[0] + 1, Nsec: s[1]}, {Sec: s[0], Nsec: s[1]}}
		p.check(syscall.UtimesNano(p.path(name), ts))
	}
	return errors.Join(p.errs...)
}

func (p *populator) fillXattrs() {
	set := func(name, attr string, v []byte) {
		if err := setHostXattr(p.path(name), attr, v); err != nil && p.root && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.ENOTSUP) {
			p.check(fmt.Errorf("%s %s: %w", name, attr, err))
		}
	}
	for _, n := range []string{"few", "block", "shared1", "shared2", "huge", "acl", "caps"} {
		p.write("xattr/"+n, p.random(100))
	}
	p.check(os.Mkdir(p.path("xattr/dir"), 0o755))
	p.check(os.Symlink("few", p.path("xattr/link")))
	set("xattr/few", "user.a", []byte("1"))
	set("xattr/few", "user.empty", nil)
	for i := range 8 {
		set("xattr/block", fmt.Sprintf("user.attribute-%d", i), p.random(10*i))
	}
	set("xattr/block", "trusted.big", p.random(500))
	for _, n := range []string{"xattr/shared1", "xattr/shared2"} {
		set(n, "user.same", bytes.Repeat([]byte("same"), 100))
	}
	set("xattr/huge", "user.small", p.random(20))
	if !p.small {
		set("xattr/huge", "user.huge", p.random(20000)) // needs ea_inode
		set("xattr/huge", "user.huge2", p.random(3000))
	}
	set("xattr/acl", "system.posix_acl_access", acl)
	set("xattr/dir", "system.posix_acl_access", acl)
	set("xattr/dir", "system.posix_acl_default", acl)
	set("xattr/dir", "user.on.directory", []byte("yes"))
	set("xattr/caps", "security.capability", capability)
	set("xattr/caps", "security.selinux", []byte("system_u:object_r:bin_t:s0\x00"))
	set("xattr/link", "trusted.of.link", []byte("t"))
}

func (p *populator) fillSparse() {
	open := func(name string) *os.File {
		f, err := os.Create(p.path("sparse/" + name))
		p.check(err)
		return f
	}
	f := open("hole-at-end")
	f.WriteAt(p.random(1000), 0)
	p.check(f.Truncate(5<<20 + 17))
	f.Close()
	f = open("hole-only")
	p.check(f.Truncate(3 << 20))
	f.Close()
	f = open("far")
	f.WriteAt(p.random(1000), 20<<20+100) // beyond double indirect blocks of 1 KiB: 64 MiB is
	f.WriteAt(p.random(1000), 70<<20+100)
	f.Close()
	// Every second block: extents that can't merge, more than the root and
	// one level of index hold.
	f = open("alternate")
	for i := range int64(4*(p.bs/12) + 200) {
		f.WriteAt(p.random(64), i*2*p.bs)
	}
	f.Close()
	f = open("prealloc")
	f.Write(p.random(3000))
	if syscall.Fallocate(int(f.Fd()), 0, 0, 1<<20) == nil {
		f.WriteAt(p.random(3000), 400_001)
	}
	f.Close()
	// Two files that grow in turns.
	a, b := open("turn-a"), open("turn-b")
	for i := range 40 {
		a.Write(p.random(int(p.bs)))
		b.Write(p.random(int(p.bs)))
		if i%8 == 0 {
			a.Sync()
			b.Sync()
		}
	}
	a.Close()
	b.Close()
}

// mkfs makes a file system of size bytes with mke2fs and returns its path.
func mkfs(t testing.TB, size int64, args ...string) string {
	t.Helper()
	img := filepath.Join(t.TempDir(), "ext.img")
	f, err := os.Create(img)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	testimg.Run(t, "mke2fs", append(append([]string{"-q", "-F", "-E", "hash_seed=6b6e6f77-6e20-7365-6564-000000000001", "-U", "6b6e6f77-6e20-7575-6964-000000000001"}, args...), img)...)
	return img
}

// mount mounts img on a new folder; ok is false when that is not possible
// here, as without root.
func mount(t testing.TB, img, opts string) (dir string, unmount func(), ok bool) {
	t.Helper()
	if os.Geteuid() != 0 {
		return "", nil, false
	}
	dir = t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop,"+opts, img, dir).CombinedOutput(); err != nil {
		t.Logf("no kernel mount: %s", bytes.TrimSpace(out))
		return "", nil, false
	}
	done := false
	unmount = func() {
		if done {
			return
		}
		done = true
		// A process that another test starts holds our files between fork and
		// exec: busy may mean for a moment.
		var out []byte
		for range 50 {
			var err error
			if out, err = exec.Command("umount", dir).CombinedOutput(); err == nil {
				return
			}
		}
		t.Errorf("umount: %s", out)
		exec.Command("umount", "-l", dir).Run()
	}
	t.Cleanup(unmount)
	return dir, unmount, true
}

// openImage opens the file system in a file.
func openImage(t testing.TB, img string, opts *Options) *FS {
	t.Helper()
	r, err := os.Open(img)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	fi, err := r.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(r, fi.Size(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
