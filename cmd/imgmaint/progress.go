package main

import (
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

// A progress is a bar on standard error, if that is a terminal.
type progress struct {
	bar   *progressbar.ProgressBar // made at the first update
	show  bool
	title string
}

func newProgress(c *cli.Context, title string) *progress {
	f, ok := c.App.ErrWriter.(*os.File)
	return &progress{title: title, show: ok && term.IsTerminal(int(f.Fd())) && !c.Bool("quiet")}
}

// update moves the bar.
func (p *progress) update(done, total int64) {
	if !p.show {
		return
	}
	if p.bar == nil {
		p.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(os.Stderr),
			progressbar.OptionSetDescription(p.title), progressbar.OptionShowBytes(true),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
	}
	_ = p.bar.Set64(done) // a terminal that went away must not stop the work
}

// end wipes the bar.
func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
