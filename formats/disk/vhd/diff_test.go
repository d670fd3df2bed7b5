package vhd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"imgmaint/formats"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

// TestChain writes a base and children over children, each with random
// writes of whole sectors, and compares the chain with a model.
func TestChain(t *testing.T) {
	rnd := rand.New(rand.NewPCG(9, 9))
	size := int64(5<<20 + 512)
	model := testimg.Disk(size, 77)
	top := open(t, build(t, model, nil), nil)
	for depth := range 4 {
		o := &WriterOptions{
			Time:   time.Unix(1_700_000_000, 0),
			Parent: &Parent{Name: fmt.Sprintf("dir/layer %d.vhd", depth), Absolute: fmt.Sprintf(`C:\layer %d.vhd`, depth), Image: top},
		}
		if depth%2 == 1 {
			o.BlockSize = 512 << 10
		}
		var f formatstest.Buffer
		w, err := NewWriter(&f, size, o)
		if err != nil {
			t.Fatal(err)
		}
		var own []formats.Extent
		for off := rnd.Int64N(100_000); off < size; {
			n := min(1+rnd.Int64N(1<<(1+rnd.IntN(19))), size-off)
			p := model[off : off+n]
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
			if depth == 2 {
				clear(p) // zeros hide the parent's data too
			}
			if _, err := w.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
			own = append(own, formats.Extent{Off: off, Len: n})
			off += n + rnd.Int64N(1<<(1+rnd.IntN(19)))
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		parent := top
		top = open(t, f.Bytes(), &Options{Resolve: func(ref formats.Reference) (formats.Image, error) {
			want := formats.Reference{Kind: formats.RefParent, Name: fmt.Sprintf("dir/layer %d.vhd", depth), Format: "vpc", ID: formatID(parent.UniqueID())}
			if ref != want {
				t.Errorf("reference %+v, want %+v", ref, want)
			}
			return parent, nil
		}})
		if err := formatstest.TestImage(top, model); err != nil {
			t.Fatalf("depth %d: %v", depth, err)
		}
		if rep, err := top.Check(); err != nil || rep.Corruptions+rep.Leaks > 0 {
			t.Errorf("depth %d: Check() = %+v, %v", depth, rep, err)
		}
		for _, e := range own {
			l, err := top.LayerExtentAt(e.Off)
			if err != nil || l.Kind != formats.Data {
				t.Fatalf("depth %d: LayerExtentAt(%d) = %+v, %v after a write there", depth, e.Off, l, err)
			}
		}
		info := top.Info()
		for name, want := range map[string]string{
			"parent-W2ru": fmt.Sprintf("dir/layer %d.vhd", depth),
			"parent-MacX": fmt.Sprintf("dir/layer %d.vhd", depth),
			"parent-W2ku": fmt.Sprintf(`C:\layer %d.vhd`, depth),
			"parent-name": fmt.Sprintf(`C:\layer %d.vhd`, depth),
		} {
			if got := propertyOf(info, name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
	}
}

// A child may be larger or smaller than its parent.
func TestParentOfOtherSize(t *testing.T) {
	for _, size := range []int64{1 << 20, 6 << 20} {
		base := testimg.Disk(3<<20+512, 5)
		parent := open(t, build(t, base, nil), nil)
		var f formatstest.Buffer
		w, err := NewWriter(&f, size, &WriterOptions{Parent: &Parent{Name: "b", Image: parent}})
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, size)
		copy(want, base)
		copy(want[700:], "child")
		if _, err := w.WriteAt([]byte("child"), 700); err != nil {
			t.Fatal(err)
		}
		if size > 4<<20 { // a part of a sector after the parent's end
			copy(want[5<<20+7:], "tail")
			if _, err := w.WriteAt([]byte("tail"), 5<<20+7); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		img := open(t, f.Bytes(), &Options{Resolve: func(formats.Reference) (formats.Image, error) { return parent, nil }})
		if err := formatstest.TestImage(img, want); err != nil {
			t.Errorf("size %d: %v", size, err)
		}
	}
}

func TestPartOfSectorNeedsParent(t *testing.T) {
	w, err := NewWriter(new(formatstest.Buffer), 1<<20, &WriterOptions{Parent: &Parent{Name: "b", UniqueID: [16]byte{1}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(make([]byte, 1024), 512); err != nil {
		t.Errorf("whole sectors: %v", err)
	}
	if n, err := w.WriteAt(make([]byte, 600), 2048); n != 512 || err == nil {
		t.Errorf("a part of a sector without the parent = %d, %v", n, err)
	}
	if w.Close() == nil {
		t.Error("Close is well after a failed write")
	}
}

func TestParentFails(t *testing.T) {
	base := testimg.Disk(1<<20, 5)
	child := build(t, make([]byte, 1<<20), &WriterOptions{Parent: &Parent{Name: "b", UniqueID: [16]byte{1}}})
	for _, tt := range []struct {
		name    string
		resolve formats.Resolver
		want    error
	}{
		{"error", func(formats.Reference) (formats.Image, error) { return nil, testimg.ErrInjected }, testimg.ErrInjected},
		{"nothing", func(formats.Reference) (formats.Image, error) { return nil, nil }, errors.ErrUnsupported},
		{"other id", func(formats.Reference) (formats.Image, error) { return open(t, build(t, base, nil), nil), nil }, formats.ErrCorrupt},
	} {
		if _, err := Open(bytes.NewReader(child), int64(len(child)), &Options{Resolve: tt.resolve}); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	short := shortImage{plain(base)}
	img := open(t, child, &Options{Resolve: func(formats.Reference) (formats.Image, error) { return short, nil }})
	if n, err := img.ReadAt(make([]byte, 4096), 0); n != 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a parent that ends early: ReadAt = %d, %v", n, err)
	}
}

// shortImage says it is larger than it is.
type shortImage struct{ plain }

func (s shortImage) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }

// Parent locators of every kind, in the order we trust them.
func TestLocators(t *testing.T) {
	u16 := func(s string) string { // little-endian
		var b []byte
		for _, c := range []byte(s) {
			b = append(b, c, 0)
		}
		return string(b)
	}
	for _, tt := range []struct {
		locators []locatorData
		header   string
		want     string
	}{
		{[]locatorData{{"W2ku", []byte(u16(`C:\a\b.vhd`))}, {"W2ru", []byte(u16(`..\b.vhd`))}}, "x", "../b.vhd"},
		{[]locatorData{{"Wi2k", []byte(`C:\a.vhd`)}, {"Wi2r", []byte(`.\d\a.vhd` + "\x00junk")}}, "", "d/a.vhd"},
		{[]locatorData{{"MacX", []byte("file://./a%20b.vhd\x00")}, {"W2ku", []byte(u16(`C:\z`))}}, "", "a b.vhd"},
		{[]locatorData{{"MacX", []byte("file://localhost/etc/passwd")}}, "", "/etc/passwd"},
		{[]locatorData{{"MacX", []byte("http://a/b")}}, "", "http://a/b"},
		{[]locatorData{{"Mac ", []byte("alias")}, {"Wi2k", []byte(`\\.\PhysicalDrive0`)}}, "", `\\.\PhysicalDrive0`},
		{[]locatorData{{"W2ru", nil}, {"W2ku", []byte{0x41}}}, "only here", "only here"},
		{[]locatorData{{"W2ru", []byte{0x00, 0xd8, 0x41, 0x00}}}, "", "\uFFFDA"},
		{nil, "", ""},
	} {
		b := build(t, make([]byte, 1<<20), &WriterOptions{Parent: &Parent{Name: "b", UniqueID: [16]byte{1}}})
		b = editHeader(b, func(h *header) {
			clear(h.locators[:])
			clear(h.parentName)
			copy(h.parentName, encode16(tt.header, be))
			off := uint64(4096)
			for i, l := range tt.locators {
				h.locators[i] = locator{platform: [4]byte([]byte(l.code)), dataSpace: 1, dataLength: uint32(len(l.data)), dataOffset: off}
				off += 512
			}
		})
		foot := b[len(b)-footerSize:]
		b = append(b[:4096:4096], make([]byte, 8*512)...)
		for i, l := range tt.locators {
			copy(b[4096+512*i:], l.data)
		}
		b = append(b, foot...)
		info, err := Describe(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Errorf("%q: %v", tt.locators, err)
			continue
		}
		if got := info.References[0].Name; got != tt.want {
			t.Errorf("%q: parent %q, want %q", tt.locators, got, tt.want)
		}
	}
}
