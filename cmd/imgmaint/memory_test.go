package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"imgmaint/internal/testimg"
)

// Memory must not follow the size of the disk: at most 64 MiB resident,
// whatever the virtual size and the format.
func TestMemoryStaysFlat(t *testing.T) {
	if testing.Short() {
		t.Skip("memory is not measured with -short, which the race detector runs with: it takes its own")
	}
	const limit = 64 << 20
	bin, timeTool := program(t), testimg.Tool(t, "time")
	dir := t.TempDir()
	src := filepath.Join(dir, "src.raw")
	data := testimg.Disk(64<<20, 13)
	for _, virtual := range []int64{64 << 20, 64 << 30, 1 << 40} {
		f, err := os.Create(src)
		if err != nil {
			t.Fatal(err)
		}
		// Data at the start, in the middle and at the end.
		for i, off := range []int64{0, virtual / 2 &^ 0xffff, virtual - int64(len(data))/4} {
			part := data[i*len(data)/4:][:len(data)/4]
			if _, err := f.WriteAt(part, off); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		for _, to := range [][]string{
			{"raw"}, {"vhd"}, {"qcow2"}, {"qcow2", "--compress=zlib"}, {"qcow2", "--compress=zstd"},
			{"qcow2", "--compress=zstd", "--level=19", "--cluster-size=2M"}, {"qcow2", "--cluster-size=4K"}, {"vmdk"},
		} {
			dst := filepath.Join(dir, "dst")
			for _, args := range [][]string{
				append([]string{"convert", src, dst, "--to"}, to...),
				{"convert", dst, filepath.Join(dir, "back"), "--to", "raw"},
				{"compare", src, dst},
				{"check", dst},
				{"info", dst},
			} {
				// Linux counts the memory of the process that forks as the
				// child's: so let a small one do it.
				log := filepath.Join(dir, "rss")
				out, err := exec.Command(timeTool, append([]string{"-f", "%M", "-o", log, bin}, args...)...).CombinedOutput()
				if err != nil {
					t.Errorf("%d GiB: %v: %v\n%s", virtual>>30, args, err, out)
					break
				}
				b, err := os.ReadFile(log)
				if err != nil {
					t.Fatal(err)
				}
				kib, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				rss := kib << 10
				if rss > limit {
					t.Errorf("%d GiB: %v: %d MiB resident, at most %d", virtual>>30, args, rss>>20, limit>>20)
				}
				t.Logf("%5d GiB %3d MiB %v %s", virtual>>30, rss>>20, to, args[0])
			}
		}
	}
}
