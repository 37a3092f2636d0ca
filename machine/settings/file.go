package settings

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/mote-k8s/mote/internal/regular"
)

// maxFileSize limits the size of a configuration file, in bytes: some thousand times the size of
// all settings.
const maxFileSize = 1 << 20

// loadFile applies one configuration file to s. Errors name the file and the line.
func loadFile(path string, s *Settings) error {
	data, err := regular.ReadFile(path, maxFileSize)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	// A user who can write this file can become root with it.
	warning, err := regular.CheckOwner(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if warning != "" {
		s.Warnings = append(s.Warnings, warning)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return syntaxError(path, err)
	}
	if len(doc.Content) == 0 {
		return nil // empty, or only comments
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil
	}
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("%s:%d: not a mapping of settings, such as \"data-dir: /data\"", path, root.Line)
	}
	rows := make(map[string]Setting)
	var names []string
	for _, row := range Table() {
		rows[row.Name] = row
		names = append(names, row.Name)
	}
	seen := make(map[string]bool)
	for i := 0; i < len(root.Content); i += 2 {
		key, node := root.Content[i], root.Content[i+1]
		name, appends := strings.CutSuffix(key.Value, "+")
		row, ok := rows[name]
		if !ok {
			return unknownKey(path, key, names)
		}
		if seen[key.Value] {
			return fmt.Errorf("%s:%d: %s is set twice", path, key.Line, key.Value)
		}
		seen[key.Value] = true
		if line, err := applyNode(row.value(s), node, appends); err != nil {
			return fmt.Errorf("%s:%d: %s: %w", path, line, key.Value, err)
		}
	}
	return nil
}

func unknownKey(path string, key *yaml.Node, names []string) error {
	if near := Nearest(strings.ReplaceAll(strings.ToLower(key.Value), "_", "-"), names); near != "" {
		return fmt.Errorf("%s:%d: unknown setting %q; did you mean %q?", path, key.Line, key.Value, near)
	}
	return fmt.Errorf("%s:%d: unknown setting %q; \"mote server --help\" lists them", path, key.Line, key.Value)
}

// applyNode sets v and returns the line that an error is about.
func applyNode(v value, node *yaml.Node, appends bool) (line int, err error) {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	items := []*yaml.Node{node}
	switch {
	case node.Kind == yaml.SequenceNode && v.list:
		items = node.Content
	case node.Kind != yaml.ScalarNode && v.list:
		return node.Line, errors.New("is not a list")
	case node.Kind != yaml.ScalarNode:
		return node.Line, errors.New("is not a single value")
	case appends && !v.list:
		return node.Line, errors.New("is not a list, so nothing can be appended to it")
	}
	if !appends {
		v.clear()
	}
	for _, item := range items {
		if item.Kind != yaml.ScalarNode || item.Tag == "!!null" {
			return item.Line, errors.New("has no value")
		}
		if err := v.set(item.Value); err != nil {
			return item.Line, err
		}
	}
	return node.Line, nil
}

// syntaxError moves the line number in the parser's error ("yaml: line 3: did not find ...") behind
// the path.
func syntaxError(path string, err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if m := regexp.MustCompile(`^line (\d+): (.*)$`).FindStringSubmatch(text); m != nil {
		return fmt.Errorf("%s:%s: %s", path, m[1], m[2])
	}
	return fmt.Errorf("%s: %s", path, text)
}
