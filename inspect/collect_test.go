package inspect

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"imgmaint/formats"
)

var update = flag.Bool("update", false, "write golden files")

// bzImage is the start of an x86 kernel with the given version string.
func bzImage(version string) string {
	b := make([]byte, 0x1000)
	copy(b, "MZ")
	binary.LittleEndian.PutUint32(b[60:], 0x80)
	copy(b[0x80:], "PE\x00\x00\x64\x86")
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x20e:], 0x600)
	copy(b[0x800:], version+"\x00")
	return string(b)
}

func elf(class, data byte, machine uint16) string {
	b := make([]byte, 64)
	copy(b, "\x7fELF")
	b[4], b[5] = class, data
	if data == 1 {
		binary.LittleEndian.PutUint16(b[18:], machine)
	} else {
		binary.BigEndian.PutUint16(b[18:], machine)
	}
	return string(b)
}

const dpkgStatus = `Package: bash
Essential: yes
Status: install ok installed
Priority: required
Section: shells
Installed-Size: 7164
Maintainer: Matthias Klose <doko@debian.org>
Architecture: amd64
Source: bash (5.2.15-2)
Version: 5.2.15-2+b7
Description: GNU Bourne Again SHell
 Package: not-a-package
 .
 Status: install ok installed

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0

Package: never
Status: unknown ok not-installed
Architecture: amd64

Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc
Version: 2.36-9

Package: libc6
Status: hold reinstreq half-configured
Architecture: i386
Source: glibc
Version: 2.36-9
`

// debianTree is a small Debian system.
func debianTree() fstest.MapFS {
	return fstest.MapFS{
		"etc/os-release": link("../usr/lib/os-release"),
		"usr/lib/os-release": file(`PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
VERSION="12 (bookworm)"
VERSION_CODENAME=bookworm
ID=debian
`),
		"etc/debian_version": file("12.5\n"), "etc/hostname": file("# comment\ngolden\n"), "etc/machine-id": file(""),
		"etc/localtime": link("/usr/share/zoneinfo/Europe/Zurich"), "etc/default/locale": file("LANG=\"C.UTF-8\"\n"),
		"etc/fstab":                           file("# static\nUUID=1234 / ext4 errors=remount-ro 0 1\nLABEL=my\\040data\t/srv/my\\040data xfs noauto 0 0\nbad line\n"),
		"etc/passwd":                          file("root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/usr/sbin/nologin\nadmin:x:1000:1000::/home/admin:/bin/bash\nnobody:x:65534:65534::/:/bin/sh\n"),
		"etc/apt/sources.list":                file("# cd\ndeb [arch=amd64 signed-by=/k.gpg] https://user:secret@example.org/debian bookworm main contrib # c\ndeb-src http://example.org/debian bookworm main\n"),
		"etc/apt/sources.list.d/more.sources": file("Enabled: no\nTypes: deb deb-src\nURIs: http://example.org/debian\nSuites: bookworm-updates\n bookworm-backports\nComponents: main\n"),
		"etc/apt/sources.list.d/old.save":     file("deb http://example.org/old old main\n"),
		"sbin":                                link("usr/sbin"), "usr/sbin/init": link("../lib/systemd/systemd"), "usr/lib/systemd/systemd": file(elf(2, 1, 62)),
		"var/lib/dpkg/status": file(dpkgStatus), "var/lib/dpkg/arch": file("amd64\ni386\n"),
		"boot/vmlinuz-6.1.0-18-amd64": file(bzImage("6.1.0-18-amd64 (debian-kernel@lists.debian.org) #1 SMP")), "boot/initrd.img-6.1.0-18-amd64": file("x"),
		"boot/vmlinuz-6.1.0-17-amd64": file("not a kernel"), "boot/grub/grub.cfg": file("x"), "lib": link("usr/lib"),
		"usr/lib/modules/6.1.0-18-amd64/modules.dep": file("x"), "usr/lib/modules/5.10.0-1-amd64/modules.dep": file("x"),
		"boot/loader/entries/a.conf":      file("title Debian\nversion 6.1\nlinux /vmlinuz\ninitrd /a\ninitrd /b\noptions root=x\noptions quiet\n"),
		"boot/efi/EFI/debian/grubx64.efi": file("MZ"), "boot/efi/EFI/BOOT/BOOTX64.EFI": file("MZ"),
	}
}

