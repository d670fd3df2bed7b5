package godiskfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"imgmaint/formats"
)

func TestGPTEntries(t *testing.T) {
	array := make([]byte, 4*gptEntrySize)
	e := array[2*gptEntrySize:]
	for i := range 16 {
		e[i], e[16+i] = byte(i+1), byte(0xf0+i)
	}
	binary.LittleEndian.PutUint64(e[32:], 2048)
	binary.LittleEndian.PutUint64(e[40:], 4095)
	binary.LittleEndian.PutUint64(e[48:], 4)
	copy(e[56:], "r\x00o\x00\x3d\xd8\x00\xde") // "ro" and a surrogate pair
	got, err := GPTEntries(array)
	if err != nil || len(got) != 1 {
		t.Fatalf("GPTEntries = %+v, %v", got, err)
	}
	want := GPTEntry{3, "04030201-0605-0807-090a-0b0c0d0e0f10", "f3f2f1f0-f5f4-f7f6-f8f9-fafbfcfdfeff", 2048, 4095, 4, "ro\U0001f600"}
	if got[0] != want {
		t.Errorf("entry = %+v, want %+v", got[0], want)
	}
	if array[0] != 0 || !bytes.Equal(e[:4], []byte{1, 2, 3, 4}) {
		t.Error("the caller's array was changed")
	}
}

func TestGPTEntriesRefuses(t *testing.T) {
	for _, n := range []int{0, 1, 127, 129} {
		if _, err := GPTEntries(make([]byte, n)); !errors.Is(err, formats.ErrCorrupt) {
			t.Errorf("%d bytes: %v, want ErrCorrupt", n, err)
		}
	}
	if _, err := GPTEntries(make([]byte, 4<<20)); !errors.Is(err, formats.ErrLimit) {
		t.Errorf("4 MiB: %v, want ErrLimit", err)
	}
}

func TestMBR(t *testing.T) {
	b := make([]byte, 512)
	binary.LittleEndian.PutUint32(b[440:], 0xdeadbeef)
	e := b[446+16:]
	e[0], e[4] = 0x80, 0x83
	binary.LittleEndian.PutUint32(e[8:], 63)
	binary.LittleEndian.PutUint32(e[12:], 0xffffffff)
	b[510], b[511] = 0x55, 0xaa
	id, got, err := MBR(b)
	if err != nil || id != "deadbeef" || got[1] != (MBREntry{2, 0x83, true, 63, 0xffffffff, "deadbeef-02"}) {
		t.Errorf("MBR = %q, %+v, %v", id, got, err)
	}
	b[446] = 1
	if _, _, err := MBR(b); !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("boot indicator 1: %v, want ErrCorrupt", err)
	}
	if _, _, err := MBR(b[:511]); !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("short: %v, want ErrCorrupt", err)
	}
}

func TestPanicIsCorrupt(t *testing.T) {
	f := func() (err error) {
		defer recovered("x", &err)
		var b []byte
		_ = b[len(b)]
		return nil
	}
	if err := f(); !errors.Is(err, formats.ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
}

func TestReadsAreBounded(t *testing.T) {
	d := newDisk(make([]byte, 512))
	var err error
	for range 10000 {
		if _, err = d.ReadAt(nil, 0); err != nil {
			break
		}
	}
	if !errors.Is(err, formats.ErrLimit) {
		t.Errorf("endless reads end with %v, want ErrLimit", err)
	}
}
