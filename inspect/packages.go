package inspect

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"imgmaint/formats"
)

const (
	// maxStatus bounds a package database; Debian's is 1 MiB for 1000
	// packages. It is read as a stream.
	maxStatus = 64 << 20
	// maxPackages bounds the packages of a guest: as many as a Debian release
	// has, installed all at once.
	maxPackages = 60_000
	// maxKept bounds the text of all packages together, 16 MiB: a system of
	// 5000 packages has about 1 MiB.
	maxKept = 16 << 20
	// maxLines bounds the lines of a database; 1000 packages have 30,000.
	maxLines = 4 << 20
	// maxBad bounds the records that are skipped before a database is given
	// up.
	maxBad = 200
)

// A Package is an installed package, or what is left of one.
type Package struct {
	Manager       string `json:"manager"` // dpkg or apk
	Name          string `json:"name"`
	Version       string `json:"version,omitempty"`
	Architecture  string `json:"architecture,omitempty"`
	Source        string `json:"source,omitempty"`
	SourceVersion string `json:"source-version,omitempty"`
	InstalledSize int64  `json:"installed-size,omitempty"` // bytes
	// State is the third word of dpkg's Status: installed, config-files,
	// half-configured and so on.
	State      string `json:"state"`
	Want       string `json:"want,omitempty"`  // first word: install, hold, deinstall, purge
	Error      string `json:"error,omitempty"` // second word unless it is ok: reinstreq
	Section    string `json:"section,omitempty"`
	Maintainer string `json:"maintainer,omitempty"`
	Essential  bool   `json:"essential,omitempty"`
}

func collectDpkg(c *collection) error {
	const admin = "var/lib/dpkg"
	found := false
	var pkgs []Package
	db := PackageManager{Name: "dpkg", Database: "/" + admin + "/status", State: "read"}
	if err := c.dpkgFile(admin+"/status", &pkgs); err == nil {
		found = true
	} else if !absent(err) {
		found = true
		db.State = "damaged"
		c.rep.problem("/"+admin+"/status", err)
	}
	// Distroless images have a file a package instead.
	for _, name := range c.list(admin + "/status.d") {
		if strings.HasSuffix(name, ".md5sums") {
			continue
		}
		if !found {
			db.Database = "/" + admin + "/status.d"
		}
		found = true
		if err := c.dpkgFile(path.Join(admin, "status.d", name), &pkgs); err != nil {
			c.rep.problem("/"+path.Join(admin, "status.d", name), err)
		}
	}
	// An interrupted dpkg leaves changes that are not in status yet, in files
	// named by number.
	if found {
		for _, name := range c.list(admin + "/updates") {
			if strings.Trim(name, "0123456789") == "" {
				c.rep.problem("/"+admin+"/updates/"+name, errors.New("dpkg was interrupted: the change is taken into account"))
				if err := c.dpkgFile(path.Join(admin, "updates", name), &pkgs); err != nil {
					c.rep.problem("/"+path.Join(admin, "updates", name), err)
				}
			}
		}
	}
	if !found {
		return nil
	}
	pkgs = lastOfEach(pkgs)
	db.Packages = len(pkgs)
	c.it.PackageManagers = append(c.it.PackageManagers, db)
	c.it.Packages = append(c.it.Packages, pkgs...)
	sortPackages(c.it.Packages)
	return nil
}

func sortPackages(pkgs []Package) {
	sortedBy(pkgs, func(p Package) string { return p.Name + "\x00" + p.Architecture + "\x00" + p.Manager })
}

// lastOfEach keeps the last record of each package, which is the one in
// force, and drops what was never installed.
func lastOfEach(pkgs []Package) []Package {
	last := make(map[string]int, len(pkgs))
	for i, p := range pkgs {
		last[p.Name+"\x00"+p.Architecture] = i
	}
	kept := make([]Package, 0, len(last))
	for i, p := range pkgs {
		if last[p.Name+"\x00"+p.Architecture] == i && p.State != "not-installed" {
			kept = append(kept, p)
		}
	}
	return kept
}

