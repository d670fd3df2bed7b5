package ext4

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"sync"

	"imgmaint/formats"
)

var (
	_ formats.File   = (*file)(nil)
	_ fs.ReadDirFile = (*dirFile)(nil)
)

// A file is an open regular file. ReadAt and ExtentAt are safe for concurrent
// use, and so are Read and Seek, which share one position.
type file struct {
	fs     *FS
	name   string
	in     inode
	inline []byte // the contents, of a file kept in its inode

	mu  sync.Mutex
	pos int64

	last struct { // the run found last
		sync.Mutex
		run
	}
}

// openFile checks that the contents of in can be read.
func (f *FS) openFile(name string, in *inode, raw []byte) (*file, error) {
	if in.flags&flagEncrypt != 0 {
		return nil, formats.Unsupported(Name, in.off+0x20, "i_flags", "inode %d is encrypted", in.ino)
	}
	file := &file{fs: f, name: path.Base(name), in: *in}
	if in.flags&flagInlineData != 0 {
		b, err := f.inlineData(in, raw)
		if err != nil {
			return nil, err
		}
		// Past what is stored there are zeros, in Linux too.
		file.inline = b[:min(in.size, int64(len(b)))]
		return file, nil
	}
	if in.size > f.maxSize(in) {
		return nil, formats.Corrupt(Name, in.off+0x4, "i_size", "%d bytes in inode %d, at most %d", in.size, in.ino, f.maxSize(in))
	}
	return file, nil
}

func (f *file) Stat() (fs.FileInfo, error) { return f.fs.info(f.name, &f.in), nil }
func (f *file) Close() error               { return nil }
func (f *file) Size() int64                { return f.in.size }

// run returns the run with block lblk, from there on.
func (f *file) run(lblk int64) (run, error) {
	f.last.Lock()
	r := f.last.run
	f.last.Unlock()
	if skip := lblk - r.lblk; skip >= 0 && skip < r.n {
		r.lblk += skip
		r.n -= skip
		r.pblk += uint64(skip)
		return r, nil
	}
	r, err := f.fs.mapRun(&f.in, lblk)
	if err != nil {
		return r, err
	}
	f.last.Lock()
	f.last.run = r
	f.last.Unlock()
	return r, nil
}

// ReadAt implements io.ReaderAt.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("%s: read at %d: %w", Name, off, fs.ErrInvalid)
	}
	if off >= f.in.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) >= f.in.size-off {
		if int64(len(p)) > f.in.size-off {
			eof = io.EOF
		}
		p = p[:f.in.size-off]
	}
	if f.inline != nil {
		clear(p[copy(p, f.inline[min(off, int64(len(f.inline))):]):])
		return len(p), eof
	}
	bits := f.fs.sb.blockBits
	for done := 0; done < len(p); {
		at := off + int64(done)
		r, err := f.run(at >> bits)
		if err != nil {
			return done, err
		}
		in := at & (f.fs.sb.blockSize - 1)
		n := runBytes(r.n, bits, in, int64(len(p)-done))
		q := p[done : done+int(n)]
		if r.kind != formats.Data {
			clear(q)
		} else if err := f.fs.readDev(q, int64(r.pblk)<<bits+in, "file data"); err != nil {
			return done, err
		}
		done += int(n)
	}
	return len(p), eof
}

// runBytes is n blocks less skip bytes, and at most limit.
func runBytes(n int64, bits uint, skip, limit int64) int64 {
	if n > math.MaxInt64>>bits {
		return limit
	}
	return min(n<<bits-skip, limit)
}

