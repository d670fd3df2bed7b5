package pgp

import (
	"bytes"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"imgmaint/formats"
)

// Generate makes a new version 4 Ed25519 key for signing, without subkeys,
// without an expiry and without a passphrase, and returns it armored. A zero
// time is now. The secret is random; only the key's time is the caller's.
func Generate(name, email string, at time.Time) (secret, public []byte, err error) {
	if at.IsZero() {
		at = time.Now()
	}
	plain := false
	cfg := &packet.Config{
		Algorithm:                             packet.PubKeyAlgoEdDSA, // what GnuPG 2.2 reads
		Time:                                  func() time.Time { return at },
		NonDeterministicSignaturesViaNotation: &plain,
	}
	err = guard("key", func() error {
		e, err := openpgp.NewEntity(name, "", email, cfg)
		if err != nil {
			return err
		}
		e.Subkeys = nil // for encryption
		var sec, pub bytes.Buffer
		if err := e.SerializePrivateWithoutSigning(&sec, cfg); err != nil {
			return err
		}
		if err := e.Serialize(&pub); err != nil {
			return err
		}
		secret, public = enarmor(armorSecret, sec.Bytes()), enarmor(armorPublic, pub.Bytes())
		return nil
	})
	return secret, public, formats.At(format, -1, "key", err)
}
