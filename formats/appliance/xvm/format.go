// Package xvm reads, verifies and writes virtual appliances in the XVM format:
// XVM 1 (2007), a tar of xvm.xml, manifest.txt, two signatures and images, and
// XVM 2 (2008), a tar of a libvirt domain and gzip-compressed disks.
//
// What survives of both formats says less than an implementer needs. FORMAT.md
// in this folder separates what is documented from what this project defines;
// the xvm.xml written here is in a namespace of its own. Descriptors of others
// are read by their structure.
//
// Nothing here opens a file by a name found in a package, and no key is known
// here: signatures are handed out as data and checked by a function of the
// caller.
package xvm

// Names of the formats in errors and descriptors.
const (
	Name  = "xvm"
	Name2 = "xvm2"
)

// Namespace is that of our xvm.xml. It ends in the version of the format.
const Namespace = "urn:imgmaint:xvm:1"

// Reserved members. The first four are XVM 1's, documented in 2007.
const (
	DescriptorName  = "xvm.xml"
	ManifestName    = "manifest.txt"
	ManifestSigName = "mf-signature.asc" // over manifest.txt
	SignatureName   = "signature.asc"    // over xvm.xml
	Manifest256Name = "manifest.sha256"
	Signature256    = "manifest.sha256.asc" // over manifest.sha256
	Descriptor2Name = "description.xml"     // XVM 2's
)

// Limits.
const (
	// MaxDescriptor bounds a descriptor in bytes. Licence texts make the
	// largest; those seen stay below 100 KiB.
	MaxDescriptor = 4 << 20
	// maxElements, maxAttrs and maxDepth bound its XML: a machine with its
	// properties takes some fifty elements, four deep.
	maxElements = 65536
	maxAttrs    = 64
	maxDepth    = 32
	// maxSignature bounds a detached signature in bytes; one is some 300 to
	// 1200. Clear-signed lists are bounded as lists.
	maxSignature = 256 << 10
	// maxMachines, maxDisks, maxDocuments and maxProperties (of one machine)
	// bound what a descriptor may declare, and the disks that are found by
	// being there.
	maxMachines   = 1024
	maxDisks      = 4096
	maxDocuments  = 4096
	maxProperties = 4096
	// maxToken bounds names, identifiers and other short values in bytes.
	maxToken = 1024
	// maxVirtual bounds a disk in bytes: 1 EiB, past which offsets overflow.
	maxVirtual = 1 << 60
	// maxProblems bounds what is said about oddities.
	maxProblems = 64
	// firstMiB is what the MD5 of Enomaly's XVM 2 manifest covers.
	firstMiB = 1 << 20
	// indexMemory bounds the gzip indices of all disks of a package together,
	// in bytes; each has 1 MiB at least.
	indexMemory = 24 << 20
	// copyBlock is how much is read and hashed at a time.
	copyBlock = 256 << 10
)
