package mbr

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"imgmaint/formats"
	"imgmaint/internal/testimg"
)

func sfdiskImage(t testing.TB, size int64, script string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(p, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(p, size); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(testimg.Tool(t, "sfdisk"), "-q", p)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	return p
}

func read(t testing.TB, path string) (*formats.Table, error) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return Read(bytes.NewReader(b), int64(len(b)), nil)
}

type sfdiskJSON struct {
	PartitionTable struct {
		ID         string
		Partitions []struct {
			Node, Type  string
			Start, Size int64
			Bootable    bool
		}
	}
}

func TestAgainstSfdisk(t *testing.T) {
	var many strings.Builder
	many.WriteString("label: dos\nlabel-id: 0x00c0ffee\n2048,2048,83,*\n,,5\n")
	for i := range 20 {
		fmt.Fprintf(&many, "size=%d,type=%02x\n", 200+i, []int{0x82, 0x83, 0x8e}[i%3])
	}
	for name, script := range map[string]string{
		"one":               "label: dos\nstart=1,type=83\n",
		"four":              "label: dos\nlabel-id: 0xdeadbeef\n,1MiB,c,*\n,1MiB,7\n,1MiB,82\n,,83\n",
		"three":             "label: dos\nsize=1MiB,type=83\nsize=1MiB,type=1\n,2MiB,da\n",
		"extended":          "label: dos\nsize=1MiB,type=83\nsize=20MiB,type=f\n,2MiB,83\n,3MiB,82\nsize=4MiB,type=8e,bootable\n",
		"linux extended":    "label: dos\nsize=20MiB,type=85\n,1MiB,83\n,,83\nsize=1MiB,type=83\n",
		"empty extended":    "label: dos\n,5MiB,83\n,,5\n",
		"20 logical":        many.String(),
		"empty table":       "label: dos\nlabel-id: 0x12345678\n",
		"out of disk order": "label: dos\nstart=20480,size=2048,type=83\nstart=2048,size=2048,type=83\n",
	} {
		t.Run(name, func(t *testing.T) {
			p := sfdiskImage(t, 64<<20+512, script)
			tab, err := read(t, p)
			if err != nil {
				t.Fatal(err)
			}
			if tab.Problems != nil {
				t.Errorf("problems: %q", tab.Problems)
			}
			var want sfdiskJSON
			if err := json.Unmarshal([]byte(testimg.Run(t, "sfdisk", "--json", p)), &want); err != nil {
				t.Fatal(err)
			}
			if "0x"+tab.UUID != want.PartitionTable.ID || len(tab.Volumes) != len(want.PartitionTable.Partitions) {
				t.Fatalf("table = %+v, want %+v", tab, want)
			}
			for i, w := range want.PartitionTable.Partitions {
				v := tab.Volumes[i]
				typ, _ := strconv.ParseUint(w.Type, 16, 8)
				index, _ := strconv.Atoi(strings.TrimPrefix(w.Node, p))
				got := fmt.Sprintln(v.Index, v.Off/512, v.Len/512, v.Type, v.Bootable, v.UUID)
				if w := fmt.Sprintln(index, w.Start, w.Size, fmt.Sprintf("0x%02x", typ), w.Bootable,
					fmt.Sprintf("%s-%02x", want.PartitionTable.ID[2:], index)); got != w {
					t.Errorf("volume %s, sfdisk says %s", got, w)
				}
			}
		})
	}
}

