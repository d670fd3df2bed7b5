package inspect

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imgmaint/formats"
	"imgmaint/internal/testimg"
)

// mem is a disk in memory that knows its holes in units of 4 KiB.
type mem []byte

func (m mem) Size() int64 { return int64(len(m)) }

func (m mem) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }

func (m mem) ExtentAt(off int64) (formats.Extent, error) {
	if off >= m.Size() {
		return formats.Extent{}, io.EOF
	}
	zero := func(off int64) bool {
		for _, c := range m[off:min(off+4096, m.Size())] {
			if c != 0 {
				return false
			}
		}
		return true
	}
	end, kind := off, formats.Data
	if zero(off) {
		kind = formats.Hole
	}
	for end < m.Size() && zero(end) == (kind == formats.Hole) {
		end = min(end+4096, m.Size())
	}
	return formats.Extent{Off: off, Len: end - off, Kind: kind}, nil
}

const mib = 1 << 20

// ext4Image makes an ext4 file system of the files, whose names end in "/"
// for folders and whose content begins with "->" for links.
func ext4Image(t testing.TB, size int64, files map[string]string, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = os.Symlink(target, p)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(p, 0o755)
		} else {
			err = os.WriteFile(p, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	img := filepath.Join(t.TempDir(), "fs.img")
	if err := os.WriteFile(img, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(args, "-t") {
		args = append(args, "-t", "ext4")
	}
	testimg.Run(t, "mke2fs", append(append([]string{"-q", "-F", "-d", dir}, args...), img)...)
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func toolImage(t testing.TB, size int64, tool string, args ...string) []byte {
	t.Helper()
	img := filepath.Join(t.TempDir(), "vol.img")
	if err := os.WriteFile(img, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	testimg.Run(t, tool, append(args, img)...)
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// partitioned makes a disk with sfdisk and puts contents at the offsets of
// partitions that the script gave them, in MiB.
func partitioned(t testing.TB, size int64, script string, contents map[int64][]byte) mem {
	t.Helper()
	img := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(img, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(testimg.Tool(t, "sfdisk"), "-q", img)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	for at, c := range contents {
		copy(b[at*mib:], c)
	}
	return b
}

func inspectDisk(t testing.TB, m formats.Image) *Report {
	t.Helper()
	rep, err := Disk(context.Background(), m, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := covered(rep); err != nil {
		t.Error(err)
	}
	return rep
}

// covered checks that the ranges cover the disk once.
func covered(rep *Report) error {
	var end int64
	for _, r := range rep.Disk.Ranges {
		if r.Off != end || r.Len <= 0 || r.State == "" || r.Type == "" {
			return errors.New("ranges leave a gap, overlap or say nothing")
		}
		end += r.Len
	}
	if end != rep.Disk.Size {
		return errors.New("ranges do not cover the disk")
	}
	return nil
}

// states lists the ranges as "partition:state:type".
func states(rep *Report) string {
	var s []string
	for _, r := range rep.Disk.Ranges {
		p := "-"
		if r.Partition != 0 {
			p = string(rune('0' + r.Partition))
		}
		s = append(s, p+":"+string(r.State)+":"+r.Type)
	}
	return strings.Join(s, " ")
}

func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func luks(version uint16) []byte {
	b := make([]byte, 4096)
	copy(b, "LUKS\xba\xbe")
	binary.BigEndian.PutUint16(b[6:], version)
	copy(b[168:], "01234567-89ab-cdef-0123-456789abcdef")
	return b
}

func lvm() []byte {
	b := make([]byte, 2048)
	copy(b[512:], "LABELONE\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x20\x00\x00\x00LVM2 001AbCdEf0123456789012345678901GhIjKl")
	return b
}

var systemFiles = map[string]string{
	"etc/os-release": "ID=debian\nVERSION_ID=12\nPRETTY_NAME=\"Debian 12\"\n", "etc/hostname": "golden\n", "bin/sh": elf(2, 1, 62),
	"var/lib/dpkg/status": dpkgStatus, "usr/": "", "boot/": "", "boot/efi/": "",
}

func TestDiskEverything(t *testing.T) {
	m := partitioned(t, 40*mib, `label: gpt
start=1MiB, size=1MiB, type=21686148-6449-6E6F-744E-656564454649
start=2MiB, size=4MiB, type=uefi
start=6MiB, size=12MiB, type=linux
start=18MiB, size=2MiB, type=swap
start=20MiB, size=1MiB
start=21MiB, size=1MiB
start=23MiB, size=1MiB
start=24MiB, size=1MiB
start=25MiB, size=1MiB
`, map[int64][]byte{
		2: toolImage(t, 4*mib, "mkfs.fat", "-n", "ESP"), 6: ext4Image(t, 12*mib, systemFiles, "-L", "root"), 18: toolImage(t, 2*mib, "mkswap"),
		20: luks(2), 21: lvm(), 22: noise(4096, 1), 23: noise(mib, 2), 25: append([]byte("XFSB"), make([]byte, 100)...),
	})
	grub := m[mib:]
	copy(grub[0x180:], "loading\x00.\x00\r\n\x00Geom\x00Read\x00 Error\x00")
	copy(m[0x180:], "GRUB \x00Geom\x00")
	rep := inspectDisk(t, m)
	want := "-:metadata:gpt -:empty:unallocated 1:metadata:boot loader 2:read:vfat 3:read:ext4 4:metadata:swap 5:encrypted:crypto_LUKS 6:unsupported:LVM2_member " +
		"-:unsupported:unallocated 7:unsupported:unknown 8:empty:zeros 9:unsupported:xfs -:empty:unallocated -:metadata:gpt"
	if got := states(rep); got != want {
		t.Errorf("ranges = %s\n    want %s", got, want)
	}
	for _, p := range [][2]string{
		{"partition 5", "encrypted (crypto_LUKS)"}, {"partition 6", "LVM2_member"}, {"bytes 23068672 to", "outside of any partition"},
		{"partition 7", "no type that we know"}, {"partition 9", "xfs: unsupported: this file system is recognised, not read"},
	} {
		if !hasProblem(rep, p[0], p[1]) {
			t.Errorf("problems lack %q: %+v", p, rep.Problems)
		}
	}
	r := rep.Disk.Ranges
	if r[6].UUID != "01234567-89ab-cdef-0123-456789abcdef" || r[7].UUID != "AbCdEf-0123-4567-8901-2345-6789-01GhIj" || r[4].Label != "root" || r[3].Label != "ESP" || r[4].Mount != "/" {
		t.Errorf("ranges = %s", asJSON(t, r))
	}
	if u := r[4].Usage; u == nil || u.Size <= 0 || u.Free <= 0 || u.Free >= u.Size || u.UUID == "" {
		t.Errorf("usage = %+v", u)
	}
	if rep.State != Understood || rep.Items.OS.ID != "debian" || len(rep.Items.Packages) != 4 || rep.Items.Architecture != "amd64" {
		t.Errorf("items = %s", asJSON(t, rep.Items))
	}
	var loaders []string
	for _, b := range rep.Items.BootLoaders {
		loaders = append(loaders, b.Name+"/"+b.Kind+"/"+b.Where)
	}
	if got := strings.Join(loaders, " "); got != "grub/bios/boot sector grub/bios/partition 1" {
		t.Errorf("boot loaders = %s", got)
	}
	if !bytes.Equal(asJSON(t, rep), asJSON(t, inspectDisk(t, m))) {
		t.Error("two reports of one disk differ")
	}
}

// A system over several partitions of an MBR, found by every kind of name.
func TestDiskMounts(t *testing.T) {
	root := map[string]string{
		"etc/os-release": "->../usr/lib/os-release", "etc/hostname": "golden", "usr/": "", "var/": "", "boot/": "", "home/": "", "srv/data/": "", "mnt/": "", "sbin": "->usr/sbin",
		"etc/fstab": "/dev/vda1 / ext4 defaults 0 1\nLABEL=usr /usr ext4 ro 0 0\nUUID=11111111-2222-3333-4444-555555555555 /var ext4 x 0 0\nPARTUUID=c0ffee00-07 /home ext4 x 0 0\n" +
			"/dev/sdb1 /srv ext4 x 0 0\n/dev/mapper/x /mnt xfs x 0 0\nLABEL=none /nowhere ext4 x 0 0\n/dev/disk/by-label/boot\\040x20part /boot ext4 x 0 0\nUUID=2 none swap sw 0 0\n" +
			"tmpfs /tmp tmpfs x 0 0\n/var/lib /srv/data none bind 0 0\n/dev/sda6 /absent ext4 x 0 0\nLABEL=elsewhere /quiet ext4 x,nofail 0 0\n",
	}
	m := partitioned(t, 70*mib, "label: dos\nlabel-id: 0xc0ffee00\nstart=1MiB,size=10MiB,type=83,bootable\nstart=12MiB,type=5\nstart=13MiB,size=9MiB,type=83\nstart=23MiB,size=9MiB,type=83\nstart=33MiB,size=9MiB,type=83\nstart=43MiB,size=9MiB,type=83\n",
		map[int64][]byte{
			1:  ext4Image(t, 10*mib, root),
			13: ext4Image(t, 9*mib, map[string]string{"lib/os-release": "ID=parts\n", "sbin/init": elf(2, 1, 183)}, "-L", "usr"),
			23: ext4Image(t, 9*mib, map[string]string{"lib/dpkg/status": dpkgStatus}, "-U", "11111111-2222-3333-4444-555555555555"),
			33: ext4Image(t, 9*mib, map[string]string{"admin/file": "home"}),
			43: ext4Image(t, 9*mib, map[string]string{"vmlinuz-9": bzImage("9 x")}, "-L", "boot x20part"),
		})
	rep := inspectDisk(t, m)
	if got := states(rep); got != "-:metadata:mbr -:empty:unallocated 1:read:ext4 -:metadata:extended boot records 5:read:ext4 -:metadata:extended boot records 6:read:ext4 "+
		"-:metadata:extended boot records 7:read:ext4 -:metadata:extended boot records 8:read:ext4 -:empty:unallocated" && !strings.Contains(got, "8:read:ext4") {
		t.Errorf("ranges = %s", got)
	}
	it := rep.Items
	if it.OS == nil || it.OS.ID != "parts" || len(it.Packages) != 4 || it.Architecture != "arm64" && it.Architecture != "amd64" {
		t.Errorf("items = %s", asJSON(t, it))
	}
	mounts := map[int]string{}
	for _, r := range rep.Disk.Ranges {
		if r.Mount != "" {
			mounts[r.Partition] = r.Mount
		}
	}
	for n, dir := range map[int]string{1: "/", 5: "/usr", 6: "/var", 7: "/home"} {
		if mounts[n] != dir {
			t.Errorf("partition %d is mounted at %q, want %q", n, mounts[n], dir)
		}
	}
	for _, p := range []string{"/dev/sdb1 for /srv: on another disk", "/dev/mapper/x for /mnt: a device name that cannot be told", "LABEL=none for /nowhere: no partition", "/dev/sda6 for /absent: file does not exist"} {
		if !hasProblem(rep, "/etc/fstab", p) {
			t.Errorf("problems lack %q: %+v", p, rep.Problems)
		}
	}
	if hasProblem(rep, "/etc/fstab", "quiet") {
		t.Errorf("nofail: %+v", rep.Problems)
	}
	tree, _, err := Tree(context.Background(), m, 0)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := tree.Read("home/admin/file", 10); string(b) != "home" || err != nil {
		t.Errorf("home/admin/file = %q, %v", b, err)
	}
	one, _, err := Tree(context.Background(), m, 7)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := one.Read("admin/file", 10); string(b) != "home" || err != nil {
		t.Errorf("partition 7: admin/file = %q, %v", b, err)
	}
	for n, want := range map[int]error{2: os.ErrNotExist, 9: os.ErrNotExist} {
		if _, _, err := Tree(context.Background(), m, n); !errors.Is(err, want) {
			t.Errorf("partition %d: %v, want %v", n, err, want)
		}
	}
}

// The disk of a Xen guest is a file system without a table.
func TestBareFileSystem(t *testing.T) {
	files := map[string]string{"etc/fstab": "/dev/xvda1 / ext4 x 0 1\n"}
	for k, v := range systemFiles {
		files[k] = v
	}
	for _, typ := range []string{"ext2", "ext3", "ext4"} {
		rep := inspectDisk(t, mem(ext4Image(t, 8*mib, files, "-t", typ)))
		if states(rep) != "-:read:"+typ || rep.Disk.Table != nil || rep.Items.OS == nil || len(rep.Problems) != 0 || rep.Disk.Ranges[0].Mount != "/" {
			t.Errorf("%s: %s", typ, asJSON(t, rep))
		}
	}
}

// What is behind the end of a file system is accounted for.
func TestSlack(t *testing.T) {
	fsys := ext4Image(t, 8*mib, systemFiles)
	rep := inspectDisk(t, mem(append(fsys[:8*mib:8*mib], make([]byte, 5000)...)))
	if got := states(rep); got != "-:read:ext4 -:empty:slack" || len(rep.Problems) != 0 {
		t.Errorf("zeros behind: %s, %+v", got, rep.Problems)
	}
	rep = inspectDisk(t, mem(append(fsys[:8*mib:8*mib], noise(5000, 3)...)))
	if got := states(rep); got != "-:read:ext4 -:unsupported:slack" || rep.Disk.Ranges[1].Len != 5000 {
		t.Errorf("data behind: %s", got)
	}
}

// An image that is not understood never looks like one without packages.
func TestNotUnderstood(t *testing.T) {
	for name, c := range map[string]struct {
		m     mem
		want  string
		state State
	}{
		"noise":          {noise(mib, 7), "-:unsupported:unknown", NotUnderstood},
		"zeros":          {make(mem, mib), "-:empty:zeros", NoSystem},
		"nothing":        {nil, "", NoSystem},
		"one byte":       {mem{1}, "-:unsupported:unknown", NotUnderstood},
		"encrypted":      {append(luks(1), noise(mib, 8)...), "-:encrypted:crypto_LUKS", NotUnderstood},
		"lvm":            {append(lvm(), noise(mib, 8)...), "-:unsupported:LVM2_member", NotUnderstood},
		"data only":      {ext4Image(t, 4*mib, map[string]string{"x": "y"}), "-:read:ext4", NoSystem},
		"broken GPT":     {brokenGPT(), "-:unsupported:disk", NotUnderstood},
		"broken ext":     {brokenExt(t), "-:unsupported:ext4", NotUnderstood},
		"xfs":            {append([]byte("XFSB"), make([]byte, mib)...), "-:unsupported:xfs", NotUnderstood},
		"empty with MBR": {emptyMBR(), "-:metadata:mbr -:empty:unallocated", NoSystem},
	} {
		rep := inspectDisk(t, c.m)
		if states(rep) != c.want || rep.State != c.state || len(rep.Problems) == 0 {
			t.Errorf("%s: %s %q, want %s: %+v", name, states(rep), rep.State, c.want, rep.Problems)
		}
		if !bytes.Contains(asJSON(t, rep), []byte(`"packages": []`)) {
			t.Errorf("%s: %s", name, asJSON(t, rep))
		}
	}
}

func brokenGPT() mem {
	m := make(mem, mib)
	copy(m[512:], "EFI PART")
	m[446+4], m[446+8], m[446+12] = 0xee, 1, 0xff
	m[510], m[511] = 0x55, 0xaa
	return m
}

func brokenExt(t testing.TB) mem {
	m := mem(ext4Image(t, 4*mib, nil))
	for i := 1; i < 4*mib/1024; i++ { // the superblock and every backup of it
		if sb := m[1024*i:]; sb[56] == 0x53 && sb[57] == 0xef {
			binary.LittleEndian.PutUint32(sb[24:], 6)  // s_log_block_size
			binary.LittleEndian.PutUint32(sb[32:], 0)  // s_blocks_per_group
			binary.LittleEndian.PutUint16(sb[88:], 99) // s_inode_size
		}
	}
	return m
}

func emptyMBR() mem {
	m := make(mem, mib)
	m[440], m[510], m[511] = 1, 0x55, 0xaa
	return m
}

func TestDamagedPrimary(t *testing.T) {
	m := partitioned(t, 16*mib, "label: gpt\nstart=1MiB, size=12MiB\n", map[int64][]byte{1: ext4Image(t, 12*mib, systemFiles)})
	for i := range 512 {
		m[512+i] = 0
	}
	rep := inspectDisk(t, m)
	if !hasProblem(rep, "partition table", "the backup is used") || rep.Items.OS == nil || len(rep.Items.Packages) != 4 {
		t.Errorf("report = %s", asJSON(t, rep))
	}
}

func TestTwoRoots(t *testing.T) {
	fsys := ext4Image(t, 8*mib, systemFiles)
	rep := inspectDisk(t, partitioned(t, 20*mib, "label: gpt\nstart=1MiB, size=8MiB\nstart=9MiB, size=8MiB\n", map[int64][]byte{1: fsys, 9: fsys}))
	if !hasProblem(rep, "disk", "several root file systems (partition 1, partition 2): partition 1 is used") {
		t.Errorf("problems = %+v", rep.Problems)
	}
}

// A disk that looks like two things is read as one of them and says so.
func TestPolyglot(t *testing.T) {
	m := partitioned(t, 16*mib, "label: dos\nstart=1MiB, size=12MiB, type=83\n", map[int64][]byte{1: ext4Image(t, 12*mib, systemFiles)})
	copy(m[0x8001:], "CD001")
	if rep := inspectDisk(t, m); !hasProblem(rep, "disk", "signature of iso9660 besides its partition table") {
		t.Errorf("problems = %+v", rep.Problems)
	}
	bare := mem(ext4Image(t, 8*mib, systemFiles))
	copy(bare, "LUKS\xba\xbe\x00\x01")
	if rep := inspectDisk(t, bare); !hasProblem(rep, "disk", "has the signature of ext4 as well") || rep.State != NotUnderstood {
		t.Errorf("report = %+v", rep.Problems)
	}
}

func TestDiskReadErrors(t *testing.T) {
	m := partitioned(t, 16*mib, "label: gpt\nstart=1MiB, size=12MiB\n", map[int64][]byte{1: ext4Image(t, 12*mib, systemFiles)})
	if _, err := Disk(context.Background(), faulty{m, 0}, nil); !errors.Is(err, testimg.ErrInjected) {
		t.Errorf("fault in the MBR: %v", err)
	}
	if _, err := Disk(context.Background(), faulty{m, mib + 1024}, nil); !errors.Is(err, testimg.ErrInjected) {
		t.Errorf("fault in a superblock: %v", err)
	}
	// A fault in the content of a file is a problem of that file.
	at := int64(bytes.Index(m, []byte("Package: bash\n")))
	rep, err := Disk(context.Background(), faulty{m, at}, nil)
	if err != nil || !hasProblem(rep, "/var/lib/dpkg/status", "injected") || rep.Items.OS == nil {
		t.Errorf("fault in a file: %v, %s", err, asJSON(t, rep))
	}
}

type faulty struct {
	mem
	bad int64
}

func (f faulty) ReadAt(p []byte, off int64) (int, error) {
	return testimg.FaultyReader{R: f.mem, Bad: f.bad}.ReadAt(p, off)
}

// FuzzDisk starts from small disks: the engine is slow on large ones.
func FuzzDisk(f *testing.F) {
	small := ext4Image(f, 80<<10, map[string]string{"etc/os-release": "ID=x\n", "etc/fstab": "LABEL=x /etc ext4 x 0 0\n", "var/lib/dpkg/status": dpkgStatus},
		"-b", "1024", "-O", "^has_journal,^resize_inode", "-N", "24", "-m", "0")
	f.Add(small)
	d := append(make([]byte, 4096), small...)
	copy(d[446:], "\x80\x00\x00\x00\x83\x00\x00\x00\x08\x00\x00\x00\x00\x04\x00\x00")
	d[510], d[511] = 0x55, 0xaa
	f.Add(d)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 128<<10 {
			return
		}
		rep, err := Disk(context.Background(), mem(b), nil)
		if (rep == nil) == (err == nil) {
			t.Fatalf("Disk = %v, %v", rep, err)
		}
		if err != nil {
			return
		}
		if err := covered(rep); err != nil {
			t.Fatal(err)
		}
		if rep.State != Understood && len(rep.Problems) == 0 {
			t.Fatalf("state %q without a problem", rep.State)
		}
		if err := rep.WriteText(io.Discard); err != nil {
			t.Fatal(err)
		}
	})
}
