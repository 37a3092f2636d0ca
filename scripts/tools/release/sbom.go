package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/uuid"
)

// writeSBOM writes the list of parts of a packed file in CycloneDX's JSON. Which modules there are
// is taken from the build information of the programs themselves; a module in it whose licence is
// not embedded is an error.
func writeSBOM(o options) error {
	all, err := parts(o)
	if err != nil {
		return err
	}
	packed, err := os.ReadFile(o.packed)
	if err != nil {
		return err
	}
	mote, err := os.ReadFile(o.program)
	if err != nil {
		return err
	}
	info := readBuildInfo(mote)
	if info == nil {
		return fmt.Errorf("%s has no build information", o.program)
	}
	payload, err := payloadPrograms(o.arch)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(mote)
	programs := append([]program{{"mote", hex.EncodeToString(sum[:]), info}}, payload...)
	if err := compare(all, programs); err != nil {
		return err
	}
	bom := newBOM(o, packed)
	components, dependencies := []cdx.Component{}, []cdx.Dependency{}
	for _, p := range programs {
		if p.name != "mote" {
			components = append(components, p.component(o.version))
		}
		dependencies = append(dependencies, p.dependencies(all, programs))
	}
	for _, p := range all {
		components = append(components, p.component())
	}
	bom.Components, bom.Dependencies = &components, &dependencies
	var out bytes.Buffer
	encoder := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false)
	// Older than the newest, for the tools that read it.
	if err := encoder.EncodeVersion(bom, cdx.SpecVersion1_5); err != nil {
		return err
	}
	return write(o.out, out.Bytes())
}

// compare fails unless the build information of every program names the modules that parts found
// for it.
func compare(all []*part, programs []program) error {
	var errs []error
	for _, p := range programs {
		if p.info == nil {
			continue
		}
		linked := moduleKeys(p.info)
		for _, key := range linked {
			if !slices.ContainsFunc(all, func(q *part) bool { return q.key() == key && slices.Contains(q.programs, p.name) }) {
				errs = append(errs, fmt.Errorf("%s contains %s, whose licence is not in the file; run scripts/build again", p.name, key))
			}
		}
	}
	return errors.Join(errs...)
}

// newBOM returns a list with what it says of the packed file itself. The same file gives the same
// list.
func newBOM(o options, packed []byte) *cdx.BOM {
	sum := sha256.Sum256(packed)
	bom := cdx.NewBOM()
	bom.SerialNumber = uuid.NewSHA1(uuid.NameSpaceOID, sum[:]).URN()
	bom.Metadata = &cdx.Metadata{
		Timestamp: o.date,
		Component: &cdx.Component{
			BOMRef: "mote", Type: cdx.ComponentTypeApplication, Name: "mote", Version: o.version,
			Description: "Kubernetes in one file, linux/" + o.arch,
			PackageURL:  "pkg:golang/github.com/mote-k8s/mote@" + o.version + "?goos=linux&goarch=" + o.arch,
			Hashes:      &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}},
			Licenses:    &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}},
		},
	}
	return bom
}

// component describes a program of the payload. Programs in C are mote's own.
func (p program) component(version string) cdx.Component {
	c := cdx.Component{
		BOMRef: "payload/" + p.name, Type: cdx.ComponentTypeApplication, Name: p.name, Version: version,
		Hashes:   &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: p.sha256}},
		Licenses: &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}},
	}
	if p.info != nil {
		c.Version = p.info.Main.Version
	}
	return c
}

func (p program) dependencies(all []*part, programs []program) cdx.Dependency {
	d := cdx.Dependency{Ref: "payload/" + p.name, Dependencies: &[]string{}}
	if p.name == "mote" {
		d.Ref = "mote"
		for _, other := range programs[1:] {
			*d.Dependencies = append(*d.Dependencies, "payload/"+other.name)
		}
	}
	for _, q := range all {
		if slices.Contains(q.programs, p.name) {
			*d.Dependencies = append(*d.Dependencies, q.purl)
		}
	}
	return d
}

func (p *part) key() string { return p.name + "@" + p.version }

func (p *part) component() cdx.Component {
	c := cdx.Component{
		BOMRef: p.purl, Type: cdx.ComponentTypeLibrary, Name: p.name, Version: p.version, PackageURL: p.purl,
		Licenses: &cdx.Licenses{{Expression: strings.Join(p.licenses, " AND ")}},
	}
	if _, url, ok := strings.Cut(p.source, "https://"); ok {
		reference := cdx.ExternalReference{Type: cdx.ERTypeDistribution, URL: "https://" + url}
		if hash, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(p.sum, "h1:")); err == nil && p.sum != "" {
			// The hash of go.sum is over the list of the files' hashes, not over the archive.
			c.Properties = &[]cdx.Property{{Name: "golang:go.sum", Value: "h1:" + base64.StdEncoding.EncodeToString(hash)}}
		}
		c.ExternalReferences = &[]cdx.ExternalReference{reference}
	}
	return c
}
