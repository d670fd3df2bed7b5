package ovf

import (
	"slices"
	"strings"
)

// osTypes are the values of CIM_OperatingSystem.OsType (CIM schema 2.44), by
// number. Numbers from 112 on were given out differently by exporters; the
// description beside them says which system is meant.
var osTypes = [...]string{
	"Unknown", "Other", "MACOS", "ATTUNIX", "DGUX", "DECNT", "Tru64 UNIX", "OpenVMS", "HPUX", "AIX", "MVS",
	"OS400", "OS/2", "JavaVM", "MSDOS", "WIN3x", "WIN95", "WIN98", "WINNT", "WINCE", "NCR3000", "NetWare", "OSF",
	"DC/OS", "Reliant UNIX", "SCO UnixWare", "SCO OpenServer", "Sequent", "IRIX", "Solaris", "SunOS", "U6000",
	"ASERIES", "HP NonStop OS", "HP NonStop OSS", "BS2000", "LINUX", "Lynx", "XENIX", "VM", "Interactive UNIX",
	"BSDUNIX", "FreeBSD", "NetBSD", "GNU Hurd", "OS9", "MACH Kernel", "Inferno", "QNX", "EPOC", "IxWorks",
	"VxWorks", "MiNT", "BeOS", "HP MPE", "NextStep", "PalmPilot", "Rhapsody", "Windows 2000", "Dedicated",
	"OS/390", "VSE", "TPF", "Windows (R) Me", "Caldera Open UNIX", "OpenBSD", "Not Applicable", "Windows XP",
	"z/OS", "Microsoft Windows Server 2003", "Microsoft Windows Server 2003 64-Bit", "Windows XP 64-Bit",
	"Windows XP Embedded", "Windows Vista", "Windows Vista 64-Bit", "Windows Embedded for Point of Service",
	"Microsoft Windows Server 2008", "Microsoft Windows Server 2008 64-Bit", "FreeBSD 64-Bit",
	"RedHat Enterprise Linux", "RedHat Enterprise Linux 64-Bit", "Solaris 64-Bit", "SUSE", "SUSE 64-Bit", "SLES",
	"SLES 64-Bit", "Novell OES", "Novell Linux Desktop", "Sun Java Desktop System", "Mandriva",
	"Mandriva 64-Bit", "TurboLinux", "TurboLinux 64-Bit", "Ubuntu", "Ubuntu 64-Bit", "Debian", "Debian 64-Bit",
	"Linux 2.4.x", "Linux 2.4.x 64-Bit", "Linux 2.6.x", "Linux 2.6.x 64-Bit", "Linux 64-Bit", "Other 64-Bit",
	"Microsoft Windows Server 2008 R2", "VMware ESXi", "Microsoft Windows 7", "CentOS 32-bit", "CentOS 64-bit",
	"Oracle Linux 32-bit", "Oracle Linux 64-bit", "eComStation 32-bitx", "Microsoft Windows Server 2011", "",
	"Microsoft Windows Server 2012", "Microsoft Windows 8", "Microsoft Windows 8 64-bit",
	"Microsoft Windows Server 2012 R2",
}

// OSName is the name of an operating system id, "" when it has none.
func OSName(id int) string {
	if id < 0 || id >= len(osTypes) {
		return ""
	}
	return osTypes[id]
}

// families map the start of a system's name, in lower case, to its ids: for
// 32 and for 64 bits.
var families = []struct {
	prefix     string
	id32, id64 int
}{
	{"debian", 95, 96}, {"ubuntu", 93, 94}, {"centos", 106, 107},
	{"red hat enterprise", 79, 80}, {"redhat", 79, 80}, {"rhel", 79, 80},
	{"oracle", 108, 109}, {"sles", 84, 85}, {"suse linux enterprise", 84, 85}, {"suse", 82, 83}, {"opensuse", 82, 83},
	{"mandriva", 89, 90}, {"turbolinux", 91, 92}, {"freebsd", 42, 78}, {"openbsd", 65, 65}, {"netbsd", 43, 43},
	{"solaris", 29, 81}, {"alpine", 36, 101}, {"fedora", 36, 101}, {"rocky", 36, 101}, {"almalinux", 36, 101},
	{"arch", 36, 101}, {"linux", 36, 101}, {"other linux", 36, 101}, {"gnu/linux", 36, 101},
}

// OSType finds the id of an operating system by its name, as a package, an
// os-release file or this table has it, and its architecture. What it does
// not know is Other (1) or Other 64-Bit (102).
func OSType(name, arch string) int {
	l := strings.ToLower(strings.TrimSpace(name))
	// The names of families are in the table for their 32-bit systems.
	exact := slices.IndexFunc(osTypes[:], func(s string) bool { return s != "" && strings.ToLower(s) == l })
	if exact >= 0 && (arch == "" || strings.Contains(l, "bit")) {
		return exact
	}
	wide := strings.Contains(arch, "64") || arch == "s390x" || arch == "ppc64le"
	for _, f := range families {
		if strings.HasPrefix(l, f.prefix) {
			if wide {
				return f.id64
			}
			return f.id32
		}
	}
	switch {
	case exact >= 0:
		return exact
	case wide:
		return 102
	}
	return 1
}
