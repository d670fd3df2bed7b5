package ovf

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"imgmaint/formats"
)

// An EnvironmentDoc is an OVF environment document (DSP0243 section 11,
// DSP8027): what a guest is told of its settings. It reaches the guest as
// ovf-env.xml on an ISO image, or through the hypervisor.
type EnvironmentDoc struct {
	ID         string             `json:"id"` // of the virtual system
	Platform   *Platform          `json:"platform,omitempty"`
	Properties []EnvironmentValue `json:"properties,omitempty"`
	Entities   []Entity           `json:"entities,omitempty"` // siblings in a collection
}

// Platform is a PlatformSection.
type Platform struct {
	Kind     string `json:"kind,omitempty"`
	Version  string `json:"version,omitempty"`
	Vendor   string `json:"vendor,omitempty"`
	Locale   string `json:"locale,omitempty"`   // RFC 5646: en
	Timezone string `json:"timezone,omitempty"` // minutes from UTC
}

// An EnvironmentValue is one property with its value.
type EnvironmentValue struct {
	Key   string `json:"key"` // class.key.instance
	Value string `json:"value"`
}

// An Entity is what the document says about another system.
type Entity struct {
	ID         string             `json:"id"`
	Properties []EnvironmentValue `json:"properties,omitempty"`
}

// Environment writes an environment document. The bytes depend on doc alone.
func Environment(doc *EnvironmentDoc) ([]byte, error) {
	c := &creator{}
	c.b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + "\n")
	c.open(`<Environment xmlns="%s" xmlns:oe="%s" xmlns:xsi="%s" oe:id="%s">`, nsEnvironment, nsEnvironment, nsXSI, c.esc(doc.ID))
	if p := doc.Platform; p != nil {
		c.open("<PlatformSection>")
		c.leaf("Kind", p.Kind)
		c.leaf("Version", p.Version)
		c.leaf("Vendor", p.Vendor)
		c.leaf("Locale", p.Locale)
		c.leaf("Timezone", p.Timezone)
		c.close("PlatformSection")
	}
	c.environmentProperties(doc.Properties)
	for _, e := range doc.Entities {
		c.open(`<Entity oe:id="%s">`, c.esc(e.ID))
		c.environmentProperties(e.Properties)
		c.close("Entity")
	}
	c.close("Environment")
	return []byte(c.b.String()), c.err
}

func (c *creator) environmentProperties(list []EnvironmentValue) {
	if len(list) == 0 {
		return
	}
	c.open("<PropertySection>")
	for _, p := range list {
		if p.Key == "" && c.err == nil {
			c.err = fmt.Errorf("%s: property without key", Name)
		}
		c.line(`<Property oe:key="%s" oe:value="%s"/>`, c.esc(p.Key), c.esc(p.Value))
	}
	c.close("PropertySection")
}

// ParseEnvironment reads an environment document.
func ParseEnvironment(text []byte) (*EnvironmentDoc, error) {
	d, err := parseXML(text)
	if err != nil {
		return nil, err
	}
	p := &parser{d: d, env: &Envelope{}, ns: nsEnvironment}
	root := node{p, 0}
	if root.name() != "Environment" {
		return nil, formats.Unknown(Name, root.off(), "", "root element %q", clip(root.qname()))
	}
	doc := &EnvironmentDoc{ID: root.str("id")}
	count := 0
	properties := func(n node) (list []EnvironmentValue, err error) {
		for sec := range n.all("PropertySection") {
			for x := range sec.all("Property") {
				if count++; count > maxProperties {
					return nil, formats.Limit(Name, x.off(), "PropertySection", "more than %d properties", maxProperties)
				}
				key, err := p.need(x, "key")
				if err != nil {
					return nil, err
				}
				list = append(list, EnvironmentValue{key, x.str("value")})
			}
		}
		return list, nil
	}
	if doc.Properties, err = properties(root); err != nil {
		return nil, err
	}
	if sec := root.first("PlatformSection"); !sec.isZero() {
		doc.Platform = &Platform{}
		for x := range sec.children() {
			t, err := x.text()
			if err != nil {
				return nil, err
			}
			switch x.name() {
			case "Kind":
				doc.Platform.Kind = t
			case "Version":
				doc.Platform.Version = t
			case "Vendor":
				doc.Platform.Vendor = t
			case "Locale":
				doc.Platform.Locale = t
			case "Timezone":
				doc.Platform.Timezone = t
			}
		}
	}
	for x := range root.all("Entity") {
		e := Entity{ID: x.str("id")}
		if e.Properties, err = properties(x); err != nil {
			return nil, err
		}
		if len(doc.Entities) >= maxSystems {
			return nil, formats.Limit(Name, x.off(), "Entity", "more than %d", maxSystems)
		}
		doc.Entities = append(doc.Entities, e)
	}
	return doc, nil
}

