package ext4

import (
	"io"
	"io/fs"
	"os"
	"testing"

	"imgmaint/internal/testimg"
)

// benchImage is the image IMGMAINT_BENCH_EXT4 names, or one with the long
// tree of the tests.
func benchImage(b *testing.B) *os.File {
	img := os.Getenv("IMGMAINT_BENCH_EXT4")
	if img == "" {
		p := populator{bs: 4096, files: 10000, dirs: 1000, small: true, dir: b.TempDir()}
		if err := p.fill(); err != nil {
			b.Fatal(err)
		}
		img = mkfs(b, 192<<20)
		testimg.Run(b, "mke2fs", "-q", "-F", "-t", "ext4", "-N", "24000", "-d", p.dir, img)
	}
	r, err := os.Open(img)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close() })
	return r
}

func benchOpen(b *testing.B, r *os.File) *FS {
	fi, err := r.Stat()
	if err != nil {
		b.Fatal(err)
	}
	f, err := Open(r, fi.Size(), nil)
	if err != nil {
		b.Fatal(err)
	}
	return f
}

// BenchmarkWalkStat opens the file system, walks all of it and reads every
// inode.
func BenchmarkWalkStat(b *testing.B) {
	r := benchImage(b)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n = 0
		if err := fs.WalkDir(benchOpen(b, r), ".", func(_ string, d fs.DirEntry, err error) error {
			if err == nil {
				_, err = d.Info()
			}
			n++
			return err
		}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n), "entries")
}

// BenchmarkReadFiles opens every file by its path and reads it.
func BenchmarkReadFiles(b *testing.B) {
	r := benchImage(b)
	var names []string
	var total int64
	if err := fs.WalkDir(benchOpen(b, r), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			names = append(names, name)
			fi, err := d.Info()
			if err != nil {
				return err
			}
			total += fi.Size()
		}
		return err
	}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(total)
	buf := make([]byte, 256<<10)
	for b.Loop() {
		f := benchOpen(b, r)
		for _, name := range names {
			file, err := f.Open(name)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{file}, buf); err != nil {
				b.Fatal(err)
			}
			file.Close()
		}
	}
}
