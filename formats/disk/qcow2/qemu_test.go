package qcow2

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"imgmaint/formats"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

// A memDisk is a raw disk in memory.
type memDisk []byte

func (d memDisk) Size() int64 { return int64(len(d)) }

func (d memDisk) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(d).ReadAt(p, off) }

func (d memDisk) ExtentAt(off int64) (formats.Extent, error) {
	if off >= d.Size() {
		return formats.Extent{}, io.EOF
	}
	return formats.Extent{Off: off, Len: d.Size() - off, Kind: formats.Data}, nil
}

// dirResolver opens what an image refers to in one folder, for tests.
func dirResolver(t testing.TB, dir string) formats.Resolver {
	var resolve formats.Resolver
	resolve = func(ref formats.Reference) (formats.Image, error) {
		b, err := os.ReadFile(filepath.Join(dir, filepath.Base(ref.Name)))
		if err != nil {
			return nil, err
		}
		if ref.Format == "qcow2" {
			return Open(bytes.NewReader(b), int64(len(b)), &Options{Resolve: resolve})
		}
		return memDisk(b), nil
	}
	return resolve
}

func openFile(t testing.TB, path string, opts *Options) (*Image, error) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if opts == nil {
		opts = &Options{Resolve: dirResolver(t, filepath.Dir(path))}
	}
	return Open(bytes.NewReader(b), int64(len(b)), opts)
}

type mapEntry struct {
	Start, Length int64
	Data, Zero    bool
}

// qemuMap is what qemu-img map tells: the runs that hold data, and those that
// read as zeros without being read.
func qemuMap(t testing.TB, path string) []formats.Extent {
	t.Helper()
	var es []mapEntry
	if err := json.Unmarshal([]byte(testimg.Run(t, "qemu-img", "map", "--output=json", "-f", "qcow2", path)), &es); err != nil {
		t.Fatal(err)
	}
	var out []formats.Extent
	for _, e := range es {
		kind := formats.Data
		if e.Zero && !e.Data {
			kind = formats.Zero
		}
		if !e.Data && !e.Zero && e.Length > 0 {
			t.Fatalf("qemu-img map: entry %+v", e)
		}
		if e.Length > 0 {
			out = appendRun(out, formats.Extent{Off: e.Start, Len: e.Length, Kind: kind})
		}
	}
	return out
}

func appendRun(out []formats.Extent, e formats.Extent) []formats.Extent {
	if e.Kind == formats.Hole {
		e.Kind = formats.Zero
	}
	if n := len(out); n > 0 && out[n-1].Kind == e.Kind {
		out[n-1].Len += e.Len
		return out
	}
	return append(out, e)
}

func ourMap(t testing.TB, img formats.Image) []formats.Extent {
	t.Helper()
	var out []formats.Extent
	for e, err := range formats.Extents(img, 0) {
		if err != nil {
			t.Fatal(err)
		}
		out = appendRun(out, e)
	}
	return out
}

