package ovf

import (
	"strings"

	"imgmaint/formats"
)

// system reads a VirtualSystem or VirtualSystemCollection.
func (p *parser) system(n node, depth int) (*System, error) {
	if p.systems++; p.systems > maxSystems {
		return nil, formats.Limit(Name, n.off(), n.qname(), "more than %d systems", maxSystems)
	}
	if depth > maxNest {
		return nil, formats.Limit(Name, n.off(), n.qname(), "collections nested more than %d deep", maxNest)
	}
	s := &System{Collection: n.name() == "VirtualSystemCollection", node: n.i, off: n.off()}
	var err error
	if s.ID, err = p.need(n, "id"); err != nil {
		return nil, err
	}
	for c := range n.children() {
		if err := p.section(s, c, depth); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// section reads one child of a system.
func (p *parser) section(s *System, c node, depth int) (err error) {
	switch c.name() {
	case "Info":
		s.Info, err = c.message()
	case "Name":
		s.Name, err = c.message()
	case "VirtualSystem", "VirtualSystemCollection":
		if !s.Collection {
			return formats.Corrupt(Name, c.off(), c.qname(), "inside a VirtualSystem")
		}
		var child *System
		if child, err = p.system(c, depth+1); err == nil {
			s.Systems = append(s.Systems, child)
		}
	case "OperatingSystemSection":
		err = p.operatingSystem(s, c)
	case "VirtualHardwareSection":
		err = p.hardware(s, c)
	case "ProductSection":
		err = p.product(s, c)
	case "EulaSection":
		var t Text
		if t, err = c.first("License").message(); err == nil {
			s.Licences = append(s.Licences, t)
		}
	case "AnnotationSection":
		var t Text
		if t, err = c.first("Annotation").message(); err == nil {
			s.Annotations = append(s.Annotations, t)
		}
	case "InstallSection":
		err = p.install(s, c)
	case "StartupSection":
		err = p.startup(s, c)
	case "ResourceAllocationSection":
		for it := range c.all("Item") {
			if err = p.item(&s.Resources, it); err != nil {
				break
			}
		}
	case "EnvironmentFilesSection":
		for f := range c.all("File") {
			ref := f.str("fileRef")
			if ref == "" {
				ref = f.str("fileref")
			}
			s.Files = append(s.Files, EnvironmentFile{ref, f.str("path")})
		}
	case "BootDeviceSection":
		err = p.boot(s, c)
	case "ScaleOutSection":
		err = p.scaleOut(s, c)
	case "PlacementSection":
		s.Placement = c.str("group")
	default:
		if c.ns() == NSInventory && c.local() == "InventorySection" {
			s.HasInv = true
		}
		err = p.unknown(c, &s.Unknown)
	}
	return err
}

func (p *parser) operatingSystem(s *System, c node) (err error) {
	id, ok, err := c.number("id")
	if err != nil {
		return err
	}
	if !ok || id > 0xffff { // uint16 in CIM
		return formats.Corrupt(Name, c.off(), c.qname()+"@id", "%q", clip(c.str("id")))
	}
	o := &OperatingSystem{ID: int(id), Version: c.str("version")}
	o.VMware, _ = c.attrNS(nsVMW, "osType")
	if o.Description, err = c.first("Description").message(); err != nil {
		return err
	}
	for x := range c.children() {
		if x.ns() == nsVBox && x.local() == "OSType" {
			if o.VBox, err = x.text(); err != nil {
				return err
			}
		}
	}
	if s.OS != nil {
		p.notes.add(Warning, "schema", c.off(), "second OperatingSystemSection")
		return nil
	}
	s.OS = o
	return nil
}

func (p *parser) hardware(s *System, c node) (err error) {
	h := Hardware{ID: c.str("id"), Transports: strings.Fields(c.str("transport")), off: c.off()}
	for x := range c.children() {
		switch x.name() {
		case "Info":
			h.Info, err = x.message()
		case "System":
			err = p.vssd(&h, x)
		case "Item", "StorageItem", "EthernetPortItem":
			err = p.item(&h.Items, x)
		}
		if err != nil {
			return err
		}
	}
	s.Hardware = append(s.Hardware, h)
	return nil
}

// vssd reads the System element: CIM_VirtualSystemSettingData.
func (p *parser) vssd(h *Hardware, c node) error {
	for x := range c.children() {
		t, err := x.text()
		if err != nil {
			return err
		}
		switch x.local() {
		case "ElementName":
			h.Name = t
		case "VirtualSystemIdentifier":
			h.Identifier = t
		case "VirtualSystemType":
			// A list, separated by spaces (1.x) or commas (exporters).
			h.Types = strings.FieldsFunc(t, func(r rune) bool { return r == ' ' || r == ',' })
		}
	}
	return nil
}

// item reads an Item, StorageItem or EthernetPortItem: the properties of a
// CIM class as child elements.
func (p *parser) item(list *[]Item, c node) (err error) {
	if p.items++; p.items > maxItems {
		return formats.Limit(Name, c.off(), c.qname(), "more than %d items", maxItems)
	}
	it := Item{Element: c.name(), Configurations: strings.Fields(c.str("configuration")), Bound: c.str("bound"), off: c.off()}
	if it.Required, err = c.flag("required", true); err != nil {
		return err
	}
	switch it.Bound {
	case "", "normal", "min", "max":
	default:
		return formats.Corrupt(Name, c.off(), "Item@bound", "%q", clip(it.Bound))
	}
	for x := range c.children() {
		if ns := x.ns(); !strings.HasPrefix(ns, nsCIM) && !p.ours(ns) {
			continue // vmw:Config and the like
		}
		if err := p.itemField(&it, x); err != nil {
			return err
		}
	}
	*list = append(*list, it)
	return nil
}

func (p *parser) itemField(it *Item, x node) error {
	t, err := x.text()
	if err != nil {
		return err
	}
	quantity := func(dst **int64) error {
		if t == "" {
			return nil
		}
		v, err := parseNumber(t)
		if err != nil {
			return formats.Corrupt(Name, x.off(), x.qname(), "%q is not a number", clip(t))
		}
		*dst = &v
		return nil
	}
	switch x.local() {
	case "InstanceID", "InstanceId":
		it.InstanceID = t
	case "ResourceType":
		v, err := parseNumber(t)
		if err != nil || v > 0xffff {
			return formats.Corrupt(Name, x.off(), x.qname(), "%q", clip(t))
		}
		it.Type = int(v)
	case "ResourceSubType":
		if it.SubType == "" {
			it.SubType = t
		}
	case "ElementName":
		it.ElementName = t
	case "Description":
		it.Description = t
	case "Caption":
		it.Caption = t
	case "Parent":
		it.Parent = t
	case "Address":
		it.Address = t
	case "AddressOnParent":
		it.AddressOnParent = t
	case "AllocationUnits":
		it.Units = t
	case "VirtualQuantityUnits":
		it.QuantityUnits = t
	case "VirtualQuantity":
		return quantity(&it.Quantity)
	case "Reservation":
		return quantity(&it.Reservation)
	case "Limit":
		return quantity(&it.Limit)
	case "Weight":
		return quantity(&it.Weight)
	case "HostResource":
		it.HostResources = append(it.HostResources, t)
	case "Connection":
		if t != "" {
			it.Connections = append(it.Connections, t)
		}
	case "AutomaticAllocation":
		it.Automatic = t == "true" || t == "1"
	}
	return nil
}

func (p *parser) product(s *System, c node) (err error) {
	pr := Product{Class: c.str("class"), Instance: c.str("instance"), node: c.i, off: c.off()}
	var category Text
	for x := range c.children() {
		var t Text
		switch x.name() {
		case "":
			continue
		case "Property":
			if err := p.property(&pr, x, category); err != nil {
				return err
			}
			continue
		case "Icon":
			if len(pr.Icons) < maxFiles {
				pr.Icons = append(pr.Icons, Icon{x.str("fileRef"), x.str("mimeType")})
			}
			continue
		}
		if t, err = x.message(); err != nil {
			return err
		}
		switch x.name() {
		case "Info":
			pr.Info = t
		case "Product":
			pr.Product = t
		case "Vendor":
			pr.Vendor = t
		case "Version":
			pr.Version = t.Value
		case "FullVersion":
			pr.FullVersion = t.Value
		case "ProductUrl":
			pr.ProductURL = t.Value
		case "VendorUrl":
			pr.VendorURL = t.Value
		case "AppUrl":
			pr.AppURL = t.Value
		case "Category":
			category = t
		}
	}
	s.Products = append(s.Products, pr)
	return nil
}

func (p *parser) property(pr *Product, c node, category Text) (err error) {
	if p.properties++; p.properties > maxProperties {
		return formats.Limit(Name, c.off(), c.qname(), "more than %d properties", maxProperties)
	}
	y := Property{Type: c.str("type"), Qualifiers: c.str("qualifiers"), Category: category, node: c.i, off: c.off()}
	if y.Key, err = p.need(c, "key"); err != nil {
		return err
	}
	y.Value, y.hasValue = c.attr("value")
	if y.Configurable, err = c.flag("userConfigurable", false); err != nil {
		return err
	}
	if y.Password, err = c.flag("password", false); err != nil {
		return err
	}
	for x := range c.children() {
		switch x.name() {
		case "Label":
			y.Label, err = x.message()
		case "Description":
			y.Description, err = x.message()
		case "Value":
			y.Values = append(y.Values, PropertyValue{x.str("value"), x.str("configuration")})
		}
		if err != nil {
			return err
		}
	}
	pr.Properties = append(pr.Properties, y)
	return nil
}

func (p *parser) install(s *System, c node) (err error) {
	in := &Install{}
	if in.InitialBoot, err = c.flag("initialBoot", true); err != nil {
		return err
	}
	if in.StopDelay, _, err = c.number("initialBootStopDelay"); err != nil {
		return err
	}
	s.Install = in
	return nil
}

func (p *parser) startup(s *System, c node) (err error) {
	for x := range c.all("Item") {
		if p.items++; p.items > maxItems {
			return formats.Limit(Name, x.off(), x.qname(), "more than %d items", maxItems)
		}
		it := StartupItem{ID: x.str("id"), StartAction: x.str("startAction"), StopAction: x.str("stopAction")}
		if it.Order, _, err = x.number("order"); err != nil {
			return err
		}
		if it.StartDelay, _, err = x.number("startDelay"); err != nil {
			return err
		}
		if it.StopDelay, _, err = x.number("stopDelay"); err != nil {
			return err
		}
		if it.WaitGuest, err = x.flag("waitingForGuest", false); err != nil {
			return err
		}
		s.Startup = append(s.Startup, it)
	}
	return nil
}

// boot reads a BootDeviceSection: CIM_BootConfigSetting elements that hold
// CIM_BootSourceSetting elements in boot order.
func (p *parser) boot(s *System, sec node) error {
	end := sec.elem().end
	for i := sec.i + 1; int(i) < len(p.d.elems) && p.d.elems[i].start < end; i++ {
		c := node{p, i}
		if !strings.HasSuffix(c.local(), "BootSourceSetting") {
			continue
		}
		if p.items++; p.items > maxItems {
			return formats.Limit(Name, c.off(), c.qname(), "more than %d items", maxItems)
		}
		var b BootSource
		for x := range c.children() {
			t, err := x.text()
			if err != nil {
				return err
			}
			switch x.local() {
			case "Caption":
				b.Caption = t
			case "InstanceID":
				b.InstanceID = t
			case "StructuredBootString", "BootString", "HostResource":
				b.Source = t
			}
		}
		s.Boot = append(s.Boot, b)
	}
	return nil
}

func (p *parser) scaleOut(s *System, c node) (err error) {
	o := &ScaleOut{ID: c.str("id"), Min: 1}
	if x := c.first("InstanceCount"); !x.isZero() {
		var ok bool
		if o.Default, _, err = x.number("default"); err != nil {
			return err
		}
		if v, has, err := x.number("minimum"); err != nil {
			return err
		} else if has {
			o.Min = v
		}
		if o.Max, ok, err = x.number("maximum"); err != nil {
			return err
		}
		if ok && o.Max < o.Min {
			p.notes.add(Fault, "scale-out", c.off(), "maximum %d below minimum %d", o.Max, o.Min)
		}
	}
	s.ScaleOut = o
	return nil
}
