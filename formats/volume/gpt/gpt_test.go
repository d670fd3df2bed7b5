package gpt

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"imgmaint/formats"
	"imgmaint/internal/testimg"
)

// sgdiskImage makes a disk of size bytes and partitions it.
func sgdiskImage(t testing.TB, size int64, args ...string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(p, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(p, size); err != nil {
		t.Fatal(err)
	}
	testimg.Run(t, "sgdisk", append(args, p)...)
	return p
}

var debianLike = []string{
	"-n", "14:2048:+3M", "-t", "14:ef02", "-n", "15:0:+8M", "-t", "15:ef00", "-c", "15:ESP é",
	"-n", "1:0:0", "-t", "1:8304", "-c", "1:root", "-A", "1:set:2",
}

func open(t testing.TB, path string) (*formats.Table, error) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return Read(bytes.NewReader(b), int64(len(b)), nil)
}

func mustOpen(t testing.TB, path string) *formats.Table {
	t.Helper()
	tab, err := open(t, path)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// sgdiskSays compares tab with sgdisk -i for every partition.
func sgdiskSays(t *testing.T, tab *formats.Table, path string) {
	t.Helper()
	if g := testimg.Run(t, "sgdisk", "-p", path); !strings.Contains(strings.ToLower(g), tab.UUID) {
		t.Errorf("disk GUID %s not in:\n%s", tab.UUID, g)
	}
	rows := regexp.MustCompile(`(?m)^ +(\d+) +\d+ +\d+ `).FindAllStringSubmatch(testimg.Run(t, "sgdisk", "-p", path), -1)
	if len(rows) != len(tab.Volumes) {
		t.Errorf("sgdisk lists %d partitions, we %d", len(rows), len(tab.Volumes))
	}
	for _, v := range tab.Volumes {
		out := testimg.Run(t, "sgdisk", "-i", strconv.Itoa(v.Index), path)
		field := func(re string) string {
			m := regexp.MustCompile(re).FindStringSubmatch(out)
			if m == nil {
				return "?"
			}
			return m[1]
		}
		attr, _ := strconv.ParseUint(field(`Attribute flags: ([0-9A-F]+)`), 16, 64)
		got := fmt.Sprintln(v.Type, v.UUID, v.Off/tab.SectorSize, (v.Off+v.Len)/tab.SectorSize-1, v.Name, v.Bootable)
		want := fmt.Sprintln(strings.ToLower(field(`GUID code: (\S+)`)), strings.ToLower(field(`unique GUID: (\S+)`)),
			field(`First sector: (\d+)`), field(`Last sector: (\d+)`), field(`Partition name: '(.*)'`), attr&4 != 0)
		if got != want {
			t.Errorf("partition %d: %s, sgdisk says %s", v.Index, got, want)
		}
	}
}

func TestAgainstSgdisk(t *testing.T) {
	for name, args := range map[string][]string{
		"empty":     {"-o"},
		"debian":    debianLike,
		"256 slots": {"-a", "1", "-S", "256", "-n", "200:66:66", "-n", "7:100:+5"},
	} {
		t.Run(name, func(t *testing.T) {
			p := sgdiskImage(t, 64<<20+512*7, args...)
			tab := mustOpen(t, p)
			if tab.Scheme != "gpt" || tab.SectorSize != 512 || tab.Problems != nil {
				t.Errorf("table = %+v", tab)
			}
			sgdiskSays(t, tab, p)
		})
	}
}

// The tools partition a file in units of 512 only; a loop device, which needs
// root, has the other unit.
func TestAgainstSgdisk4096(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for a loop device of 4096-byte sectors")
	}
	p := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(p, make([]byte, 32<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := testimg.Try(t, "losetup", "-b", "4096", "-f", "--show", p)
	if err != nil {
		t.Skipf("no loop device here: %v", err)
	}
	dev := strings.TrimSpace(out)
	defer testimg.Run(t, "losetup", "-d", dev)
	testimg.Run(t, "sgdisk", "-n", "1:0:+8M", "-n", "2:0:0", "-c", "2:root", dev)
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tab, err := Read(f, 32<<20, nil)
	if err != nil || tab.SectorSize != 4096 || len(tab.Volumes) != 2 || tab.Problems != nil {
		t.Fatalf("table = %+v, %v", tab, err)
	}
	sgdiskSays(t, tab, dev)
}

func TestSectorSize4096(t *testing.T) {
	c := newCraft()
	c.sector, c.disk = 4096, make([]byte, 1024*4096)
	c.entries = [][2]uint64{{40, 299}, {300, 950}}
	b := c.build()
	for _, name := range []string{"sound", "primary lost"} {
		tab, err := Read(bytes.NewReader(b), int64(len(b)), nil)
		if err != nil || tab.SectorSize != 4096 || len(tab.Volumes) != 2 {
			t.Fatalf("%s: table = %+v, %v", name, tab, err)
		}
		if v := tab.Volumes[1]; v.Off != 300*4096 || v.Len != 651*4096 {
			t.Errorf("%s: volume = %+v", name, v)
		}
		clear(b[4096:8192])
	}
	if _, err := Read(bytes.NewReader(b), int64(len(b)), &Options{SectorSize: 512}); !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("declared as 512: %v, want ErrCorrupt", err)
	}
	if _, err := Read(bytes.NewReader(b), int64(len(b)), &Options{SectorSize: 700}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("sector size 700: %v", err)
	}
}

// The table must be the same from the backup when the primary is damaged by
// any means, and the damage must be reported.
func TestDamaged(t *testing.T) {
	p := sgdiskImage(t, 16<<20, "-n", "1:2048:4095", "-c", "1:one", "-n", "2:4096:0")
	good, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := json.Marshal(mustOpen(t, p).Volumes)
	end := len(good)
	fill := func(b []byte) {
		for i := range b {
			b[i] = 0xf6
		}
	}
	for _, c := range []struct {
		name    string
		damage  func(b []byte)
		problem string
	}{
		{"header zeroed", func(b []byte) { clear(b[512:1024]) }, "primary table is damaged"},
		{"header flipped", func(b []byte) { b[512+50] ^= 1 }, "primary table is damaged (gpt: HeaderCRC32 at 0x210"},
		{"entries flipped", func(b []byte) { b[1024+130] ^= 1 }, "primary table is damaged (gpt: PartitionEntryArrayCRC32"},
		{"first 34 sectors zeroed", func(b []byte) { clear(b[:34*512]) }, "primary table is damaged"},
		{"first MiB overwritten", func(b []byte) { fill(b[:1<<20]) }, "primary table is damaged"},
		{"backup header zeroed", func(b []byte) { clear(b[end-512:]) }, "backup table is damaged"},
		{"backup entries flipped", func(b []byte) { b[end-33*512+3] ^= 1 }, "backup table is damaged"},
		{"protective MBR zeroed", func(b []byte) { clear(b[:512]) }, "protective MBR is missing"},
		{"protective MBR start", func(b []byte) { b[446+8] = 9 }, "protective MBR entry starts at sector 9"},
		{"hybrid", func(b []byte) { b[446+16+4], b[446+16+8], b[446+16+12] = 0x83, 8, 8 }, "hybrid MBR"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bytes.Clone(good)
			c.damage(b)
			tab, err := Read(bytes.NewReader(b), int64(len(b)), nil)
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := json.Marshal(tab.Volumes); string(got) != string(want) {
				t.Errorf("volumes = %s, want %s", got, want)
			}
			if !strings.Contains(strings.Join(tab.Problems, "\n"), c.problem) {
				t.Errorf("problems = %q, want %q", tab.Problems, c.problem)
			}
		})
	}
	t.Run("both", func(t *testing.T) {
		b := bytes.Clone(good)
		b[512+50] ^= 1
		b[end-512+50] ^= 1
		if _, err := Read(bytes.NewReader(b), int64(end), nil); !errors.Is(err, formats.ErrCorrupt) {
			t.Errorf("both headers damaged: %v, want ErrCorrupt", err)
		}
		clear(b[512:1024])
		clear(b[end-512:])
		if _, err := Read(bytes.NewReader(b), int64(end), nil); !errors.Is(err, formats.ErrCorrupt) {
			t.Errorf("both headers gone: %v, want ErrCorrupt", err)
		}
	})
	t.Run("grown", func(t *testing.T) {
		b := append(bytes.Clone(good), make([]byte, 1<<20)...)
		tab, err := Read(bytes.NewReader(b), int64(len(b)), nil)
		if err != nil || !strings.Contains(strings.Join(tab.Problems, "\n"), "backup table is expected at sector 32767") {
			t.Errorf("grown disk: %+v, %v", tab, err)
		}
	})
	t.Run("truncated", func(t *testing.T) {
		b := good[:8<<20]
		tab, err := Read(bytes.NewReader(b), int64(len(b)), nil)
		if err != nil || len(tab.Volumes) != 2 || tab.Volumes[1].Off+tab.Volumes[1].Len != 8<<20 ||
			!strings.Contains(strings.Join(tab.Problems, "\n"), "beyond the end of the disk") {
			t.Errorf("truncated disk: %+v, %v", tab, err)
		}
	})
	t.Run("sgdisk agrees", func(t *testing.T) {
		q := filepath.Join(t.TempDir(), "bad.img")
		b := bytes.Clone(good)
		b[512+50] ^= 1
		if err := os.WriteFile(q, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, _ := testimg.Try(t, "sgdisk", "-v", q); !strings.Contains(out, "corrupt GPT") {
			t.Errorf("sgdisk -v finds no damage:\n%s", out)
		}
		if out := testimg.Run(t, "sgdisk", "-v", p); !strings.Contains(out, "No problems found") {
			t.Errorf("sgdisk -v of the good disk:\n%s", out)
		}
	})
}

// craft builds a table by hand, with checksums that hold.
type craft struct {
	sector, entrySize, count  int
	first, last               uint64 // usable
	entries                   [][2]uint64
	disk                      []byte
	headerEdit, backupEdit    func(h []byte)
	primaryArray, backupArray int // LBA
}

func (c *craft) build() []byte {
	le := binary.LittleEndian
	n := len(c.disk) / c.sector
	array := make([]byte, c.entrySize*c.count)
	for i, e := range c.entries {
		b := array[i*c.entrySize:]
		b[0], b[16] = 1, byte(i+1)
		le.PutUint64(b[32:], e[0])
		le.PutUint64(b[40:], e[1])
	}
	for _, side := range []struct {
		lba, alt, arr int
		edit          func([]byte)
	}{{1, n - 1, c.primaryArray, c.headerEdit}, {n - 1, 1, c.backupArray, c.backupEdit}} {
		h := c.disk[side.lba*c.sector:][:c.sector]
		copy(h, "EFI PART")
		le.PutUint32(h[8:], 0x10000)
		le.PutUint32(h[12:], 92)
		le.PutUint64(h[24:], uint64(side.lba))
		le.PutUint64(h[32:], uint64(side.alt))
		le.PutUint64(h[40:], c.first)
		le.PutUint64(h[48:], c.last)
		le.PutUint64(h[72:], uint64(side.arr))
		le.PutUint32(h[80:], uint32(c.count))
		le.PutUint32(h[84:], uint32(c.entrySize))
		le.PutUint32(h[88:], crc32.ChecksumIEEE(array))
		copy(c.disk[side.arr*c.sector:], array)
		if side.edit != nil {
			side.edit(h)
		}
		le.PutUint32(h[16:], 0)
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:min(len(h), max(92, int(le.Uint32(h[12:]))))]))
	}
	m := c.disk[446:]
	m[4], m[8] = 0xee, 1
	le.PutUint32(m[12:], uint32(n-1))
	c.disk[510], c.disk[511] = 0x55, 0xaa
	return c.disk
}

