package pgp

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"imgmaint/formats"
)

// GPGOptions say how to run the user's GnuPG. nil stands for the defaults.
type GPGOptions struct {
	// Program is the path of gpg; "" looks for gpg in PATH.
	Program string
	// Key is what --local-user takes: a fingerprint, a key id or a user id; "" is
	// GnuPG's default key.
	Key string
	// Home is --homedir, "" for the user's own.
	Home string
	// Time is the time of the signatures, zero for now. GnuPG is told by
	// --faked-system-time.
	Time time.Time
}

// A GPG signs by running GnuPG, which has its keys with its agent or on a smart
// card and asks for passphrases itself.
type GPG struct {
	path string
	opts GPGOptions
}

var _ Signer = (*GPG)(nil)

// NewGPG finds the program. No key is looked for before the first signature.
func NewGPG(opts *GPGOptions) (*GPG, error) {
	if opts == nil {
		opts = &GPGOptions{}
	}
	if strings.HasPrefix(opts.Key, "-") {
		return nil, fmt.Errorf("gpg: key %q", opts.Key)
	}
	g := &GPG{opts: *opts}
	path, err := exec.LookPath(cmp.Or(opts.Program, "gpg"))
	if err != nil {
		return nil, err
	}
	g.path = path
	return g, nil
}

// DetachSign implements Signer.
func (g *GPG) DetachSign(ctx context.Context, message io.Reader) ([]byte, error) {
	out, err := g.run(ctx, message, maxSignatureFile, "--armor", "--detach-sign")
	if err != nil {
		return nil, err
	}
	b, err := signatureBlock(out)
	if err == nil {
		_, err = readSignatures(b)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", g.path, err)
	}
	return out, nil
}

// ClearSign implements Signer.
func (g *GPG) ClearSign(ctx context.Context, text []byte) ([]byte, error) {
	if err := checkSignable(text); err != nil {
		return nil, err
	}
	out, err := g.run(ctx, bytes.NewReader(text), maxCleartext, "--clear-sign")
	if err != nil {
		return nil, err
	}
	c, err := parseCleartext(out)
	if err == nil {
		_, err = readSignatures(c.signature)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", g.path, err)
	}
	if !bytes.Equal(c.text, canonicalText(text)) {
		return nil, fmt.Errorf("%s: it signed another text", g.path)
	}
	return out, nil
}

// run runs gpg with a message on its standard input.
func (g *GPG) run(ctx context.Context, in io.Reader, limit int, args ...string) ([]byte, error) {
	all := []string{"--batch", "--no-tty", "--quiet", "--no-verbose", "--digest-algo", "SHA512"}
	if g.opts.Home != "" {
		all = append(all, "--homedir", g.opts.Home)
	}
	if g.opts.Key != "" {
		all = append(all, "--local-user", g.opts.Key)
	}
	if !g.opts.Time.IsZero() { // "!" stops the clock
		all = append(all, "--faked-system-time", strconv.FormatInt(g.opts.Time.Unix(), 10)+"!")
	}
	cmd := exec.CommandContext(ctx, g.path, append(all, args...)...)
	src := &faultReader{r: in}
	out := &limitedBuffer{limit: limit}
	said := &limitedBuffer{limit: 4096, drop: true}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = src, out, said
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	switch {
	case src.err.Load() != nil:
		return nil, formats.At(format, -1, "message", *src.err.Load())
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("%s: %w: %q", g.path, err, strings.TrimSpace(said.String()))
	}
	return []byte(out.String()), nil
}

// A faultReader remembers why reading failed: os/exec would report the program.
type faultReader struct {
	r   io.Reader
	err atomic.Pointer[error]
}

func (f *faultReader) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err.Store(&err)
	}
	return n, err
}

// A limitedBuffer keeps the first bytes; what is over fails or is dropped.
type limitedBuffer struct {
	mu    sync.Mutex // of b; os/exec may leave a writer behind
	b     []byte
	limit int
	drop  bool
}

func (w *limitedBuffer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := min(len(p), w.limit-len(w.b))
	w.b = append(w.b, p[:n]...)
	if n < len(p) && !w.drop {
		return n, formats.Limit(format, -1, "gpg", "over %d bytes of output", w.limit)
	}
	return len(p), nil
}

func (w *limitedBuffer) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.b)
}
