package open

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imgmaint/formats"
	"imgmaint/formats/appliance/ovf"
	"imgmaint/formats/appliance/xvm"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

// packed is a disk for a test package.
type packed struct {
	formats.PackageDisk
	stored []byte
}

// ovfPackage is a package of disks, as an OVA, or in a folder.
func ovfPackage(t *testing.T, folder bool, disks ...packed) string {
	t.Helper()
	d := &formats.Descriptor{Format: "ovf", Name: "pkg", Machines: []formats.Machine{{ID: "vm", Name: "vm", CPUs: 1, Memory: 1 << 30}}}
	for _, k := range disks {
		d.Disks = append(d.Disks, k.PackageDisk)
		size := int64(len(k.stored))
		for i := int64(0); k.ChunkSize > 0 && i*k.ChunkSize < size; i++ {
			d.Members = append(d.Members, formats.Member{Name: ovf.ChunkName(k.Member, int(i)), Size: min(k.ChunkSize, size-i*k.ChunkSize), Off: -1})
		}
		if k.ChunkSize == 0 {
			d.Members = append(d.Members, formats.Member{Name: k.Member, Size: size, Off: -1})
		}
	}
	text, err := ovf.New(d, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "pkg.ova")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := ovf.NewWriter(f, "pkg.ovf", nil)
	if folder {
		path = filepath.Join(dir, "pkg.ovf")
		w, err = ovf.NewFolderWriter(func(name string) (io.WriteCloser, error) { return os.Create(filepath.Join(dir, name)) }, "pkg.ovf", nil)
	}
	if err == nil {
		err = w.WriteDescriptor(text)
	}
	for _, k := range disks {
		if err == nil {
			err = w.WriteFile(k.Member, bytes.NewReader(k.stored), int64(len(k.stored)), k.ChunkSize)
		}
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func gz(t *testing.T, b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// stored converts a disk with qemu-img.
func stored(t *testing.T, disk []byte, args ...string) []byte {
	t.Helper()
	src := testimg.WriteFile(t, "a.raw", disk)
	testimg.Run(t, "qemu-img", append(append([]string{"convert", "-f", "raw"}, args...), src, src+".out")...)
	b, err := os.ReadFile(src + ".out")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func testPackage(t *testing.T, folder bool) (path string, one, two []byte) {
	one, two = testimg.Disk(3<<20, 1), testimg.Disk(2<<20, 2)
	return ovfPackage(t, folder,
		packed{formats.PackageDisk{ID: "vmdisk1", Member: "one.vmdk", Format: "vmdk", Size: int64(len(one))},
			stored(t, one, "-O", "vmdk", "-o", "subformat=streamOptimized")},
		packed{formats.PackageDisk{ID: "vmdisk2", Member: "two.qcow2.gz", Format: "qcow2", Compression: "gzip", ChunkSize: 100_000, Size: int64(len(two))},
			gz(t, stored(t, two, "-O", "qcow2"))},
	), one, two
}

// A disk of a package is the disk, by every name it has, in an archive and in
// a folder.
func TestPackageDisk(t *testing.T) {
	for _, folder := range []bool{false, true} {
		path, one, two := testPackage(t, folder)
		for _, tt := range []struct {
			sel, format string
			want        []byte
		}{
			{"vmdisk1", "vmdk", one}, {"one.vmdk", "vmdk", one}, {"1", "vmdk", one},
			{"vmdisk2", "qcow2", two}, {"two.qcow2.gz", "qcow2", two}, {"2", "qcow2", two},
		} {
			img, err := Disk(path+"#"+tt.sel, nil)
			if err != nil {
				t.Errorf("folder %v: Disk(#%s) = %v", folder, tt.sel, err)
				continue
			}
			if img.Format != tt.format {
				t.Errorf("#%s: format %s, want %s", tt.sel, img.Format, tt.format)
			}
			if err := formatstest.TestImage(img, tt.want); err != nil {
				t.Errorf("folder %v #%s: %v", folder, tt.sel, err)
			}
			for _, f := range img.Files() {
				if _, err := f.Stat(); err != nil {
					t.Errorf("#%s: %s is listed and not open: %v", tt.sel, f.Name(), err)
				}
			}
			if want := 1; folder && len(img.Files()) <= want || !folder && len(img.Files()) != want {
				t.Errorf("folder %v #%s: %d files", folder, tt.sel, len(img.Files()))
			}
			if err := img.Close(); err != nil {
				t.Error(err)
			}
			info, err := Describe(path+"#"+tt.sel, "")
			if err != nil || info.Format != tt.format || info.VirtualSize != int64(len(tt.want)) {
				t.Errorf("Describe(#%s) = %+v, %v", tt.sel, info, err)
			}
		}
		for sel, text := range map[string]string{"": "vmdisk1 (one.vmdk)", "3": "no disk", "vmdisk": "no disk", "../one.vmdk": "no disk"} {
			_, err := Disk(path+"#"+sel, nil)
			if !errors.Is(err, formats.ErrUnknown) || !strings.Contains(err.Error(), text) {
				t.Errorf("Disk(#%s) = %v, want ErrUnknown with %q", sel, err, text)
			}
		}
		if _, err := Disk(path, nil); !errors.Is(err, formats.ErrUnknown) || !strings.Contains(err.Error(), "#vmdisk2") {
			t.Errorf("Disk of a package of two disks = %v, want the choices", err)
		}
		if img, err := Disk(path, &DiskOptions{Format: "raw"}); err != nil || img.Format != "raw" {
			t.Errorf("Disk with a declared format = %v, %v, want the file itself", img, err)
		} else {
			img.Close()
		}
	}
}

func TestPackageOfXVM(t *testing.T) {
	disk := testimg.Disk(1<<20, 3)
	path := filepath.Join(t.TempDir(), "pkg")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	raw := testimg.WriteFile(t, "a.raw", disk)
	src, err := Disk(raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	w, err := xvm.NewWriter(f, &xvm.Document{Name: "pkg", Disks: []formats.PackageDisk{
		{ID: "root", Member: "root.img.gz", Format: "raw", Compression: "gzip", Size: int64(len(disk)), Role: "disk", Device: "xvda"},
	}, Machines: []formats.Machine{{ID: "vm", CPUs: 1, Memory: 1 << 30, Disks: []string{"root"}}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.WriteDisk("root", src), w.Close()); err != nil {
		t.Fatal(err)
	}
	for _, arg := range []string{path, path + "#root", path + "#1"} {
		img, err := Disk(arg, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := formatstest.TestImage(img, disk); err != nil {
			t.Errorf("%s: %v", arg, err)
		}
		img.Close()
	}
	p, err := Package(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	v, err := p.Verify(nil)
	if err != nil || v.Format != "xvm" || v.Verdict != Intact || !v.DescriptorBound || len(v.Signatures) != 0 {
		t.Errorf("Verify = %+v, %v, want intact", v, err)
	}
}

func TestPackageVerify(t *testing.T) {
	for _, folder := range []bool{false, true} {
		path, _, _ := testPackage(t, folder)
		p, err := Package(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		v, err := p.Verify(nil)
		if err != nil || v.Verdict != Intact || !v.DescriptorBound {
			t.Errorf("Verify = %+v, %v, want intact", v, err)
		}
		if img, _, err := p.Disk("1"); err != nil || img.Size() != 3<<20 {
			t.Errorf("Disk after Verify = %v, %v", img, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestSplit(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.ova", "b#c.ova"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		arg, path, disk string
		ok              bool
	}{
		{"a.ova", "a.ova", "", false},
		{"a.ova#", "a.ova", "", true},
		{"a.ova#x#y", "a.ova", "x#y", true},
		{"b#c.ova", "b#c.ova", "", false}, // a file with that name is the file
		{"b#c.ova#1", "b#c.ova", "1", true},
		{"none#1", "none#1", "", false},
		{"#1", "#1", "", false},
	} {
		path, disk, ok := Split(filepath.Join(dir, tt.arg))
		if path != filepath.Join(dir, tt.path) || disk != tt.disk || ok != tt.ok {
			t.Errorf("Split(%s) = %s, %s, %v", tt.arg, path, disk, ok)
		}
	}
}

// Hostile packages: the class of the error, and that a folder is not left.
func TestPackageHostile(t *testing.T) {
	tarOf := func(names ...string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, n := range names {
			if err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o644, Size: 1}); err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(w, "x")
		}
		w.Close()
		return b.Bytes()
	}
	for _, tt := range []struct {
		name  string
		data  []byte
		class error
	}{
		{"dotdot first", tarOf("../evil", "a.ovf"), formats.ErrCorrupt},
		{"dotdot later", tarOf("a.ovf", "../evil"), formats.ErrCorrupt},
		{"absolute", tarOf("a.ovf", "/etc/evil"), formats.ErrCorrupt},
		{"twice", tarOf("a.ovf", "b", "b"), formats.ErrCorrupt},
		{"no descriptor", tarOf("a", "b"), formats.ErrUnknown},
		{"cut", tarOf("a.ovf", "b")[:1536], formats.ErrCorrupt},
		{"cut xvm", tarOf("xvm.xml", "b")[:1536], formats.ErrCorrupt},
	} {
		path := testimg.WriteFile(t, "p", tt.data)
		if p, err := Package(path, nil); !errors.Is(err, tt.class) || p != nil {
			t.Errorf("%s: Package = %v, want %v", tt.name, err, tt.class)
		}
		for _, arg := range []string{path, path + "#1"} {
			if img, err := Disk(arg, nil); !errors.Is(err, tt.class) || img != nil {
				t.Errorf("%s: Disk = %v, want %v", tt.name, err, tt.class)
			}
		}
	}

	// A raw file with "#1" behind it has no disks to choose from.
	path := testimg.WriteFile(t, "a.raw", testimg.Disk(1<<20, 4))
	if _, err := Disk(path+"#1", nil); !errors.Is(err, formats.ErrUnknown) {
		t.Errorf("Disk of no package = %v, want ErrUnknown", err)
	}

	// A member that is a link out of the folder is not followed.
	disk := testimg.Disk(1<<20, 5)
	inside := stored(t, disk, "-O", "qcow2")
	path = ovfPackage(t, true, packed{formats.PackageDisk{ID: "d", Member: "d.qcow2", Format: "qcow2", Size: 1 << 20}, inside})
	member := filepath.Join(filepath.Dir(path), "d.qcow2")
	outside := testimg.WriteFile(t, "secret", inside)
	if err := errors.Join(os.Remove(member), os.Symlink(outside, member)); err != nil {
		t.Fatal(err)
	}
	if img, err := Disk(path, nil); err == nil {
		img.Close()
		t.Error("a link out of the folder was followed")
	}

	// A disk inside of a package refers to nothing outside, whatever is asked.
	backing := testimg.WriteFile(t, "base.raw", disk)
	dir := filepath.Dir(backing)
	testimg.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", backing, filepath.Join(dir, "over.qcow2"))
	over, err := os.ReadFile(filepath.Join(dir, "over.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	path = ovfPackage(t, false, packed{formats.PackageDisk{ID: "d", Member: "d.qcow2", Format: "qcow2", Size: 1 << 20}, over})
	if img, err := Disk(path, &DiskOptions{BackingDir: dir}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a backing file of a disk in a package = %v, %v, want ErrUnsupported", img, err)
	}

	// A bomb ends at its limit.
	bomb := gz(t, make([]byte, 160<<20))
	path = ovfPackage(t, false, packed{formats.PackageDisk{ID: "d", Member: "d.gz", Format: "qcow2", Compression: "gzip", Size: 1 << 20}, bomb})
	if _, err := Disk(path, nil); !errors.Is(err, formats.ErrLimit) {
		t.Errorf("a gzip bomb = %v, want ErrLimit", err)
	}
}
