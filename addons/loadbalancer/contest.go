package loadbalancer

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// yieldAfter is the number of times that another program must change a status that mote wrote
// before mote gives up the Service. One change may come from a person or a restored backup. A
// program that makes the change each time is another implementation.
const yieldAfter = 3

// contests detects other implementations that give addresses to Services. It tracks changes to the
// statuses that mote writes.
type contests map[types.UID]*contest

type contest struct {
	want []corev1.LoadBalancerIngress // the last status that mote wrote
	// version is the version of the Service after mote's write; "" until the API accepted it.
	version string
	changed int    // number of changes by other programs since
	rival   string // field manager of the other program, if known
}

// stale reports whether the known version of a Service is older than mote's last write to it.
func (c contests) stale(s *corev1.Service) bool {
	known, ok := c[s.UID]
	if !ok {
		return false
	}
	order, err := resourceversion.CompareResourceVersion(s.ResourceVersion, known.version)
	return err == nil && order < 0
}

// changed records that the status of s is not want. The caller then writes the status, unless the
// Service is lost.
func (c contests) changed(s *corev1.Service, want []corev1.LoadBalancerIngress) {
	known, ok := c[s.UID]
	switch {
	case !ok || !sameIngress(known.want, want): // mote wants another status now
		c[s.UID] = &contest{want: want}
	case known.version != "":
		known.changed++
		known.rival, known.version = rival(s), ""
	}
}

// wrote records the version of a Service that has mote's status.
func (c contests) wrote(s *corev1.Service) {
	if known, ok := c[s.UID]; ok {
		known.version = s.ResourceVersion
	}
}

// lost reports whether mote has given up a Service to another implementation.
func (c contests) lost(s *corev1.Service) bool {
	known, ok := c[s.UID]
	return ok && known.changed >= yieldAfter
}

func (c contests) problem(s *corev1.Service) string {
	who := "something else"
	if known := c[s.UID]; known.rival != "" {
		who = known.rival
	}
	return fmt.Sprintf("the address is left to %s, which changes it each time; set --disable=%s, or recreate the Service with its loadBalancerClass or with %s",
		who, Name, Class)
}

// rival returns the last writer of the Service's status other than mote.
func rival(s *corev1.Service) string {
	name := ""
	var last int64
	for _, f := range s.ManagedFields {
		if f.Subresource == "status" && f.Manager != manager && f.Time != nil && f.Time.UnixNano() >= last {
			name, last = f.Manager, f.Time.UnixNano()
		}
	}
	return name
}
