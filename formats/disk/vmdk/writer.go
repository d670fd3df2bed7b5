package vmdk

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/adler32"
	"io"
	"math"
	"strings"

	"imgmaint/formats"
	"imgmaint/formats/internal/deflate"
)

const (
	grainSize = 64 << 10 // what every program writes, and ESX reads
	// descSectors is the room for the descriptor, as VMware leaves it.
	descSectors = 20
	// overHeadSectors is where the first grain goes: on a boundary of grains,
	// as in the streams that ESX exports.
	overHeadSectors = grainSize / sectorSize
	// writeBuffer gathers grains into larger writes.
	writeBuffer = 256 << 10

	// DefaultLevel compresses about as small as zlib's 6.
	DefaultLevel = 4
	// defaultTools is what VMware's own tool writes when it knows no version
	// of the guest's tools: that they are not VMware's to update.
	defaultTools = "2147483647"
	defaultHW    = 4
	defaultName  = "disk.vmdk"
)

// WriterOptions say what NewWriter writes. The zero value is ready to use.
type WriterOptions struct {
	Level        int    // of compression, 1 to deflate.MaxLevel; 0 is DefaultLevel
	AdapterType  string // ide, lsilogic, buslogic or legacyESX; "" is lsilogic
	HWVersion    int    // ddb.virtualHWVersion; 0 is 4
	ToolsVersion string // ddb.toolsVersion; "" is 2147483647, "unknown"
	ExtentName   string // in the extent line; "" is disk.vmdk
	UUID         string // ddb.uuid; left out when empty
	// CID is the content id. 0: one derived from the size and the other
	// options, since a stream's descriptor is written before its content.
	CID uint32
}

// A Writer writes a streamOptimized VMDK. It writes to the file strictly in
// order, each byte once, so that the file may be a pipe.
//
// The layout is VMware's for streams: header (version 3), descriptor,
// compressed grains with their markers, each grain table after its grains,
// the grain directory, the footer and the end-of-stream marker.
type Writer struct {
	w     io.WriterAt
	level int
	size  int64 // as asked for
	disk  int64 // rounded up to sectors
	end   int64 // of the last write
	err   error // of the underlying writer, for good
	done  bool

	buf []byte // not yet written
	off int64  // where buf goes
	gd  []uint32
	gt  [gtEntries]uint32
	tab int64 // whose table gt is, or -1

	head  header
	cur   []byte // the grain that WriteAt fills
	grain int64  // its number, or -1
	enc   *encoder
	out   []byte // its encoded form
}

var _ formats.ClusterWriter = (*Writer)(nil)

// NewWriter returns a writer of a disk of size bytes to w, a new empty file.
// A VMDK has whole sectors: the disk is rounded up to 512 bytes, and what is
// added reads as zeros. Over 62 TiB is formats.ErrLimit.
func NewWriter(w io.WriterAt, size int64, opts *WriterOptions) (*Writer, error) {
	if opts == nil {
		opts = new(WriterOptions)
	}
	if size < 0 {
		return nil, fmt.Errorf("vmdk: size of %d bytes", size)
	}
	if size > maxCapacity {
		return nil, formats.Limit(Name, -1, "capacity", "%d bytes, at most %d", size, int64(maxCapacity))
	}
	v := &Writer{w: w, level: opts.Level, size: size, disk: alignUp(size, sectorSize), tab: -1, grain: -1}
	if v.level == 0 {
		v.level = DefaultLevel
	}
	if v.level < 1 || v.level > deflate.MaxLevel {
		return nil, formats.Unsupported(Name, -1, "level", "%d, want 1 to %d", v.level, deflate.MaxLevel)
	}
	desc, err := opts.descriptor(v.disk)
	if err != nil {
		return nil, err
	}
	v.head = header{
		version:          3,
		flags:            flagNewline | flagCompressed | flagMarkers,
		capacity:         uint64(v.disk / sectorSize),
		grainSize:        grainSize / sectorSize,
		descriptorOffset: 1,
		descriptorSize:   descSectors,
		numGTEsPerGT:     gtEntries,
		gdOffset:         gdAtEnd,
		overHead:         overHeadSectors,
		newlines:         [4]byte([]byte(newlines)),
		algorithm:        algorithmDeflate,
	}
	v.gd = make([]uint32, (v.disk+grainSize*gtEntries-1)/(grainSize*gtEntries))
	v.buf = make([]byte, 0, writeBuffer+2*grainSize)
	v.buf = append(v.buf, v.head.marshal()...)
	v.buf = append(v.buf, desc...)
	v.buf = append(v.buf, make([]byte, overHeadSectors*sectorSize-len(v.buf))...)
	return v, nil
}

