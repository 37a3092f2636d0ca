package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
)

// payloadModule is the nested module that the payload's programs are built from.
const payloadModule = "agent/payload/src"

// part is a Go module or a Debian library that is linked into one of the shipped programs.
type part struct {
	// name is a module path, "std" for Go's standard library, or a Debian package.
	name, version string
	// sum is the module's hash of go.sum, "" for others.
	sum string
	// purl is the package URL, source where the source code of this version is.
	purl, source string
	// programs are the shipped programs that it is linked into.
	programs []string
	// licenses are SPDX identifiers.
	licenses []string
	// texts are licences and notices.
	texts []string
}

// parts returns the parts of mote and of the payload's programs, sorted by name and version.
func parts(o options) ([]*part, error) {
	found := make(map[string]*part)
	mote, err := packages(".", nil, []string{"GOOS=linux", "GOARCH=" + o.arch}, "./cmd/mote", "./cmd/packed")
	if err != nil {
		return nil, err
	}
	if err := addPackages(found, "mote", mote); err != nil {
		return nil, err
	}
	programs, err := payloadPrograms(o.arch)
	if err != nil {
		return nil, err
	}
	for _, program := range programs {
		if program.info == nil { // written in C, part of this repository
			continue
		}
		listed, err := program.packages()
		if err != nil {
			return nil, err
		}
		if err := addPackages(found, program.name, listed); err != nil {
			return nil, err
		}
	}
	for _, file := range o.libraries {
		library, err := debianLibrary(file)
		if err != nil {
			return nil, err
		}
		found[library.name] = library
	}
	return check(slices.SortedFunc(maps.Values(found), func(a, b *part) int {
		return strings.Compare(a.name+"@"+a.version, b.name+"@"+b.version)
	}))
}

// check fails with the names of all parts that have no known licence.
func check(all []*part) ([]*part, error) {
	var errs []error
	for _, p := range all {
		if len(p.licenses) == 0 {
			errs = append(errs, fmt.Errorf("no licence text found for %s %s (linked into %s); "+
				"look for it in its source and extend scripts/tools/release/licenses.go", p.name, p.version, strings.Join(p.programs, ", ")))
		}
	}
	return all, errors.Join(errs...)
}

// goPackage holds the fields of a package that "go list -json" prints.
type goPackage struct {
	ImportPath string
	Dir        string
	Standard   bool
	Module     *goModule
}

type goModule struct {
	Path, Version, Dir, Sum string
	Main                    bool
	Replace                 *goModule
}

// packages returns the packages that the programs named by patterns are linked from.
func packages(dir string, flags, env []string, patterns ...string) ([]goPackage, error) {
	args := append([]string{"list", "-deps", "-json=ImportPath,Dir,Standard,Module"}, flags...)
	cmd := exec.Command("go", append(args, patterns...)...)
	cmd.Dir, cmd.Env, cmd.Stderr = dir, append(os.Environ(), env...), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list packages of %s in %s: %w", strings.Join(patterns, " "), dir, err)
	}
	var list []goPackage
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return list, nil
		} else if err != nil {
			return nil, fmt.Errorf("read the output of go list: %w", err)
		}
		list = append(list, p)
	}
}

// addPackages adds the modules of a program's packages, with the licence texts of each package's
// directory and of those above it in its module.
func addPackages(found map[string]*part, program string, list []goPackage) error {
	for _, pkg := range list {
		p, root := newPart(pkg)
		if p == nil {
			continue
		}
		key := p.name + "@" + p.version
		if known, ok := found[key]; ok {
			p = known
		} else {
			found[key] = p
		}
		if !slices.Contains(p.programs, program) {
			p.programs = append(p.programs, program)
		}
		if err := p.addTexts(pkg.Dir, root); err != nil {
			return err
		}
	}
	return nil
}

// newPart returns the part that pkg belongs to and the part's directory, or nil for mote's own
// packages.
func newPart(pkg goPackage) (*part, string) {
	if pkg.Standard {
		version := strings.TrimPrefix(runtime.Version(), "go")
		return &part{
			name: "std", version: runtime.Version(), purl: "pkg:golang/std@" + version,
			source: "https://go.dev/dl/go" + version + ".src.tar.gz",
		}, runtimeRoot(pkg)
	}
	m := pkg.Module
	if m == nil || m.Main {
		return nil, ""
	}
	if m.Replace != nil {
		m = m.Replace
	}
	return &part{
		name: m.Path, version: m.Version, sum: m.Sum, purl: "pkg:golang/" + m.Path + "@" + m.Version,
		source: "https://proxy.golang.org/" + escape(m.Path) + "/@v/" + escape(m.Version) + ".zip",
	}, m.Dir
}

// runtimeRoot is the directory of the Go toolchain that pkg, of the standard library, is from.
func runtimeRoot(pkg goPackage) string {
	root, _, _ := strings.Cut(pkg.Dir, string(filepath.Separator)+"src"+string(filepath.Separator))
	return root
}

// escape writes upper-case letters as the Go module proxy wants them: !a for A.
func escape(path string) string {
	var b strings.Builder
	for _, r := range path {
		if r >= 'A' && r <= 'Z' {
			b.WriteByte('!')
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// moduleKeys returns the parts that build information names, as parts does.
func moduleKeys(info *debug.BuildInfo) []string {
	keys := []string{"std@" + info.GoVersion}
	add := func(m *debug.Module) {
		if m.Replace != nil {
			m = m.Replace
		}
		keys = append(keys, m.Path+"@"+m.Version)
	}
	for _, m := range info.Deps {
		add(m)
	}
	// The main module of an upstream program is a dependency of the module that builds it.
	if info.Main.Version != "" && info.Main.Version != "(devel)" {
		add(&info.Main)
	}
	return keys
}

// readBuildInfo returns the build information in a program, or nil if it is not a Go program.
func readBuildInfo(program []byte) *debug.BuildInfo {
	info, err := buildinfo.Read(bytes.NewReader(program))
	if err != nil {
		return nil
	}
	return info
}
