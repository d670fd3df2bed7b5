// Package ovf reads, edits, writes, signs and verifies virtual appliances in
// the Open Virtualization Format: DSP0243 1.0 to 2.1 (ISO/IEC 17203), as a
// folder with a descriptor and as an OVA, one tar file.
//
// A descriptor is parsed into an Envelope for reading; it is changed by an
// Editor, which replaces byte ranges of the original text, so that comments,
// prefixes, white space and every section this package does not know stay as
// they were.
//
// Nothing here opens a host file or a network address: a folder comes as an
// fs.FS, an OVA as an io.ReaderAt, keys as crypto.Signer, time and trusted
// roots as arguments.
package ovf

// Name is the name of the format in errors and descriptors.
const Name = "ovf"

// Namespaces.
const (
	nsEnvelope    = "http://schemas.dmtf.org/ovf/envelope/" // followed by the major version
	nsEnvelope1   = nsEnvelope + "1"
	nsEnvelope2   = nsEnvelope + "2"
	nsEnvelope09  = "http://www.vmware.com/schema/ovf/1/envelope" // before the standard
	nsEnvironment = "http://schemas.dmtf.org/ovf/environment/1"   // DSP8027
	nsCIM         = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/"
	nsRASD        = nsCIM + "CIM_ResourceAllocationSettingData"
	nsVSSD        = nsCIM + "CIM_VirtualSystemSettingData"
	nsSASD        = nsCIM + "CIM_StorageAllocationSettingData"      // 2.x; also with ".xsd"
	nsEPASD       = nsCIM + "CIM_EthernetPortAllocationSettingData" // 2.x; also with ".xsd"
	nsXSI         = "http://www.w3.org/2001/XMLSchema-instance"
	nsXML         = "http://www.w3.org/XML/1998/namespace"
	nsXMLNS       = "http://www.w3.org/2000/xmlns/"
	nsVMW         = "http://www.vmware.com/schema/ovf"
	nsVBox        = "http://www.virtualbox.org/ovf/machine"

	// NSInventory is the namespace of our own section.
	NSInventory = "urn:imgmaint:ovf:inventory:1"
)

// Limits. Descriptors in use are some 10 KiB; the largest seen (vendor
// appliances with many systems and localised texts) stay below 1 MiB.
const (
	// MaxDescriptor bounds a descriptor in bytes.
	MaxDescriptor = 4 << 20
	// maxElements and maxAttributes bound a document as a whole: 56 and 24
	// bytes are kept of each, which makes 10 MiB at most.
	maxElements   = 100_000
	maxAttributes = 200_000
	// maxAttrsOf bounds one element: they are compared pair by pair.
	maxAttrsOf = 128
	// maxDepth bounds nesting; the schema goes 12 deep and collections nest.
	maxDepth = 64
	// maxScope bounds the namespace declarations in scope at one place, which
	// are searched one by one.
	maxScope = 256
	// maxValue bounds one attribute value or text that is decoded. Licence
	// texts are the largest.
	maxValue = 1 << 20
	// maxText bounds all decoded texts of a document together; elements do
	// not overlap, so only a value kept twice could exceed the document.
	maxText = 2 * MaxDescriptor

	// maxFiles bounds References; maxDisks the disks; maxItems the items of
	// all hardware sections; maxSystems the systems and collections. Each is
	// above what any hypervisor accepts by an order of magnitude.
	maxFiles      = 16384
	maxDisks      = 4096
	maxItems      = 16384
	maxSystems    = 4096
	maxProperties = 16384
	maxNest       = 16 // collections within collections
	// maxChunks bounds the members of one chunked file; the name has nine
	// digits, a tar index holds 65,536 members.
	maxChunks = 65536
	// maxBundle bounds an external string bundle, maxBundles their number.
	maxBundle  = MaxDescriptor
	maxBundles = 64
	// maxProblems bounds what is said about one package.
	maxProblems = 200

	// maxManifest bounds a .mf: 65,536 lines of 200 bytes.
	maxManifest = 16 << 20
	// maxCert bounds a .cert, maxCerts the certificates in it. A chain of six
	// RSA-4096 certificates is 12 KiB; signature blocks of vendors are 64 KiB.
	maxCert  = 1 << 20
	maxCerts = 16
	// maxRSABits bounds the keys we verify with; larger only cost time.
	maxRSABits = 16384
	// minRSABits and minECBits are where signatures are called weak
	// (NIST SP 800-131A).
	minRSABits = 2048
	minECBits  = 224
)
