package inspect

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"imgmaint/formats"
	"imgmaint/formats/open"
	"imgmaint/internal/testimg"
	"imgmaint/internal/testimg/debian"
)

func openDisk(t testing.TB, path string) formats.Image {
	t.Helper()
	img, err := open.Disk(path, &open.DiskOptions{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

// The inventory of a real Debian system is what dpkg says.
func TestDebianInventory(t *testing.T) {
	sys := debian.Build(t)
	var want []string
	for line := range strings.Lines(testimg.Run(t, "dpkg-query", "--admindir="+filepath.Join(sys.Tree, "var/lib/dpkg"), "-W", "-f",
		"${Package}\t${Version}\t${Architecture}\t${source:Package}\t${source:Version}\t${Installed-Size}\t${Status}\t${Section}\t${Maintainer}\t${Essential}\n")) {
		want = append(want, strings.TrimSuffix(line, "\n"))
	}
	var first []byte
	for _, path := range []string{sys.Disk, sys.Root} {
		start := time.Now()
		rep := inspectDisk(t, openDisk(t, path))
		t.Logf("%s: %d packages in %v", filepath.Base(path), len(rep.Items.Packages), time.Since(start))
		var got []string
		for _, p := range rep.Items.Packages {
			e, flag := "no", p.Error
			if p.Essential {
				e = "yes"
			}
			if flag == "" {
				flag = "ok"
			}
			got = append(got, fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%d\t%s %s %s\t%s\t%s\t%s", p.Name, p.Version, p.Architecture, p.Source, p.SourceVersion,
				p.InstalledSize>>10, p.Want, flag, p.State, p.Section, p.Maintainer, e))
		}
		slices.Sort(got)
		slices.Sort(want)
		if len(want) < 100 || !slices.Equal(got, want) {
			t.Errorf("%s: %d packages, dpkg-query lists %d; first difference:\n%s", path, len(got), len(want), firstDiff(got, want))
		}
		if rep.State != Understood || rep.Items.OS == nil || rep.Items.OS.ID != "debian" || rep.Items.OS.Codename != sys.Suite || rep.Items.Hostname != sys.Hostname ||
			rep.Items.Architecture != strings.TrimSpace(testimg.Run(t, "dpkg", "--print-architecture")) || rep.Items.Init != "systemd" {
			t.Errorf("items = %+v", rep.Items)
		}
		if len(rep.Items.Kernels) != 1 || !rep.Items.Kernels[0].Modules || rep.Items.Kernels[0].Initrd == "" || !strings.HasPrefix(rep.Items.Kernels[0].Banner, rep.Items.Kernels[0].Version+" ") {
			t.Errorf("kernels = %+v", rep.Items.Kernels)
		}
		if path == sys.Disk && len(rep.Problems) != 0 {
			t.Errorf("problems = %+v", rep.Problems)
		}
		inv := asJSON(t, rep.Items.Packages)
		if first == nil {
			first = inv
		} else if !bytes.Equal(first, inv) {
			t.Error("the inventories of the disk and of the bare file system differ")
		}
	}
}

func firstDiff(a, b []string) string {
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || a[i] != b[i] {
			return strings.Join(append(slices.Clone(a[min(i, len(a)):min(i+1, len(a))]), b[min(i, len(b)):min(i+1, len(b))]...), "\n")
		}
	}
	return ""
}

// The report is quick and small; the tree is not walked.
func TestDebianCost(t *testing.T) {
	sys := debian.Build(t)
	img := openDisk(t, sys.Disk)
	best := time.Hour
	for range 5 {
		var m0, m1 runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m0)
		start := time.Now()
		rep, err := Disk(context.Background(), img, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := json.Marshal(rep); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(start))
		runtime.ReadMemStats(&m1)
		if n := m1.TotalAlloc - m0.TotalAlloc; n > 48<<20 {
			t.Errorf("%d MiB allocated", n>>20)
		}
	}
	t.Logf("best of 5: %v", best)
	if best > 300*time.Millisecond {
		t.Errorf("took %v, at most 0.3 s", best)
	}
}

