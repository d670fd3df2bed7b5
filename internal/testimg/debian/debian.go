// Package debian makes a real Debian system for tests: a root folder by
// mmdebstrap, put into a disk image with a GPT. It is made once and shared by
// all test packages; it needs root and a Debian mirror that the machine is
// set up for, and takes a minute or two.
package debian

import (
	"bufio"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"imgmaint/internal/testimg"
)

// A System is a Debian system in three forms. All are shared: tests must not
// change them.
type System struct {
	Tree string // root folder on the host
	Tar  string // the same as mmdebstrap packed it
	Root string // ext4 file system image of Tree
	ESP  string // FAT32 file system image, an EFI system partition
	Disk string // raw disk: GPT with BIOS boot (14), ESP (15) and root (1)
	// Suite is the release, Hostname what /etc/hostname says.
	Suite, Hostname string
}

const (
	suite    = "bookworm"
	hostname = "golden"
	rootSize = 1 << 30
	espSize  = 36 << 20
	rootUUID = "5f1c0cde-6a2c-4c1a-9d2b-0123456789ab"
	// version of what Build makes: part of the folder's name in the cache.
	version = "v2"

	// CapabilityFile is a program with a file capability, which is an
	// extended attribute.
	CapabilityFile = "/usr/bin/ss"
)

