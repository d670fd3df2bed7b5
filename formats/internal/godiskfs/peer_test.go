package godiskfs

import (
	"context"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	peer "github.com/diskfs/go-diskfs/filesystem/ext4"

	"imgmaint/formats/filesys/ext4"
	"imgmaint/internal/testimg"
)

// The peer of our ext4 reader is go-diskfs's. These benchmarks run both over
// one image in one process; the ratio of a pair is what counts.

// peerImage makes an ext4 image of a real tree, BENCH_PEER_TREE or /usr/lib/python3.
func peerImage(b *testing.B) string {
	tree := os.Getenv("BENCH_PEER_TREE")
	if tree == "" {
		tree = "/usr/lib/python3"
	}
	img := filepath.Join(b.TempDir(), "img")
	testimg.Run(b, "mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, img, "4G")
	return img
}

func openOurs(b *testing.B, img string) fs.ReadDirFS {
	f, err := os.Open(img)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	fi, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	fsys, err := ext4.Open(f, fi.Size(), nil)
	if err != nil {
		b.Fatal(err)
	}
	return fsys
}

func openPeer(b *testing.B, img string) fs.ReadDirFS {
	s, err := file.OpenFromPath(img, true)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	fi, err := os.Stat(img)
	if err != nil {
		b.Fatal(err)
	}
	fsys, err := peer.Read(s, fi.Size(), 0, 0)
	if err != nil {
		b.Fatal(err)
	}
	return fsys
}

// walk visits and stats everything, and reads files up to maxSize bytes.
func walk(ctx context.Context, fsys fs.ReadDirFS, dir string, maxSize int64) (entries, bytes int64, err error) {
	all, err := fsys.ReadDir(dir)
	if err != nil {
		return 0, 0, err
	}
	for _, d := range all {
		name := path.Join(dir, d.Name())
		fi, err := fs.Stat(fsys, name)
		if err != nil && d.Type()&fs.ModeSymlink == 0 {
			return entries, bytes, err
		}
		entries++
		switch {
		case ctx.Err() != nil:
			return entries, bytes, ctx.Err()
		case d.IsDir() && d.Name() != "." && d.Name() != "..":
			n, m, err := walk(ctx, fsys, name, maxSize)
			entries, bytes = entries+n, bytes+m
			if err != nil {
				return entries, bytes, err
			}
		case err == nil && fi.Mode().IsRegular() && fi.Size() <= maxSize:
			data, err := readFile(fsys, name)
			if err != nil {
				return entries, bytes, err
			}
			bytes += int64(len(data))
		}
	}
	return entries, bytes, nil
}

// readFile reads a file whole; the peer panics on some.
func readFile(fsys fs.FS, name string) (data []byte, err error) {
	defer func() {
		if recover() != nil {
			err = nil
		}
	}()
	return fs.ReadFile(fsys, name)
}

func benchPeers(b *testing.B, maxSize int64) {
	img := peerImage(b)
	for _, side := range []struct {
		name string
		open func(*testing.B, string) fs.ReadDirFS
	}{{"ours", openOurs}, {"go-diskfs", openPeer}} {
		b.Run(side.name, func(b *testing.B) {
			var entries, bytes int64
			for b.Loop() {
				var err error
				entries, bytes, err = walk(b.Context(), side.open(b, img), ".", maxSize)
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(entries), "entries")
			b.SetBytes(bytes)
		})
	}
}

func BenchmarkPeerWalkStat(b *testing.B)  { benchPeers(b, -1) }
func BenchmarkPeerReadFiles(b *testing.B) { benchPeers(b, 4<<20) }
