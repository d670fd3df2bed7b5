//go:build !unix

package open

const nonblock = 0
