package qcow2

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

const benchSize = 32 << 20

func benchDisk() []byte { return testimg.Disk(benchSize, 77) }

func BenchmarkRead(b *testing.B) {
	disk := benchDisk()
	for _, o := range []WriterOptions{{}, {ClusterSize: 4096}, {Compression: Zlib}, {Compression: Zstd}} {
		b.Run(o.String(), func(b *testing.B) {
			var f formatstest.Buffer
			w, err := create(&f, benchSize, &o)
			if err == nil {
				err = copyDisk(w, disk)
			}
			if err != nil {
				b.Fatal(err)
			}
			img, err := Open(bytes.NewReader(f.Bytes()), int64(len(f.Bytes())), nil)
			if err != nil {
				b.Fatal(err)
			}
			p := make([]byte, 1<<20)
			b.SetBytes(benchSize)
			b.ReportAllocs()
			for b.Loop() {
				for off := int64(0); off < benchSize; off += int64(len(p)) {
					if _, err := img.ReadAt(p, off); err != nil && err != io.EOF {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// discard is a file that forgets.
type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

func BenchmarkWrite(b *testing.B) {
	p := make([]byte, 1<<20)
	for _, cs := range []int64{4096, 65536, 2 << 20} {
		b.Run(fmt.Sprint(cs), func(b *testing.B) {
			b.SetBytes(benchSize)
			b.ReportAllocs()
			for b.Loop() {
				w, err := NewWriter(discard{}, benchSize, &WriterOptions{ClusterSize: cs})
				if err != nil {
					b.Fatal(err)
				}
				for off := int64(0); off < benchSize; off += 1 << 20 {
					if _, err := w.WriteAt(p, off); err != nil {
						b.Fatal(err)
					}
				}
				if err := w.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func benchEncode(b *testing.B, o WriterOptions, levels ...int) {
	disk := benchDisk()
	for _, o.Level = range levels {
		b.Run(fmt.Sprint(o.Level), func(b *testing.B) {
			w, err := NewCompressedWriter(discard{}, benchSize, &o)
			if err != nil {
				b.Fatal(err)
			}
			enc := w.NewEncoder()
			var out []byte
			size := 0
			b.SetBytes(benchSize)
			b.ReportAllocs()
			for b.Loop() {
				size = 0
				for off := 0; off < benchSize; off += DefaultClusterSize {
					if out, err = enc.Encode(out[:0], disk[off:off+DefaultClusterSize]); err != nil {
						b.Fatal(err)
					}
					size += len(out)
				}
			}
			b.ReportMetric(float64(size)/benchSize*100, "%size")
		})
	}
}

func BenchmarkEncodeZlib(b *testing.B) {
	benchEncode(b, WriterOptions{Compression: Zlib}, 1, defaultZlibLevel, 6, 9)
}

func BenchmarkEncodeZstd(b *testing.B) {
	benchEncode(b, WriterOptions{Compression: Zstd}, 1, defaultZstdLevel, 9)
}

// BenchmarkExtents walks the tables of 512 GiB of data in clusters of 64 KiB.
func BenchmarkExtents(b *testing.B) {
	var f formatstest.Buffer
	const size = 8 << 40
	w, err := NewWriter(&f, size, nil)
	if err != nil {
		b.Fatal(err)
	}
	for off := int64(0); off < size; off += 64 << 30 {
		if _, err := w.WriteAt([]byte{1}, off); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	img, err := Open(bytes.NewReader(f.Bytes()), int64(len(f.Bytes())), nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		for off := int64(0); off < size; {
			e, err := img.ExtentAt(off)
			if err != nil {
				b.Fatal(err)
			}
			off = e.End()
		}
	}
}
