package manifests

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"path/filepath"
	"strings"

	"helm.sh/helm/v4/pkg/chart/loader/archive"
	"helm.sh/helm/v4/pkg/ignore"
	"sigs.k8s.io/yaml"

	"github.com/mote-k8s/mote/internal/regular"
)

// chart is the content of a file NAME.chart.yaml: a Helm release.
type chart struct {
	// Chart is a directory or a packed chart (.tgz), beside the file or at an absolute path.
	Chart string `json:"chart"`
	// Name is the name of the release. Default: the file's name before .chart.yaml.
	Name string `json:"name"`
	// Namespace is created if it does not exist. Default: "default".
	Namespace string `json:"namespace"`
	// Values override the chart's own values.
	Values map[string]any `json:"values"`
}

// release returns the name of the release as a set records it.
func (c *chart) release() string { return c.Namespace + "/" + c.Name }

// readChart fills in f. The sum also covers the chart's own files.
func (f *file) readChart(path string, data []byte) {
	c, err := parseChart(data)
	if err != nil {
		f.err = err
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
		f.unreadable(fmt.Errorf("read the chart: %w", err))
		f.text = nil // this file keeps the release
		return
	}
	f.sum, f.chart = hex.EncodeToString(sum.Sum(nil)), &c
}

// parseChart reads a chart's file, which has one document.
func parseChart(data []byte) (c chart, err error) {
	values, err := documents(data)
	if err != nil {
		return chart{}, err
	}
	if len(values) != 1 {
		return chart{}, fmt.Errorf("it has %d documents, and one release is of one file; put each into a file of its own", len(values))
	}
	one, err := json.Marshal(values[0])
	if err != nil {
		return chart{}, err
	}
	if err := yaml.UnmarshalStrict(one, &c); err != nil {
		return chart{}, errors.New(contents.ReplaceAllString(err.Error(), "..."))
	}
	return c, nil
}

// maxLinks limits the number of links that are followed in a row. Links may form a circle.
const maxLinks = 8

// digest adds a chart's files to sum. It also follows links, like Helm.
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
		case d.IsDir():
			return nil
		case !d.Type().IsRegular() && path != root && d.Name() != chartFile && d.Name() != ignore.HelmIgnore:
			return nil // Helm refuses or ignores it; Helm opens the two files named above at once
		}
		return digestFile(sum, path, path == root)
	})
}

// digestFile adds a file to sum. packed is true for a packed chart.
func digestFile(sum hash.Hash, path string, packed bool) error {
	in, err := regular.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	if _, err := regular.CheckOwner(path); err != nil {
		return err
	}
	info, err := in.Stat()
	if err != nil {
		return err
	}
	limit := archive.MaxDecompressedFileSize
	if packed {
		limit = archive.MaxDecompressedChartSize
	}
	fmt.Fprintf(sum, "\x00%s\x00", path)
	if info.Size() > limit && !packed {
		// Helm refuses it, unless .helmignore lists it.
		fmt.Fprintf(sum, "%d %d", info.Size(), info.ModTime().UnixNano())
		return nil
	}
	data, err := regular.Read(in, limit)
	if err != nil {
		return err
	}
	_, err = sum.Write(data)
	return err
}
