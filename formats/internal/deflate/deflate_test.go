package deflate

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"imgmaint/internal/testimg"
)

func inflate(t testing.TB, b []byte) []byte {
	t.Helper()
	src := bytes.NewReader(b)
	got, err := io.ReadAll(flate.NewReader(src))
	if err != nil {
		t.Fatal(err)
	}
	if src.Len() > 0 {
		t.Fatalf("%d bytes after the end of the stream", src.Len())
	}
	return got
}

// inputs are blocks of many kinds.
func inputs() map[string][]byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 100_000)
	for i := range random {
		random[i] = byte(rnd.Uint32())
	}
	two := bytes.Clone(random)
	for i := range two {
		two[i] &= 1
	}
	skew := make([]byte, 200_000) // codes longer than 15 bits, if they could
	for i := range skew {
		n := 0
		for rnd.IntN(2) == 0 && n < 30 {
			n++
		}
		skew[i] = byte(n * 7)
	}
	fib := []byte{}
	a, b := 1, 1
	for i := range 22 {
		fib = append(fib, bytes.Repeat([]byte{byte(i)}, a)...)
		a, b = b, a+b
	}
	rnd.Shuffle(len(fib), func(i, j int) { fib[i], fib[j] = fib[j], fib[i] })
	in := map[string][]byte{
		"empty": nil, "one": {7}, "two": {7, 7}, "three": {1, 2, 3}, "four": []byte("aaaa"), "zeros": make([]byte, 1<<20),
		"random": random, "bits": two, "skew": skew, "fibonacci": fib,
		"disk":  testimg.Disk(300_000, 3),
		"mixed": append(append(bytes.Repeat([]byte("golden image "), 3000), random...), make([]byte, 50_000)...),
		// A match at exactly the window, and one beyond.
		"distance": append(append(append([]byte("0123456789abcdef"), random[:4080]...), "0123456789abcdef"...), random[:4095]...),
		"stored":   append(bytes.Clone(random), random[:70000]...),
	}
	for n := 250; n < 265; n++ {
		in[fmt.Sprintf("run%d", n)] = bytes.Repeat([]byte{9}, n)
	}
	return in
}

func TestRoundTrip(t *testing.T) {
	for level := 1; level <= MaxLevel; level++ {
		for _, window := range []int{256, 4096, 32768} {
			e, err := New(level, window)
			if err != nil {
				t.Fatal(err)
			}
			for name, in := range inputs() {
				first := e.Encode([]byte("head"), in)
				if !bytes.Equal(inflate(t, first[4:]), in) {
					t.Fatalf("level %d window %d: %s does not come back", level, window, name)
				}
				if most := len(in) + len(in)/30000*5 + 11; len(first)-4 > most {
					t.Errorf("level %d: %s: %d bytes for %d", level, name, len(first)-4, len(in))
				}
				// The same again, whatever came before.
				if again := e.Encode(nil, in); !bytes.Equal(again, first[4:]) {
					t.Errorf("level %d window %d: %s: two runs differ", level, window, name)
				}
			}
		}
	}
}

// Distances stay within the window: decoded with a ring of just that size.
func TestWindow(t *testing.T) {
	for _, window := range []int{256, 4096} {
		e, _ := New(9, window)
		for name, in := range inputs() {
			for _, d := range distances(t, e.Encode(nil, in)) {
				if d > window {
					t.Errorf("%s: distance %d in a window of %d", name, d, window)
				}
			}
		}
	}
}

// Positions are kept in 16 bits: matches come from the right place in longer
// inputs too, and what was encoded before makes no difference.
func TestLongInputs(t *testing.T) {
	e, _ := New(6, 4096)
	for _, size := range []int64{65535, 65536, 65537, 1 << 20, 2<<20 + 5} {
		in := testimg.Disk(size, 9)
		want := e.Encode(nil, in)
		if !bytes.Equal(inflate(t, want), in) {
			t.Fatalf("%d bytes do not come back", size)
		}
		e.Encode(nil, testimg.Disk(70_000, 10))
		if !bytes.Equal(e.Encode(nil, in), want) {
			t.Fatalf("%d bytes: two runs differ", size)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range [][2]int{{0, 4096}, {10, 4096}, {6, 0}, {6, 128}, {6, 5000}, {6, 65536}} {
		if _, err := New(c[0], c[1]); err == nil {
			t.Errorf("New(%d, %d) was accepted", c[0], c[1])
		}
	}
}

func TestNoAllocation(t *testing.T) {
	e, _ := New(6, 4096)
	in := testimg.Disk(65536, 4)
	dst := make([]byte, 0, 1<<17)
	dst = e.Encode(dst[:0], in)
	if n := testing.AllocsPerRun(10, func() { e.Encode(dst[:0], in) }); n > 0 {
		t.Errorf("%v allocations for a block", n)
	}
}

func FuzzRoundTrip(f *testing.F) {
	for _, in := range inputs() {
		f.Add(in[:min(len(in), 3000)], uint8(6), uint8(12))
	}
	f.Fuzz(func(t *testing.T, in []byte, level, window uint8) {
		e, err := New(1+int(level)%MaxLevel, 1<<(8+window%8))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if !bytes.Equal(inflate(t, e.Encode(nil, in)), in) {
				t.Fatal("does not come back")
			}
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	in := testimg.Disk(1<<20, 1)
	for level := 1; level <= MaxLevel; level++ {
		b.Run(fmt.Sprint(level), func(b *testing.B) {
			e, _ := New(level, 4096)
			b.SetBytes(int64(len(in)))
			var dst []byte
			for b.Loop() {
				dst = dst[:0]
				for off := 0; off < len(in); off += 65536 {
					dst = e.Encode(dst[:0], in[off:off+65536])
				}
			}
		})
	}
}