// qemuRaw is the disk in path as qemu-img reads it.
func qemuRaw(t testing.TB, path string, args ...string) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	testimg.Run(t, "qemu-img", append(append([]string{"convert", "-f", "qcow2", "-O", "raw"}, args...), path, raw)...)
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// checkSame reads the image at path both ways: contents, map and check.
func checkSame(t *testing.T, path string) {
	t.Helper()
	img, err := openFile(t, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := formatstest.TestImage(img, qemuRaw(t, path)); err != nil {
		t.Error(err)
	}
	if got, want := fmt.Sprint(ourMap(t, img)), fmt.Sprint(qemuMap(t, path)); got != want {
		t.Errorf("map\n got %s\nwant %s", got, want)
	}
	checkVerdict(t, path)
}

type qemuCheck struct {
	Corruptions     int64 `json:"corruptions"`
	Leaks           int64 `json:"leaks"`
	CheckErrors     int64 `json:"check-errors"`
	ImageEnd        int64 `json:"image-end-offset"`
	TotalClusters   int64 `json:"total-clusters"`
	AllocedClusters int64 `json:"allocated-clusters"`
	Compressed      int64 `json:"compressed-clusters"`
}

func runQemuCheck(t testing.TB, path string) (qemuCheck, string) {
	t.Helper()
	out, _ := testimg.Try(t, "qemu-img", "check", "--output=json", "-f", "qcow2", path)
	var q qemuCheck
	i, j := strings.Index(out, "{\n"), strings.LastIndex(out, "}")
	if i < 0 || j < i {
		return qemuCheck{CheckErrors: 1}, out
	}
	if err := json.Unmarshal([]byte(out[i:j+1]), &q); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return q, out
}

// checkVerdict compares our check with that of qemu-img, count by count.
func checkVerdict(t *testing.T, path string) {
	t.Helper()
	q, out := runQemuCheck(t, path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Check(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatalf("Check: %v; qemu-img: %s", err, out)
	}
	got := qemuCheck{Corruptions: r.Corruptions, Leaks: r.Leaks, ImageEnd: r.ImageEnd, TotalClusters: r.TotalClusters,
		AllocedClusters: r.AllocatedClusters, Compressed: r.CompressedClusters}
	if got != q {
		t.Errorf("check\n got %+v %v\nwant %+v\n%s", got, r.Findings, q, out)
	}
}

// testDisk is a disk with all kinds of content, in a raw file.
func testDisk(t testing.TB, size int64) (string, []byte) {
	b := testimg.Disk(size, 11)
	return testimg.WriteFile(t, "disk.raw", b), b
}

func TestQemuOptions(t *testing.T) {
	const size = 3<<20 + 3*512
	src, _ := testDisk(t, size)
	type row struct {
		opts string
		args []string
	}
	var rows []row
	for cs := 512; cs <= 2<<20; cs *= 2 {
		rows = append(rows, row{fmt.Sprintf("compat=1.1,cluster_size=%d", cs), nil})
		if cs == 512 || cs == 4096 || cs == 65536 || cs == 2<<20 {
			rows = append(rows, row{fmt.Sprintf("compat=0.10,cluster_size=%d", cs), nil},
				row{fmt.Sprintf("compat=0.10,cluster_size=%d", cs), []string{"-c"}})
		}
		rows = append(rows, row{fmt.Sprintf("cluster_size=%d,compression_type=zlib", cs), []string{"-c"}},
			row{fmt.Sprintf("cluster_size=%d,compression_type=zstd", cs), []string{"-c"}})
		if cs >= 16384 {
			rows = append(rows, row{fmt.Sprintf("cluster_size=%d,extended_l2=on", cs), nil})
		}
	}
	rows = append(rows, row{"cluster_size=65536,extended_l2=on", []string{"-c"}}, row{"lazy_refcounts=on", nil})
	for bits := 1; bits <= 64; bits *= 2 {
		rows = append(rows, row{"refcount_bits=" + strconv.Itoa(bits), nil})
	}
	for _, p := range []string{"metadata", "falloc", "full"} {
		rows = append(rows, row{"preallocation=" + p, nil}, row{"preallocation=" + p + ",cluster_size=4096", nil})
	}
	rows = append(rows, row{"preallocation=metadata,extended_l2=on", nil})
	for _, r := range rows {
		t.Run(r.opts+strings.Join(r.args, ""), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "a.qcow2")
			args := append([]string{"convert", "-f", "raw", "-O", "qcow2", "-o", r.opts}, r.args...)
			testimg.Run(t, "qemu-img", append(args, src, path)...)
			checkSame(t, path)
		})
	}
}

func TestQemuSizes(t *testing.T) {
	for _, size := range []int64{0, 512, 65536, 65536 + 512, 1<<20 - 512, 3<<20 + 7*512} {
		t.Run(strconv.Itoa(int(size)), func(t *testing.T) {
			src, _ := testDisk(t, size)
			path := filepath.Join(t.TempDir(), "a.qcow2")
			testimg.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", src, path)
			checkSame(t, path)
		})
	}
}

// qemuIO runs commands of qemu-io on an image.
func qemuIO(t testing.TB, path string, cmds ...string) {
	t.Helper()
	args := []string{"-f", "qcow2"}
	for _, c := range cmds {
		args = append(args, "-c", c)
	}
	out := testimg.Run(t, "qemu-io", append(args, path)...)
	if strings.Contains(out, "failed") {
		t.Fatalf("qemu-io %v: %s", cmds, out)
	}
}

