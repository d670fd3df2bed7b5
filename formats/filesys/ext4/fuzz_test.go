package ext4

import (
	"bytes"
	"testing"
)

// FuzzOpen reads everything in images that are damaged at will. An input is
// the number of an image and patches of four bytes: three of place among the
// blocks in use, and the value. Whole images would be too long to mutate.
func FuzzOpen(f *testing.F) {
	const bs = 1024
	var images [][]byte
	var used [][]int
	for i, name := range seeds {
		b := seed(f, name)
		var blocks []int
		for at := 0; at < len(b); at += bs {
			if len(bytes.Trim(b[at:at+bs], "\x00")) > 0 {
				blocks = append(blocks, at)
			}
		}
		images, used = append(images, b), append(used, blocks)
		f.Add(uint8(i), []byte{})
		f.Add(uint8(i), []byte{0, 4, 0x18, 6, 1, 0, 0, 0xFF})
	}
	f.Fuzz(func(t *testing.T, which uint8, patches []byte) {
		if len(patches) > 4096 {
			return
		}
		i := int(which) % len(images)
		b := bytes.Clone(images[i])
		for ; len(patches) >= 4; patches = patches[4:] {
			at := int(patches[0])<<16 | int(patches[1])<<8 | int(patches[2])
			b[used[i][at/bs%len(used[i])]+at%bs] = patches[3]
		}
		fsys, err := Open(bytes.NewReader(b), int64(len(b)), nil)
		if err != nil {
			if fsys != nil {
				t.Error("a result beside an error")
			}
			if !classed(err) {
				t.Errorf("no class: %v", err)
			}
			return
		}
		if _, err := touch(fsys); err != nil && !classed(err) {
			t.Errorf("no class: %v", err)
		}
	})
}

// FuzzJournal replays a log of which the first blocks are any bytes.
func FuzzJournal(f *testing.F) {
	const bs, blocks = 1024, 16
	b := seed(f, "journal.img.gz")
	fsys, err := Open(bytes.NewReader(b), int64(len(b)), &Options{NoReplay: true})
	if err != nil {
		f.Fatal(err)
	}
	j := &journal{fs: fsys}
	if err := j.open(journalIno); err != nil {
		f.Fatal(err)
	}
	var log []byte
	var places [blocks]int64
	for n := range places {
		if places[n], err = j.pos(uint32(n)); err != nil {
			f.Fatal(err)
		}
		log = append(log, b[places[n]:places[n]+bs]...)
	}
	f.Add(log)
	f.Fuzz(func(t *testing.T, log []byte) {
		img := bytes.Clone(b)
		for _, at := range places {
			log = log[copy(img[at:at+bs], log):]
		}
		fsys, err := Open(bytes.NewReader(img), int64(len(img)), nil)
		if err == nil {
			_, err = touch(fsys)
		}
		if err != nil && !classed(err) {
			t.Errorf("no class: %v", err)
		}
	})
}