func inspectFS(t testing.TB, m fstest.MapFS) *Report {
	t.Helper()
	rep, err := FS(context.Background(), m, nil)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// golden compares got with a file in testdata, or writes it with -update.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	p := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (run with -update to accept):\n%s", p, got)
	}
}

func asJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

func TestGolden(t *testing.T) {
	for range 2 { // the same each time
		rep := inspectFS(t, debianTree())
		golden(t, "debian.json", asJSON(t, rep))
		var b bytes.Buffer
		if err := rep.WriteText(&b); err != nil {
			t.Fatal(err)
		}
		golden(t, "debian.txt", b.Bytes())
	}
}

func TestOS(t *testing.T) {
	for name, c := range map[string]struct {
		files fstest.MapFS
		want  OS
	}{
		"usr only":      {fstest.MapFS{"usr/lib/os-release": file("ID=fedora\nVERSION_ID=40\n"), "etc": dir()}, OS{ID: "fedora", VersionID: "40", Source: "/usr/lib/os-release"}},
		"no id":         {fstest.MapFS{"etc/os-release": file("NAME=Thing")}, OS{ID: "linux", Name: "Thing", Source: "/etc/os-release"}},
		"empty, then":   {fstest.MapFS{"etc/os-release": file(""), "usr/lib/os-release": file("ID=x")}, OS{ID: "x", Source: "/usr/lib/os-release"}},
		"quotes":        {fstest.MapFS{"etc/os-release": file("ID='a'\"b\"c\\ d e\nNAME=\"x\\\"y\\n$\\$\"\n")}, OS{ID: "abc d", Name: "x\"y\\n$$", Source: "/etc/os-release"}},
		"lsb":           {fstest.MapFS{"etc/lsb-release": file("DISTRIB_ID=Ubuntu\nDISTRIB_RELEASE=14.04\nDISTRIB_CODENAME=trusty\nDISTRIB_DESCRIPTION=\"Ubuntu 14.04\"\n")}, OS{ID: "ubuntu", Name: "Ubuntu", Pretty: "Ubuntu 14.04", Version: "14.04", VersionID: "14.04", Codename: "trusty", Source: "/etc/lsb-release"}},
		"debian":        {fstest.MapFS{"etc/debian_version": file("6.0.10\n")}, OS{ID: "debian", Name: "Debian GNU/Linux", Pretty: "Debian GNU/Linux 6.0.10", Version: "6.0.10", VersionID: "6.0.10", Release: "6.0.10", Source: "/etc/debian_version"}},
		"centos":        {fstest.MapFS{"etc/centos-release": file("CentOS release 6.10 (Final)\n"), "etc/redhat-release": link("centos-release")}, OS{ID: "centos", Name: "CentOS", Pretty: "CentOS release 6.10 (Final)", Version: "6.10 (Final)", VersionID: "6.10", Codename: "Final", Source: "/etc/centos-release"}},
		"alpine":        {fstest.MapFS{"etc/alpine-release": file("3.18.4\n")}, OS{ID: "alpine", Name: "Alpine Linux", Pretty: "Alpine Linux 3.18.4", Version: "3.18.4", VersionID: "3.18.4", Source: "/etc/alpine-release"}},
		"absolute link": {fstest.MapFS{"etc/os-release": link("/usr/lib/os-release"), "usr/lib/os-release": file("ID=z")}, OS{ID: "z", Source: "/etc/os-release"}},
	} {
		rep := inspectFS(t, c.files)
		if rep.State != Understood || rep.Items.OS == nil || !reflect.DeepEqual(*rep.Items.OS, c.want) {
			t.Errorf("%s: %s, %+v, want %+v", name, rep.State, rep.Items.OS, c.want)
		}
	}
}