// EnvironmentFor fills the environment document of a machine: each of its
// properties with the value given under its full key, else the default of the
// configuration; siblings in the same collection as entities; and the
// properties of the collections around it, which its own shadow. Values must
// be of the property's type and meet its qualifiers; a key that no property
// has, and one that is not for the user to set, is an error.
func (e *Envelope) EnvironmentFor(system, configuration string, given map[string]string) (*EnvironmentDoc, error) {
	s := e.System(system)
	if s == nil || s.Collection {
		return nil, notFound("virtual system", system)
	}
	path := e.path(s)
	used := map[string]bool{}
	values := func(list []*System) ([]EnvironmentValue, error) {
		var out []EnvironmentValue
		at := map[string]int{}
		for _, x := range list {
			for i := range x.Products {
				pr := &x.Products[i]
				for j := range pr.Properties {
					p := &pr.Properties[j]
					key := pr.FullKey(p.Key)
					value := p.Default(configuration)
					if v, ok := given[key]; ok {
						if !p.Configurable {
							return nil, fmt.Errorf("%s: property %q is not for the user to set", Name, key)
						}
						value, used[key] = v, true
						if err := p.Check(v); err != nil {
							return nil, fmt.Errorf("%s: property %q: %w", Name, key, err)
						}
					}
					if k, ok := at[key]; ok {
						out[k].Value = value
						continue
					}
					at[key] = len(out)
					out = append(out, EnvironmentValue{key, value})
				}
			}
		}
		return out, nil
	}
	doc := &EnvironmentDoc{ID: s.ID}
	var err error
	if doc.Properties, err = values(path); err != nil {
		return nil, err
	}
	if len(path) > 1 {
		for _, sib := range path[len(path)-2].Systems {
			if sib == s {
				continue
			}
			ent := Entity{ID: sib.ID}
			if ent.Properties, err = values([]*System{sib}); err != nil {
				return nil, err
			}
			doc.Entities = append(doc.Entities, ent)
		}
	}
	var unknown []string
	for key := range given {
		if !used[key] {
			unknown = append(unknown, key)
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		return nil, notFound("property", unknown[0])
	}
	return doc, nil
}

// path is the way from the content of the envelope to s, both included.
func (e *Envelope) path(s *System) []*System {
	var find func(at *System) []*System
	find = func(at *System) []*System {
		if at == s {
			return []*System{at}
		}
		for _, c := range at.Systems {
			if rest := find(c); rest != nil {
				return append([]*System{at}, rest...)
			}
		}
		return nil
	}
	return find(e.Content)
}

var qualifierRE = regexp.MustCompile(`(?i)(MinLen|MaxLen|MinValue|MaxValue|ValueMap)\s*(?:\(\s*(-?\d+)\s*\)|\{([^{}]*)\})`)

// intRanges are the integer types of CIM (DSP0004) that OVF allows.
var intRanges = map[string]struct {
	bits   int
	signed bool
}{
	"uint8": {8, false}, "uint16": {16, false}, "uint32": {32, false}, "uint64": {64, false},
	"sint8": {8, true}, "sint16": {16, true}, "sint32": {32, true}, "sint64": {64, true}, "int": {32, true},
}

// Check reports whether v is a value of the property's type that meets its
// qualifiers (MinLen, MaxLen, MinValue, MaxValue, ValueMap of DSP0004).
// Vendors' types and qualifiers are not checked.
func (p *Property) Check(v string) error {
	kind, bounds, _ := strings.Cut(p.Type, "(") // vendors write string(1..20)
	kind = strings.TrimSpace(kind)
	quals := p.Qualifiers
	if lo, hi, ok := strings.Cut(strings.TrimSuffix(bounds, ")"), ".."); ok && kind == "string" {
		if lo != "" {
			quals += " MinLen(" + lo + ")"
		}
		if hi != "" {
			quals += " MaxLen(" + hi + ")"
		}
	}
	var number int64
	isInt := false
	switch r, ok := intRanges[kind]; {
	case ok && r.signed:
		n, err := strconv.ParseInt(v, 10, r.bits)
		if err != nil {
			return fmt.Errorf("%q is not of type %s", clip(v), kind)
		}
		number, isInt = n, true
	case ok:
		n, err := strconv.ParseUint(v, 10, r.bits)
		if err != nil {
			return fmt.Errorf("%q is not of type %s", clip(v), kind)
		}
		number, isInt = int64(min(n, 1<<63-1)), true
	case kind == "boolean":
		switch strings.ToLower(v) {
		case "true", "false":
		default:
			return fmt.Errorf("%q is not of type boolean", clip(v))
		}
	case kind == "real32" || kind == "real64":
		if _, err := strconv.ParseFloat(v, 64); err != nil {
			return fmt.Errorf("%q is not of type %s", clip(v), kind)
		}
	}
	for _, m := range qualifierRE.FindAllStringSubmatch(quals, 64) {
		limit, err := strconv.ParseInt(m[2], 10, 64)
		name := strings.ToLower(m[1])
		if name != "valuemap" && err != nil {
			continue
		}
		n := int64(len([]rune(v)))
		switch {
		case name == "minlen" && n < limit, name == "maxlen" && n > limit,
			name == "minvalue" && isInt && number < limit, name == "maxvalue" && isInt && number > limit:
			return fmt.Errorf("%q does not meet %s(%d)", clip(v), m[1], limit)
		case name == "valuemap" && m[3] != "" && !inValueMap(m[3], v):
			return fmt.Errorf("%q is not one of {%s}", clip(v), clip(m[3]))
		}
	}
	return nil
}

// inValueMap reports whether v is in a list as "a", "b", "c".
func inValueMap(list, v string) bool {
	for item := range strings.SplitSeq(list, ",") {
		if strings.Trim(strings.TrimSpace(item), `"`) == v {
			return true
		}
	}
	return false
}
