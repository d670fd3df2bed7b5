package imgmaint

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The layers, lowest first. A folder is in the row with the longest name that
// is a prefix of its own; it may import the folders its row names, those
// below them, and the standard library. Test files are free.
var layers = []struct {
	dir   string
	may   []string
	why   string
	leafy bool // the folders below are leaves that must not know each other
}{
	{"formats", nil, "the vocabulary stands on nothing", false},
	{"formats/formatstest", []string{"formats"}, "the conformance checks know the vocabulary alone", false},
	{"formats/internal", []string{"formats", "formats/internal"}, "what leaves share", false},
	{"formats/disk", []string{"formats", "formats/internal"}, "a leaf knows no other leaf", true},
	{"formats/volume", []string{"formats", "formats/internal"}, "a leaf knows no other leaf", true},
	{"formats/filesys", []string{"formats", "formats/internal"}, "a leaf knows no other leaf", true},
	{"formats/appliance", []string{"formats", "formats/internal"}, "a leaf knows no other leaf", true},
	{"formats/open", []string{"formats", "formats/disk", "formats/volume", "formats/filesys", "formats/appliance"},
		"the one place that knows every format", false},
	{"inspect", []string{"formats", "formats/open", "inspect"}, "inspect and convert do not know each other", false},
	{"convert", []string{"formats", "formats/open", "internal/atomicfile"}, "inspect and convert do not know each other", false},
	{"patch/release", []string{"formats", "formats/open", "internal/pgp", "internal/atomicfile"},
		"verifies and makes packages; formats are for formats/open to know", false},
	{"internal/atomicfile", nil, "host files only", false},
	{"internal/pgp", []string{"formats"}, "errors in the terms of the vocabulary", false},
	{"internal/testimg", []string{"formats", "internal/testimg"}, "for tests", false},
	{"cmd", []string{"formats", "formats/open", "inspect", "convert", "patch", "internal"}, "the top", false},
}

// Every module we import, and its only home.
var homes = []struct{ module, home, why string }{
	{"github.com/diskfs/go-diskfs", "formats/internal/godiskfs", "its readers are unbounded and panic: one adapter confines them"},
	{"github.com/ProtonMail/go-crypto", "internal/pgp", "signatures are made and checked in one place"},
	{"github.com/urfave/cli/v2", "cmd", "flags are a matter of the command line"},
	{"github.com/schollz/progressbar/v3", "cmd", "bars are a matter of the terminal"},
	{"golang.org/x/term", "cmd", "terminals are a matter of the command line"},
	{"github.com/klauspost/compress", "formats", "codecs of disk and package formats"},
	{"github.com/rogpeppe/go-internal", "cmd", "testscript, for tests of the command line"},
	{"golang.org/x/sys", "", "system calls that the standard library lacks"},
}

func TestImports(t *testing.T) {
	used := map[string]bool{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
			return fs.SkipDir
		}
		if path.Ext(name) != ".go" {
			return nil
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(name))
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			checkImport(t, name, dir, imp, strings.HasSuffix(name, "_test.go"), used)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range homes {
		if !used[h.module] {
			t.Errorf("module %s is in the table and nothing imports it", h.module)
		}
	}
}

func checkImport(t *testing.T, file, dir, imp string, isTest bool, used map[string]bool) {
	own, ours := strings.CutPrefix(imp, "imgmaint/")
	switch {
	case ours && isTest:
	case ours:
		if why := mayImport(dir, own); why != "" {
			t.Errorf("%s imports %s: %s", file, imp, why)
		}
	case strings.Contains(strings.SplitN(imp, "/", 2)[0], "."):
		i := slices.IndexFunc(homes, func(h struct{ module, home, why string }) bool { return within(imp, h.module) })
		if i < 0 {
			t.Errorf("%s imports %s, which has no home in the table", file, imp)
			return
		}
		used[homes[i].module] = true
		if !isTest && homes[i].home != "" && !within(dir, homes[i].home) {
			t.Errorf("%s imports %s, whose home is %s: %s", file, imp, homes[i].home, homes[i].why)
		}
	}
}

// mayImport returns why a package in dir may not import imp, or "".
func mayImport(dir, imp string) string {
	row := -1
	for i, l := range layers {
		if within(dir, l.dir) && (row < 0 || len(l.dir) > len(layers[row].dir)) {
			row = i
		}
	}
	if row < 0 {
		return "the folder has no row in the table of layers"
	}
	l := layers[row]
	if l.leafy {
		leaf := strings.Join(strings.Split(dir, "/")[:3], "/")
		if within(imp, leaf) {
			return ""
		}
	}
	for _, m := range l.may {
		// "formats" alone is the vocabulary, not all that lies below it.
		if imp == m || m != "formats" && within(imp, m) {
			return ""
		}
	}
	return l.why
}

func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// The rules themselves must be able to fail.
func TestImportRules(t *testing.T) {
	for _, tt := range []struct {
		dir, imp string
		ok       bool
	}{
		{"formats/disk/qcow2", "formats", true},
		{"formats/disk/qcow2", "formats/internal/bounded", true},
		{"formats/disk/qcow2", "formats/disk/raw", false},
		{"formats/disk/qcow2", "formats/open", false},
		{"formats", "formats/disk/raw", false},
		{"formats/open", "formats/disk/raw", true},
		{"formats/open", "inspect", false},
		{"inspect", "formats/open", true},
		{"inspect", "formats/disk/raw", false},
		{"inspect", "convert", false},
		{"convert", "inspect", false},
		{"cmd/imgmaint", "convert", true},
		{"somewhere", "formats", false},
	} {
		if why := mayImport(tt.dir, tt.imp); (why == "") != tt.ok {
			t.Errorf("mayImport(%s, %s) = %q, want allowed: %v", tt.dir, tt.imp, why, tt.ok)
		}
	}
}
