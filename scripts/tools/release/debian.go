package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
)

// debianLibrary returns the Debian package that a static library is from.
func debianLibrary(file string) (*part, error) {
	owner, err := output("dpkg", "-S", file)
	if err != nil {
		return nil, fmt.Errorf("find the Debian package of %s: %w", file, err)
	}
	name, _, ok := strings.Cut(owner, ": ")
	if !ok {
		return nil, fmt.Errorf("find the Debian package of %s: unexpected answer %q", file, owner)
	}
	fields, err := output("dpkg-query", "-W", "-f", "${Package}\n${Version}\n${Architecture}\n${source:Package}\n${source:Version}\n${Built-Using}", name)
	if err != nil {
		return nil, fmt.Errorf("ask for Debian package %s: %w", name, err)
	}
	f := append(strings.Split(fields, "\n"), "")
	source, version := debianSource(f[3], f[4], f[5])
	p := &part{
		name: f[0], version: f[1],
		purl:     "pkg:deb/debian/" + f[0] + "@" + strings.ReplaceAll(f[1], "+", "%2B") + "?arch=" + f[2],
		source:   "Debian source package " + source + " " + version + ": https://snapshot.debian.org/package/" + source + "/" + version + "/",
		programs: []string{"runc", "init", "pause"},
	}
	if strings.HasPrefix(p.name, "libseccomp") {
		p.programs = p.programs[:1]
	}
	return p, p.addCopyright("/usr/share/doc/" + p.name + "/copyright")
}

// debianSource returns the source package of a library. A package for another architecture is
// repacked from that architecture's, whose source it names as Built-Using.
func debianSource(source, version, builtUsing string) (string, string) {
	for _, m := range regexp.MustCompile(`(\S+) \(= ([^)]+)\)`).FindAllStringSubmatch(builtUsing, -1) {
		switch {
		case source == "cross-toolchain-base" && m[1] == "glibc",
			strings.HasPrefix(source, "gcc-") && m[1] == strings.TrimSuffix(source, "-cross"):
			return m[1], m[2]
		}
	}
	return source, version
}

// commonLicense matches a Debian copyright file's reference to a licence's text. The licences of
// manuals are left out: no manual is in the file.
var commonLicense = regexp.MustCompile(`/usr/share/common-licenses/((?:L?GPL|Apache|BSD|MPL)[-0-9.]*[0-9]?)`)

// addCopyright adds a Debian copyright file and the licence texts that it refers to.
func (p *part) addCopyright(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("licence of Debian package %s: %w", p.name, err)
	}
	p.texts = append(p.texts, tidy(text))
	var seen []string
	for _, m := range commonLicense.FindAllStringSubmatch(string(text), -1) {
		name := strings.TrimRight(m[1], ".")
		if slices.Contains(seen, name) {
			continue
		}
		seen = append(seen, name)
		license, err := os.ReadFile("/usr/share/common-licenses/" + name)
		if err != nil {
			return fmt.Errorf("licence of Debian package %s: %w", p.name, err)
		}
		p.texts = append(p.texts, tidy(license))
	}
	switch {
	case strings.HasPrefix(p.name, "libgcc"):
		p.licenses = []string{"GPL-3.0-or-later WITH GCC-exception-3.1"}
	case strings.HasPrefix(p.name, "libc6"):
		p.licenses = []string{"LGPL-2.1-or-later"}
	case strings.HasPrefix(p.name, "libseccomp"):
		p.licenses = []string{"LGPL-2.1-only"}
	}
	return nil
}

// output runs a command and returns what it prints, without the last line break.
func output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	return strings.TrimRight(string(out), "\n"), err
}