// dpkgFile appends the packages of a file in the form of dpkg's status.
func (c *collection) dpkgFile(name string, pkgs *[]Package) error {
	f, err := c.openRegular(name)
	if err != nil {
		return err
	}
	defer f.Close()
	bad := 0
	return parseDpkgStatus(f, func(p Package, err error) error {
		if err != nil {
			c.rep.problem("/"+name, err)
			if bad++; bad == maxBad {
				return fmt.Errorf("%w: %d bad paragraphs", formats.ErrLimit, bad)
			}
			return nil
		}
		if err := c.keep(&p, len(*pkgs)); err != nil {
			return err
		}
		*pkgs = append(*pkgs, p)
		return nil
	})
}

// keep counts what p takes; n packages are not in the items yet.
func (c *collection) keep(p *Package, n int) error {
	if len(c.it.Packages)+n >= maxPackages {
		return fmt.Errorf("%w: more than %d packages", formats.ErrLimit, maxPackages)
	}
	for _, s := range []string{p.Name, p.Version, p.Architecture, p.Source, p.SourceVersion, p.Section, p.Maintainer, p.Want, p.State, p.Error} {
		c.kept += int64(len(s))
	}
	if c.kept > maxKept {
		return fmt.Errorf("%w: more than %d bytes of package records", formats.ErrLimit, maxKept)
	}
	return nil
}

