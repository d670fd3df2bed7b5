package ext4

import (
	"bytes"
	"testing"
)

// FuzzOpen reads everything in images that are damaged at will.
func FuzzOpen(f *testing.F) {
	for _, name := range seeds {
		f.Add(seed(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
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
	b := seed(f, "journal.img.gz")
	fsys, err := Open(bytes.NewReader(b), int64(len(b)), &Options{NoReplay: true})
	if err != nil {
		f.Fatal(err)
	}
	j := &journal{fs: fsys}
	if err := j.open(journalIno); err != nil {
		f.Fatal(err)
	}
	off, err := j.pos(0)
	if err != nil {
		f.Fatal(err)
	}
	room := min(j.last.n<<10, 64<<10)
	f.Add(bytes.Clone(b[off : off+min(room, 16<<10)]))
	f.Fuzz(func(t *testing.T, log []byte) {
		img := bytes.Clone(b)
		copy(img[off:off+room], log)
		fsys, err := Open(bytes.NewReader(img), int64(len(img)), nil)
		if err == nil {
			_, err = touch(fsys)
		}
		if err != nil && !classed(err) {
			t.Errorf("no class: %v", err)
		}
	})
}
