package main

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"

	"imgmaint/inspect"
	"imgmaint/internal/testimg"
	"imgmaint/internal/testimg/debian"
)

// A real Debian system gives the same report in every container, whoever
// wrote it, and its packages are those dpkg-query lists.
func TestDebianInEveryFormat(t *testing.T) {
	if testing.Short() {
		t.Skip("makes a Debian system: not with -short")
	}
	sys := debian.Build(t)
	bin := program(t)
	dir := t.TempDir()
	images := map[string]string{"raw": sys.Disk}
	for name, args := range map[string][]string{
		"qemu qcow2":      {"-O", "qcow2"},
		"qemu qcow2 zstd": {"-O", "qcow2", "-c", "-o", "compression_type=zstd"},
		"qemu vhd":        {"-O", "vpc", "-o", "force_size=on"},
		"qemu vmdk":       {"-O", "vmdk", "-o", "subformat=streamOptimized"},
	} {
		images[name] = filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		testimg.Run(t, "qemu-img", append(append([]string{"convert", "-f", "raw"}, args...), sys.Disk, images[name])...)
	}
	for name, args := range map[string][]string{
		"our qcow2": {"--to", "qcow2"},
		"our zlib":  {"--to", "qcow2", "--compress"},
		"our vhd":   {"--to", "vhd"},
		"our vmdk":  {"--to", "vmdk"},
	} {
		images[name] = filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		run := exec.Command(bin, append([]string{"convert", sys.Disk, images[name]}, args...)...)
		if out, err := run.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	want := dpkgQuery(t, filepath.Join(sys.Tree, "var/lib/dpkg"))
	var first []byte
	for name, path := range images {
		cmd := exec.Command(bin, "inspect", "--json", path)
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
			continue
		}
		if rss := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10; rss > 64<<20 {
			t.Errorf("%s: inspect has %d MiB resident, at most 64", name, rss>>20)
		}
		var report inspect.Report
		if err := json.Unmarshal(out, &report); err != nil {
			t.Fatal(err)
		}
		if got := packageList(report.Items.Packages); got != want {
			t.Errorf("%s: packages differ from dpkg-query's:\n%s\nwant:\n%s", name, got, want)
		}
		report.Container = nil // differs by nature
		rest, err := json.Marshal(report)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = rest
		} else if !bytes.Equal(first, rest) {
			t.Errorf("%s: the report differs from the others'", name)
		}
	}
}

// dpkgQuery lists the packages of a database, one a line, sorted.
func dpkgQuery(t *testing.T, admindir string) string {
	out := testimg.Run(t, "dpkg-query", "--admindir="+admindir, "-W", "-f",
		`${Package} ${Version} ${Architecture} ${source:Package} ${source:Version} ${db:Status-Want} ${db:Status-Status}\n`)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func packageList(all []inspect.Package) string {
	var lines []string
	for _, p := range all {
		lines = append(lines, strings.Join([]string{p.Name, p.Version, p.Architecture, p.Source, p.SourceVersion, p.Want, p.State}, " "))
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}
