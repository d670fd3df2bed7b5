package ext4

import "sync"

// A cache keeps byte slices by key, up to a size, dropping those not used for
// longest. What it returns is shared and must not be changed. It is safe for
// concurrent use.
type cache struct {
	mu    sync.Mutex
	max   int64 // bytes
	size  int64
	items map[uint64]*cached
	root  cached // ring: root.next is the newest
}

type cached struct {
	key        uint64
	data       []byte
	checked    uint64 // what the block was last verified as; 0 is nothing
	prev, next *cached
}

func newCache(max int64) *cache {
	c := &cache{max: max, items: make(map[uint64]*cached)}
	c.root.prev, c.root.next = &c.root, &c.root
	return c
}

// get returns the slice under key and what it was verified as, or nil.
func (c *cache) get(key uint64) ([]byte, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.items[key]
	if e == nil {
		return nil, 0
	}
	if c.root.next != e {
		e.unlink()
		c.push(e)
	}
	return e.data, e.checked
}

// add keeps data under key.
func (c *cache) add(key uint64, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.items[key]; e != nil {
		c.drop(e)
	}
	for c.size > 0 && c.size+int64(len(data)) > c.max {
		c.drop(c.root.prev)
	}
	e := &cached{key: key, data: data}
	c.items[key] = e
	c.size += int64(len(data))
	c.push(e)
}

// mark notes that the block under key is valid as what.
func (c *cache) mark(key, what uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.items[key]; e != nil {
		e.checked = what
	}
}

func (c *cache) push(e *cached) {
	e.prev, e.next = &c.root, c.root.next
	e.prev.next, e.next.prev = e, e
}

func (e *cached) unlink() { e.prev.next, e.next.prev = e.next, e.prev }

func (c *cache) drop(e *cached) {
	e.unlink()
	delete(c.items, e.key)
	c.size -= int64(len(e.data))
}

// dirCache keeps the inode numbers of directories by path. When it is full it
// starts over: it only saves lookups.
type dirCache struct {
	mu sync.Mutex
	m  map[string]uint32
}

func (c *dirCache) get(path string) (uint32, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ino, ok := c.m[path]
	return ino, ok
}

func (c *dirCache) add(path string, ino uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil || len(c.m) >= dirCacheSize {
		c.m = make(map[string]uint32)
	}
	c.m[path] = ino
}
