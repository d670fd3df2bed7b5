package qcow2

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"imgmaint/formats"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

// FuzzOpen opens anything, walks some extents, reads some of the disk and
// checks the metadata. Seeds are small images of all kinds: ours, and those in
// testdata, which qemu-img 7.2 created (the options are in their names) and
// qemu-io wrote to; snap-bitmap has a snapshot, a bitmap and a compressed
// cluster.
func FuzzOpen(f *testing.F) {
	for _, o := range []WriterOptions{{ClusterSize: 512}, {ClusterSize: 512, Version: 2}, {ClusterSize: 512, Compression: Zlib},
		{ClusterSize: 512, Compression: Zstd}, {ClusterSize: 512, Backing: &formats.Reference{Name: "base", Format: "raw"}}} {
		var b formatstest.Buffer
		w, err := create(&b, 20<<10, &o)
		if err == nil {
			err = copyDisk(w, testimg.Disk(20<<10, 1))
		}
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
		f.Add(snapshotTable(1, nil)(bytes.Clone(b.Bytes())))
	}
	seeds, _ := filepath.Glob(filepath.Join("testdata", "*.qcow2"))
	if len(seeds) == 0 {
		f.Fatal("no seeds in testdata")
	}
	for _, s := range seeds {
		b, err := os.ReadFile(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		below := memDisk(bytes.Repeat([]byte("below"), 2000))
		for _, o := range []*Options{
			{Resolve: func(formats.Reference) (formats.Image, error) { return below, nil }},
			{LayerOnly: true, Snapshot: "1"},
		} {
			img, err := Open(bytes.NewReader(b), int64(len(b)), o)
			if err != nil {
				if img != nil {
					t.Fatal("an image came with the error")
				}
				continue
			}
			buf := make([]byte, 5000)
			n := 0
			for e, err := range formats.Extents(img, 0) {
				if err != nil {
					break
				}
				if _, err := img.ReadAt(buf[:min(int64(len(buf)), e.Len)], e.Off); err == nil && e.Kind != formats.Data {
					if p := buf[:min(int64(len(buf)), e.Len)]; len(bytes.TrimLeft(p, "\x00")) > 0 {
						t.Fatalf("extent %+v is not zeros", e)
					}
				}
				if n++; n > 50 {
					break
				}
			}
			if k, err := img.ReadAt(buf, max(0, img.Size()-100)); err == nil && k != len(buf) {
				t.Fatalf("read %d bytes without an error", k)
			}
			if _, err := img.ReadAt(buf, img.Size()); err != io.EOF {
				t.Fatalf("read at the end: %v", err)
			}
		}
		Describe(bytes.NewReader(b), int64(len(b)))
		Check(bytes.NewReader(b), int64(len(b)))
	})
}
