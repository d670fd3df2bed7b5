package open

import (
	"encoding/binary"
	"errors"
	"io"
	"strings"

	"imgmaint/formats"
	"imgmaint/formats/filesys/ext4"
	"imgmaint/formats/filesys/fat"
	"imgmaint/formats/volume/gpt"
	"imgmaint/formats/volume/mbr"
)

// Table reads the partition table of a disk: a GPT, else a master boot
// record. Without either it returns nil and no error: the disk may be a file
// system as a whole, as the disks of XVM packages and Xen guests are.
func Table(img formats.Image) (*formats.Table, error) {
	t, err := gpt.Read(img, img.Size(), nil)
	if err == nil || !errors.Is(err, formats.ErrUnknown) {
		return t, err
	}
	t, err = mbr.Read(img, img.Size(), nil)
	switch {
	case errors.Is(err, formats.ErrUnknown):
		return nil, nil
	case err != nil:
		return nil, err
	case len(t.Volumes) == 0:
		// A boot sector without a single partition says less than the
		// signature of a file system behind it.
		c, err := Probe(img)
		if err != nil {
			return nil, err
		}
		if c.Class != Unrecognised && c.Class != Empty {
			return nil, nil
		}
	}
	return t, nil
}

// FS opens the file system that fills img. What is recognised and cannot be
// read is errors.ErrUnsupported by name; what is not recognised is
// ErrUnknown.
func FS(img formats.Image) (formats.FS, error) {
	c, err := Probe(img)
	if err != nil {
		return nil, err
	}
	return c.Open(img)
}

// Open opens the file system that Probe found in img.
func (c Content) Open(img formats.Image) (formats.FS, error) {
	switch c.Type {
	case "ext2", "ext3", "ext4":
		m, err := ext4.Open(img, img.Size(), nil)
		if err != nil {
			return nil, err
		}
		return m, nil
	case "vfat":
		m, err := fat.Open(img, img.Size(), nil)
		if err != nil {
			return nil, err
		}
		return m, nil
	}
	if c.Class == Unrecognised || c.Class == Empty {
		return nil, formats.Unknown("volume", 0, "signature", "no file system that we know")
	}
	return nil, formats.Unsupported(c.Type, -1, "", "this %s is recognised, not read", c.Class)
}

// A Class says what kind of thing fills a volume.
type Class string

// The classes of content.
const (
	Unrecognised Class = "unrecognised"
	Empty        Class = "empty" // proved to be zeros throughout
	FileSystem   Class = "file system"
	Encrypted    Class = "encrypted volume"
	Container    Class = "container of volumes" // LVM, RAID
	Swap         Class = "swap space"
)

// Content is what Probe recognised.
type Content struct {
	Type  string // ext4, xfs, LVM2_member, ...; empty when unrecognised
	Class Class
	Label string
	UUID  string
	// Also are the signatures found besides: leftovers, or an attempt to
	// pass for two things.
	Also []string
}

const (
	// probeHead covers the superblocks at the start: btrfs has its at 64 KiB,
	// ZFS its uberblocks from 128 to 256 KiB.
	probeHead = 256 << 10
	// emptyBudget bounds what is read to prove a volume empty. Images know
	// their holes: this is for those that store zeros as data.
	emptyBudget = 16 << 20
)

// Probe recognises what fills img by its signatures, and reads nothing else.
// Only errors of reading are returned.
func Probe(img formats.Image) (Content, error) {
	v := view{img: img, size: img.Size()}
	var err error
	if v.head, err = v.read(0, min(v.size, probeHead)); err != nil {
		return Content{}, err
	}
	// Software RAID of versions 0.90 and 1.0 keeps its superblock at the end.
	if v.size >= 128<<10 {
		if v.tail, err = v.read(v.size-128<<10, 128<<10); err != nil {
			return Content{}, err
		}
	}
	var c Content
	for _, s := range signatures {
		if s.match != nil && !s.match(&v) || s.match == nil && !v.has(s.off, s.magic) {
			continue
		}
		typ := s.typ
		if s.name != nil {
			typ = s.name(&v)
		}
		if c.Type != "" {
			c.Also = append(c.Also, typ)
			continue
		}
		c.Type, c.Class = typ, s.class
		if s.ids != nil {
			c.Label, c.UUID = s.ids(&v)
		}
	}
	if c.Type != "" {
		return c, nil
	}
	c.Class = Unrecognised
	empty, err := IsZero(img)
	if err != nil {
		return Content{}, err
	}
	if empty {
		c.Class = Empty
	}
	return c, nil
}

// IsZero reports whether img is proved to read as zeros throughout, by its
// extents or by reading at most 16 MiB.
func IsZero(img formats.Image) (bool, error) {
	buf := make([]byte, 64<<10)
	budget := int64(emptyBudget)
	for e, err := range formats.Extents(img, 0) {
		if err != nil {
			return false, err
		}
		if e.Kind != formats.Data {
			continue
		}
		for off := e.Off; off < e.End(); off += int64(len(buf)) {
			p := buf[:min(int64(len(buf)), e.End()-off)]
			if budget -= int64(len(p)); budget < 0 {
				return false, nil
			}
			if n, err := img.ReadAt(p, off); n < len(p) {
				return false, short(err)
			}
			for _, c := range p {
				if c != 0 {
					return false, nil
				}
			}
		}
	}
	return true, nil
}

func short(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// A view is the parts of a volume where signatures are.
type view struct {
	img        formats.Image
	size       int64
	head, tail []byte
}

func (v *view) read(off, n int64) ([]byte, error) {
	b := make([]byte, n)
	if k, err := v.img.ReadAt(b, off); int64(k) < n {
		return nil, short(err)
	}
	return b, nil
}

// at returns n bytes at off of the head, or nil.
func (v *view) at(off, n int64) []byte {
	if off < 0 || off+n > int64(len(v.head)) {
		return nil
	}
	return v.head[off : off+n]
}

func (v *view) has(off int64, magic string) bool {
	return string(v.at(off, int64(len(magic)))) == magic
}

func (v *view) le16(off int64) uint16 {
	if b := v.at(off, 2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (v *view) le32(off int64) uint32 {
	if b := v.at(off, 4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// text is a field of n bytes up to its first NUL, without trailing spaces.
func (v *view) text(off, n int64) string {
	s, _, _ := strings.Cut(string(v.at(off, n)), "\x00")
	return strings.TrimRight(s, " ")
}
