package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/licensecheck"
	"github.com/klauspost/compress/zstd"
)

// licenseName matches the names of files that hold a licence or a notice which has to be passed on.
var licenseName = regexp.MustCompile(`(?i)^(li[cs]en[cs]e|copying|copyright|notice|patents|unlicense)s?([-_.].*)?$|^[a-z0-9.]+[-_]li[cs]en[cs]e([.](txt|md))?$`)

// notText are suffixes of files that are named like a licence and are not one, or are one for
// documentation, which is not in the file.
var notText = regexp.MustCompile(`(?i)[.](docs|go|sh|py|tmpl|tpl|json|ya?ml|sha256|header)$`)

// coverage is the percentage of a file that must be known licence text for the file to count as a
// licence.
const coverage = 60

// addTexts adds the licences and notices in dir and in those above it, up to root.
func (p *part) addTexts(dir, root string) error {
	for {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("look for licences of %s: %w", p.name, err)
		}
		for _, entry := range entries {
			if !entry.Type().IsRegular() || !licenseName.MatchString(entry.Name()) || notText.MatchString(entry.Name()) {
				continue
			}
			content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
			if err != nil {
				return fmt.Errorf("read licence of %s: %w", p.name, err)
			}
			p.addText(tidy(content))
		}
		if dir == root || len(dir) <= len(root) {
			return nil
		}
		dir = filepath.Dir(dir)
	}
}

func (p *part) addText(text string) {
	if text == "" || slices.Contains(p.texts, text) {
		return
	}
	p.texts = append(p.texts, text)
	known := licensecheck.Scan([]byte(text))
	if known.Percent < coverage {
		return
	}
	for _, match := range known.Match {
		// Google's patent grants are no licences of SPDX's list; their text is passed on like a
		// notice.
		if !match.IsURL && !strings.HasPrefix(match.ID, "Google") && !slices.Contains(p.licenses, match.ID) {
			p.licenses = append(p.licenses, match.ID)
		}
	}
}

// tidy drops differences between texts that nobody sees.
func tidy(text []byte) string {
	lines := strings.Split(string(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n"))), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " \t\f")
	}
	return strings.Trim(strings.Join(lines, "\n"), "\n")
}

// copyleft are the licences whose texts ask for the place of the source code.
var copyleft = regexp.MustCompile(`^(A?GPL|LGPL|MPL|EPL|CDDL)-`)

// words returns a text without its layout, in which copies of the same licence differ.
func words(text string) string { return strings.Join(strings.Fields(text), " ") }

// document writes all parts and their texts, identical texts once.
func document(own string, all []*part) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "mote is licensed under the Apache License 2.0, whose text is number 1 below.\n"+
		"It contains the parts listed here. Numbers name the texts that apply to each.\n\n")
	texts, known := []string{own}, []string{words(own)}
	for _, p := range all {
		numbers := make([]string, 0, len(p.texts))
		for _, text := range p.texts {
			i := slices.Index(known, words(text))
			if i < 0 {
				i = len(texts)
				texts, known = append(texts, text), append(known, words(text))
			}
			if number := fmt.Sprint(i + 1); !slices.Contains(numbers, number) {
				numbers = append(numbers, number)
			}
		}
		fmt.Fprintf(&b, "%s %s\n    %s; texts %s; in %s\n", p.name, p.version,
			strings.Join(p.licenses, ", "), strings.Join(numbers, " "), strings.Join(p.programs, ", "))
		if slices.ContainsFunc(p.licenses, copyleft.MatchString) {
			fmt.Fprintf(&b, "    source code: %s\n", p.source)
		}
	}
	fmt.Fprint(&b, "\nThe libraries of Debian are linked statically; mote's repository has what linking them anew needs, "+
		"agent/payload/src and scripts/build-payload.\n")
	for i, text := range texts {
		fmt.Fprintf(&b, "\n%s\nText %d\n%s\n\n%s\n", strings.Repeat("=", 80), i+1, strings.Repeat("=", 80), text)
	}
	return b.Bytes()
}

// writeLicenses writes the texts as mote embeds them.
func writeLicenses(o options) error {
	all, err := parts(o)
	if err != nil {
		return err
	}
	own, err := os.ReadFile("LICENSE")
	if err != nil {
		return err
	}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<22)) // one thread: the same bytes on every machine
	if err != nil {
		return err
	}
	return write(o.out, encoder.EncodeAll(document(tidy(own), all), nil))
}

// write replaces a file, unless it has the content already: the Go build compares embedded files by
// their content, other tools by their time.
func write(path string, content []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o644)
}