func TestNoSystem(t *testing.T) {
	rep := inspectFS(t, fstest.MapFS{"data/file": file("x")})
	if rep.State != NoSystem || len(rep.Problems) == 0 {
		t.Errorf("report = %+v", rep)
	}
}

// A tree with a system and without a package database must not look like one
// without packages.
func TestNoPackageDatabase(t *testing.T) {
	rep := inspectFS(t, fstest.MapFS{"etc/os-release": file("ID=scratch"), "bin/sh": file(elf(2, 1, 183))})
	if !hasProblem(rep, "packages", "no package database") || rep.Items.Architecture != "arm64" {
		t.Errorf("report = %s", asJSON(t, rep))
	}
	for _, p := range []string{"var/lib/rpm/rpmdb.sqlite", "var/lib/rpm/Packages.db", "var/lib/rpm/Packages", "usr/lib/sysimage/rpm/rpmdb.sqlite"} {
		rep := inspectFS(t, fstest.MapFS{"etc/os-release": file("ID=fedora"), p: file("db")})
		if !hasProblem(rep, "/"+p, "unsupported: rpmdb") || len(rep.Items.PackageManagers) != 1 || rep.Items.PackageManagers[0].State != "unsupported" {
			t.Errorf("%s: %s", p, asJSON(t, rep))
		}
	}
	rep = inspectFS(t, fstest.MapFS{"etc/os-release": file("ID=debian"), "var/lib/dpkg/status": file("")})
	if !hasProblem(rep, "packages", "lists no packages") {
		t.Errorf("empty status: %s", asJSON(t, rep))
	}
}

func hasProblem(rep *Report, where, what string) bool {
	for _, p := range rep.Problems {
		if strings.Contains(p.Where, where) && strings.Contains(p.What, what) {
			return true
		}
	}
	return false
}

func TestDistroless(t *testing.T) {
	rep := inspectFS(t, fstest.MapFS{
		"etc/os-release":                     file("ID=debian"),
		"var/lib/dpkg/status.d/base":         file("Package: base-files\nVersion: 12\nArchitecture: amd64\nMaintainer: x\n"),
		"var/lib/dpkg/status.d/base.md5sums": file("0 x\n"),
		"var/lib/dpkg/status.d/tzdata":       file("Package: tzdata\nVersion: 2024a\nArchitecture: all\n\n"),
	})
	if n := len(rep.Items.Packages); n != 2 || rep.Items.Packages[0].State != "installed" || rep.Items.Architecture != "amd64" {
		t.Errorf("packages = %+v", rep.Items.Packages)
	}
}

func TestInterruptedDpkg(t *testing.T) {
	m := debianTree()
	m["var/lib/dpkg/updates/0001"] = file("Package: bash\nStatus: install ok half-installed\nArchitecture: amd64\nVersion: 5.2.15-2+b8\n")
	m["var/lib/dpkg/updates/tmp.i"] = file("Package: x\n")
	rep := inspectFS(t, m)
	if p := rep.Items.Packages[0]; p.Name != "bash" || p.Version != "5.2.15-2+b8" || p.State != "half-installed" || !hasProblem(rep, "updates/0001", "interrupted") {
		t.Errorf("bash = %+v, problems %+v", p, rep.Problems)
	}
}

func TestApk(t *testing.T) {
	rep := inspectFS(t, fstest.MapFS{
		"etc/alpine-release":   file("3.18"),
		"lib/apk/db/installed": file("C:Q1x\nP:musl\nV:1.2.4-r2\nA:x86_64\nS:1\nI:622592\no:musl\nm:Timo\nF:lib\nR:ld.so\n\nP:busybox-binsh\nV:1.36\nA:x86_64\no:busybox\n"),
	})
	want := []Package{
		{Manager: "apk", Name: "busybox-binsh", Version: "1.36", Architecture: "x86_64", Source: "busybox", SourceVersion: "1.36", State: "installed"},
		{Manager: "apk", Name: "musl", Version: "1.2.4-r2", Architecture: "x86_64", Source: "musl", SourceVersion: "1.2.4-r2", State: "installed", InstalledSize: 622592, Maintainer: "Timo"},
	}
	if !reflect.DeepEqual(rep.Items.Packages, want) || rep.Items.Architecture != "amd64" {
		t.Errorf("packages = %+v, %s", rep.Items.Packages, rep.Items.Architecture)
	}
}