func newCraft() *craft {
	return &craft{sector: 512, entrySize: 128, count: 16, first: 40, last: 950, disk: make([]byte, 1024*512), primaryArray: 2, backupArray: 960}
}

func TestEntrySizes(t *testing.T) {
	for _, size := range []int{128, 256, 512} {
		c := newCraft()
		c.entrySize = size
		c.entries = [][2]uint64{{40, 49}, {0, 0}, {60, 950}}
		c.first = 60
		if size < 512 {
			c.first = 40
		} else {
			c.entries[0] = [2]uint64{60, 60}
			c.entries[2] = [2]uint64{61, 950}
		}
		c.backupArray = 955
		tab, err := Read(bytes.NewReader(c.build()), int64(len(c.disk)), nil)
		if err != nil || len(tab.Volumes) != 3 {
			t.Errorf("entry size %d: %+v, %v", size, tab, err)
			continue
		}
		if v := tab.Volumes[2]; v.Index != 3 || v.Off != int64(c.entries[2][0])*512 || v.Off+v.Len != 951*512 {
			t.Errorf("entry size %d: %+v", size, v)
		}
	}
}

func TestHostile(t *testing.T) {
	le := binary.LittleEndian
	both := func(edit func(h []byte)) func(c *craft) {
		return func(c *craft) { c.headerEdit, c.backupEdit = edit, edit }
	}
	for _, c := range []struct {
		name string
		edit func(c *craft)
		want error
	}{
		{"NumberOfPartitionEntries 2^32-1", both(func(h []byte) { le.PutUint32(h[80:], 1<<32-1) }), formats.ErrLimit},
		{"NumberOfPartitionEntries 0", both(func(h []byte) { le.PutUint32(h[80:], 0) }), formats.ErrCorrupt},
		{"SizeOfPartitionEntry 2^31", both(func(h []byte) { le.PutUint32(h[84:], 1<<31) }), formats.ErrLimit},
		{"SizeOfPartitionEntry 0", both(func(h []byte) { le.PutUint32(h[84:], 0) }), formats.ErrCorrupt},
		{"SizeOfPartitionEntry 129", both(func(h []byte) { le.PutUint32(h[84:], 129) }), formats.ErrCorrupt},
		{"array of 32 MiB", both(func(h []byte) { le.PutUint32(h[80:], 8192); le.PutUint32(h[84:], 4096) }), formats.ErrLimit},
		{"PartitionEntryLBA 2^63", both(func(h []byte) { le.PutUint64(h[72:], 1<<63) }), formats.ErrCorrupt},
		{"PartitionEntryLBA at the end", both(func(h []byte) { le.PutUint64(h[72:], 1023) }), formats.ErrCorrupt},
		{"PartitionEntryLBA 1", both(func(h []byte) { le.PutUint64(h[72:], 1) }), formats.ErrCorrupt},
		{"array in usable sectors", both(func(h []byte) { le.PutUint64(h[72:], 100) }), formats.ErrCorrupt},
		{"HeaderSize 2^32-1", both(func(h []byte) { le.PutUint32(h[12:], 1<<32-1) }), formats.ErrCorrupt},
		{"HeaderSize 0", both(func(h []byte) { le.PutUint32(h[12:], 0) }), formats.ErrCorrupt},
		{"MyLBA 5", both(func(h []byte) { le.PutUint64(h[24:], 5) }), formats.ErrCorrupt},
		{"Revision 2", both(func(h []byte) { le.PutUint32(h[8:], 0x20000) }), errors.ErrUnsupported},
		{"no signature", both(func(h []byte) { clear(h) }), formats.ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newCraft()
			c.edit(k)
			b := k.build()
			var m0, m1 runtime.MemStats
			runtime.ReadMemStats(&m0)
			tab, err := Read(bytes.NewReader(b), int64(len(b)), nil)
			runtime.ReadMemStats(&m1)
			if tab != nil || !errors.Is(err, c.want) {
				t.Errorf("Read = %+v, %v, want %v", tab, err, c.want)
			}
			if n := m1.TotalAlloc - m0.TotalAlloc; n > 1<<20 {
				t.Errorf("%d bytes allocated", n)
			}
		})
	}
}

