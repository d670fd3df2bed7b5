package convert

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"testing"
	"testing/synctest"

	"imgmaint/formats"
	"imgmaint/formats/disk/raw"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

// memory is a disk in memory whose extents alternate at multiples of step:
// zero runs are holes, others data.
type memory struct {
	io.ReaderAt
	b    []byte
	step int64
}

func disk(b []byte, step int64) memory { return memory{bytes.NewReader(b), b, step} }

func (m memory) Size() int64 { return int64(len(m.b)) }

func (m memory) ExtentAt(off int64) (formats.Extent, error) {
	if off >= m.Size() {
		return formats.Extent{}, io.EOF
	}
	end := min((off/m.step+1)*m.step, m.Size())
	e := formats.Extent{Off: off, Len: end - off}
	if !isZero(m.b[off:end]) {
		e.Kind = formats.Data
	}
	return e, nil
}

func TestImage(t *testing.T) {
	for _, size := range []int64{0, 1, 4096, 1 << 20, 3<<20 + 1, 9<<20 - 511} {
		want := testimg.Disk(size, uint64(size))
		for _, step := range []int64{512, 4096, 65536, 700_001, 1 << 30} {
			var first []byte
			for _, workers := range []int{1, 2, 5} {
				var f formatstest.Buffer
				w, err := raw.NewWriter(&f, size)
				if err != nil {
					t.Fatal(err)
				}
				last := int64(-1)
				o := &Options{Workers: workers, Progress: func(done, total int64) {
					if done < last || total != size {
						t.Errorf("progress %d of %d after %d", done, total, last)
					}
					last = done
				}}
				st, err := Image(t.Context(), w, disk(want, step), o)
				if err == nil {
					err = w.Close()
				}
				if err != nil {
					t.Fatalf("size %d, step %d: %v", size, step, err)
				}
				if !bytes.Equal(f.Bytes(), want) {
					t.Fatalf("size %d, step %d, %d workers: the copy differs", size, step, workers)
				}
				if last != size || st.Size != size || st.Read > size || st.Written > size {
					t.Errorf("size %d, step %d: progress ended at %d, stats %+v", size, step, last, st)
				}
				if first == nil {
					first = f.Bytes()
				}
			}
		}
	}
}

// recorder is a destination that notes what it is given.
type recorder struct {
	formatstest.Buffer
	cluster int64
	writes  []formats.Extent
}

func (r *recorder) ClusterSize() int64 { return r.cluster }
func (r *recorder) Close() error       { return nil }
func (r *recorder) WriteAt(p []byte, off int64) (int, error) {
	r.writes = append(r.writes, formats.Extent{Off: off, Len: int64(len(p))})
	return r.Buffer.WriteAt(p, off)
}

func TestZeroDetection(t *testing.T) {
	b := make([]byte, 4<<20)
	b[5000] = 1         // page 1
	b[1<<20] = 1        // page 256
	b[1<<20+3*4096] = 1 // page 259: 257 and 258 are zero
	b[2<<20-1] = 1      // next to the window's edge
	b[2<<20] = 1        // on it
	b[4<<20-1] = 1      // the last
	for _, tt := range []struct {
		cluster int64
		want    int64 // bytes written
	}{{512, 6 * 4096}, {4096, 6 * 4096}, {65536, 5 * 65536}, {2 << 20, 4 << 20}} {
		r := &recorder{cluster: tt.cluster}
		st, err := Image(t.Context(), r, disk(b, 1<<20), nil)
		if err != nil {
			t.Fatal(err)
		}
		if st.Written != tt.want {
			t.Errorf("cluster %d: wrote %d bytes, want %d: %v", tt.cluster, st.Written, tt.want, r.writes)
		}
		for i, e := range r.writes {
			if unit := max(tt.cluster, 4096); e.Off%unit != 0 {
				t.Errorf("cluster %d: write %+v is not aligned", tt.cluster, e)
			}
			if i > 0 && e.Off < r.writes[i-1].End() {
				t.Errorf("cluster %d: write %+v after %+v", tt.cluster, e, r.writes[i-1])
			}
		}
	}
	r := &recorder{cluster: 4096}
	if st, err := Image(t.Context(), r, disk(b, 1<<30), &Options{KeepZeros: true}); err != nil || st.Written != 4<<20 {
		t.Errorf("KeepZeros wrote %d, %v, want all", st.Written, err)
	}
}

// xor is a ClusterWriter whose stored form is each byte flipped.
type xor struct{ recorder }

