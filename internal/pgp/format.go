// Package pgp verifies and makes OpenPGP signatures: detached and clear-signed,
// version 4 (RFC 4880) and version 6 (RFC 9580).
//
// The framing, the armor, the cleartext framework, the signature subpackets and
// the validity of certificates are read here, strictly and within limits; the
// cryptography is ProtonMail's go-crypto, which is given one public key or one
// set of signature integers at a time and never sees a whole file. None of its
// types is exported.
//
// # What decides a signature
//
// Verify reports every signature of a block with a state of its own. The states
// follow what gpgv prints on its status descriptor, with two differences.
// gpgv ends with exit code 0 for EXPKEYSIG and REVKEYSIG, a signature that is
// right but whose key has expired or was revoked; here these are ExpiredKey and
// RevokedKey, and a result that has nothing better is not trusted. And gpgv
// accepts SHA-1 and short RSA keys unless told otherwise; here they are
// WeakDigest and WeakKey unless Policy.AllowWeak.
//
// As in gpgv, a key is expired when it has expired at the time of checking
// (Policy.At, by default now), not at the time of signing: the time in a
// signature is its signer's word, and who got hold of an expired key may write
// any. As in gpgv, the newest self-signature decides when a key expires, and a
// revocation counts whatever its date and reason.
//
// # What a signature does not cover
//
// A changed byte anywhere in a message, in a signature file or in a key file
// that holds nothing but one key is noticed, except in armor header lines
// ("Comment: ") and in white space at line ends of armor and of clear-signed text,
// which OpenPGP leaves unsigned. VerifyClearsigned returns the text without that
// white space, so that it holds signed bytes only.
package pgp

// Limits. What is over one of them is formats.ErrLimit.
const (
	// maxSignatureFile is the size of a detached signature as given, in bytes.
	// The largest in use, several RSA 4096 signatures in armor, has 5 KiB.
	maxSignatureFile = 1 << 20
	// maxSignatures is the number of signatures in one block. Debian signs with
	// three; each may need a pass of its own over the message.
	maxSignatures = 32
	// maxSignatureBody is the size of a signature packet: two areas of subpackets
	// of 65,535 bytes in version 4, and the integers.
	maxSignatureBody = 160 << 10
	// maxCleartext is the size of a clear-signed message. The largest InRelease
	// has 300 KB; a signed manifest of 65,536 members has 8 MiB.
	maxCleartext = 64 << 20

	// maxKeyFile is the size of a keyring file. Debian's keyring of all its
	// developers has 30 MB.
	maxKeyFile = 64 << 20
	// maxKeys is the number of primary keys in a keyring.
	maxKeys = 16384
	// maxPackets is the number of packets in a keyring file.
	maxPackets = 1 << 20
	// maxPerKey is the number of user ids, and of subkeys, of one key.
	maxPerKey = 1024
	// maxSelfSignatures is the number of self-signatures of one kind on one user
	// id, subkey or primary key: each may cost a public key operation.
	maxSelfSignatures = 256
	// maxKeyBody is the size of a key packet: RSA secret keys of 16,384 bits
	// have 10 KB.
	maxKeyBody = 16 << 10
	// maxUserID is the size of a user id in bytes, as in GnuPG.
	maxUserID = 2048
	// maxPacketBody is the size of a packet that is skipped, as the photograph
	// in a user attribute.
	maxPacketBody = 16 << 20
	// maxKeyBits is the size of an RSA or DSA modulus. GnuPG makes 4096 and reads
	// 16,384; the time of a verification grows with its square.
	maxKeyBits = 16384
	// maxCandidates is the number of keys tried that share a key id.
	maxCandidates = 8
	// maxSignedLine is the length of a line that ClearSign accepts, in bytes:
	// GnuPG cuts lines of 19,995 and then finds the signature bad.
	maxSignedLine = 19000
	// maxPassphrase is the length of a passphrase in bytes.
	maxPassphrase = 4096
	// maxArgon2 is the exponent of the memory, in KiB, of a passphrase function:
	// 64 MiB, RFC 9580's second recommendation.
	maxArgon2 = 16
)

// Sizes below which a key is weak.
const (
	minRSABits  = 2048
	noRSABits   = 1024 // below it crypto/rsa refuses to verify at all
	minHashBits = 224
)

// Packet types (RFC 9580 section 5).
const (
	tagSignature     = 2
	tagSecretKey     = 5
	tagPublicKey     = 6
	tagSecretSubkey  = 7
	tagCompressed    = 8
	tagMarker        = 10
	tagTrust         = 12
	tagUserID        = 13
	tagPublicSubkey  = 14
	tagUserAttribute = 17
	tagPadding       = 21
	tagFirstOptional = 40 // from here on unknown types may be skipped (section 4.3)
)

// Signature types (RFC 9580 section 5.2.1).
const (
	sigBinary        = 0x00
	sigText          = 0x01
	sigGenericCert   = 0x10
	sigPositiveCert  = 0x13
	sigSubkeyBinding = 0x18
	sigPrimaryBind   = 0x19
	sigDirectKey     = 0x1f
	sigKeyRevoke     = 0x20
	sigSubkeyRevoke  = 0x28
	sigCertRevoke    = 0x30
)

// Signature subpackets (RFC 9580 section 5.2.3.7).
const (
	subCreated     = 2
	subExpires     = 3
	subKeyExpires  = 9
	subRevoker     = 12
	subIssuer      = 16
	subNotation    = 20
	subPrimaryUID  = 25
	subKeyFlags    = 27
	subSignerUID   = 28
	subReason      = 29
	subEmbedded    = 32
	subFingerprint = 33
)

// Key flags (RFC 9580 section 5.2.3.29), first octet.
const (
	flagCertify = 1
	flagSign    = 2
)

// Public key algorithms (RFC 9580 section 9.1) that make signatures we check.
const (
	algRSA     = 1
	algRSASign = 3
	algDSA     = 17
	algECDSA   = 19
	algEdDSA   = 22 // EdDSALegacy
	algEd25519 = 27
	algEd448   = 28
)

// Hash algorithms (RFC 9580 section 9.5).
const (
	hashMD5       = 1
	hashSHA1      = 2
	hashRIPEMD160 = 3
	hashSHA256    = 8
	hashSHA384    = 9
	hashSHA512    = 10
	hashSHA224    = 11
	hashSHA3_256  = 12
	hashSHA3_512  = 14
)

// format is the name of the format in errors.
const format = "openpgp"
