// Package gzindex reads a gzip file (RFC 1952) at any offset. One pass
// inflates it all, checks every CRC32 and ISIZE, notes the runs of zeros, and
// keeps points from which inflating can begin again; a read then inflates at
// most the distance between two points.
//
// The inflater (RFC 1951) is ours because the state at a point must be kept,
// which the decoders of libraries hide.
package gzindex

// Name is the name of the format in errors, unless Options.Format says
// otherwise.
const Name = "gzip"

const (
	// DefaultMaxSize bounds the inflated size in bytes where the caller knows
	// no better: no disk that travels in a package is larger than 64 TiB.
	DefaultMaxSize = 64 << 40

	windowSize = 32 << 10 // bytes a match can reach back (RFC 1951, section 2)
	// chunkSize is the unit of inflating in bytes: what one call yields, what
	// the cache of decoded bytes holds, what a read inflates at least.
	chunkSize = 128 << 10
	// inputSize is the unit of reading in bytes.
	inputSize = 64 << 10
	// slack is what a match and its eight-byte stores may write past the end.
	slack = maxMatch + 16

	// firstSpacing is the distance of points in bytes of the inflated stream.
	// It doubles when they fill their memory.
	firstSpacing = 1 << 20
	// DefaultMemory is for points and decoded chunks, in bytes: two thirds are
	// some 400 windows of random bytes, or many more of a disk's. minMemory
	// leaves room for a few of each.
	DefaultMemory = 20 << 20
	minMemory     = 1 << 20
	// pointSize is what a point costs beside its window.
	pointSize = 96

	// zeroBlock is the grain in bytes at which zeros are looked for, aligned.
	zeroBlock = 4 << 10
	// firstZeroRun is the shortest run of zeros noted. It doubles when there
	// are maxZeroRuns of them (1 MiB).
	firstZeroRun = 64 << 10
	maxZeroRuns  = 65536

	// maxIdle bounds the decoders kept between reads: about 260 KiB each.
	maxIdle = 8

	// maxHeaderField bounds FNAME and FCOMMENT in bytes.
	maxHeaderField = 64 << 10
)

// Flags of a gzip header (RFC 1952, section 2.3.1).
const (
	flagHCRC     = 1 << 1
	flagExtra    = 1 << 2
	flagName     = 1 << 3
	flagComment  = 1 << 4
	flagReserved = 0xe0
)