// parseDpkgStatus reads a file of deb-control(5) paragraphs and calls emit
// for each package, and with an error for a paragraph that is none. An error
// of emit ends it.
func parseDpkgStatus(r io.Reader, emit func(Package, error) error) error {
	var p Package
	var source string
	line, first, fields := 0, 0, 0
	bad := error(nil)
	flush := func() error {
		if fields == 0 {
			return nil
		}
		if bad == nil && p.Name == "" {
			bad = errors.New("no Package field")
		}
		if bad != nil {
			bad = fmt.Errorf("%w: paragraph at line %d: %w", formats.ErrCorrupt, first, bad)
			p = Package{}
		} else {
			finishDpkg(&p, source)
		}
		err := emit(p, bad)
		p, source, fields, bad = Package{}, "", 0, nil
		return err
	}
	err := lines(r, maxStatus, func(b []byte, cut bool) error {
		if line++; line > maxLines {
			return fmt.Errorf("%w: more than %d lines", formats.ErrLimit, maxLines)
		}
		if len(bytes.TrimSpace(b)) == 0 {
			return flush()
		}
		if fields == 0 {
			first = line
		}
		fields++
		if b[0] == ' ' || b[0] == '\t' || bad != nil { // the rest of a field that is not used
			return nil
		}
		if i := slices.Index(b, 0); i >= 0 {
			bad = errors.New("a NUL byte")
			return nil
		}
		key, val, ok := strings.Cut(string(b), ":")
		if !ok || key == "" {
			bad = fmt.Errorf("line %d is no field", line)
			return nil
		}
		val = strings.TrimSpace(val)
		var to *string
		switch strings.ToLower(key) {
		case "package":
			to = &p.Name
		case "version":
			to = &p.Version
		case "architecture":
			to = &p.Architecture
		case "source":
			to = &source
		case "section":
			to = &p.Section
		case "maintainer":
			to = &p.Maintainer
		case "essential":
			p.Essential = val == "yes"
		case "installed-size":
			if n, err := strconv.ParseInt(val, 10, 64); err == nil && n >= 0 && n < 1<<40 {
				p.InstalledSize = n << 10 // the field is in KiB
			}
		case "status":
			w := strings.Fields(val)
			if len(w) != 3 {
				bad = fmt.Errorf("status %q", value(val))
				return nil
			}
			p.Want, p.Error, p.State = value(w[0]), value(w[1]), value(w[2])
		}
		if to == nil {
			return nil
		}
		if cut || len(val) > maxValue {
			bad = fmt.Errorf("%s of %d bytes or more", key, len(val))
			return nil
		}
		*to = value(val)
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// finishDpkg fills what a paragraph leaves out when it goes without saying.
func finishDpkg(p *Package, source string) {
	p.Manager = "dpkg"
	if p.State == "" { // status.d has no Status
		p.State = "installed"
	}
	if p.Error == "ok" {
		p.Error = ""
	}
	p.Source, p.SourceVersion = p.Name, p.Version
	if source != "" {
		name, ver, ok := strings.Cut(source, "(")
		p.Source = strings.TrimSpace(name)
		if ok {
			p.SourceVersion = strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(ver), ")"))
		}
	}
}

func collectApk(c *collection) error {
	for _, name := range []string{"lib/apk/db/installed", "usr/lib/apk/db/installed"} {
		f, err := c.openRegular(name)
		if err != nil {
			if absent(err) {
				continue
			}
			return err
		}
		defer f.Close()
		n := 0
		err = parseApk(f, func(p Package) error {
			if err := c.keep(&p, 0); err != nil {
				return err
			}
			n++
			c.it.Packages = append(c.it.Packages, p)
			return nil
		})
		sortPackages(c.it.Packages)
		db := PackageManager{Name: "apk", Database: "/" + name, State: "read", Packages: n}
		if err != nil {
			db.State = "damaged"
			c.rep.problem("/"+name, err)
		}
		c.it.PackageManagers = append(c.it.PackageManagers, db)
		return nil
	}
	return nil
}

// parseApk reads the installed database of apk-tools 2: paragraphs of lines
// with a letter, a colon and a value.
func parseApk(r io.Reader, emit func(Package) error) error {
	p := Package{}
	flush := func() error {
		if p.Name == "" {
			return nil
		}
		p.Manager, p.State, p.SourceVersion = "apk", "installed", p.Version
		if p.Source == "" {
			p.Source = p.Name
		}
		err := emit(p)
		p = Package{}
		return err
	}
	err := lines(r, maxStatus, func(b []byte, _ bool) error {
		if len(b) == 0 {
			return flush()
		}
		if len(b) < 2 || b[1] != ':' {
			return nil
		}
		val := value(string(b[2:min(len(b), 2+maxValue+1)]))
		switch b[0] {
		case 'P':
			p.Name = val
		case 'V':
			p.Version = val
		case 'A':
			p.Architecture = val
		case 'o':
			p.Source = val
		case 'm':
			p.Maintainer = val
		case 'I':
			if n, err := strconv.ParseInt(val, 10, 64); err == nil && n >= 0 {
				p.InstalledSize = n
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// foreign are the package databases that are recognised and not read.
var foreign = []struct{ name, path, kind string }{
	{"rpm", "var/lib/rpm/rpmdb.sqlite", "rpmdb sqlite"},
	{"rpm", "var/lib/rpm/Packages.db", "rpmdb ndb"},
	{"rpm", "var/lib/rpm/Packages", "rpmdb bdb"},
	{"rpm", "usr/lib/sysimage/rpm/rpmdb.sqlite", "rpmdb sqlite"},
	{"rpm", "usr/lib/sysimage/rpm/Packages.db", "rpmdb ndb"},
	{"rpm", "usr/share/rpm/rpmdb.sqlite", "rpmdb sqlite"},
	{"pacman", "var/lib/pacman/local", "pacman database"},
	{"portage", "var/db/pkg", "portage database"},
	{"xbps", "var/db/xbps", "xbps database"},
	{"opkg", "usr/lib/opkg/status", "opkg status"},
	{"nix", "nix/var/nix/db/db.sqlite", "nix database"},
	{"snap", "var/lib/snapd/state.json", "snapd state"},
	{"flatpak", "var/lib/flatpak/app", "flatpak installation"},
}

func collectForeign(c *collection) error {
	var seen []string
	for _, f := range foreign {
		if !c.exists(f.path) {
			continue
		}
		// /var/lib/rpm is often a link to /usr/lib/sysimage/rpm.
		p, err := c.Resolve(f.path)
		if err != nil || slices.Contains(seen, p) {
			continue
		}
		seen = append(seen, p)
		if f.name == "flatpak" || f.name == "snap" {
			// Installed with the system even when nothing uses them.
			if len(c.list(f.path)) == 0 && f.name == "flatpak" || f.name == "snap" && len(c.list("var/lib/snapd/snaps")) == 0 {
				continue
			}
		}
		c.it.PackageManagers = append(c.it.PackageManagers, PackageManager{Name: f.name, Database: "/" + f.path, State: "unsupported"})
		c.rep.problem("/"+f.path, fmt.Errorf("unsupported: %s: its packages are not listed", f.kind))
	}
	return nil
}

// checkPackages makes sure that an empty list of packages is never without a
// word.
func checkPackages(c *collection) error {
	if len(c.it.Packages) > 0 {
		return nil
	}
	if len(c.it.PackageManagers) == 0 {
		return errors.New("no package database that we know: what is installed is not known")
	}
	if slices.ContainsFunc(c.it.PackageManagers, func(m PackageManager) bool { return m.State == "read" }) {
		return errors.New("the package database lists no packages")
	}
	return nil
}
