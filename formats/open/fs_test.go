package open

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"imgmaint/formats"
	"imgmaint/internal/testimg"
)

// mem is a disk in memory; holes are not known.
type mem []byte

func (m mem) Size() int64                             { return int64(len(m)) }
func (m mem) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }
func (m mem) ExtentAt(off int64) (formats.Extent, error) {
	if off < 0 || off >= m.Size() {
		return formats.Extent{}, io.EOF
	}
	return formats.Extent{Off: off, Len: m.Size() - off, Kind: formats.Data}, nil
}

// at is a disk of size bytes with text at off, and more pairs of these.
func at(size int, off int, text string, more ...any) mem {
	m := make(mem, size)
	copy(m[off:], text)
	for i := 0; i+1 < len(more); i += 2 {
		copy(m[more[i].(int):], more[i+1].(string))
	}
	return m
}

func le32(n uint32) string { return string(binary.LittleEndian.AppendUint32(nil, n)) }

func TestProbe(t *testing.T) {
	const mib = 1 << 20
	raidTail := (mib/512 - 16) &^ 7 * 512
	for _, c := range []struct {
		name string
		m    mem
		typ  string
		want Class
	}{
		{"LUKS1", at(mib, 0, "LUKS\xba\xbe\x00\x01"), "crypto_LUKS", Encrypted},
		{"LUKS2 backup header", at(mib, 16<<10, "SKUL\xba\xbe\x00\x02"), "crypto_LUKS", Encrypted},
		{"BitLocker", at(mib, 0, "\xeb\x58\x90-FVE-FS-"), "BitLocker", Encrypted},
		{"LVM2", at(mib, 512, "LABELONE", 512+24, "LVM2 001"), "LVM2_member", Container},
		{"LVM2 in sector 3", at(mib, 1536, "LABELONE", 1536+24, "LVM2 001"), "LVM2_member", Container},
		{"md 1.2", at(mib, 4096, "\xfc\x4e\x2b\xa9\x01\x00\x00\x00"), "linux_raid_member", Container},
		{"md 1.1", at(mib, 0, "\xfc\x4e\x2b\xa9\x01\x00\x00\x00"), "linux_raid_member", Container},
		{"md 1.0", at(mib, raidTail, "\xfc\x4e\x2b\xa9\x01\x00\x00\x00"), "linux_raid_member", Container},
		{"md 0.90", at(mib, mib-65536, "\xfc\x4e\x2b\xa9"), "linux_raid_member", Container},
		{"xfs", at(mib, 0, "XFSB"), "xfs", FileSystem},
		{"btrfs", at(mib, 0x10040, "_BHRfS_M"), "btrfs", FileSystem},
		{"zfs", at(mib, 128<<10, "\x0c\xb1\xba\x00\x00\x00\x00\x00", 130<<10, "\x0c\xb1\xba\x00\x00\x00\x00\x00"), "zfs_member", FileSystem},
		{"bcachefs", at(mib, 4096+24, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"), "bcachefs", FileSystem},
		{"bcache", at(mib, 4096+24, bcacheMagic), "bcache", Container},
		{"squashfs", at(mib, 0, "hsqs", 28, "\x04\x00"), "squashfs", FileSystem},
		{"erofs", at(mib, 1024, "\xe2\xe1\xf5\xe0"), "erofs", FileSystem},
		{"f2fs", at(mib, 1024, "\x10\x20\xf5\xf2"), "f2fs", FileSystem},
		{"jfs", at(mib, 32768, "JFS1"), "jfs", FileSystem},
		{"reiserfs", at(mib, 65536+52, "ReIsEr2Fs"), "reiserfs", FileSystem},
		{"apfs", at(mib, 32, "NXSB"), "apfs", FileSystem},
		{"refs", at(mib, 3, "ReFS\x00\x00\x00\x00"), "ReFS", FileSystem},
		{"exfat", at(mib, 0, "\xeb\x76\x90EXFAT   "), "exfat", FileSystem},
		{"ntfs", at(mib, 0, "\xeb\x52\x90NTFS    "), "ntfs", FileSystem},
		{"ufs1", at(mib, 8192+1372, le32(0x00011954)), "ufs", FileSystem},
		{"ufs2", at(mib, 65536+1372, le32(0x19540119)), "ufs", FileSystem},
		{"iso9660", at(mib, 0x8001, "CD001"), "iso9660", FileSystem},
		{"udf", at(mib, 0x8001, "BEA01"), "udf", FileSystem},
		{"hfsplus", at(mib, 1024, "H+\x00\x04"), "hfsplus", FileSystem},
		{"hfsx", at(mib, 1024, "HX\x00\x05"), "hfsplus", FileSystem},
		{"minix", at(mib, 1024, "\x20\x00\x00\x00\x00\x00\x00\x00\x08\x00\x00\x00", 1040, "\x8f\x13"), "minix", FileSystem},
		{"vmfs", at(2*mib, mib, "\x0d\xd0\x01\xc0"), "VMFS", FileSystem},
		{"swap, pages of 64 KiB", at(mib, 65536-10, "SWAPSPACE2"), "swap", Swap},
		{"hibernated", at(mib, 4086, "S1SUSPEND\x00"), "swsuspend", Swap},
		{"verity", at(mib, 0, "verity\x00\x00"), "dm_verity_hash", Container},
		{"zeros", make(mem, mib), "", Empty},
		{"a byte after zeros", at(mib, mib-1, "x"), "", Unrecognised},
		{"more zeros than are read", make(mem, emptyBudget+1), "", Unrecognised},
		{"nothing", nil, "", Empty},
		{"text", bytes.Repeat([]byte("golden "), 1000), "", Unrecognised},
		{"a short XFSB", mem("XFSB"), "xfs", FileSystem},
	} {
		got, err := Probe(c.m)
		if err != nil || got.Type != c.typ || got.Class != c.want || got.Also != nil {
			t.Errorf("%s: Probe = %+v, %v, want %s, %s", c.name, got, err, c.typ, c.want)
		}
		_, err = FS(c.m)
		if want := errors.ErrUnsupported; c.typ != "" && !errors.Is(err, want) || c.typ == "" && !errors.Is(err, formats.ErrUnknown) {
			t.Errorf("%s: FS = %v", c.name, err)
		}
	}
}

// Names and numbers are those of blkid.
func TestProbeAgainstBlkid(t *testing.T) {
	for _, c := range []struct {
		tool string
		size int64
		args []string
	}{
		{"mke2fs", 4 << 20, []string{"-q", "-F", "-t", "ext2", "-L", "two"}},
		{"mke2fs", 8 << 20, []string{"-q", "-F", "-t", "ext3"}},
		{"mke2fs", 8 << 20, []string{"-q", "-F", "-t", "ext4", "-L", "a label of 16 b."}},
		{"mke2fs", 4 << 20, []string{"-q", "-F", "-O", "journal_dev"}},
		{"mkfs.fat", 1 << 20, []string{"-F", "12", "-n", "TWELVE"}},
		{"mkfs.fat", 16 << 20, []string{"-F", "16"}},
		{"mkfs.fat", 40 << 20, []string{"-F", "32", "-n", "THIRTY2"}},
		{"mkswap", 1 << 20, []string{"-L", "pages"}},
	} {
		p := filepath.Join(t.TempDir(), "v.img")
		if err := os.WriteFile(p, make([]byte, c.size), 0o600); err != nil {
			t.Fatal(err)
		}
		testimg.Run(t, c.tool, append(c.args, p)...)
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Probe(mem(b))
		if err != nil {
			t.Fatal(err)
		}
		said := "\n" + testimg.Run(t, "blkid", "-p", "-o", "export", p)
		for key, have := range map[string]string{"TYPE": got.Type, "LABEL": got.Label, "UUID": got.UUID} {
			m := regexp.MustCompile(`\n` + key + `=(.*)`).FindStringSubmatch(said)
			want := ""
			if m != nil {
				want = strings.ReplaceAll(m[1], `\ `, " ")
			}
			if have != want {
				t.Errorf("%s %v: %s = %q, blkid says %q", c.tool, c.args, key, have, want)
			}
		}
		if got.Class == FileSystem && got.Type != "jbd" {
			fsys, err := FS(mem(b))
			if err != nil {
				t.Errorf("%s %v: %v", c.tool, c.args, err)
			} else if u := fsys.Usage(); u.Type != got.Type || u.UUID != got.UUID || u.Label != got.Label {
				t.Errorf("%s %v: usage %+v, probe %+v", c.tool, c.args, u, got)
			}
		}
	}
}

func TestProbeAlso(t *testing.T) {
	c, err := Probe(at(1<<20, 0, "XFSB", 0x8001, "CD001"))
	if err != nil || c.Type != "xfs" || len(c.Also) != 1 || c.Also[0] != "iso9660" {
		t.Errorf("Probe = %+v, %v", c, err)
	}
}

func TestTable(t *testing.T) {
	fat := filepath.Join(t.TempDir(), "fat.img")
	if err := os.WriteFile(fat, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	testimg.Run(t, "mkfs.fat", fat)
	boot, err := os.ReadFile(fat)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		m      mem
		scheme string
		err    error
	}{
		"nothing":                    {nil, "", nil},
		"zeros":                      {make(mem, 1<<20), "", nil},
		"FAT":                        {boot, "", nil},
		"empty MBR":                  {at(1<<20, 440, "\x01", 510, "\x55\xaa"), "mbr", nil},
		"boot sector of btrfs":       {at(1<<20, 510, "\x55\xaa", 0x10040, "_BHRfS_M"), "", nil},
		"MBR":                        {at(1<<20, 450, "\x83\x00\x00\x00\x08\x00\x00\x00\x08\x00\x00\x00", 510, "\x55\xaa"), "mbr", nil},
		"protective MBR, and no GPT": {at(1<<20, 450, "\xee\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00", 510, "\x55\xaa"), "", formats.ErrCorrupt},
		"damaged GPT":                {at(1<<20, 512, "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00"), "", formats.ErrCorrupt},
	} {
		tab, err := Table(c.m)
		scheme := ""
		if tab != nil {
			scheme = tab.Scheme
		}
		if scheme != c.scheme || !errors.Is(err, c.err) {
			t.Errorf("%s: Table = %+v, %v, want %q, %v", name, tab, err, c.scheme, c.err)
		}
	}
}

func TestProbeReadErrors(t *testing.T) {
	m := at(1<<20, 510, "\x55\xaa")
	for _, bad := range []int64{0, 1<<20 - 1, 500 << 10} {
		if _, err := Probe(faulty{m, bad}); !errors.Is(err, testimg.ErrInjected) && bad != 500<<10 {
			t.Errorf("fault at %d: %v", bad, err)
		}
	}
	if _, err := IsZero(faulty{make(mem, 1<<20), 500 << 10}); !errors.Is(err, testimg.ErrInjected) {
		t.Errorf("IsZero = %v", err)
	}
}

type faulty struct {
	mem
	bad int64
}

func (f faulty) ReadAt(p []byte, off int64) (int, error) {
	return testimg.FaultyReader{R: f.mem, Bad: f.bad}.ReadAt(p, off)
}

func FuzzProbe(f *testing.F) {
	f.Add([]byte("XFSB"))
	f.Add([]byte(at(2048, 512, "LABELONE", 512+24, "LVM2 001")))
	f.Add([]byte(at(8192, 4096, "\xfc\x4e\x2b\xa9\x01\x00\x00\x00")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		c, err := Probe(mem(b))
		if err != nil || c.Class == "" || (c.Type == "") != (c.Class == Empty || c.Class == Unrecognised) {
			t.Fatalf("Probe = %+v, %v", c, err)
		}
		if fsys, err := FS(mem(b)); (fsys == nil) == (err == nil) {
			t.Fatalf("FS = %v, %v", fsys, err)
		}
		if tab, err := Table(mem(b)); tab != nil && err != nil {
			t.Fatalf("Table = %v, %v", tab, err)
		}
	})
}
