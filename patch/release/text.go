package release

import (
	"fmt"
	"io"
	"strings"
	"time"

	"imgmaint/formats/open"
)

// WriteText writes the report for people: a line for every member and every
// signature, what else is wrong, and the verdict last. Names are as the
// package has them; a terminal needs them escaped.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	width := 0
	for _, m := range r.Members {
		width = max(width, min(len(m.Name), 48))
	}
	for _, m := range r.Members {
		fmt.Fprintf(&b, "%-*s  %s\n", width, m.Name, memberLine(&m))
	}
	bound := "descriptor: not bound by a list of digests"
	if r.DescriptorBound {
		bound = "descriptor: bound by the list of digests"
	}
	fmt.Fprintln(&b, bound)
	if !r.Signed {
		fmt.Fprintln(&b, "signature: unsigned")
	}
	for _, s := range r.Signatures {
		fmt.Fprintf(&b, "signature: %s over %s: %s\n", s.Member, s.Over, signatureLine(&s))
		for _, by := range s.Signers {
			fmt.Fprintf(&b, "  %s\n", signerLine(&by))
		}
	}
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "finding: %s\n", f)
	}
	fmt.Fprintf(&b, "verdict: %s", r.Verdict)
	if len(r.Reasons) > 0 {
		fmt.Fprintf(&b, " (%s)", strings.Join(r.Reasons, "; "))
	}
	fmt.Fprintln(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

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

func signerLine(s *open.Signer) string {
	words := []string{s.Status}
	add := func(lead, what string) {
		if what != "" {
			words = append(words, lead+what)
		}
	}
	add("", s.Name)
	add("key ", s.KeyID)
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
