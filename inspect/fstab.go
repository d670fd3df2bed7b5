package inspect

import (
	"fmt"
	"strconv"
	"strings"

	"imgmaint/formats"
)

// maxFstab bounds the lines of an fstab that are kept.
const maxFstab = 1000

// A FstabEntry is a line of /etc/fstab, fstab(5).
type FstabEntry struct {
	Spec    string `json:"spec"` // fs_spec, as written
	Dir     string `json:"dir"`  // fs_file
	Type    string `json:"type"`
	Options string `json:"options,omitempty"`
	Freq    int    `json:"freq,omitempty"`
	Pass    int    `json:"pass,omitempty"`
}

func collectFstab(c *collection) error {
	entries, err := readFstab(c.Root)
	if err != nil {
		if absent(err) {
			return nil
		}
		return err
	}
	c.it.Fstab = entries
	return nil
}

func readFstab(r *Root) ([]FstabEntry, error) {
	b, err := r.Read("etc/fstab", maxSmall)
	if err != nil {
		return nil, err
	}
	return parseFstab(b)
}

// parseFstab reads the fields of each line; lines with fewer than three are
// left out, as mount(8) does.
func parseFstab(b []byte) (entries []FstabEntry, err error) {
	for line := range strings.SplitSeq(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) < 3 || f[0][0] == '#' {
			continue
		}
		if len(entries) == maxFstab {
			return entries, fmt.Errorf("%w: more than %d lines", formats.ErrLimit, maxFstab)
		}
		e := FstabEntry{Spec: fstabField(f[0]), Dir: fstabField(f[1]), Type: fstabField(f[2])}
		if len(f) > 3 {
			e.Options = fstabField(f[3])
		}
		if len(f) > 4 {
			e.Freq, _ = strconv.Atoi(f[4])
		}
		if len(f) > 5 {
			e.Pass, _ = strconv.Atoi(f[5])
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// fstabField undoes octal escapes: \040 is a space.
func fstabField(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return value(b.String())
}
