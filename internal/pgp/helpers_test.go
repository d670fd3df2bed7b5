package pgp

import (
	"errors"

	"imgmaint/internal/testimg"
)

func isPassphrase(err error) bool { return errors.Is(err, ErrPassphrase) }

// A testFaulty fails after half a message.
type testFaulty struct{}

func (testFaulty) Read(p []byte) (int, error) { return copy(p, "half"), testimg.ErrInjected }