// One bad record, or one bad file, keeps the others.
func TestGoesOn(t *testing.T) {
	m := debianTree()
	m["var/lib/dpkg/status"] = file("Package: a\nVersion: 1\nStatus: install ok installed\n\nthis is no field\n\nVersion: 2\n\nPackage: nul\x00\n\n" +
		"Package: b\nVersion: 3\nStatus: too few\n\nPackage: " + strings.Repeat("n", 5000) + "\n\nPackage: c\nVersion: 4\nStatus: install ok installed\n")
	m["etc/hostname"] = dir()
	m["etc/machine-id"] = link("machine-id")
	m["etc/fstab"] = file(strings.Repeat("x", maxSmall+1))
	m["boot/vmlinuz-loop"] = link("vmlinuz-loop")
	rep := inspectFS(t, m)
	var names []string
	for _, p := range rep.Items.Packages {
		names = append(names, p.Name)
	}
	if strings.Join(names, " ") != "a c" {
		t.Errorf("packages = %v", names)
	}
	for _, want := range [][2]string{
		{"/var/lib/dpkg/status", "paragraph at line 5: line 5 is no field"}, {"/var/lib/dpkg/status", "line 7: no Package field"},
		{"/var/lib/dpkg/status", "NUL"}, {"/var/lib/dpkg/status", `status "too few"`}, {"/var/lib/dpkg/status", "Package of 5000 bytes"},
		{"/etc/hostname", "not a regular file"}, {"/etc/machine-id", "too many symbolic links"}, {"/etc/fstab", "over limit"}, {"/boot/vmlinuz-loop", "too many"},
	} {
		if !hasProblem(rep, want[0], want[1]) {
			t.Errorf("problems lack %q: %+v", want, rep.Problems)
		}
	}
	if rep.Items.OS == nil || rep.Items.Timezone != "Europe/Zurich" || rep.Items.Init != "systemd" {
		t.Errorf("what is good was lost: %s", asJSON(t, rep.Items))
	}
}

// brokenFS fails every read of file contents below a folder.
type brokenFS struct {
	fstest.MapFS
	prefix string
}

var errMedium = errors.New("medium error")

func (b brokenFS) Open(name string) (fs.File, error) {
	f, err := b.MapFS.Open(name)
	if err == nil && strings.HasPrefix(name, b.prefix) {
		return brokenFile{f}, nil
	}
	return f, err
}

type brokenFile struct{ fs.File }

func (brokenFile) Read([]byte) (int, error) { return 0, errMedium }

