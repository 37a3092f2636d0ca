package manifests

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// parse reads the documents of a manifest, YAML or JSON, Lists taken apart. All of them are good, or it is an error:
// half a file is not what its writer meant.
func parse(data []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for number := 1; ; number++ {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", number, err)
		}
		found, err := parseDocument(document)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", number, err)
		}
		objects = append(objects, found...)
	}
}

// contents matches what the YAML parser quotes of the text, which may be a secret.
var contents = regexp.MustCompile("`[^`]*`")

func parseDocument(document []byte) ([]*unstructured.Unstructured, error) {
	var content map[string]any
	if err := yaml.Unmarshal(document, &content); err != nil {
		return nil, errors.New(contents.ReplaceAllString(err.Error(), "..."))
	}
	if len(content) == 0 {
		return nil, nil // comments only
	}
	u := &unstructured.Unstructured{Object: content}
	if u.GetAPIVersion() == "" || u.GetKind() == "" {
		return nil, errors.New("it has no apiVersion or no kind")
	}
	if !u.IsList() {
		return []*unstructured.Unstructured{u}, checkName(u)
	}
	var objects []*unstructured.Unstructured
	err := u.EachListItem(func(item runtime.Object) error {
		object, ok := item.(*unstructured.Unstructured)
		if !ok || object.GetAPIVersion() == "" || object.GetKind() == "" {
			return errors.New("an item of the list has no apiVersion or no kind")
		}
		objects = append(objects, object)
		return checkName(object)
	})
	return objects, err
}

func checkName(u *unstructured.Unstructured) error {
	if u.GetName() == "" {
		return fmt.Errorf("%s has no name; generateName cannot be kept", u.GetKind())
	}
	return nil
}
