package ovf

import (
	"slices"
	"strings"
)

// OperatingSystem is an OperatingSystemSection (section 9.13).
type OperatingSystem struct {
	ID          int    `json:"id"` // CIM_OperatingSystem.OsType
	Version     string `json:"version,omitempty"`
	Description Text   `json:"description,omitzero"`
	VMware      string `json:"vmware-type,omitempty"` // vmw:osType
	VBox        string `json:"vbox-type,omitempty"`   // vbox:OSType
}

// Hardware is a VirtualHardwareSection (section 8).
type Hardware struct {
	ID         string   `json:"id,omitempty"`
	Info       Text     `json:"info,omitzero"`
	Transports []string `json:"transports,omitempty"` // of the environment: iso, com.vmware.guestInfo
	Name       string   `json:"name,omitempty"`       // vssd:ElementName
	Identifier string   `json:"identifier,omitempty"` // vssd:VirtualSystemIdentifier
	Types      []string `json:"types,omitempty"`      // vssd:VirtualSystemType, split: vmx-21, virtualbox-2.2
	Items      []Item   `json:"items,omitempty"`

	off int64
}

// Values of Item.Type (CIM_ResourceAllocationSettingData.ResourceType).
const (
	TypeOther     = 1
	TypeProcessor = 3
	TypeMemory    = 4
	TypeIDE       = 5
	TypeSCSI      = 6
	TypeEthernet  = 10
	TypeFloppy    = 14
	TypeCD        = 15
	TypeDVD       = 16
	TypeDisk      = 17
	TypeStorage   = 20 // other storage device: SATA controllers
	TypeUSB       = 23
	TypeGraphics  = 24
	TypeLogical   = 31 // logical disk
	TypeEthConn   = 33 // Ethernet connection, of an EthernetPortItem
)

// An Item is one of Item, StorageItem and EthernetPortItem: a resource
// (section 8.3). Strings are as written; absent ones are "".
type Item struct {
	Element         string   `json:"element"` // Item, StorageItem or EthernetPortItem
	Required        bool     `json:"required"`
	Configurations  []string `json:"configurations,omitempty"` // none: all
	Bound           string   `json:"bound,omitempty"`          // min, max or normal
	InstanceID      string   `json:"instance-id"`
	Type            int      `json:"type"`
	SubType         string   `json:"sub-type,omitempty"`
	ElementName     string   `json:"name,omitempty"`
	Description     string   `json:"description,omitempty"`
	Caption         string   `json:"caption,omitempty"`
	Parent          string   `json:"parent,omitempty"`
	Address         string   `json:"address,omitempty"`
	AddressOnParent string   `json:"address-on-parent,omitempty"`
	Units           string   `json:"units,omitempty"` // AllocationUnits
	Quantity        *int64   `json:"quantity,omitempty"`
	QuantityUnits   string   `json:"quantity-units,omitempty"`
	Reservation     *int64   `json:"reservation,omitempty"`
	Limit           *int64   `json:"limit,omitempty"`
	Weight          *int64   `json:"weight,omitempty"`
	HostResources   []string `json:"host-resources,omitempty"`
	Connections     []string `json:"connections,omitempty"`
	Automatic       bool     `json:"automatic-allocation,omitempty"`

	off int64
}

// HostRef splits a host resource: "ovf:/disk/ID" or "ovf:/file/ID", also
// without "ovf:" as VirtualBox writes it. Kind is "" for anything else.
func HostRef(s string) (kind, id string) {
	s = strings.TrimPrefix(strings.TrimSpace(s), "ovf:")
	for _, k := range []string{"disk", "file"} {
		if id, ok := strings.CutPrefix(s, "/"+k+"/"); ok {
			return k, id
		}
	}
	return "", ""
}

// In reports whether the item takes part in a configuration, "" for none
// chosen. Markers of a range (bound min and max) never do.
func (it *Item) In(config string) bool {
	if it.Bound == "min" || it.Bound == "max" {
		return false
	}
	return len(it.Configurations) == 0 || slices.Contains(it.Configurations, config)
}

// items yields the items of a configuration; of those with the same instance
// id, one that names the configuration takes precedence over one that does
// not (section 9.8).
func (h *Hardware) items(config string) []*Item {
	named := map[string]bool{}
	for i := range h.Items {
		if it := &h.Items[i]; it.In(config) && len(it.Configurations) > 0 {
			named[it.InstanceID] = true
		}
	}
	var out []*Item
	for i := range h.Items {
		it := &h.Items[i]
		if it.In(config) && (len(it.Configurations) > 0 || !named[it.InstanceID]) {
			out = append(out, it)
		}
	}
	return out
}

// CPUs is the number of virtual processors in a configuration, 0 when the
// section does not say.
func (h *Hardware) CPUs(config string) int {
	var n int64
	for _, it := range h.items(config) {
		if it.Type == TypeProcessor && it.Quantity != nil {
			n = min(n+*it.Quantity, 1<<20)
		}
	}
	return int(n)
}