func qemuCreate(t testing.TB, dir, name, size string, args ...string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	testimg.Run(t, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), path, size)...)
	return path
}

var zeroSequence = []string{
	"write -P 1 0 1M", "write -P 2 1M 512k", "write -z 64k 128k", "write -z -u 256k 64k", "discard 512k 128k",
	"write -z 3M 200k", "write -z 3500k 3k", "write -P 3 70k 2k", "write -c -P 4 2M 64k", "discard 2M 64k",
	"write -P 5 4000k 1k", "write -z 4000k 512", "discard 700k 17k", "write -P 6 2300k 100k", "discard 2310k 4k",
}

func TestQemuZeroClusters(t *testing.T) {
	for _, opts := range []string{"compat=1.1", "compat=0.10", "extended_l2=on", "extended_l2=on,cluster_size=16k",
		"extended_l2=on,cluster_size=128k", "cluster_size=4k", "cluster_size=512", "compression_type=zstd"} {
		t.Run(opts, func(t *testing.T) {
			path := qemuCreate(t, t.TempDir(), "a.qcow2", "5000k", "-o", opts)
			seq := zeroSequence
			if strings.Contains(opts, "cluster_size") || strings.Contains(opts, "16k") {
				seq = nil
				for _, c := range zeroSequence {
					if !strings.Contains(c, "-c ") {
						seq = append(seq, c)
					}
				}
			}
			qemuIO(t, path, seq...)
			checkSame(t, path)
		})
	}
}

func TestQemuBacking(t *testing.T) {
	for _, opts := range []string{"compat=1.1", "compat=0.10", "extended_l2=on,cluster_size=32k", "cluster_size=1k"} {
		for _, size := range []string{"3M", "5M", "2049k"} {
			t.Run(opts+" "+size, func(t *testing.T) {
				dir := t.TempDir()
				raw := filepath.Join(dir, "base.raw")
				if err := os.WriteFile(raw, testimg.Disk(3<<20+512, 5), 0o600); err != nil {
					t.Fatal(err)
				}
				mid := qemuCreate(t, dir, "mid.qcow2", "4M", "-o", opts, "-b", raw, "-F", "raw")
				qemuIO(t, mid, "write -P 7 100k 300k", "write -z 1M 256k")
				top := qemuCreate(t, dir, "top.qcow2", size, "-o", opts, "-b", mid, "-F", "qcow2")
				qemuIO(t, top, "write -P 8 150k 5k", "write -z 1100k 300k", "write -P 9 2047k 1k", "discard 160k 64k")
				checkSame(t, mid)
				checkSame(t, top)

				if _, err := openFile(t, top, &Options{}); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), strconv.Quote(mid)) {
					t.Errorf("without a resolver: %v, want unsupported with the name", err)
				}
				img, err := openFile(t, top, &Options{LayerOnly: true})
				if err != nil {
					t.Fatal(err)
				}
				b := make([]byte, 1)
				if _, err := img.ReadAt(b, 30<<10); err != nil || b[0] != 0 {
					t.Errorf("layer alone: %#x, %v, want 0", b[0], err)
				}
				if img, err = openFile(t, top, nil); err != nil {
					t.Fatal(err)
				}
				if e, err := img.LayerExtentAt(0); err != nil || e.Kind != formats.Hole || img.Backing() == nil || img.Backing().Size() != 4<<20 {
					t.Errorf("LayerExtentAt(0) = %+v, %v", e, err)
				}
			})
		}
	}
}

func TestQemuDataFile(t *testing.T) {
	for i, opts := range []string{"", ",data_file_raw=on", ",extended_l2=on", ",preallocation=metadata"} {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			dir := t.TempDir()
			data := filepath.Join(dir, "data")
			path := qemuCreate(t, dir, "a.qcow2", "3000k", "-o", "data_file="+data+opts)
			qemuIO(t, path, "write -P 1 0 64k", "write -P 2 200k 100k", "write -z 256k 64k", "discard 0 4k", "write -P 3 2990k 10k")
			checkSame(t, path)
			if _, err := openFile(t, path, &Options{}); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), strconv.Quote(data)) {
				t.Errorf("without a resolver: %v, want unsupported with the name", err)
			}
			b, _ := os.ReadFile(path)
			info, err := Describe(bytes.NewReader(b), int64(len(b)))
			want := []formats.Reference{{Kind: formats.RefData, Name: data, Format: "raw"}}
			if err != nil || fmt.Sprint(info.References) != fmt.Sprint(want) {
				t.Errorf("Describe: %+v, %v", info.References, err)
			}
		})
	}
}

