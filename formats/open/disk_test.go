package open

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"imgmaint/formats"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

func TestSniff(t *testing.T) {
	dir := t.TempDir()
	want := testimg.Disk(1<<20, 8)
	rawPath := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(rawPath, want, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		format string
		args   []string
	}{
		{"raw", []string{"-O", "raw"}},
		{"qcow2", []string{"-O", "qcow2"}},
		{"qcow2", []string{"-O", "qcow2", "-o", "compat=0.10,cluster_size=512"}},
		{"vhd", []string{"-O", "vpc", "-o", "force_size=on"}},
		{"vhd", []string{"-O", "vpc", "-o", "force_size=on,subformat=fixed"}},
		{"vmdk", []string{"-O", "vmdk"}},
		{"vmdk", []string{"-O", "vmdk", "-o", "subformat=streamOptimized"}},
	} {
		path := filepath.Join(dir, "image")
		testimg.Run(t, "qemu-img", append(append([]string{"convert", "-f", "raw"}, tt.args...), rawPath, path)...)
		for _, declared := range []string{"", tt.format} {
			img, err := Disk(path, &DiskOptions{Format: declared})
			if err != nil {
				t.Errorf("%v, declared %q: %v", tt.args, declared, err)
				continue
			}
			if img.Format != tt.format {
				t.Errorf("%v: format %s, want %s", tt.args, img.Format, tt.format)
			}
			if err := formatstest.TestImage(img, want); err != nil {
				t.Errorf("%v: %v", tt.args, err)
			}
			if err := img.Close(); err != nil {
				t.Error(err)
			}
		}
		info, err := Describe(path, "")
		if err != nil || info.Format != tt.format || info.VirtualSize != int64(len(want)) {
			t.Errorf("%v: Describe = %+v, %v", tt.args, info, err)
		}
	}
}