// descriptor makes the text, within the room there is for it.
func (o *WriterOptions) descriptor(disk int64) ([]byte, error) {
	sectors := disk / sectorSize
	adapter := o.AdapterType
	heads, limit := int64(255), int64(65535)
	switch adapter {
	case "":
		adapter = "lsilogic"
	case "lsilogic", "buslogic", "legacyESX":
	case "ide":
		heads, limit = 16, 16383
	default:
		return nil, formats.Unsupported(Name, -1, "ddb.adapterType", "%q", adapter)
	}
	hw := o.HWVersion
	if hw == 0 {
		hw = defaultHW
	}
	if hw < 0 {
		return nil, formats.Unsupported(Name, -1, "ddb.virtualHWVersion", "%d", hw)
	}
	tools, name := o.ToolsVersion, o.ExtentName
	if tools == "" {
		tools = defaultTools
	}
	if name == "" {
		name = defaultName
	}
	for field, s := range map[string]string{"ddb.toolsVersion": tools, "extent": name, "ddb.uuid": o.UUID} {
		if strings.ContainsAny(s, "\"\r\n\x00") {
			return nil, fmt.Errorf("vmdk: %s %q cannot be written", field, s)
		}
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "imgmaint vmdk %d %q %d %q %q %q %08x", disk, adapter, hw, tools, name, o.UUID, o.CID))
	cid := o.CID
	if cid == 0 {
		// Not the values that stand for no parent and for a disk of zeros.
		cid = le.Uint32(sum[:])%(math.MaxUint32-2) + 1
	}
	cylinders := min(limit, (sectors+heads*63-1)/(heads*63))
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=%08x\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n", cid)
	fmt.Fprintf(&b, "\n# Extent description\nRW %d SPARSE \"%s\"\n", sectors, name)
	fmt.Fprintf(&b, "\n# The Disk Data Base\n#DDB\n\nddb.longContentID = \"%x%08x\"\n", sum[4:16], cid)
	if o.UUID != "" {
		fmt.Fprintf(&b, "ddb.uuid = \"%s\"\n", o.UUID)
	}
	fmt.Fprintf(&b, "ddb.virtualHWVersion = \"%d\"\nddb.geometry.cylinders = \"%d\"\nddb.geometry.heads = \"%d\"\nddb.geometry.sectors = \"63\"\n", hw, cylinders, heads)
	fmt.Fprintf(&b, "ddb.adapterType = \"%s\"\nddb.toolsVersion = \"%s\"\n", adapter, tools)
	if b.Len() >= descSectors*sectorSize {
		return nil, formats.Limit(Name, -1, "descriptor", "%d bytes, at most %d", b.Len(), descSectors*sectorSize-1)
	}
	return b.Bytes(), nil
}

// DiskSize is the size of the disk in bytes as its readers will see it.
func (v *Writer) DiskSize() int64 { return v.disk }

// ClusterSize is the size of a grain.
func (v *Writer) ClusterSize() int64 { return grainSize }

// NewEncoder implements formats.ClusterWriter.
func (v *Writer) NewEncoder() formats.Encoder { return newEncoder(v.level) }

func newEncoder(level int) *encoder {
	d, err := deflate.New(level, deflate.MaxWindow)
	if err != nil {
		panic(err) // the level was checked
	}
	return &encoder{d: d}
}

// An encoder makes zlib streams (RFC 1950) of grains.
type encoder struct {
	d   *deflate.Encoder
	pad []byte // a whole grain, for the last one
}

// Encode implements formats.Encoder. A cluster of zeros gives nothing, and
// will not be stored. One that is shorter than a grain is stored as a whole
// grain: VirtualBox expects that.
func (e *encoder) Encode(dst, cluster []byte) ([]byte, error) {
	if len(cluster) > grainSize {
		return nil, fmt.Errorf("vmdk: a cluster of %d bytes", len(cluster))
	}
	if isZero(cluster) {
		return dst, nil
	}
	if len(cluster) < grainSize {
		if e.pad == nil {
			e.pad = make([]byte, grainSize)
		}
		clear(e.pad[copy(e.pad, cluster):])
		cluster = e.pad
	}
	dst = append(dst, 0x78, 0x9c) // a window of 32 KiB, default effort
	dst = e.d.Encode(dst, cluster)
	return bigEndian(dst, adler32.Checksum(cluster)), nil
}

