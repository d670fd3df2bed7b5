package release

import (
	"fmt"
	"io"
	"strings"
	"time"

	"imgmaint/formats/open"
)

// lines collects lines. What a package puts into one stays in it: no name
// can pass for another member or for the verdict.
type lines struct{ strings.Builder }

var oneLine = strings.NewReplacer("\n", `\x0a`, "\r", `\x0d`)

func (l *lines) add(format string, args ...any) {
	l.WriteString(oneLine.Replace(fmt.Sprintf(format, args...)))
	l.WriteByte('\n')
}

// WriteText writes the report for people: a line for every member and every
// signature, what else is wrong, and the verdict last. Other control
// characters than line ends are as the package has them; a terminal needs them
// escaped.
func (r *Report) WriteText(w io.Writer) error {
	var out lines
	width := 0
	for _, m := range r.Members {
		width = max(width, min(len(m.Name), maxColumn))
	}
	for _, m := range r.Members {
		out.add("%-*s  %s", width, m.Name, memberLine(&m))
	}
	if r.DescriptorBound {
		out.add("descriptor: bound by the list of digests")
	} else {
		out.add("descriptor: not bound by a list of digests")
	}
	if !r.Signed {
		out.add("signature: unsigned")
	}
	for _, s := range r.Signatures {
		out.add("signature: %s over %s: %s", s.Member, s.Over, signatureLine(&s))
		for _, by := range s.Signers {
			out.add("  %s", signerLine(s.Type, &by))
		}
	}
	for _, f := range r.Findings {
		out.add("finding: %s", f)
	}
	verdict := string(r.Verdict)
	if len(r.Reasons) > 0 {
		verdict += " (" + strings.Join(r.Reasons, "; ") + ")"
	}
	out.add("verdict: %s", verdict)
	_, err := io.WriteString(w, out.String())
	return err
}

// maxColumn is the width of the column of names, in bytes; longer names push
// the rest of their line.
const maxColumn = 48

func memberLine(m *open.VerifiedMember) string {
	if m.Digest == open.DigestSeal {
		return "seal"
	}
	words := []string{"digest " + string(m.Digest)}
	if m.Algorithm != "" {
		words[0] = m.Algorithm + " " + string(m.Digest)
	}
	if m.Weak {
		words[0] += " (weak)"
	}
	if m.Listed {
		words = append(words, "listed")
	} else {
		words = append(words, "not listed")
	}
	if m.Signed {
		words = append(words, "signed")
	} else {
		words = append(words, "not signed")
	}
	return strings.Join(words, ", ")
}

func signatureLine(s *open.VerifiedSignature) string {
	kind := map[string]string{"openpgp": "OpenPGP", "x509": "X.509"}[s.Type]
	line := kind + ", " + string(s.State)
	if s.Reason != "" {
		line += ": " + s.Reason
	}
	return line
}

func signerLine(kind string, s *open.Signer) string {
	words := []string{s.Status}
	add := func(lead, what string) {
		if what != "" {
			words = append(words, lead+what)
		}
	}
	add("", s.Name)
	if kind == "x509" {
		add("serial ", s.KeyID)
	} else {
		add("key ", s.KeyID)
	}
	add("", s.Algorithm)
	add("", s.Hash)
	if !s.Time.IsZero() {
		add("made ", s.Time.UTC().Format(time.RFC3339))
	}
	if !s.Expires.IsZero() {
		add("expires ", s.Expires.UTC().Format(time.RFC3339))
	}
	return strings.Join(words, ", ")
}
