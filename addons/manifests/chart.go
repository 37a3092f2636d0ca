package manifests

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// chart is what a file NAME.chart.yaml asks for: a Helm release.
type chart struct {
	// Chart is a folder or a packed chart (.tgz), beside the file or at an absolute path.
	Chart string `json:"chart"`
	// Name is the release's. Default: the file's name before .chart.yaml.
	Name string `json:"name"`
	// Namespace is made if it is not there. Default: "default".
	Namespace string `json:"namespace"`
	// Values replace the chart's own.
	Values map[string]any `json:"values"`
}

// release is how a set names it.
func (c *chart) release() string { return c.Namespace + "/" + c.Name }

// readChart fills in f. Its sum is of the chart's own files too.
func (f *file) readChart(path string, data []byte) {
	var c chart
	if err := yaml.UnmarshalStrict(data, &c); err != nil {
		f.err = errors.New(contents.ReplaceAllString(err.Error(), "..."))
		return
	}
	if c.Chart == "" {
		f.err = errors.New(`it names no chart; write "chart: FILE.tgz" or a folder`)
		return
	}
	if c.Name == "" {
		c.Name = strings.TrimSuffix(filepath.Base(path), chartSuffix)
	}
	if c.Namespace == "" {
		c.Namespace = "default"
	}
	if !filepath.IsAbs(c.Chart) {
		c.Chart = filepath.Join(filepath.Dir(path), c.Chart)
	}
	sum := sha256.New()
	sum.Write(data)
	if err := digest(sum, c.Chart); err != nil {
		f.err = fmt.Errorf("read the chart: %w", err)
		return
	}
	f.sum, f.chart = hex.EncodeToString(sum.Sum(nil)), &c
}

// maxLinks bounds how many links in a row a chart's files are looked for behind: links may lead in a circle.
const maxLinks = 8

// digest adds a chart's files to sum, also those behind links, which Helm follows too.
func digest(sum hash.Hash, path string) error { return digestLinked(sum, path, maxLinks) }

func digestLinked(sum hash.Hash, path string, links int) error {
	if links == 0 {
		return fmt.Errorf("follow the link %s: it leads to another one, again and again", path)
	}
	root, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.Type()&fs.ModeSymlink != 0:
			return digestLinked(sum, path, links-1)
		case !d.Type().IsRegular():
			return nil
		}
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		fmt.Fprintf(sum, "\x00%s\x00", path)
		_, err = io.Copy(sum, in)
		return err
	})
}