func TestReportedEntries(t *testing.T) {
	c := newCraft()
	c.entries = [][2]uint64{{40, 100}, {90, 120}, {200, 150}, {2000, 3000}, {900, 1200}, {10, 20}, {1 << 63, 1<<64 - 1}}
	tab, err := Read(bytes.NewReader(c.build()), int64(len(c.disk)), nil)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(tab.Problems, "\n")
	for _, want := range []string{
		"partitions 1 and 2 overlap", "partition 3 ends at sector 150, before its start 200", "partition 4 starts at sector 2000, beyond",
		"partition 5 ends at sector 1200, beyond", "partition 6, sectors 10 to 20, leaves the usable sectors", "partition 7 starts",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("problems lack %q:\n%s", want, all)
		}
	}
	for _, v := range tab.Volumes {
		if v.Off < 0 || v.Len <= 0 || v.Off+v.Len > int64(len(c.disk)) {
			t.Errorf("volume outside of the disk: %+v", v)
		}
	}
}

func TestDisagreement(t *testing.T) {
	c := newCraft()
	c.entries = [][2]uint64{{40, 100}}
	c.backupEdit = func(h []byte) { h[56] = 7; binary.LittleEndian.PutUint64(h[48:], 940) }
	tab, err := Read(bytes.NewReader(c.build()), int64(len(c.disk)), nil)
	if err != nil || len(tab.Problems) != 1 || !strings.Contains(tab.Problems[0], "disagree in DiskGUID, LastUsableLBA") {
		t.Errorf("table = %+v, %v", tab, err)
	}
}