// Build returns the system, made now or by an earlier test. The folder that
// IMGMAINT_TEST_CACHE names keeps it; without the variable it lives in the
// temporary folder of the machine, for the run of "go test" this test is part
// of, and is removed by the next run.
func Build(t testing.TB) *System {
	t.Helper()
	for _, tool := range []string{"mmdebstrap", "mke2fs", "mkfs.fat", "mmd", "mcopy", "sgdisk", "tar"} {
		testimg.Tool(t, tool)
	}
	if os.Getuid() != 0 {
		unavailable(t, "making a Debian root needs root")
	}
	mirror, key, err := aptMirror("/etc/apt")
	if err != nil {
		unavailable(t, err.Error())
	}
	dir, err := cacheDir()
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := lock(dir + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	s := &System{
		Tree: filepath.Join(dir, "tree"), Tar: filepath.Join(dir, "root.tar"), Root: filepath.Join(dir, "root.img"),
		ESP: filepath.Join(dir, "esp.img"), Disk: filepath.Join(dir, "disk.img"), Suite: suite, Hostname: hostname,
	}
	done := filepath.Join(dir, "done")
	if _, err := os.Stat(done); err == nil {
		return s
	}
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	s.bootstrap(t, mirror, key)
	s.images(t)
	if err := os.WriteFile(done, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return s
}

func unavailable(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("IMGMAINT_REQUIRE_TOOLS") == "1" {
		t.Fatalf("%s, and IMGMAINT_REQUIRE_TOOLS=1", why)
	}
	t.Skip(why)
}

// cacheDir is the folder of the system. Test binaries of one "go test" have
// one parent process: its number tells runs apart.
func cacheDir() (string, error) {
	if dir := os.Getenv("IMGMAINT_TEST_CACHE"); dir != "" {
		return filepath.Join(dir, "debian-"+suite+"-"+version), os.MkdirAll(dir, 0o755)
	}
	name := fmt.Sprintf("imgmaint-debian-%s-%d", version, os.Getppid())
	old, err := filepath.Glob(filepath.Join(os.TempDir(), "imgmaint-debian-*"))
	if err != nil {
		return "", err
	}
	for _, p := range old {
		var pid int
		base := strings.TrimSuffix(filepath.Base(p), ".lock")
		if _, err := fmt.Sscanf(base[strings.LastIndexByte(base, '-')+1:], "%d", &pid); err != nil || base == name {
			continue
		}
		if syscall.Kill(pid, 0) == syscall.ESRCH { // that run is over
			os.RemoveAll(p)
		}
	}
	return filepath.Join(os.TempDir(), name), nil
}

// lock waits until no other test makes the system.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func (s *System) bootstrap(t testing.TB, mirror, key string) {
	line := "deb "
	if key != "" {
		line += "[signed-by=" + key + "] "
	}
	line += mirror + " " + suite + " main"
	args := []string{
		"--variant=apt", "--mode=root", "--quiet",
		"--include=systemd-sysv,linux-image-cloud-amd64,openssh-server,python3-minimal,perl,iproute2,ca-certificates,libcap2-bin,locales",
		// The mirror of this machine is nobody's business.
		`--customize-hook=echo "deb http://mirror.example.org/debian ` + suite + ` main" > "$1/etc/apt/sources.list"`,
		`--customize-hook=rm -f "$1"/etc/apt/sources.list.d/*`,
		`--customize-hook=echo ` + hostname + ` > "$1/etc/hostname"`,
		`--customize-hook=printf 'UUID=` + rootUUID + ` / ext4 defaults 0 1\nUUID=1234-ABCD /boot/efi vfat umask=0077 0 2\n' > "$1/etc/fstab"`,
		`--customize-hook=chroot "$1" setcap cap_net_raw+ep ` + CapabilityFile,
		`--customize-hook=mkdir -p "$1/boot/efi" "$1/boot/grub"; echo 'set timeout=5' > "$1/boot/grub/grub.cfg"`,
		suite, s.Tar, line,
	}
	if out, err := testimg.Try(t, "mmdebstrap", args...); err != nil {
		// The output names the machine's mirror.
		t.Fatalf("mmdebstrap: %v\n%s", err, strings.ReplaceAll(out, mirror, "MIRROR"))
	}
	if err := os.Mkdir(s.Tree, 0o755); err != nil {
		t.Fatal(err)
	}
	testimg.Run(t, "tar", "-C", s.Tree, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", s.Tar)
}

func (s *System) images(t testing.TB) {
	truncate := func(path string, size int64) {
		f, err := os.Create(path)
		if err == nil {
			err = errors.Join(f.Truncate(size), f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	truncate(s.Root, rootSize)
	testimg.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "rootfs", "-U", rootUUID, "-E", "hash_seed="+rootUUID, "-d", s.Tree, s.Root)
	truncate(s.ESP, espSize)
	testimg.Run(t, "mkfs.fat", "-F", "32", "-s", "1", "-n", "ESP", "-i", "1234abcd", s.ESP)
	testimg.Run(t, "mmd", "-i", s.ESP, "::/EFI", "::/EFI/BOOT", "::/EFI/debian")
	for _, name := range []string{"::/EFI/BOOT/BOOTX64.EFI", "::/EFI/debian/shimx64.efi", "::/EFI/debian/grubx64.efi"} {
		testimg.Run(t, "mcopy", "-i", s.ESP, filepath.Join(s.Tree, "boot/grub/grub.cfg"), name)
	}
	const mib = 1 << 20
	truncate(s.Disk, rootSize+espSize+8*mib)
	testimg.Run(t, "sgdisk", "-n", "14:2048:+3M", "-t", "14:ef02", "-n", "15:0:+36M", "-t", "15:ef00", "-n", "1:0:+1024M", "-t", "1:8304", "-c", "1:root", s.Disk)
	for _, p := range []struct {
		img string
		at  int64
	}{{s.ESP, 4}, {s.Root, 40}} {
		testimg.Run(t, "dd", "if="+p.img, "of="+s.Disk, "bs=1M", fmt.Sprintf("seek=%d", p.at), "conv=notrunc,sparse", "status=none")
	}
}

// aptMirror finds a Debian mirror in the machine's apt configuration: the
// first entry whose URI has a path that ends in /debian. The names of
// mirrors stay out of messages.
func aptMirror(etc string) (mirror, key string, err error) {
	files, err := filepath.Glob(filepath.Join(etc, "sources.list.d", "*"))
	if err != nil {
		return "", "", err
	}
	for _, name := range append(files, filepath.Join(etc, "sources.list")) {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		uri, signed := sourcesEntry(f, strings.HasSuffix(name, ".sources"), strings.HasSuffix(name, ".list"))
		f.Close()
		if uri != "" {
			return uri, signed, nil
		}
	}
	return "", "", errors.New("apt on this machine knows no Debian mirror")
}

func sourcesEntry(f *os.File, deb822, oneLine bool) (uri, key string) {
	s := bufio.NewScanner(f)
	var found, signed string
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		if deb822 {
			k, v, _ := strings.Cut(line, ":")
			switch v = strings.TrimSpace(v); {
			case line == "" && found != "":
				return found, signed
			case line == "":
				signed = ""
			case strings.EqualFold(k, "URIs"):
				for _, u := range strings.Fields(v) {
					if isDebian(u) && found == "" {
						found = u
					}
				}
			case strings.EqualFold(k, "Signed-By") && strings.HasPrefix(v, "/"):
				signed = v
			}
			continue
		}
		if !oneLine || !strings.HasPrefix(line, "deb ") {
			continue
		}
		for _, w := range strings.Fields(line) {
			w = strings.Trim(w, "[]")
			if k, v, ok := strings.Cut(w, "="); ok && k == "signed-by" {
				signed = v
			}
			if isDebian(w) {
				return w, signed
			}
		}
	}
	return found, signed
}

func isDebian(uri string) bool {
	u, err := url.Parse(uri)
	return err == nil && u.Host != "" && strings.HasSuffix(strings.TrimRight(u.Path, "/"), "/debian")
}
