package pgp

import (
	"bytes"
	"crypto/sha256"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const debianKeys = "/usr/share/keyrings/debian-archive-keyring.gpg"

// need skips a test that wants files of a Debian system, or fails it when the
// reference tools have to be there.
func need(t testing.TB, what string, ok bool) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("IMGMAINT_REQUIRE_TOOLS") == "1" {
		t.Fatalf("%s is missing and IMGMAINT_REQUIRE_TOOLS=1", what)
	}
	t.Skipf("%s is not here", what)
}

// debian returns Debian's keyring and the InRelease files that apt has fetched.
func debian(t testing.TB) (keys []byte, releases map[string][]byte) {
	t.Helper()
	keys, err := os.ReadFile(debianKeys)
	need(t, debianKeys, err == nil)
	names, err := filepath.Glob("/var/lib/apt/lists/*debian*InRelease")
	if err != nil {
		t.Fatal(err)
	}
	releases = map[string][]byte{}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("\nOrigin: Debian\n")) {
			releases[filepath.Base(name)] = b
		}
	}
	need(t, "an InRelease of Debian in /var/lib/apt/lists", len(releases) > 0)
	return keys, releases
}

// TestDebian verifies what apt verifies, and compares with gpgv.
func TestDebian(t *testing.T) {
	keys, releases := debian(t)
	ring := mustRing(t, keys)
	for _, key := range ring.Keys() {
		if !strings.Contains(key.Name(), "Debian") || key.Invalid != "" || key.Weak != "" || !key.CanSign {
			t.Errorf("key %+v", key)
		}
		for _, sub := range key.Subkeys {
			if sub.Invalid != "" || !sub.CanSign {
				t.Errorf("subkey %+v", sub)
			}
		}
	}
	g := newGnupg(t)
	for name, b := range releases {
		res, err := ring.VerifyClearsigned(b, nil)
		if err != nil {
			t.Fatal(name, err)
		}
		var got []string
		for i := range res.Signatures {
			s := &res.Signatures[i]
			got = append(got, map[Status]string{Valid: "GOODSIG", UnknownKey: "ERRSIG", ExpiredKey: "EXPKEYSIG",
				RevokedKey: "REVKEYSIG", BadSignature: "BADSIG"}[s.Status])
		}
		if want := g.statuses(keys, b, nil); !slices.Equal(got, want) || len(got) < 2 {
			t.Errorf("%s: %v, gpgv says %v", name, got, want)
		}
		if err := res.Err(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		out, _, err := g.try(nil, "gpgv", "--keyring", debianKeys, "--output", "-", writeFile(t, b))
		if err != nil || out != string(res.Text) {
			t.Errorf("%s: text differs from gpgv's: %v", name, err)
		}
		if !bytes.HasPrefix(res.Text, []byte("Origin: Debian\n")) {
			t.Errorf("%s: text begins %.40q", name, res.Text)
		}

		// One byte of the text, here and there.
		start := bytes.Index(b, []byte("\n\n")) + 2
		end := bytes.Index(b, []byte(sigBegin))
		for i := start; i < end; i += (end - start) / 40 {
			c := bytes.Clone(b)
			c[i] ^= 1
			res, err := ring.VerifyClearsigned(c, nil)
			if err != nil {
				continue // a line that begins with a dash now
			}
			for j := range res.Signatures {
				if res.Signatures[j].Status == Valid || res.Trusted {
					t.Errorf("%s: byte %d changed and valid", name, i)
				}
			}
		}
		// Every byte of the signatures: the one that is hit is not valid.
		sigs := dearmored(t, b[end:])
		n := len(res.Signatures)
		for i := 0; i < len(sigs); i += 5 {
			c := bytes.Clone(sigs)
			c[i] ^= masks[i%len(masks)]
			res, err := ring.VerifyClearsigned(append(bytes.Clone(b[:end]), enarmor(armorSignature, c)...), nil)
			if err != nil {
				continue
			}
			valid := 0
			for j := range res.Signatures {
				if res.Signatures[j].Status == Valid {
					valid++
				}
			}
			if valid >= n {
				t.Errorf("%s: byte %d of the signatures changed and all valid", name, i)
			}
		}
	}
}

func writeFile(t testing.TB, b []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "m")
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestConcurrent: one keyring and one signer serve many.
func TestConcurrent(t *testing.T) {
	s, public := generated(t)
	ring := mustRing(t, public)
	want := detach(t, s, []byte("m"))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			sig, err := s.DetachSign(t.Context(), strings.NewReader("m"))
			if err != nil || !bytes.Equal(sig, want) {
				t.Errorf("signature differs: %v", err)
			}
			res, err := ring.Verify(sig, strings.NewReader("m"), nil)
			if err != nil || res.Err() != nil {
				t.Errorf("%v, %v", res, err)
			}
			ring.Keys()
		})
	}
	wg.Wait()
}

func BenchmarkInRelease(b *testing.B) {
	keys, releases := debian(b)
	ring := mustRing(b, keys)
	for name, m := range releases {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				res, err := ring.VerifyClearsigned(m, nil)
				if err != nil || res.Err() != nil {
					b.Fatal(err, res.Err())
				}
			}
		})
	}
	b.Run("first", func(b *testing.B) { // with the keyring read, its keys checked
		for b.Loop() {
			for _, m := range releases {
				res, err := mustRing(b, keys).VerifyClearsigned(m, nil)
				if err != nil || res.Err() != nil {
					b.Fatal(err, res.Err())
				}
				break
			}
		}
	})
	b.Run("keyring", func(b *testing.B) {
		for b.Loop() {
			mustRing(b, keys)
		}
	})
}

// zeros is a message of a length.
type zeros struct{ n int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.n == 0 {
		return 0, io.EOF
	}
	n := int(min(z.n, int64(len(p))))
	z.n -= int64(n)
	return n, nil
}

// BenchmarkVerify compares a detached signature over 1 GiB with the hash alone.
func BenchmarkVerify(b *testing.B) {
	const size = 1 << 30
	signer, public := generated(b)
	sig, err := signer.DetachSign(b.Context(), &zeros{size})
	if err != nil {
		b.Fatal(err)
	}
	ring := mustRing(b, public)
	run := func(name string, f func()) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
	sum := func(h hash.Hash) func() {
		return func() {
			if _, err := io.CopyBuffer(struct{ io.Writer }{h}, &zeros{size}, make([]byte, bufferSize)); err != nil {
				b.Fatal(err)
			}
		}
	}
	run("verify", func() {
		res, err := ring.Verify(sig, &zeros{size}, &Policy{At: craftTime.Add(2 * time.Hour)})
		if err != nil || res.Err() != nil {
			b.Fatal(err, res.Err())
		}
	})
	run("sha256", sum(sha256.New()))
}
