package manifests

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-k8s/mote/addons/api"
)

// The objects of a file form an apply set of KEP-3659. They carry labelPartOf with the set's id. A
// ConfigMap, the parent, lists their kinds and namespaces. `kubectl get --selector` and other tools
// support it.
const (
	labelPartOf         = "applyset.kubernetes.io/part-of"
	labelID             = "applyset.kubernetes.io/id"
	annotationTooling   = "applyset.kubernetes.io/tooling"
	annotationKinds     = "applyset.kubernetes.io/contains-group-kinds"
	annotationNamespace = "applyset.kubernetes.io/additional-namespaces"

	// labelComponent selects the parents.
	labelComponent = "app.kubernetes.io/component"
	component      = "manifest"
	// annotationNode names the node whose directory has the file. annotationSum is the sum of the
	// version that is in the cluster. annotationRelease names the Helm release of the file.
	annotationNode    = "mote.dev/node"
	annotationSum     = "mote.dev/manifest-sum"
	annotationRelease = "mote.dev/release"
	// annotationTries counts the installations of the version whose sum is in annotationTried, as
	// long as none has returned.
	annotationTries, annotationTried = "mote.dev/tries", "mote.dev/tried-sum"
	// annotationAdopted marks an object that existed before a file named it. It is not removed with
	// the file.
	annotationAdopted = "mote.dev/adopted"

	keyFile, keyState, keyMessage = "file", "state", "message"

	namespace = metav1.NamespaceSystem
	tooling   = "mote/v1"
)

// These are the states of a file, for people, in its ConfigMap.
const (
	stateApplying = "applying"
	stateApplied  = "applied"
	stateFailed   = "failed"
)

// set holds the known state of one file's objects in the cluster. The ConfigMap always names every
// kind and namespace that may hold one of them. It is written before an object of a new kind, and
// narrowed after the last object of an old kind is gone. So an end at any moment leaves a set that
// can be completed or removed.
type set struct {
	file, name, id string

	kinds      map[schema.GroupKind]bool
	namespaces map[string]bool
	// sum is the sum of the file that was last applied completely.
	sum     string
	release string // namespace/name of a Helm release
	tried   string // the sum of the chart that is being installed
	tries   int    // how often the installation was begun and did not return
	// returned is the sum of the chart whose installation returned in this process, so it does not
	// end the process.
	returned string
	state    string
	message  string
}

// newSet returns an empty set, with its name, for a file in a node's directory.
func newSet(node, file string) *set {
	hash := sha256.Sum256([]byte(node + "\x00" + file))
	slug := strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(file), "-"), "-")
	s := &set{
		file: file, name: "manifest-" + slug[:min(len(slug), maxSlug)] + "-" + hex.EncodeToString(hash[:4]),
		kinds: map[schema.GroupKind]bool{}, namespaces: map[string]bool{},
	}
	// The formula is the KEP's: name.namespace.kind.group of the parent.
	id := sha256.Sum256([]byte(s.name + "." + namespace + ".ConfigMap."))
	s.id = "applyset-" + base64.RawURLEncoding.EncodeToString(id[:]) + "-v1"
	return s
}

// maxSlug limits the part of a file's name that is used in an object's name.
const maxSlug = 60

// loadSets reads the sets of a node's files.
func loadSets(ctx context.Context, client kubernetes.Interface, node string) (map[string]*set, error) {
	found, err := client.CoreV1().ConfigMaps(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: labelComponent + "=" + component + "," + api.ManagedBy + "=" + api.Mote,
	})
	if err != nil {
		return nil, fmt.Errorf("list what the manifests have made: %w", err)
	}
	sets := make(map[string]*set)
	for _, config := range found.Items {
		file := config.Data[keyFile]
		if config.Annotations[annotationNode] != node || file == "" {
			continue
		}
		s := newSet(node, file)
		s.sum, s.release = config.Annotations[annotationSum], config.Annotations[annotationRelease]
		s.state, s.message = config.Data[keyState], config.Data[keyMessage]
		s.tried = config.Annotations[annotationTried]
		s.tries, _ = strconv.Atoi(config.Annotations[annotationTries]) // no number counts as no try
		for _, text := range split(config.Annotations[annotationKinds]) {
			s.kinds[schema.ParseGroupKind(text)] = true
		}
		for _, text := range split(config.Annotations[annotationNamespace]) {
			s.namespaces[text] = true
		}
		sets[file] = s
	}
	return sets, nil
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

func (s *set) ref() *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: namespace, Name: s.name}
}

// parent returns the set's ConfigMap in its required form.
func (s *set) parent(node string) api.Object {
	var kinds []string
	for kind := range s.kinds {
		kinds = append(kinds, kind.String())
	}
	slices.Sort(kinds)
	config := &corev1.ConfigMap{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: s.name,
			Labels: map[string]string{labelID: s.id, labelComponent: component},
			Annotations: map[string]string{
				annotationTooling: tooling, annotationNode: node,
				annotationKinds:     strings.Join(kinds, ","),
				annotationNamespace: strings.Join(slices.Sorted(maps.Keys(s.namespaces)), ","),
			},
		},
		Data: map[string]string{keyFile: s.file, keyState: s.state},
	}
	for key, value := range map[string]string{annotationSum: s.sum, annotationRelease: s.release} {
		if value != "" {
			config.Annotations[key] = value
		}
	}
	if s.tries > 0 {
		config.Annotations[annotationTried], config.Annotations[annotationTries] = s.tried, strconv.Itoa(s.tries)
	}
	if s.message != "" {
		config.Data[keyMessage] = s.message
	}
	return api.Object{Resource: corev1.SchemeGroupVersion.WithResource("configmaps"), Object: config}
}

// maxTries is the number of times that a chart may end the process before the addon gives up on it.
// It is more than one, because power cuts count too.
const maxTries = 5

// try counts an installation of a chart. It reports whether another one is allowed. A template that
// calls itself by tpl without end overflows the stack. Go does not recover from that, and it would
// happen again at each start.
func (s *set) try(sum string) bool {
	if s.tried != sum {
		s.tried, s.tries = sum, 0
	}
	if s.tries >= maxTries {
		return false
	}
	s.tries++
	return true
}

// narrow reduces the kinds and namespaces to those of keep.
func (s *set) narrow(keep map[key]schema.GroupVersionResource) {
	s.kinds, s.namespaces = map[schema.GroupKind]bool{}, map[string]bool{}
	for k := range keep {
		s.kinds[k.GroupKind] = true
		if k.namespace != "" && k.namespace != namespace {
			s.namespaces[k.namespace] = true
		}
	}
}

// forget deletes the ConfigMap of a set that is gone.
func (s *set) forget(ctx context.Context, client kubernetes.Interface) error {
	err := client.CoreV1().ConfigMaps(namespace).Delete(ctx, s.name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("forget what %s has made: %w", s.file, err)
	}
	return nil
}

// Remove deletes the records of all files and keeps their objects in the cluster, because they
// belong to users.
func Remove(ctx context.Context, access api.Access) error {
	client, err := kubernetes.NewForConfig(access.Admin(Name))
	if err != nil {
		return fmt.Errorf("make %s's client: %w", Name, err)
	}
	err = client.CoreV1().ConfigMaps(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{
		LabelSelector: labelComponent + "=" + component + "," + api.ManagedBy + "=" + api.Mote,
	})
	if err != nil {
		return fmt.Errorf("forget what the manifests have made: %w", err)
	}
	return nil
}
