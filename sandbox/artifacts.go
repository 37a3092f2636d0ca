package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/mote-k8s/mote/internal/layout"
)

// artifactSize bounds the log of one container in a directory of artifacts, in bytes.
const artifactSize = 10 << 20

// artifactLines bounds the same log in lines, because the API asks for lines.
const artifactLines = 200_000

var errNoAPI = errors.New("the API has not answered yet")

// redacted replaces each value of a Secret.
const redacted = "REDACTED"

// WriteArtifacts makes dir and writes the state of the cluster into it:
//
//	objects/NAMESPACE/RESOURCE.yaml   all objects; those without a namespace are in
//	                                  objects/_cluster; Secrets have no values
//	logs/NAMESPACE/POD/CONTAINER.log  and CONTAINER.previous.log of a restarted container
//	events.txt                        pods that are not Ready, Warning events
//	mote.log                          the server's log
//
// It writes as much as it can. Its error names everything that it could not write.
func (s *Sandbox) WriteArtifacts(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write artifacts: %w", err)
	}
	errs := []error{s.writeServerLog(dir)}
	if report, err := os.Create(filepath.Join(dir, "events.txt")); err == nil {
		errs = append(errs, s.WriteReport(ctx, report), report.Close())
	} else {
		errs = append(errs, err)
	}
	errs = append(errs, s.writeObjects(ctx, filepath.Join(dir, "objects")), s.writePodLogs(ctx, filepath.Join(dir, "logs")))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("write artifacts: %w", err)
	}
	return nil
}

// writeServerLog copies the server's log, or the end of the server's output if there is no log yet.
func (s *Sandbox) writeServerLog(dir string) error {
	out, err := os.OpenFile(filepath.Join(dir, "mote.log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	copied := false
	for _, name := range []string{"mote.log.1", "mote.log"} {
		in, err := os.Open(filepath.Join(s.init.root(), layout.Run(layout.DefaultRun).Logs(), name))
		if err != nil {
			continue // one of them, or both, may be missing
		}
		_, err = io.Copy(out, in)
		in.Close()
		copied = copied || err == nil
	}
	if !copied {
		_, err = fmt.Fprintln(out, strings.Join(s.Log(), "\n"))
	}
	return errors.Join(err, out.Close())
}

// resource is a resource of the API.
type resource struct {
	Name       string
	Namespaced bool
	Kind       string
	Verbs      []string

	version string // the apiVersion of its objects
	path    string // the path of its list
	file    string // RESOURCE or RESOURCE.GROUP
}

// resources returns the resources that can be listed, each in the preferred version of its group.
func (s *Sandbox) resources(ctx context.Context) ([]resource, error) {
	var groups struct {
		Groups []struct {
			Name             string
			PreferredVersion struct{ GroupVersion string }
		}
	}
	if err := s.api.list(ctx, "/apis", &groups); err != nil {
		return nil, err
	}
	paths := map[string]string{"": "/api/v1"}
	for _, g := range groups.Groups {
		paths[g.Name] = "/apis/" + g.PreferredVersion.GroupVersion
	}
	var all []resource
	var errs []error
	for group, path := range paths {
		var list struct{ Resources []resource }
		if err := s.api.list(ctx, path, &list); err != nil {
			errs = append(errs, err)
			continue
		}
		for _, r := range list.Resources {
			if strings.Contains(r.Name, "/") || !slices.Contains(r.Verbs, "list") || group == "events.k8s.io" {
				continue // a subresource, or the same objects again
			}
			r.version = strings.TrimPrefix(strings.TrimPrefix(path, "/apis/"), "/api/")
			r.path, r.file = path+"/"+r.Name, strings.TrimSuffix(r.Name+"."+group, ".")
			all = append(all, r)
		}
	}
	return all, errors.Join(errs...)
}

func (s *Sandbox) writeObjects(ctx context.Context, dir string) error {
	all, err := s.resources(ctx)
	errs := []error{err}
	for _, r := range all {
		var list struct{ Items []map[string]any }
		if err := s.api.list(ctx, r.path, &list); err != nil {
			errs = append(errs, err)
			continue
		}
		byNamespace := make(map[string][]map[string]any)
		for _, object := range list.Items {
			object["apiVersion"], object["kind"] = r.version, r.Kind
			namespace := tidy(object)
			byNamespace[namespace] = append(byNamespace[namespace], object)
		}
		for namespace, objects := range byNamespace {
			errs = append(errs, writeYAML(filepath.Join(dir, namespace, r.file+".yaml"), objects))
		}
	}
	return errors.Join(errs...)
}

// tidy removes secrets, and fields that nobody reads, from an object of a list. It returns the
// object's namespace.
func tidy(object map[string]any) string {
	metadata, _ := object["metadata"].(map[string]any)
	delete(metadata, "managedFields")
	if object["apiVersion"] == "v1" && object["kind"] == "Secret" {
		for _, field := range []string{"data", "stringData"} {
			values, _ := object[field].(map[string]any)
			for key := range values {
				values[key] = redacted
			}
		}
		annotations, _ := metadata["annotations"].(map[string]any)
		for key := range annotations {
			annotations[key] = redacted // kubectl apply writes the whole Secret into an annotation
		}
	}
	if namespace, _ := metadata["namespace"].(string); namespace != "" {
		return namespace
	}
	return "_cluster"
}

func writeYAML(path string, objects []map[string]any) error {
	data, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": objects})
	if err == nil {
		data, err = yaml.JSONToYAML(data)
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

func (s *Sandbox) writePodLogs(ctx context.Context, dir string) error {
	var pods struct{ Items []pod }
	if err := s.api.list(ctx, "/api/v1/pods", &pods); err != nil {
		return err
	}
	var errs []error
	for _, p := range pods.Items {
		for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			if c.State.Waiting != nil && c.RestartCount == 0 {
				continue // it has never run
			}
			into := filepath.Join(dir, p.Metadata.Namespace, p.Metadata.Name)
			errs = append(errs, s.writePodLog(ctx, p, c.Name, false, filepath.Join(into, c.Name+".log")))
			if c.RestartCount > 0 {
				errs = append(errs, s.writePodLog(ctx, p, c.Name, true, filepath.Join(into, c.Name+".previous.log")))
			}
		}
	}
	return errors.Join(errs...)
}

func (s *Sandbox) writePodLog(ctx context.Context, p pod, container string, previous bool, path string) error {
	log, err := s.api.podLog(ctx, p.Metadata.Namespace, p.Metadata.Name, container, previous, artifactLines)
	if err != nil {
		log = []byte(err.Error() + "\n") // the error takes the place of the log: its container may be gone
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, log, 0o600)
}
