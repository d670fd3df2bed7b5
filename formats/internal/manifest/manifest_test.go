package manifest

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"imgmaint/formats"
	"imgmaint/internal/testimg"
)

const (
	d5   = "d41d8cd98f00b204e9800998ecf8427e"
	d1   = "da39a3ee5e6b4b0d3255bfef95601890afd80709"
	d256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

func TestParse(t *testing.T) {
	cases := []struct {
		line string
		want Entry
	}{
		{d1 + "  xvm.xml", Entry{"xvm.xml", SHA1, d1, -1, GNU, 0}},
		{d1 + " *imagefile", Entry{"imagefile", SHA1, d1, -1, GNUBinary, 0}},
		{d1 + "  ./a b", Entry{"a b", SHA1, d1, -1, GNU, 0}},
		{d1 + "   a", Entry{" a", SHA1, d1, -1, GNU, 0}},
		{strings.ToUpper(d1) + "  a", Entry{"a", SHA1, d1, -1, GNU, 0}},
		{`\` + d1 + `  a\\b`, Entry{`a\b`, SHA1, d1, -1, GNU, 0}},
		{d256 + "  a", Entry{"a", SHA256, d256, -1, GNU, 0}},
		{d5 + "  a", Entry{"a", MD5, d5, -1, GNU, 0}},
		{"SHA1 (a) = " + d1, Entry{"a", SHA1, d1, -1, BSD, 0}},
		{"SHA1(a)= " + d1, Entry{"a", SHA1, d1, -1, OVF, 0}},
		{"SHA1(a)=" + d1, Entry{"a", SHA1, d1, -1, OVF, 0}},
		{"SHA256(a (1).vmdk)= " + d256, Entry{"a (1).vmdk", SHA256, d256, -1, OVF, 0}},
		{"sha256(a)= " + d256 + "\r", Entry{"a", SHA256, d256, -1, OVF, 0}},
		{"SHA2-256(a)= " + d256, Entry{"a", SHA256, d256, -1, OVF, 0}},
		{"SHA256 (a)= " + d256, Entry{"a", SHA256, d256, -1, BSD, 0}},
		{"MD5 (a) = " + d5, Entry{"a", MD5, d5, -1, BSD, 0}},
		{"hda 1048576 " + d5, Entry{"hda", MD5, d5, 1048576, XVM2, 0}},
		{"my disk 0 " + d5, Entry{"my disk", MD5, d5, 0, XVM2, 0}},
		{"disk(1) 5 " + d5, Entry{"disk(1)", MD5, d5, 5, XVM2, 0}},
	}
	for _, c := range cases {
		for _, list := range []string{c.line + "\n", c.line, c.line + "\n\n"} {
			got, err := Parse([]byte(list), nil)
			if err != nil || len(got) != 1 || got[0] != c.want {
				t.Errorf("Parse(%q) = %+v, %v, want %+v", list, got, err, c.want)
			}
		}
	}
	got, err := Parse([]byte("\r\n"+d1+"  a\r\nSHA256(a)= "+d256+"\r\nb 3 "+d5), nil)
	if err != nil || len(got) != 3 || got[1].Off != 2+44+1 || got[2].Name != "b" {
		t.Errorf("mixed list: %+v, %v", got, err)
	}
}

func TestRefused(t *testing.T) {
	cases := []struct {
		name, list string
		want       error
	}{
		{"text", "hello world\n", formats.ErrCorrupt},
		{"comment", "# hello\n", formats.ErrCorrupt},
		{"one space", d1 + " a\n", formats.ErrCorrupt},
		{"no name", d1 + "  \n", formats.ErrCorrupt},
		{"dot name", d1 + "  ./\n", formats.ErrCorrupt},
		{"short digest", d1[1:] + "  a\n", formats.ErrCorrupt},
		{"wrong length", "SHA256(a)= " + d1, formats.ErrCorrupt},
		{"no hex", "SHA1(a)= " + strings.Repeat("g", 40), formats.ErrCorrupt},
		{"unknown algorithm", "WHIRLPOOL(a)= " + d1, errors.ErrUnsupported},
		{"nul", d1 + "  a\x00b\n", formats.ErrCorrupt},
		{"escape sequence", d1 + "  a\x1b[2Jb\n", formats.ErrCorrupt},
		{"newline in escapes", `\` + d1 + `  a\nb`, formats.ErrCorrupt},
		{"bad escape", `\` + d1 + `  a\x`, formats.ErrCorrupt},
		{"not utf-8", d1 + "  a\xff\n", formats.ErrCorrupt},
		{"duplicate", d1 + "  a\n" + d1 + "  a\n", formats.ErrCorrupt},
		{"duplicate in disguise", d1 + "  a\nSHA1(./a)= " + d1, formats.ErrCorrupt},
		{"negative size", "a -1 " + d5, formats.ErrCorrupt},
		{"signed size", "a +1 " + d5, formats.ErrCorrupt},
		{"huge size", "a 99999999999999999999 " + d5, formats.ErrCorrupt},
		{"long name", d1 + "  " + strings.Repeat("n", maxName+1), formats.ErrLimit},
		{"long line", d1 + "  " + strings.Repeat("n", 1<<20), formats.ErrLimit},
		{"long list", strings.Repeat("\n", MaxSize+1), formats.ErrLimit},
		{"many lines", manyLines(MaxEntries + 1), formats.ErrLimit},
	}
	for _, c := range cases {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got, err := Parse([]byte(c.list), nil)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, c.want) || got != nil {
			t.Errorf("%s: Parse = %d entries, %v, want %v", c.name, len(got), err, c.want)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 80<<20 {
			t.Errorf("%s: %d MiB allocated", c.name, n>>20)
		}
	}
}

func manyLines(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(d5)
		b.WriteString("  ")
		b.WriteString(hex.EncodeToString([]byte{byte(i >> 16), byte(i >> 8), byte(i)}))
		b.WriteByte('\n')
	}
	return b.String()
}

func TestRender(t *testing.T) {
	list := d1 + "  xvm.xml\n" + d1 + " *b\nSHA1 (c) = " + d1 + "\nSHA512(d)= " + d256 + d256 + "\ne 7 " + d5 + "\n" +
		`\` + d1 + `  f\\g` + "\n"
	entries, err := Parse([]byte(list), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Render(entries)
	if err != nil || string(got) != list {
		t.Errorf("Render = %q, %v, want %q", got, err, list)
	}
	for _, e := range []Entry{
		{"", SHA1, d1, -1, GNU, 0},
		{"a\nb", SHA1, d1, -1, GNU, 0},
		{"./a", SHA1, d1, -1, GNU, 0},
		{"a", SHA256, d1, -1, GNU, 0},
		{"a", SHA1, strings.ToUpper(d1), -1, OVF, 0},
		{"a", SHA1, d1, -1, "odd", 0},
		{"a", "crc", d1, -1, BSD, 0},
		{"a", MD5, d5, -1, XVM2, 0},
	} {
		if b, err := Append(nil, e); err == nil {
			t.Errorf("Append(%+v) = %q, want an error", e, b)
		}
	}
}

// coreutils and openssl read ours, and we read theirs.
func TestTools(t *testing.T) {
	dir := t.TempDir()
	content := testimg.Disk(3<<20, 5)
	p := filepath.Join(dir, "disk file")
	if err := os.WriteFile(p, content, 0o600); err != nil {
		t.Fatal(err)
	}
	d := NewDigester(MD5, SHA1, SHA256, SHA256, SHA512, "crc")
	d.First(MD5, 1<<20)
	for i := 0; i < len(content); i += 99991 {
		d.Write(content[i:min(i+99991, len(content))])
	}
	sum := md5.Sum(content[:1<<20])
	if d.SumFirst(MD5) != hex.EncodeToString(sum[:]) || d.Size() != 3<<20 || d.Sum(SHA384) != "" {
		t.Errorf("first MiB %s, size %d", d.SumFirst(MD5), d.Size())
	}
	for _, a := range []Algorithm{MD5, SHA1, SHA256, SHA512} {
		tool := string(a) + "sum"
		for _, args := range [][]string{{p}, {"-b", p}, {"--tag", p}} {
			list := testimg.Run(t, tool, args...)
			got, err := Parse([]byte(list), nil)
			if err != nil || len(got) != 1 || got[0].Name != p || got[0].Digest != d.Sum(a) || got[0].Algorithm != a {
				t.Errorf("%s %v: %+v, %v", tool, args, got, err)
			}
			if again, err := Render(got); err != nil || string(again) != list {
				t.Errorf("%s %v: rendered %q, %v", tool, args, again, err)
			}
		}
		for _, f := range []Form{GNU, GNUBinary, BSD} {
			b, err := Render([]Entry{{p, a, d.Sum(a), -1, f, 0}})
			if err != nil {
				t.Fatal(err)
			}
			testimg.Run(t, tool, "-c", testimg.WriteFile(t, "list", b))
		}
		list := testimg.Run(t, "openssl", "dgst", "-"+string(a), p)
		if got, err := Parse([]byte(list), nil); err != nil || got[0].Digest != d.Sum(a) || got[0].Form != OVF {
			t.Errorf("openssl %s: %q: %+v, %v", a, list, got, err)
		}
	}
}

func TestAlgorithms(t *testing.T) {
	for _, a := range algorithms {
		if h := a.name.New(); h == nil || h.Size() != a.bytes {
			t.Errorf("%s: %v", a.name, h)
		}
	}
	if h := SHA256.New(); !reflect.DeepEqual(h.Sum(nil), sha256.New().Sum(nil)) || !SHA1.Weak() || SHA256.Weak() || Algorithm("x").New() != nil {
		t.Error("algorithms are mixed up")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(d1 + "  xvm.xml\r\nSHA1 (c) = " + d1 + "\nSHA256(d)= " + d256 + "\ne 7 " + d5 + "\n"))
	f.Add([]byte(`\` + d1 + ` *f\\g`))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := Parse(b, nil)
		if err != nil {
			if entries != nil {
				t.Fatal("entries with an error")
			}
			return
		}
		list, err := Render(entries)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(list, nil)
		if err != nil || len(again) != len(entries) {
			t.Fatalf("%q: %v", list, err)
		}
		for i, e := range again {
			if e.Off = entries[i].Off; e != entries[i] {
				t.Fatalf("%+v became %+v", entries[i], e)
			}
		}
	})
}