// A record with partitions of its own puts the GPT out of force.
func TestForeignMBR(t *testing.T) {
	c := newCraft()
	b := c.build()
	b[446+4] = 0x83
	if tab, err := Read(bytes.NewReader(b), int64(len(b)), nil); !errors.Is(err, formats.ErrUnknown) {
		t.Errorf("Read = %+v, %v, want ErrUnknown", tab, err)
	}
}

func TestNotGPT(t *testing.T) {
	for _, b := range [][]byte{nil, {0}, make([]byte, 1535), make([]byte, 1<<20), bytes.Repeat([]byte("golden"), 100000)} {
		if tab, err := Read(bytes.NewReader(b), int64(len(b)), nil); !errors.Is(err, formats.ErrUnknown) {
			t.Errorf("%d bytes: %+v, %v, want ErrUnknown", len(b), tab, err)
		}
	}
}

func TestReadErrors(t *testing.T) {
	b := newCraft().build()
	for _, bad := range []int64{0, 512, 1024, int64(len(b)) - 1} {
		if _, err := Read(testimg.FaultyReader{R: bytes.NewReader(b), Bad: bad}, int64(len(b)), nil); !errors.Is(err, testimg.ErrInjected) {
			t.Errorf("fault at %d: %v", bad, err)
		}
	}
	if _, err := Read(bytes.NewReader(b[:700]), int64(len(b)), nil); !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("shrunken file: %v, want ErrCorrupt", err)
	}
}

func FuzzGPT(f *testing.F) {
	c := newCraft()
	c.disk = c.disk[:128*512]
	c.first, c.last, c.backupArray = 10, 100, 110
	c.entries = [][2]uint64{{10, 50}, {60, 100}}
	b := c.build()
	f.Add(b, true)
	f.Add(b[:100*512], false)
	c = newCraft()
	c.entrySize = 256
	f.Add(c.build(), true)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if len(b) > 1<<20 {
			return
		}
		if fix && len(b) >= 1024 { // let mutations get past the checksum
			h := b[512:1024]
			clear(h[16:20])
			binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
		}
		tab, err := Read(bytes.NewReader(b), int64(len(b)), nil)
		if (tab == nil) == (err == nil) {
			t.Fatalf("Read = %v, %v", tab, err)
		}
		if tab != nil {
			for _, v := range tab.Volumes {
				if v.Off < 0 || v.Len <= 0 || v.Len > int64(len(b))-v.Off {
					t.Fatalf("volume %+v in a disk of %d", v, len(b))
				}
			}
		}
	})
}