// evilHeader is a qcow2 file of 1 MiB whose backing file is a file of the host.
func evilHeader(t *testing.T, dir, backing string) []byte {
	t.Helper()
	path := filepath.Join(dir, "evil.qcow2")
	testimg.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", "raw", path, "1M")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A raw disk whose guest wrote the header of a container, in the ways that
// have led others to read files of the host.
func TestFormatConfusion(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("secret of the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	disk := make([]byte, 2<<20)
	copy(disk, evilHeader(t, dir, secret))

	boot := bytes.Clone(disk)
	boot[510], boot[511] = 0x55, 0xaa
	iso := bytes.Clone(disk)
	copy(iso[0x8001:], "CD001")
	vhdPath := filepath.Join(dir, "fixed.vhd")
	rawPath := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(rawPath, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	testimg.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size=on", rawPath, vhdPath)
	fixed, err := os.ReadFile(vhdPath)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		content  []byte
		declared string // the truth
		words    []string
	}{
		"boot sector":                 {boot, "raw", []string{"qcow2", "raw"}},
		"ISO 9660":                    {iso, "raw", []string{"qcow2", "raw"}},
		"fixed VHD with qcow2 inside": {fixed, "vhd", []string{"qcow2", "vhd"}},
	} {
		path := filepath.Join(dir, "image")
		if err := os.WriteFile(path, tt.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if img, err := Disk(path, &DiskOptions{BackingDir: dir}); !errors.Is(err, formats.ErrUnknown) {
			t.Errorf("%s: undeclared: Disk = %v, %v, want ErrUnknown", name, img, err)
		} else {
			for _, w := range tt.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%s: %q does not name %s", name, err, w)
				}
			}
		}
		img, err := Disk(path, &DiskOptions{Format: tt.declared, BackingDir: dir})
		if err != nil {
			t.Errorf("%s: declared %s: %v", name, tt.declared, err)
			continue
		}
		if err := formatstest.TestImage(img, tt.content[:len(disk)]); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(img.Files()) != 1 {
			t.Errorf("%s: %d files were opened", name, len(img.Files()))
		}
		img.Close()
	}
}

// Names in images are never followed out of the backing folder, and not at
// all without one.
func TestReferences(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "in")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	content := testimg.Disk(1<<20, 21)
	for _, p := range []string{"out.raw", "in/base.raw", "in/sub/deep.raw"} {
		if err := os.WriteFile(filepath.Join(base, p), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		os.Symlink("../out.raw", filepath.Join(dir, "escape.raw")),
		os.Symlink("base.raw", filepath.Join(dir, "inner.raw")),
		os.Symlink("/etc", filepath.Join(dir, "etc")),
		syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		ok   bool
	}{
		{"base.raw", true},
		{"sub/deep.raw", true},
		{"./base.raw", true},
		{"inner.raw", true},
		{filepath.Join(dir, "base.raw"), true}, // absolute, and in the folder
		{"escape.raw", false},
		{"../out.raw", false},
		{"sub/../base.raw", false},
		{filepath.Join(base, "out.raw"), false},
		{"/etc/passwd", false},
		{"etc/passwd", false},
		{"/dev/null", false},
		{"fifo", false},
		{"sub", false},
		{"json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}", false},
		{"nbd://localhost/x", false},
		{"file:base.raw", false},
		{"missing.raw", false},
	} {
		path := filepath.Join(dir, "overlay.qcow2")
		if err := os.WriteFile(path, overlay(tt.name, "raw", 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if img, err := Disk(path, nil); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%q without a folder: Disk = %v, %v, want ErrUnsupported", tt.name, img, err)
		}
		info, err := Describe(path, "")
		if err != nil || len(info.References) != 1 || info.References[0].Name != tt.name {
			t.Errorf("Describe of %q = %+v, %v", tt.name, info.References, err)
		}
		img, err := Disk(path, &DiskOptions{BackingDir: dir})
		if (err == nil) != tt.ok {
			t.Errorf("%q: Disk = %v, %v, want success: %v", tt.name, img, err, tt.ok)
		}
		if err != nil {
			continue
		}
		if err := formatstest.TestImage(img, content); err != nil {
			t.Errorf("%q: %v", tt.name, err)
		}
		img.Close()
	}
}

// overlay is the smallest qcow2 file with a backing file: a header, its
// format extension, the name, and an empty L1 table (QEMU's qcow2
// specification, sections Header and Header extensions).
func overlay(name, format string, size uint64) []byte {
	b := make([]byte, 4*65536)
	be := binary.BigEndian
	copy(b, "QFI\xfb")
	be.PutUint32(b[4:], 3)
	be.PutUint64(b[8:], 512) // backing_file_offset
	be.PutUint32(b[16:], uint32(len(name)))
	be.PutUint32(b[20:], 16)
	be.PutUint64(b[24:], size)
	be.PutUint32(b[36:], 1)       // l1_size
	be.PutUint64(b[40:], 3*65536) // l1_table_offset
	be.PutUint64(b[48:], 1*65536) // refcount_table_offset
	be.PutUint32(b[56:], 1)       // refcount_table_clusters
	be.PutUint32(b[96:], 4)       // refcount_order
	be.PutUint32(b[100:], 104)    // header_length
	be.PutUint32(b[104:], 0xe2792aca)
	be.PutUint32(b[108:], uint32(len(format)))
	copy(b[112:], format)
	copy(b[512:], name)
	be.PutUint64(b[65536:], 2*65536)
	for i := range 4 {
		be.PutUint16(b[2*65536+2*i:], 1)
	}
	return b
}

func TestChainLoops(t *testing.T) {
	dir := t.TempDir()
	write := func(name, backing string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, overlay(backing, "qcow2", 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	self := write("self.qcow2", "self.qcow2")
	write("b.qcow2", "a.qcow2")
	a := write("a.qcow2", "b.qcow2")
	for _, path := range []string{self, a} {
		if img, err := Disk(path, &DiskOptions{BackingDir: dir}); !errors.Is(err, formats.ErrCorrupt) {
			t.Errorf("%s: Disk = %v, %v, want ErrCorrupt", filepath.Base(path), img, err)
		}
	}
	for i := range maxChain + 1 {
		write(chainName(i), chainName(i+1))
	}
	if img, err := Disk(filepath.Join(dir, chainName(0)), &DiskOptions{BackingDir: dir}); !errors.Is(err, formats.ErrLimit) {
		t.Errorf("a chain of %d: Disk = %v, %v, want ErrLimit", maxChain+2, img, err)
	}
}

func chainName(i int) string { return "c" + strings.Repeat("x", i) + ".qcow2" }

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, fifo, "/dev/null", filepath.Join(dir, "missing")} {
		img, err := Disk(path, nil)
		var pe *fs.PathError
		if !errors.As(err, &pe) {
			t.Errorf("Disk(%q) = %v, %v, want a *fs.PathError", path, img, err)
		}
	}
	if _, err := Disk(testimg.WriteFile(t, "x", make([]byte, 4096)), &DiskOptions{Format: "nonsense"}); !errors.Is(err, formats.ErrUnknown) {
		t.Errorf("unknown declared format: %v", err)
	}
}

// A file that can't be read where formats are recognised is not taken for raw.
func TestProbeReadError(t *testing.T) {
	b := make([]byte, 1<<20)
	for _, bad := range []int64{0, 40_000, 1<<20 - 512} {
		_, _, err := Reader(testimg.FaultyReader{R: bytes.NewReader(b), Bad: bad}, int64(len(b)), "")
		if !errors.Is(err, testimg.ErrInjected) {
			t.Errorf("bad byte %d: Reader = %v, want the reader's error", bad, err)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		o  CreateOptions
		ok bool
	}{
		{CreateOptions{Format: "raw"}, true},
		{CreateOptions{Format: "vpc", Subformat: "fixed"}, true},
		{CreateOptions{Format: "vhd", Azure: true}, true},
		{CreateOptions{Format: "vhd", Azure: true, Subformat: "dynamic"}, false},
		{CreateOptions{Format: "qcow2", Compression: "zstd", Level: 19, ClusterSize: 2 << 20}, true},
		{CreateOptions{Format: "qcow2", Compression: "zlib", Level: 10}, false},
		{CreateOptions{Format: "qcow2", Level: 3}, false},
		{CreateOptions{Format: "qcow2", Compression: "lzo"}, false},
		{CreateOptions{Format: "qcow2", Compression: "zstd", Compat: "0.10"}, false},
		{CreateOptions{Format: "qcow2", Compat: "2"}, false},
		{CreateOptions{Format: "qcow2", ClusterSize: 3 << 10}, false},
		{CreateOptions{Format: "qcow2", ClusterSize: 4 << 20}, false},
		{CreateOptions{Format: "raw", ClusterSize: 4 << 10}, false},
		{CreateOptions{Format: "raw", Compression: "zlib"}, false},
		{CreateOptions{Format: ""}, false},
		{CreateOptions{Format: "floppy"}, false},
	} {
		err := tt.o.Validate()
		if (err == nil) != tt.ok {
			t.Errorf("%+v: Validate = %v, want ok: %v", tt.o, err, tt.ok)
		}
		if w, cerr := Create(discard{}, 1<<20, &tt.o); (cerr == nil) != tt.ok {
			t.Errorf("%+v: Create = %v, %v, want ok: %v", tt.o, w, cerr, tt.ok)
		}
	}
}

type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

var _ io.WriterAt = discard{}
