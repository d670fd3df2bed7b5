package convert

import (
	"context"
	"errors"
	"sync"

	"imgmaint/formats"
)

// A span is one window of a disk: it starts at off, and data lists the runs
// in it that must be read, relative to off, in order.
type span struct {
	off  int64
	data []formats.Extent
}

// spanner is a task that carries a span.
type spanner interface{ at() *span }

func (s *span) at() *span { return s }

// A planner calls yield for each window that is to be processed, in order,
// until yield returns false. It fills the span that yield's argument
// function is given.
type planner func(yield func(fill func(*span)) bool) error

// planWindows plans the windows of size bytes in which any of the images has
// data. The images are walked together; one that ends early reads as zeros.
func planWindows(window int64, imgs ...formats.Image) planner {
	return func(yield func(fill func(*span)) bool) error {
		var next dataCursor
		next.imgs = imgs
		next.ext = make([]formats.Extent, len(imgs))
		var cur formats.Extent
		var data []formats.Extent // copied by fill
		ok, err := next.advance(&cur, 0)
		for ok && err == nil {
			start := cur.Off / window * window
			data = data[:0]
			for ok && err == nil && cur.Off < start+window {
				part := cur
				part.Len = min(cur.Len, start+window-cur.Off)
				data = append(data, formats.Extent{Off: part.Off - start, Len: part.Len, Kind: formats.Data})
				if part.Len < cur.Len {
					cur.Off += part.Len
					cur.Len -= part.Len
					continue
				}
				ok, err = next.advance(&cur, part.End())
			}
			if err != nil {
				break
			}
			if !yield(func(s *span) {
				s.off = start
				s.data = append(s.data[:0], data...)
			}) {
				return nil
			}
		}
		return err
	}
}

// dataCursor finds the union of the data runs of several images.
type dataCursor struct {
	imgs []formats.Image
	ext  []formats.Extent // the run of each image at or after the cursor
}

// advance sets e to the first data run at or after off, false at the end. A
// run of the union ends where the kind of any image changes.
func (c *dataCursor) advance(e *formats.Extent, off int64) (bool, error) {
	for {
		kind, end, live := formats.Hole, int64(-1), false
		for i, img := range c.imgs {
			if off >= img.Size() {
				continue
			}
			live = true
			if c.ext[i].Len == 0 || c.ext[i].End() <= off {
				x, err := img.ExtentAt(off)
				if err != nil {
					return false, err
				}
				if x.Len <= 0 {
					return false, errors.New("empty extent")
				}
				c.ext[i] = x
			}
			if c.ext[i].Kind == formats.Data {
				kind = formats.Data
			}
			if x := c.ext[i].End(); end < 0 || x < end {
				end = x
			}
		}
		if !live {
			return false, nil
		}
		if kind == formats.Data {
			*e = formats.Extent{Off: off, Len: end - off, Kind: kind}
			return true, nil
		}
		off = end
	}
}

// ordered runs a pipeline: plan names windows, several workers process them,
// and consume gets the processed ones in the planned order on the calling
// goroutine. Tasks are made by fresh and used again; newWorker is called once
// for each worker. The first error in order ends it; when ordered returns, all
// its goroutines have ended.
func ordered[T spanner](ctx context.Context, workers int, fresh func() T, plan planner, newWorker func() func(T) error, consume func(T) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	type slot struct {
		task T
		used bool // task has been made
		done chan error
	}
	inFlight := 2*workers + 1
	free := make(chan *slot, inFlight)
	todo := make(chan *slot, inFlight)
	order := make(chan *slot, inFlight)
	for range inFlight {
		free <- &slot{done: make(chan error, 1)}
	}
	var wg sync.WaitGroup
	defer func() {
		cancel(nil)
		wg.Wait()
	}()

	var planErr error
	wg.Go(func() {
		defer close(order)
		defer close(todo)
		planErr = plan(func(fill func(*span)) bool {
			select {
			case <-ctx.Done():
				return false
			case s := <-free:
				if !s.used {
					s.task, s.used = fresh(), true
				}
				fill(s.task.at())
				todo <- s
				order <- s
				return true
			}
		})
	})
	for range workers {
		work := newWorker()
		wg.Go(func() {
			for s := range todo {
				if ctx.Err() != nil {
					s.done <- context.Cause(ctx)
					continue
				}
				s.done <- work(s.task)
			}
		})
	}
	for s := range order {
		if err := <-s.done; err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := consume(s.task); err != nil {
			return err
		}
		free <- s
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return planErr
}
