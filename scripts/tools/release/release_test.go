package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"aead.dev/minisign"
	cdx "github.com/CycloneDX/cyclonedx-go"
)

// mit is a licence text that licensecheck knows.
const mit = `MIT License

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation
files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy,
modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE,
ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
`

// module makes a module's directory with files and returns a package in its subdirectory "sub".
func module(t *testing.T, path string, files map[string]string) goPackage {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	return goPackage{ImportPath: path + "/sub", Dir: filepath.Join(dir, "sub"), Module: &goModule{Path: path, Version: "v1.0.0", Dir: dir}}
}

func collect(t *testing.T, list ...goPackage) ([]*part, error) {
	t.Helper()
	found := map[string]*part{}
	if err := addPackages(found, "mote", list); err != nil {
		t.Fatal(err)
	}
	var all []*part
	for _, pkg := range list {
		all = append(all, found[pkg.Module.Path+"@"+pkg.Module.Version])
	}
	return check(all)
}

func TestModuleWithoutLicenseIsNamed(t *testing.T) {
	none := module(t, "example.com/none", map[string]string{"license.go": mit, "README.md": mit})
	odd := module(t, "example.com/odd", map[string]string{"LICENSE": "You may ask the author, who may say yes or no."})
	good := module(t, "example.com/good", map[string]string{"LICENSE": mit})
	_, err := collect(t, none, good, odd)
	if err == nil || !strings.Contains(err.Error(), "example.com/none v1.0.0") || !strings.Contains(err.Error(), "example.com/odd v1.0.0") {
		t.Errorf("the error must name both modules without a known licence: %v", err)
	}
	if err != nil && strings.Contains(err.Error(), "example.com/good") {
		t.Errorf("the error names a module that has a licence: %v", err)
	}
}

func TestDocument(t *testing.T) {
	one := module(t, "example.com/one", map[string]string{"LICENSE": mit, "NOTICE": "Made by Alice.", "sub/COPYING": "Part of Bob's."})
	two := module(t, "example.com/two", map[string]string{"LICENSE.txt": strings.ReplaceAll(mit, "\n", "\r\n"), "other/LICENSE": "not linked"})
	all, err := collect(t, one, two)
	if err != nil {
		t.Fatal(err)
	}
	all[1].licenses = append(all[1].licenses, "MPL-2.0")
	text := string(document("mote's own licence", all))
	for want, times := range map[string]int{
		"Permission is hereby granted": 1, "Made by Alice.": 1, "Part of Bob's.": 1, "not linked": 0, "mote's own licence": 1,
		"source code: https://proxy.golang.org/example.com/two/@v/v1.0.0.zip": 1, "source code: https://proxy.golang.org/example.com/one": 0,
	} {
		if got := strings.Count(text, want); got != times {
			t.Errorf("%q is there %d times, want %d:\n%s", want, got, times, text)
		}
	}
}

func TestDebianSource(t *testing.T) {
	for _, c := range [][5]string{
		{"glibc", "2.36-9+deb12u14", "", "glibc", "2.36-9+deb12u14"},
		{"cross-toolchain-base", "66", "binutils (= 2.40-2), gcc-12 (= 12.2.0-14), glibc (= 2.36-8)", "glibc", "2.36-8"},
		{"gcc-12-cross", "15", "gcc-12 (= 12.2.0-14)", "gcc-12", "12.2.0-14"},
	} {
		if source, version := debianSource(c[0], c[1], c[2]); source != c[3] || version != c[4] {
			t.Errorf("source of %v: %s %s", c, source, version)
		}
	}
}

// TestProgramWithOtherModules: a program that was linked from other modules than its licences are
// of has no list of parts.
func TestProgramWithOtherModules(t *testing.T) {
	all := []*part{{name: "std", version: "go1.26.8", programs: []string{"mote"}}, {name: "example.com/a", version: "v1.0.0", programs: []string{"mote"}}}
	info := &debug.BuildInfo{GoVersion: "go1.26.8", Deps: []*debug.Module{{Path: "example.com/a", Version: "v1.0.0"}}}
	if err := compare(all, []program{{name: "mote", info: info}}); err != nil {
		t.Error(err)
	}
	info.Deps = append(info.Deps, &debug.Module{Path: "example.com/b", Version: "v1.0.0", Replace: &debug.Module{Path: "example.com/c", Version: "v2.0.0"}})
	if err := compare(all, []program{{name: "mote", info: info}}); err == nil || !strings.Contains(err.Error(), "example.com/c@v2.0.0") {
		t.Errorf("the error must name the module: %v", err)
	}
}

func TestComponentIsCycloneDX(t *testing.T) {
	p := &part{name: "example.com/a", version: "v1.0.0", purl: "pkg:golang/example.com/a@v1.0.0", sum: "h1:" + strings.Repeat("A", 43) + "=",
		source: "https://proxy.golang.org/example.com/a/@v/v1.0.0.zip", licenses: []string{"MIT", "Apache-2.0"}}
	bom := newBOM(options{arch: "amd64", version: "v1.2.3", date: "2026-01-02T03:04:05Z"}, []byte("packed"))
	bom.Components = &[]cdx.Component{p.component()}
	var out bytes.Buffer
	if err := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).Encode(bom); err != nil {
		t.Fatal(err)
	}
	var got struct {
		SpecVersion string
		Components  []struct {
			Purl     string
			Licenses []struct{ Expression string }
		}
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.SpecVersion == "" || got.Components[0].Purl != p.purl || got.Components[0].Licenses[0].Expression != "MIT AND Apache-2.0" {
		t.Errorf("unexpected list of parts: %s", out.String())
	}
}

func TestSign(t *testing.T) {
	public, secret, err := minisign.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := secret.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	sums, key := filepath.Join(dir, "SHA256SUMS"), filepath.Join(dir, "key")
	message := []byte("0123  mote\n")
	if err := os.WriteFile(sums, message, 0o644); err != nil {
		t.Fatal(err)
	}
	// The level release of scripts/test signs with a key that has a password, which costs a
	// gigabyte of memory.
	for name, c := range map[string]struct {
		key   []byte
		works bool
	}{"key without a password": {plain, true}, "no key": {nil, false}, "damaged key": {plain[:len(plain)-8], false}} {
		t.Run(name, func(t *testing.T) {
			os.Remove(sums + ".minisig")
			t.Setenv("MOTE_RELEASE_KEY", key)
			if err := os.WriteFile(key, c.key, 0o600); err != nil {
				t.Fatal(err)
			}
			err := sign(sums)
			signature, _ := os.ReadFile(sums + ".minisig")
			if c.works && (err != nil || !minisign.Verify(public, message, signature) || minisign.Verify(public, []byte("other"), signature)) {
				t.Errorf("the signature does not hold, or holds for another file: %v", err)
			}
			if !c.works && (err == nil || signature != nil) {
				t.Error("signed")
			}
		})
	}
}