// Memory is the memory in bytes in a configuration, 0 when the section does
// not say, or says it in units that are not of bytes.
func (h *Hardware) Memory(config string) int64 {
	var n int64
	for _, it := range h.items(config) {
		if it.Type != TypeMemory || it.Quantity == nil {
			continue
		}
		units := it.Units
		if units == "" {
			units = it.QuantityUnits
		}
		if units == "" {
			units = "byte * 2^20" // DSP1045: the unit of memory when none is given
		}
		if u, err := ParseUnits(units); err == nil && u.Base == "byte" {
			if b, ok := u.Of(*it.Quantity); ok && b <= 1<<62-n {
				n += b
			}
		}
	}
	return n
}

// DiskIDs returns the ids of the disks attached in a configuration, in
// document order.
func (h *Hardware) DiskIDs(config string) []string {
	var ids []string
	for _, it := range h.items(config) {
		for _, r := range it.HostResources {
			if kind, id := HostRef(r); kind == "disk" && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// NetworkNames returns the names of the networks the adapters connect to.
func (h *Hardware) NetworkNames(config string) []string {
	var names []string
	for _, it := range h.items(config) {
		if it.Type != TypeEthernet && it.Element != "EthernetPortItem" {
			continue
		}
		for _, c := range it.Connections {
			if !slices.Contains(names, c) {
				names = append(names, c)
			}
		}
	}
	return names
}

// A Product is a ProductSection (section 9.5).
type Product struct {
	Class       string     `json:"class,omitempty"`
	Instance    string     `json:"instance,omitempty"`
	Info        Text       `json:"info,omitzero"`
	Product     Text       `json:"product,omitzero"`
	Vendor      Text       `json:"vendor,omitzero"`
	Version     string     `json:"version,omitempty"`
	FullVersion string     `json:"full-version,omitempty"`
	ProductURL  string     `json:"product-url,omitempty"`
	VendorURL   string     `json:"vendor-url,omitempty"`
	AppURL      string     `json:"app-url,omitempty"`
	Icons       []Icon     `json:"icons,omitempty"`
	Properties  []Property `json:"properties,omitempty"`

	node int32
	off  int64
}

// An Icon is a picture of a product.
type Icon struct {
	FileRef  string `json:"file-ref"`
	MimeType string `json:"mime-type,omitempty"`
}

// A Property is a setting of a product (section 9.5.1).
type Property struct {
	Key          string          `json:"key"`
	Type         string          `json:"type,omitempty"`
	Qualifiers   string          `json:"qualifiers,omitempty"`
	Value        string          `json:"value,omitempty"`  // the default
	Values       []PropertyValue `json:"values,omitempty"` // defaults of configurations
	Configurable bool            `json:"user-configurable,omitempty"`
	Password     bool            `json:"password,omitempty"`
	Label        Text            `json:"label,omitzero"`
	Description  Text            `json:"description,omitzero"`
	Category     Text            `json:"category,omitzero"`

	hasValue bool
	node     int32
	off      int64
}

// A PropertyValue is the default of a property in one configuration.
type PropertyValue struct {
	Value         string `json:"value"`
	Configuration string `json:"configuration,omitempty"`
}

// FullKey is the key under which the guest sees the property:
// class.key.instance, without what is empty.
func (p *Product) FullKey(key string) string {
	if p.Class != "" {
		key = p.Class + "." + key
	}
	if p.Instance != "" {
		key += "." + p.Instance
	}
	return key
}

// Default is the value of the property in a configuration when nobody sets
// it.
func (p *Property) Default(config string) string {
	for _, v := range p.Values {
		if config != "" && v.Configuration == config {
			return v.Value
		}
	}
	if !p.hasValue {
		for _, v := range p.Values {
			if v.Configuration == "" {
				return v.Value
			}
		}
	}
	return p.Value
}

// Install is an InstallSection (section 9.9): the system must boot once to
// install itself.
type Install struct {
	InitialBoot bool  `json:"initial-boot"`       // 1.0
	StopDelay   int64 `json:"initial-stop-delay"` // seconds; 0 waits for the guest
}

// A StartupItem is an entry of a StartupSection (section 9.7).
type StartupItem struct {
	ID          string `json:"id"`
	Order       int64  `json:"order"`
	StartDelay  int64  `json:"start-delay"` // seconds
	WaitGuest   bool   `json:"waiting-for-guest,omitempty"`
	StartAction string `json:"start-action,omitempty"`
	StopDelay   int64  `json:"stop-delay"` // seconds
	StopAction  string `json:"stop-action,omitempty"`
}

// An EnvironmentFile is a file that the guest finds beside its environment
// document (2.x section 9.14).
type EnvironmentFile struct {
	FileRef string `json:"file-ref"`
	Path    string `json:"path"`
}

// A BootSource is an entry of a BootDeviceSection (2.x section 9.10), in boot
// order.
type BootSource struct {
	Caption    string `json:"caption,omitempty"`
	InstanceID string `json:"instance-id,omitempty"`
	Source     string `json:"source,omitempty"` // StructuredBootString or HostResource
}

// ScaleOut is a ScaleOutSection (2.x section 9.15): how many copies of the
// system run.
type ScaleOut struct {
	ID      string `json:"id,omitempty"`
	Default int64  `json:"default"`
	Min     int64  `json:"minimum"`
	Max     int64  `json:"maximum"` // 0: no bound
}