func bigEndian(dst []byte, n uint32) []byte {
	return append(dst, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

var zeros [4096]byte

func isZero(p []byte) bool {
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}

// WriteAt implements io.WriterAt. Offsets must ascend.
func (v *Writer) WriteAt(p []byte, off int64) (int, error) {
	if err := v.accept(off, int64(len(p))); err != nil {
		return 0, err
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		g, in := at/grainSize, at%grainSize
		q := p[n:min(len(p), n+int(grainSize-in))]
		if v.grain >= 0 && v.grain != g {
			if v.err = v.flushGrain(); v.err != nil {
				return n, v.err
			}
		}
		if len(q) == grainSize {
			if v.err = v.encode(g, q); v.err != nil {
				return n, v.err
			}
		} else {
			if v.grain < 0 {
				if v.cur == nil {
					v.cur = make([]byte, grainSize)
				}
				clear(v.cur)
				v.grain = g
			}
			copy(v.cur[in:], q)
		}
		n += len(q)
		v.end = at + int64(len(q))
	}
	return len(p), nil
}

// accept checks the order and the range of a write.
func (v *Writer) accept(off, n int64) error {
	switch {
	case v.err != nil:
		return v.err
	case v.done:
		return errors.New("vmdk: write after Close")
	case off < v.end || n > v.size-off:
		return fmt.Errorf("vmdk: write of %d bytes at %d: written up to %d of %d", n, off, v.end, v.size)
	}
	return nil
}

// WriteEncoded implements formats.ClusterWriter.
func (v *Writer) WriteEncoded(off int64, enc []byte) error {
	n := min(grainSize, v.size-off)
	if off%grainSize != 0 || n <= 0 {
		return fmt.Errorf("vmdk: cluster at %d in a disk of %d", off, v.size)
	}
	if err := v.accept(off, n); err != nil {
		return err
	}
	if v.err = v.flushGrain(); v.err != nil {
		return v.err
	}
	v.end = off + n
	v.err = v.store(off/grainSize, enc)
	return v.err
}

// flushGrain stores the grain that WriteAt has been filling.
func (v *Writer) flushGrain() error {
	if v.grain < 0 {
		return nil
	}
	g := v.grain
	v.grain = -1
	return v.encode(g, v.cur)
}

func (v *Writer) encode(g int64, p []byte) error {
	if v.enc == nil {
		v.enc = newEncoder(v.level)
	}
	var err error
	if v.out, err = v.enc.Encode(v.out[:0], p); err != nil {
		return err
	}
	return v.store(g, v.out)
}

// store writes grain g in its encoded form; an empty one is all zeros.
func (v *Writer) store(g int64, enc []byte) error {
	if len(enc) == 0 {
		return nil
	}
	if tab := g / gtEntries; tab != v.tab {
		if err := v.flushTable(); err != nil {
			return err
		}
		v.tab = tab
	}
	sector, err := v.sector()
	if err != nil {
		return err
	}
	v.gt[g%gtEntries] = sector
	v.buf = le.AppendUint64(v.buf, uint64(g)*(grainSize/sectorSize))
	v.buf = le.AppendUint32(v.buf, uint32(len(enc)))
	v.buf = append(v.buf, enc...)
	return v.padded()
}

// sector is where the next byte goes; table entries have 32 bits for it.
func (v *Writer) sector() (uint32, error) {
	s := (v.off + int64(len(v.buf))) / sectorSize
	if s > math.MaxUint32 {
		return 0, formats.Limit(Name, v.off, "grain table entry", "the file passes 2 TiB")
	}
	return uint32(s), nil
}

// padded fills the last sector of the buffer with zeros, and writes the
// buffer when it is full.
func (v *Writer) padded() error {
	if in := len(v.buf) % sectorSize; in != 0 {
		v.buf = append(v.buf, zeros[:sectorSize-in]...)
	}
	if len(v.buf) < writeBuffer {
		return nil
	}
	return v.flush()
}

func (v *Writer) flush() error {
	if len(v.buf) == 0 {
		return nil
	}
	n, err := v.w.WriteAt(v.buf, v.off)
	v.off += int64(n)
	v.buf = v.buf[:0]
	return err
}

// flushTable writes the grain table that is done, after its grains.
func (v *Writer) flushTable() error {
	if v.tab < 0 {
		return nil
	}
	v.buf = append(v.buf, marker{val: gtSectors, kind: markerGT}.marshal()...)
	sector, err := v.sector()
	if err != nil {
		return err
	}
	v.gd[v.tab] = sector
	for _, e := range v.gt {
		v.buf = le.AppendUint32(v.buf, e)
	}
	clear(v.gt[:])
	return v.padded()
}

// Close writes the last grain and table, the directory and the footer.
func (v *Writer) Close() error {
	if v.done || v.err != nil {
		return v.err
	}
	v.done = true
	v.err = v.finish()
	return v.err
}

func (v *Writer) finish() error {
	if err := v.flushGrain(); err != nil {
		return err
	}
	if err := v.flushTable(); err != nil {
		return err
	}
	n := max(sectorSize, alignUp(4*int64(len(v.gd)), sectorSize))
	v.buf = append(v.buf, marker{val: uint64(n / sectorSize), kind: markerGD}.marshal()...)
	sector, err := v.sector()
	if err != nil {
		return err
	}
	for _, e := range v.gd {
		v.buf = le.AppendUint32(v.buf, e)
		if len(v.buf) >= writeBuffer && len(v.buf)%sectorSize == 0 {
			if err := v.flush(); err != nil {
				return err
			}
		}
	}
	if len(v.gd) == 0 {
		v.buf = append(v.buf, zeros[:sectorSize]...)
	}
	if err := v.padded(); err != nil {
		return err
	}
	foot := v.head
	foot.gdOffset = uint64(sector)
	v.buf = append(v.buf, marker{val: 1, kind: markerFooter}.marshal()...)
	v.buf = append(v.buf, foot.marshal()...)
	v.buf = append(v.buf, marker{kind: markerEOS}.marshal()...)
	return v.flush()
}