func TestReadErrorIsListed(t *testing.T) {
	rep, err := FS(context.Background(), brokenFS{debianTree(), "var/lib/dpkg"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !hasProblem(rep, "/var/lib/dpkg/status", "medium error") || rep.Items.PackageManagers[0].State != "damaged" || rep.Items.OS == nil {
		t.Errorf("report = %s", asJSON(t, rep))
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := FS(ctx, debianTree(), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("FS = %v", err)
	}
}

func TestArchitecture(t *testing.T) {
	for want, b := range map[string]string{
		"amd64": elf(2, 1, 62), "i386": elf(1, 1, 3), "arm64": elf(2, 1, 183), "armel": elf(1, 1, 40), "riscv64": elf(2, 1, 243),
		"ppc64el": elf(2, 1, 21), "ppc64": elf(2, 2, 21), "s390x": elf(2, 2, 22), "": "#!/bin/sh",
	} {
		if got := elfArch([]byte(b)); got != want {
			t.Errorf("elfArch = %q, want %q", got, want)
		}
	}
}

func TestUnifiedKernel(t *testing.T) {
	b := make([]byte, 4096)
	copy(b, "MZ")
	binary.LittleEndian.PutUint32(b[60:], 0x80)
	copy(b[0x80:], "PE\x00\x00\x64\x86")
	binary.LittleEndian.PutUint16(b[0x86:], 3)
	for i, s := range []struct{ name, data string }{{".linux", "k"}, {".uname", "6.9.1-uki\x00"}, {".initrd", "i"}} {
		h := b[0x98+40*i:]
		copy(h, s.name)
		binary.LittleEndian.PutUint32(h[8:], uint32(len(s.data)))
		binary.LittleEndian.PutUint32(h[16:], uint32(len(s.data)))
		binary.LittleEndian.PutUint32(h[20:], uint32(1024+512*i))
		copy(b[1024+512*i:], s.data)
	}
	m := debianTree()
	m["boot/efi/EFI/Linux/debian.efi"] = file(string(b))
	bad := bytes.Clone(b)
	binary.LittleEndian.PutUint32(bad[0x98+40+20:], 1<<31)
	m["boot/efi/EFI/Linux/bad.efi"] = file(string(bad))
	rep := inspectFS(t, m)
	k := rep.Items.Kernels[len(rep.Items.Kernels)-1]
	if k != (Kernel{Path: "/boot/efi/EFI/Linux/debian.efi", Version: "6.9.1-uki", Architecture: "amd64", Initrd: "(unified)", Unified: true}) {
		t.Errorf("kernel = %+v", k)
	}
	if !hasProblem(rep, "bad.efi", "section .uname") {
		t.Errorf("problems = %+v", rep.Problems)
	}
}

func TestLines(t *testing.T) {
	long := strings.Repeat("x", maxLine+100)
	var got []string
	cuts := 0
	err := lines(strings.NewReader("a\n\n"+long+"\n"+strings.Repeat("y", 200_000)+"\nend"), 1<<30, func(b []byte, cut bool) error {
		got = append(got, string(b[:min(len(b), 1)])+string(rune('0'+min(9, len(b)))))
		if cut {
			cuts++
		}
		return nil
	})
	if err != nil || strings.Join(got, " ") != "a1 0 x9 y9 e3" || cuts != 1 {
		t.Errorf("lines = %q, %d cut, %v", got, cuts, err)
	}
	if err := lines(strings.NewReader("123456"), 5, func([]byte, bool) error { return nil }); !errors.Is(err, formats.ErrLimit) {
		t.Errorf("over the limit: %v", err)
	}
	if err := lines(io.MultiReader(strings.NewReader("12345")), 5, func([]byte, bool) error { return nil }); err != nil {
		t.Errorf("at the limit: %v", err)
	}
}

// endless repeats a text, and counts what was read.
type endless struct {
	text string
	n    int64
}

func (e *endless) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		n += copy(p[n:], e.text[int((e.n+int64(n))%int64(len(e.text))):])
	}
	e.n += int64(n)
	return n, nil
}

func (e *endless) Stat() (fs.FileInfo, error) { return nil, fs.ErrInvalid }
func (e *endless) Close() error               { return nil }

type endlessFS struct {
	fstest.MapFS
	text string
}

func (e endlessFS) Open(name string) (fs.File, error) {
	if name == "var/lib/dpkg/status" {
		return &endless{text: strings.Repeat(e.text, 1+(64<<10)/len(e.text))}, nil
	}
	return e.MapFS.Open(name)
}

// A database without end stops at a limit, and costs what the limit allows.
func TestEndlessStatus(t *testing.T) {
	for name, c := range map[string]struct {
		text, problem string
	}{
		"one line":        {"Package: x", "more than 67108864 bytes"},
		"small packages":  {"Package: x\nVersion: 1\n\n", "more than 60000 packages"},
		"large packages":  {"Package: x\nVersion: " + strings.Repeat("1", 4000) + "\n\n", "bytes of package records"},
		"bad paragraphs":  {"Version: 1\n\n", "200 bad paragraphs"},
		"nothing at all":  {"\n", "more than 4194304 lines"},
		"one large field": {" x\n", "more than 4194304 lines"},
	} {
		var m0, m1 runtime.MemStats
		runtime.ReadMemStats(&m0)
		start := time.Now()
		rep, err := FS(context.Background(), endlessFS{debianTree(), c.text}, nil)
		if err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&m1)
		if !hasProblem(rep, "/var/lib/dpkg/status", c.problem) || rep.Items.PackageManagers[0].State != "damaged" || rep.Items.OS == nil {
			t.Errorf("%s: %d problems, %+v", name, len(rep.Problems), rep.Problems[max(0, len(rep.Problems)-2):])
		}
		t.Logf("%s: %v, %d MiB", name, time.Since(start), (m1.TotalAlloc-m0.TotalAlloc)>>20)
		if n := m1.TotalAlloc - m0.TotalAlloc; n > 120<<20 { // garbage included
			t.Errorf("%s: %d MiB allocated", name, n>>20)
		}
	}
}

