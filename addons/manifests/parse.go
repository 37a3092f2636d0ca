package manifests

import (
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// parse reads the objects of a manifest in YAML or JSON and splits Lists. It returns all objects or
// an error, because half a file is not what its author intended.
func parse(data []byte) ([]*unstructured.Unstructured, error) {
	objects, err := decode(data)
	if err != nil {
		return nil, err
	}
	for i, u := range objects {
		if u.GetName() == "" {
			return nil, fmt.Errorf("object %d: %s has no name; generateName cannot be kept", i+1, u.GetKind())
		}
	}
	return objects, nil
}

// decode reads the objects of a text and splits Lists.
func decode(data []byte) ([]*unstructured.Unstructured, error) {
	values, err := documents(data)
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for i, value := range values {
		content, ok := value.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("document %d: it is no object", i+1)
		}
		if len(content) == 0 {
			continue
		}
		if objects, err = flatten(objects, content, "", ""); err != nil {
			return nil, fmt.Errorf("document %d: %w", i+1, err)
		}
	}
	return objects, nil
}

// flatten appends an object, or the items of a List, to objects. Items of a typed list (kind:
// ConfigMapList) may omit their version and kind.
func flatten(objects []*unstructured.Unstructured, content map[string]any, version, kind string) ([]*unstructured.Unstructured, error) {
	u := &unstructured.Unstructured{Object: content}
	if version != "" && kind != "" && content["apiVersion"] == nil && content["kind"] == nil {
		u.SetAPIVersion(version)
		u.SetKind(kind)
	}
	if u.GetAPIVersion() == "" || u.GetKind() == "" {
		return nil, errors.New("it has no apiVersion or no kind")
	}
	itemKind, named := strings.CutSuffix(u.GetKind(), "List")
	items, list := content["items"].([]any)
	if nothing, has := content["items"]; !list && !(named && has && nothing == nil) {
		return append(objects, u), nil
	}
	for i, item := range items {
		content, ok := item.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("item %d of the list is no object", i+1)
		}
		var err error
		if objects, err = flatten(objects, content, u.GetAPIVersion(), itemKind); err != nil {
			return nil, fmt.Errorf("item %d of the list: %w", i+1, err)
		}
	}
	return objects, nil
}
