package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"imgmaint/internal/testimg"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"imgmaint": func() { os.Exit(run(context.Background(), os.Args, os.Stdin, os.Stdout, os.Stderr)) },
	})
}

// TestScript runs the scripts of testdata/script. Beside the commands of
// testscript they have:
//
//	code N imgmaint ...   run, and require this exit code
//	disk FILE SIZE SEED   make a raw disk that looks used
//	tool NAME ...         run a reference tool
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("SOURCE_DATE_EPOCH", "1700000000")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": codeCmd,
			"disk": diskCmd,
			"tool": func(ts *testscript.TestScript, neg bool, args []string) {
				bin := testimg.Tool(t, args[0])
				if err := ts.Exec(bin, args[1:]...); (err != nil) != neg {
					ts.Fatalf("%v: %v", args, err)
				}
			},
		},
	})
}

func codeCmd(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND ...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := err.(*exec.ExitError)
		if !ok {
			ts.Fatalf("%v: %v", args[1:], err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%v: exit code %d, want %d", args[1:], got, want)
	}
}

func diskCmd(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: disk FILE SIZE SEED")
	}
	size, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	seed, err := strconv.ParseUint(args[2], 10, 64)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), testimg.Disk(size, seed), 0o666))
}

func TestArrange(t *testing.T) {
	app := newApp(nil, nil, nil)
	for _, tt := range []struct{ in, want string }{
		{"[imgmaint]", "[imgmaint]"},
		{"[imgmaint convert a b --to raw]", "[imgmaint convert --to=raw -- a b]"},
		{"[imgmaint convert a --compress b -O qcow2]", "[imgmaint convert --compress=zlib -O=qcow2 -- a b]"},
		{"[imgmaint convert --compress=zstd a -]", "[imgmaint convert --compress=zstd -- a -]"},
		{"[imgmaint info -- --json]", "[imgmaint info -- --json]"},
		{"[imgmaint info x --json]", "[imgmaint info --json -- x]"},
		{"[imgmaint help info]", "[imgmaint help info]"},
	} {
		got, err := arrange(app, fields(tt.in))
		if err != nil || fmt.Sprint(got) != tt.want {
			t.Errorf("arrange(%s) = %v, %v, want %s", tt.in, got, err, tt.want)
		}
	}
	for _, in := range []string{"[imgmaint frobnicate]", "[imgmaint convert a b --to]"} {
		if got, err := arrange(app, fields(in)); exitCode(err) != exitUsage {
			t.Errorf("arrange(%s) = %v, %v, want a usage error", in, got, err)
		}
	}
}

func fields(s string) []string { return strings.Fields(strings.Trim(s, "[]")) }

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain\ttext\n":  "plain\ttext\n",
		"\x1b[31mred":    `\x1b[31mred`,
		"tïtle":          "tïtle",
		"a\u202eb":       `a\x202eb`,
		"bell\a del\x7f": `bell\x07 del\x7f`,
		"c1\u009b31m":    `c1\x9b31m`,
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestHumanSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 999: "999 B", 1000: "0.98 KiB", 1024: "1 KiB", 196 << 10: "196 KiB",
		1 << 30: "1 GiB", 10<<20 + 512<<10: "10.5 MiB", 1 << 62: "4 EiB",
	} {
		if got := humanSize(n); got != want {
			t.Errorf("humanSize(%d) = %q, want %q", n, got, want)
		}
	}
}