func TestManyProblems(t *testing.T) {
	m := debianTree()
	for i := range 1500 {
		m[fmt.Sprintf("boot/vmlinuz-%04d", i)] = link(fmt.Sprintf("vmlinuz-%04d", i))
	}
	rep := inspectFS(t, m)
	if n := len(rep.Problems); n != maxProblems+1 || rep.Problems[n-1] != (Problem{"report", "500 more problems"}) {
		t.Errorf("%d problems, the last %+v", n, rep.Problems[n-1])
	}
}

func TestTextIsSafe(t *testing.T) {
	m := debianTree()
	m["etc/hostname"] = file("evil\x1b[2Jname\u202e\xff")
	m["var/lib/dpkg/status"] = file("Package: p\x1b]0;x\x07\nVersion: 1\x9b\nStatus: install ok installed\n")
	var b bytes.Buffer
	if err := inspectFS(t, m).WriteText(&b); err != nil {
		t.Fatal(err)
	}
	if i := bytes.IndexFunc(b.Bytes(), func(r rune) bool { return r != '\n' && unsafeRune(r) }); i >= 0 {
		t.Errorf("unsafe at %d: %q", i, b.Bytes()[max(0, i-20):i+10])
	}
	if !strings.Contains(b.String(), `evil\x1b[2Jname\u202e`) {
		t.Errorf("text = %s", b.String())
	}
}

type failWriter struct{ left int }

func (w *failWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errMedium
	}
	return len(p), nil
}

func TestTextWriteFails(t *testing.T) {
	if err := inspectFS(t, debianTree()).WriteText(&failWriter{100}); !errors.Is(err, errMedium) {
		t.Errorf("WriteText = %v", err)
	}
}

func FuzzDpkgStatus(f *testing.F) {
	f.Add([]byte(dpkgStatus))
	f.Add([]byte("Package: a\nStatus: a b\n\n\n \nx"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		err := parseDpkgStatus(bytes.NewReader(b), func(p Package, err error) error {
			if n++; (err == nil) == (p.Name == "") {
				t.Fatalf("package %+v, %v", p, err)
			}
			for _, s := range []string{p.Name, p.Version, p.Source, p.SourceVersion, p.Maintainer} {
				if len(s) > 3*maxValue+3 || strings.Contains(s, "\n") {
					t.Fatalf("value of %d bytes", len(s))
				}
			}
			return nil
		})
		if err != nil || n > len(b) {
			t.Fatalf("%d packages, %v", n, err)
		}
	})
}

func FuzzOSRelease(f *testing.F) {
	f.Add([]byte("ID=debian\nNAME=\"x \\\" y\"\nVERSION='1'\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		o := parseOSRelease(b)
		for _, s := range []string{o.ID, o.Name, o.Pretty, o.Version} {
			if len(s) > len(b)*3 || strings.Contains(s, "\n") {
				t.Fatalf("value %q", s)
			}
		}
	})
}

func FuzzFstab(f *testing.F) {
	f.Add([]byte("UUID=1 / ext4 defaults 0 1\nLABEL=a\\040b /x\\011y none\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := parseFstab(b)
		if err != nil && !errors.Is(err, formats.ErrLimit) || len(entries) > maxFstab {
			t.Fatalf("%d entries, %v", len(entries), err)
		}
		for _, e := range entries {
			if e.mountsVolume() && !fs.ValidPath(GuestPath(e.Dir)) {
				t.Fatalf("mount at %q", e.Dir)
			}
		}
	})
}