// GNU tar unpacks what TarOut wrote to the tree the image was made of.
func TestDebianTarOut(t *testing.T) {
	sys := debian.Build(t)
	tree, problems, err := Tree(context.Background(), openDisk(t, sys.Root), 0)
	if err != nil || len(problems) != 1 { // the bare file system has no EFI partition
		t.Fatal(err, problems)
	}
	for _, path := range []string{"/etc", "/usr/bin", "/var/lib/dpkg", "/dev", "/boot"} {
		dir := t.TempDir()
		cmd := exec.Command(testimg.Tool(t, "tar"), "-C", dir, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", "-")
		pr, pw := io.Pipe()
		cmd.Stdin = pr
		go func() { pw.CloseWithError(TarOut(context.Background(), pw, tree, path, nil)) }()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: tar: %v\n%s", path, err, out)
		}
		src := filepath.Join(sys.Tree, path)
		want, got := listing(t, src), listing(t, dir)
		if got != want {
			a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
			t.Errorf("%s: the unpacked tree differs:\n%s", path, firstDiff(a, b))
		}
		if path != "/dev" { // of devices diff compares nothing
			testimg.Run(t, "diff", "-r", "--no-dereference", src, dir)
		}
	}
}

func TestDebianXattrs(t *testing.T) {
	sys := debian.Build(t)
	tree, _, err := Tree(context.Background(), openDisk(t, sys.Root), 0)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := tree.Lstat(strings.TrimPrefix(debian.CapabilityFile, "/"))
	if err != nil {
		t.Fatal(err)
	}
	attrs, err := statOf(fi).Xattrs()
	if err != nil || len(attrs) != 1 || attrs[0].Name != "security.capability" || len(attrs[0].Value) < 12 {
		t.Errorf("xattrs of %s = %v, %v", debian.CapabilityFile, attrs, err)
	}
}

func TestDebianList(t *testing.T) {
	sys := debian.Build(t)
	tree, _, err := Tree(context.Background(), openDisk(t, sys.Root), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "/etc", "/bin", "/usr/lib"} {
		var b bytes.Buffer
		if err := List(context.Background(), &b, tree, path, nil); err != nil {
			t.Error(err)
			continue
		}
		// /bin is a link, which the host must not follow out of the tree.
		host := filepath.Join(sys.Tree, path)
		if path == "/bin" {
			host = filepath.Join(sys.Tree, "usr/bin")
		}
		want := testimg.Run(t, "ls", "-1A", host)
		if path == "/" {
			want += "lost+found\n"
		}
		a, w := strings.Fields(b.String()), strings.Fields(want)
		slices.Sort(a)
		slices.Sort(w)
		if !slices.Equal(a, w) {
			t.Errorf("%s: %s", path, firstDiff(a, w))
		}
	}
	want, err := os.ReadFile(filepath.Join(sys.Tree, "usr/bin/bash"))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := Cat(context.Background(), &b, tree, "/bin/bash"); err != nil || !bytes.Equal(b.Bytes(), want) {
		t.Errorf("Cat: %d bytes, %v, want %d", b.Len(), err, len(want))
	}
	if err := Cat(context.Background(), io.Discard, tree, "/etc"); err == nil {
		t.Error("Cat of a folder")
	}
	if err := Cat(context.Background(), io.Discard, tree, "/none"); !os.IsNotExist(err) {
		t.Errorf("Cat of nothing: %v", err)
	}
}

// The container does not matter: each format gives the same inventory.
func TestDebianInventoryInEveryFormat(t *testing.T) {
	sys := debian.Build(t)
	var want []byte
	for _, c := range []struct {
		format string
		args   []string
	}{
		{"raw", nil}, {"qcow2", []string{"-O", "qcow2"}}, {"vhd", []string{"-O", "vpc", "-o", "force_size=on"}},
		{"vmdk", []string{"-O", "vmdk", "-o", "subformat=streamOptimized"}},
	} {
		if !slices.Contains(open.DiskFormats(), c.format) {
			t.Errorf("no reader for %s", c.format)
			continue
		}
		path := sys.Disk
		if c.args != nil {
			path = filepath.Join(t.TempDir(), "disk."+c.format)
			testimg.Run(t, "qemu-img", append(append([]string{"convert", "-f", "raw"}, c.args...), sys.Disk, path)...)
		}
		img, err := open.Disk(path, nil)
		if err != nil {
			t.Error(err)
			continue
		}
		start := time.Now()
		rep := inspectDisk(t, img)
		t.Logf("%s: %v", c.format, time.Since(start))
		got := asJSON(t, rep)
		if err := img.Close(); err != nil {
			t.Error(err)
		}
		if want == nil {
			want = got
		} else if !bytes.Equal(got, want) {
			t.Errorf("the report of %s differs from that of raw", c.format)
		}
		if path != sys.Disk {
			os.Remove(path)
		}
	}
}