func TestAgainstParted(t *testing.T) {
	p := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(p, make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	testimg.Run(t, "parted", "-s", p, "mklabel", "msdos", "mkpart", "primary", "1MiB", "5MiB", "mkpart", "extended", "6MiB", "60MiB",
		"mkpart", "logical", "7MiB", "17MiB", "mkpart", "logical", "20MiB", "40MiB", "set", "1", "boot", "on")
	tab, err := read(t, p)
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for _, line := range strings.Split(testimg.Run(t, "parted", "-m", "-s", p, "unit", "B", "print"), "\n")[2:] {
		if f := strings.Split(line, ":"); len(f) > 3 {
			rows = append(rows, strings.ReplaceAll(strings.Join(f[:4], " "), "B", ""))
		}
	}
	if len(rows) != len(tab.Volumes) {
		t.Fatalf("parted has %d, we %d", len(rows), len(tab.Volumes))
	}
	for i, v := range tab.Volumes {
		if got := fmt.Sprint(v.Index, v.Off, v.Off+v.Len-1, v.Len); got != rows[i] {
			t.Errorf("got %s, parted says %s", got, rows[i])
		}
	}
}

// The boot sectors and boot blocks of file systems are no partition tables.
func TestNotMBR(t *testing.T) {
	mk := func(size int64, name string, args ...string) []byte {
		p := filepath.Join(t.TempDir(), "fs.img")
		if err := os.WriteFile(p, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		testimg.Run(t, name, append(args, p)...)
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	ext := mk(1<<20, "mke2fs", "-q", "-F")
	ext[0], ext[510], ext[511] = 0xeb, 0x55, 0xaa // a loader in the boot block
	ntfs := make([]byte, 4096)
	copy(ntfs, "\xeb\x52\x90NTFS    ")
	ntfs[510], ntfs[511] = 0x55, 0xaa
	superfloppy := mk(2<<20, "mkfs.fat")
	copy(superfloppy[446:], "\x80\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00")
	protective := make([]byte, 4096)
	copy(protective[446:], "\x00\x00\x00\x00\xee\x00\x00\x00\x01\x00\x00\x00\x07\x00\x00\x00")
	protective[510], protective[511] = 0x55, 0xaa
	beyond := bytes.Clone(protective)
	beyond[450] = 0x83
	beyond[446+9] = 0x10 // starts at 4097
	for name, b := range map[string][]byte{
		"fat12": mk(1<<20, "mkfs.fat", "-F", "12"), "fat16": mk(16<<20, "mkfs.fat", "-F", "16"), "fat32": mk(40<<20, "mkfs.fat", "-F", "32"),
		"fat with an entry for the whole stick": superfloppy, "ext with a loader": ext, "ntfs": ntfs, "protective": protective,
		"partitions beyond the disk": beyond, "zeros": make([]byte, 1<<20), "nothing": nil, "text": bytes.Repeat([]byte("55aa"), 1000),
	} {
		if tab, err := Read(bytes.NewReader(b), int64(len(b)), nil); !errors.Is(err, formats.ErrUnknown) {
			t.Errorf("%s: %+v, %v, want ErrUnknown", name, tab, err)
		}
	}
}

func TestSampleVolume(t *testing.T) {
	raw := filepath.Join(t.TempDir(), "w.raw")
	testimg.Run(t, "qemu-img", "convert", "-O", "raw", testimg.Sample(t, "dfvfs-windows_volume.qcow2"), raw)
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	if tab, err := Read(bytes.NewReader(b), int64(len(b)), nil); err == nil {
		var want sfdiskJSON
		if err := json.Unmarshal([]byte(testimg.Run(t, "sfdisk", "--json", raw)), &want); err != nil {
			t.Fatal(err)
		}
		if len(want.PartitionTable.Partitions) != len(tab.Volumes) {
			t.Errorf("volumes = %+v, sfdisk says %+v", tab.Volumes, want)
		}
	} else if !errors.Is(err, formats.ErrUnknown) {
		t.Error(err)
	}
}

// disk builds a disk with one extended partition at sector 100 of n sectors.
func disk(sectors int, n uint32) []byte {
	b := make([]byte, sectors*512)
	entry(b, 0, 0, 0x0f, 100, n)
	return b
}

// entry writes entry i of the record at sector lba.
func entry(b []byte, lba, i int, typ byte, start, n uint32) {
	s := b[lba*512:][:512]
	e := s[446+16*i:]
	e[4] = typ
	binary.LittleEndian.PutUint32(e[8:], start)
	binary.LittleEndian.PutUint32(e[12:], n)
	s[510], s[511] = 0x55, 0xaa
}

func TestHostileChains(t *testing.T) {
	for _, c := range []struct {
		name    string
		build   func() []byte
		want    error
		problem string
	}{
		{"loop to itself", func() []byte { b := disk(1000, 800); entry(b, 100, 1, 5, 0, 10); return b }, formats.ErrCorrupt, ""},
		{"loop of three", func() []byte {
			b := disk(1000, 800)
			entry(b, 100, 1, 5, 10, 5)
			entry(b, 110, 1, 5, 20, 5)
			entry(b, 120, 1, 5, 10, 5)
			return b
		}, formats.ErrCorrupt, ""},
		{"link outside", func() []byte { b := disk(1000, 800); entry(b, 100, 1, 5, 800, 10); return b }, formats.ErrCorrupt, ""},
		{"link at 2^32-1", func() []byte { b := disk(1000, 800); entry(b, 100, 1, 5, 1<<32-1, 10); return b }, formats.ErrCorrupt, ""},
		{"chain of 300", func() []byte {
			b := disk(1000, 800)
			for i := range 300 {
				entry(b, 100+i, 0, 0x83, 1, 1)
				entry(b, 100+i, 1, 5, uint32(i+1), 1)
			}
			return b
		}, formats.ErrLimit, ""},
		{"no signature", func() []byte { return disk(1000, 800) }, nil, "extended boot record at sector 100: no signature"},
		{"record beyond the end", func() []byte {
			b := disk(1000, 1<<31)
			entry(b, 100, 1, 5, 5000, 10)
			return b
		}, nil, "extended boot record at sector 5100: beyond the end"},
		{"logical beyond the end", func() []byte { b := disk(1000, 800); entry(b, 100, 0, 0x83, 10, 1<<31); return b }, nil, "partition 5 leaves its extended partition"},
		{"logical overlaps primary", func() []byte {
			b := disk(1000, 800)
			entry(b, 0, 1, 0x83, 150, 100)
			entry(b, 100, 0, 0x83, 10, 100)
			return b
		}, nil, "partitions 5 and 2 overlap"},
		{"primaries overlap", func() []byte {
			b := disk(1000, 800)
			entry(b, 0, 1, 0x83, 10, 20)
			entry(b, 0, 2, 0x83, 20, 20)
			entry(b, 100, 0, 0, 0, 0)
			return b
		}, nil, "partitions 2 and 3 overlap"},
		{"start 0", func() []byte {
			b := disk(1000, 800)
			entry(b, 0, 1, 0x83, 0, 20)
			entry(b, 100, 0, 0, 0, 0)
			return b
		}, nil, "partition 2 starts at sector 0"},
		{"GPT not in force", func() []byte {
			b := disk(1000, 800)
			copy(b[512:], "EFI PART")
			entry(b, 100, 0, 0, 0, 0)
			return b
		}, nil, "the GPT is not in force"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := c.build()
			var m0, m1 runtime.MemStats
			runtime.ReadMemStats(&m0)
			tab, err := Read(bytes.NewReader(b), int64(len(b)), nil)
			runtime.ReadMemStats(&m1)
			if n := m1.TotalAlloc - m0.TotalAlloc; n > 1<<20 {
				t.Errorf("%d bytes allocated", n)
			}
			if c.want != nil {
				if tab != nil || !errors.Is(err, c.want) {
					t.Errorf("Read = %+v, %v, want %v", tab, err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(strings.Join(tab.Problems, "\n"), c.problem) {
				t.Errorf("problems = %q, want %q", tab.Problems, c.problem)
			}
			for _, v := range tab.Volumes {
				if v.Off <= 0 || v.Len <= 0 || v.Off+v.Len > int64(len(b)) {
					t.Errorf("volume outside of the disk: %+v", v)
				}
			}
		})
	}
}

func TestSectorSize(t *testing.T) {
	b := make([]byte, 100*4096)
	entry(b, 0, 0, 0x83, 10, 50)
	tab, err := Read(bytes.NewReader(b), int64(len(b)), &Options{SectorSize: 4096})
	if err != nil || tab.Volumes[0].Off != 40960 || tab.Volumes[0].Len != 50*4096 {
		t.Errorf("table = %+v, %v", tab, err)
	}
	if _, err := Read(bytes.NewReader(b), int64(len(b)), &Options{SectorSize: 1000}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("sector size 1000: %v", err)
	}
}

func TestReadErrors(t *testing.T) {
	b := disk(1000, 800)
	entry(b, 100, 0, 0x83, 1, 1)
	for _, bad := range []int64{0, 512, 100 * 512} {
		if _, err := Read(testimg.FaultyReader{R: bytes.NewReader(b), Bad: bad}, int64(len(b)), nil); !errors.Is(err, testimg.ErrInjected) {
			t.Errorf("fault at %d: %v", bad, err)
		}
	}
}

func FuzzMBR(f *testing.F) {
	b := disk(300, 150)
	entry(b, 100, 0, 0x83, 1, 1)
	entry(b, 100, 1, 5, 10, 1)
	entry(b, 110, 0, 0x83, 1, 1)
	f.Add(b)
	f.Add(b[:512])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		tab, err := Read(bytes.NewReader(b), int64(len(b)), nil)
		if (tab == nil) == (err == nil) {
			t.Fatalf("Read = %v, %v", tab, err)
		}
		if tab != nil {
			for _, v := range tab.Volumes {
				if v.Off <= 0 || v.Len <= 0 || v.Len > int64(len(b))-v.Off {
					t.Fatalf("volume %+v in a disk of %d", v, len(b))
				}
			}
		}
	})
}