// ExtentAt implements formats.Image: what no block is allocated for is a
// hole, unwritten extents are zero.
func (f *file) ExtentAt(off int64) (formats.Extent, error) {
	if off < 0 || off >= f.in.size {
		return formats.Extent{}, io.EOF
	}
	if n := int64(len(f.inline)); off < n {
		return formats.Extent{Off: off, Len: n - off, Kind: formats.Data}, nil
	} else if f.inline != nil {
		return formats.Extent{Off: off, Len: f.in.size - off, Kind: formats.Hole}, nil
	}
	bits := f.fs.sb.blockBits
	r, err := f.run(off >> bits)
	if err != nil {
		return formats.Extent{}, err
	}
	n := runBytes(r.n, bits, off&(f.fs.sb.blockSize-1), f.in.size-off)
	return formats.Extent{Off: off, Len: n, Kind: r.kind}, nil
}

// Read implements io.Reader.
func (f *file) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	n, err := f.ReadAt(p, f.pos)
	f.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// Seek implements io.Seeker.
func (f *file) Seek(off int64, whence int) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		off += f.pos
	case io.SeekEnd:
		off += f.in.size
	case io.SeekStart:
	default:
		return 0, fmt.Errorf("%s: seek with whence %d: %w", Name, whence, fs.ErrInvalid)
	}
	if off < 0 {
		return 0, fmt.Errorf("%s: seek to %d: %w", Name, off, fs.ErrInvalid)
	}
	f.pos = off
	return off, nil
}

// readLink returns the target of a symbolic link: in i_block when it is short
// ("fast"), inline, or in a block.
func (f *FS) readLink(in *inode, raw []byte) (string, error) {
	if in.mode&modeFmt != modeLink {
		return "", errNotLink
	}
	if in.flags&flagEncrypt != 0 {
		return "", formats.Unsupported(Name, in.off+0x20, "i_flags", "inode %d is encrypted", in.ino)
	}
	if in.size <= 0 || in.size > maxSymlink || in.size > f.sb.blockSize {
		return "", formats.Corrupt(Name, in.off+0x4, "i_size", "inode %d is a symbolic link of %d bytes", in.ino, in.size)
	}
	var target []byte
	switch {
	case in.flags&flagInlineData != 0:
		b, err := f.inlineData(in, raw)
		if err != nil {
			return "", err
		}
		if in.size > int64(len(b)) {
			return "", formats.Corrupt(Name, in.off+0x4, "i_size", "%d bytes, %d inline in inode %d", in.size, len(b), in.ino)
		}
		target = b[:in.size]
	case f.isFastLink(in):
		target = in.block[:in.size]
	default:
		r, err := f.mapRun(in, 0)
		if err != nil {
			return "", err
		}
		if r.kind != formats.Data {
			return "", formats.Corrupt(Name, in.off+0x28, "i_block", "inode %d is a symbolic link without a block", in.ino)
		}
		target = make([]byte, in.size)
		if err := f.readDev(target, int64(r.pblk)<<f.sb.blockBits, "symbolic link"); err != nil {
			return "", err
		}
	}
	if bytes.IndexByte(target, 0) >= 0 {
		return "", formats.Corrupt(Name, in.off+0x28, "i_block", "inode %d is a symbolic link with a NUL", in.ino)
	}
	return string(target), nil
}

// isFastLink reports whether the target is in i_block. Links of old file
// systems may be short and still have a block, which i_blocks tells; with
// ea_inode that also counts the attributes' blocks.
func (f *FS) isFastLink(in *inode) bool {
	if in.size >= inlineInBlock || in.flags&flagExtents != 0 {
		return false
	}
	if f.sb.incompat&incompatEAInode != 0 {
		return true
	}
	var ea int64
	if in.fileACL != 0 {
		ea = f.sb.blockSize
		if f.sb.roCompat&roBigalloc != 0 {
			ea <<= f.sb.logClusterSize - f.sb.logBlockSize
		}
	}
	return in.blocks == ea
}

// A special is an open device, FIFO or socket: it has no contents.
type special struct{ fi fs.FileInfo }

func (s *special) Stat() (fs.FileInfo, error) { return s.fi, nil }
func (s *special) Close() error               { return nil }
func (s *special) Read([]byte) (int, error)   { return 0, errNotFile }