func (x *xor) NewEncoder() formats.Encoder { return flip{} }
func (x *xor) WriteEncoded(off int64, enc []byte) error {
	_, err := x.WriteAt(enc, off)
	return err
}

type flip struct{}

func (flip) Encode(dst, p []byte) ([]byte, error) {
	for _, c := range p {
		dst = append(dst, ^c)
	}
	return dst, nil
}

func TestClusterWriter(t *testing.T) {
	b := testimg.Disk(5<<20+300, 11)
	x := &xor{recorder{cluster: 65536}}
	if _, err := Image(t.Context(), x, disk(b, 4096), &Options{Workers: 3}); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(b))
	copy(got, x.Bytes())
	for _, e := range x.writes {
		for i := e.Off; i < e.End(); i++ {
			got[i] = ^got[i]
		}
	}
	if !bytes.Equal(got, b) {
		t.Error("the decoded copy differs")
	}
}

func TestReadErrorAnywhere(t *testing.T) {
	b := testimg.Disk(3<<20, 5)
	for bad := int64(0); bad < int64(len(b)); bad += 99_991 {
		m := disk(b, 4096)
		m.ReaderAt = testimg.FaultyReader{R: m.ReaderAt, Bad: bad}
		e, _ := m.ExtentAt(bad / m.step * m.step)
		_, err := Image(t.Context(), &recorder{}, m, &Options{Workers: 2})
		if want := e.Kind == formats.Data; errors.Is(err, testimg.ErrInjected) != want {
			t.Errorf("bad byte %d: error %v, want one: %v", bad, err, want)
		}
	}
}

func TestWriteErrorAtEveryWrite(t *testing.T) {
	b := testimg.Disk(4<<20, 6)
	ok := &testimg.FaultyWriter{W: new(formatstest.Buffer), FailAt: 1 << 40}
	w, _ := raw.NewWriter(ok, int64(len(b)))
	if _, err := Image(t.Context(), w, disk(b, 4096), nil); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	for n := range ok.Writes() {
		w, _ := raw.NewWriter(&testimg.FaultyWriter{W: new(formatstest.Buffer), FailAt: n}, int64(len(b)))
		if _, err := Image(t.Context(), w, disk(b, 4096), nil); !errors.Is(err, testimg.ErrInjected) {
			t.Fatalf("write %d failed and Image returned %v", n, err)
		}
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines before, %d after", before, after)
	}
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		o := &Options{Progress: func(done, _ int64) {
			if done > 1<<20 {
				cancel(why)
			}
		}}
		_, err := Image(ctx, &recorder{}, disk(bytes.Repeat([]byte{1}, 32<<20), 1<<30), o)
		if !errors.Is(err, why) {
			t.Errorf("Image = %v, want %v", err, why)
		}
	})
}

func TestCompare(t *testing.T) {
	b := testimg.Disk(3<<20+7, 9)
	change := func(at int64) []byte {
		c := bytes.Clone(b)
		c[at] ^= 1
		return c
	}
	longer := append(bytes.Clone(b), make([]byte, 2<<20)...)
	dirty := bytes.Clone(longer)
	dirty[len(dirty)-1] = 1
	for _, tt := range []struct {
		name string
		x, y []byte
		want *Difference
	}{
		{"same", b, b, nil},
		{"empty", nil, nil, nil},
		{"first", b, change(0), &Difference{Off: 0}},
		{"middle", change(1<<20 - 1), b, &Difference{Off: 1<<20 - 1}},
		{"last", b, change(3<<20 + 6), &Difference{Off: 3<<20 + 6}},
		{"longer", longer, b, &Difference{Off: 3<<20 + 7, SizeOnly: true}},
		{"longer with data", b, dirty, &Difference{Off: int64(len(dirty)) - 1}},
	} {
		for _, step := range []int64{512, 1 << 20, 1 << 30} {
			got, err := Compare(t.Context(), disk(tt.x, step), disk(tt.y, 4096), nil)
			if err != nil || (got == nil) != (tt.want == nil) || got != nil && *got != *tt.want {
				t.Errorf("%s, step %d: Compare = %+v, %v, want %+v", tt.name, step, got, err, tt.want)
			}
		}
	}
}

func BenchmarkImage(b *testing.B) {
	src := disk(bytes.Repeat([]byte("0123456789abcdef"), 16<<20), 1<<30)
	b.SetBytes(src.Size())
	for b.Loop() {
		if _, err := Image(b.Context(), discard{}, src, nil); err != nil {
			b.Fatal(err)
		}
	}
}

type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (discard) Close() error                           { return nil }