func TestQemuSnapshots(t *testing.T) {
	for _, opts := range []string{"compat=1.1", "compat=0.10", "extended_l2=on,cluster_size=16k", "cluster_size=512"} {
		t.Run(opts, func(t *testing.T) {
			path := qemuCreate(t, t.TempDir(), "a.qcow2", "3M", "-o", opts)
			qemuIO(t, path, "write -P 1 0 1M", "write -P 2 2M 4k")
			testimg.Run(t, "qemu-img", "snapshot", "-c", "first", path)
			qemuIO(t, path, "write -P 3 100k 1M", "write -z 2M 64k")
			testimg.Run(t, "qemu-img", "snapshot", "-c", "second state", path)
			qemuIO(t, path, "write -P 4 0 8k")
			if !strings.Contains(opts, "0.10") {
				testimg.Run(t, "qemu-img", "resize", "-q", path, "5M")
				qemuIO(t, path, "write -P 5 4M 8k")
			}
			checkSame(t, path)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"first", "1", "2", "second state"} {
				img, err := Open(bytes.NewReader(b), int64(len(b)), &Options{Snapshot: name})
				if err != nil {
					t.Fatal(err)
				}
				// qemu-img reads a snapshot in the size of the active disk.
				want := qemuRaw(t, path, "-l", name)[:3<<20]
				if err := formatstest.TestImage(img, want); err != nil {
					t.Errorf("snapshot %q: %v", name, err)
				}
			}
			if _, err := Open(bytes.NewReader(b), int64(len(b)), &Options{Snapshot: "third"}); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("missing snapshot: %v", err)
			}
			info, err := Describe(bytes.NewReader(b), int64(len(b)))
			if err != nil || len(info.Snapshots) != 2 || info.Snapshots[1].Name != "second state" || info.Snapshots[0].ID != "1" ||
				info.Snapshots[0].VirtualSize != 3<<20 || info.Snapshots[0].Time.Year() < 2000 {
				t.Errorf("Describe: %+v, %v", info.Snapshots, err)
			}
		})
	}
}

func TestQemuBitmaps(t *testing.T) {
	for _, opts := range []string{"cluster_size=64k", "cluster_size=512"} {
		path := qemuCreate(t, t.TempDir(), "a.qcow2", "20M", "-o", opts)
		testimg.Run(t, "qemu-img", "bitmap", "--add", "-g", "4096", path, "one")
		testimg.Run(t, "qemu-img", "bitmap", "--add", "--disable", "-g", "65536", path, "two")
		qemuIO(t, path, "write -P 1 1M 3M", "write -P 2 10M 1k")
		checkSame(t, path)
		img, err := openFile(t, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprintf("%+v", img.Info().Bitmaps)
		if want := "[{Name:one Granularity:4096 Flags:[auto]} {Name:two Granularity:65536 Flags:[]}]"; got != want {
			t.Errorf("bitmaps\n got %s\nwant %s", got, want)
		}
	}
}

// A dirty image is what a machine that lost power leaves behind.
func TestQemuDirty(t *testing.T) {
	path := qemuCreate(t, t.TempDir(), "a.qcow2", "5M", "-o", "lazy_refcounts=on")
	testimg.Try(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 2M", "-c", "flush", "-c", "abort", path)
	img, err := openFile(t, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := img.Info().Problems; len(p) != 1 || !strings.Contains(p[0], "dirty") {
		t.Errorf("problems %q", p)
	}
	r, err := img.Check()
	if err != nil || r.Corruptions == 0 {
		t.Errorf("Check: %+v, %v, want refcounts that are not up to date", r, err)
	}
	if err := formatstest.TestImage(img, qemuRaw(t, path)); err != nil {
		t.Error(err)
	}
}
