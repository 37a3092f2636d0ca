package loadbalancer

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// yieldAfter is how often a status that we wrote must be changed by somebody else until the Service is left to them.
// Once may be a person or a restored backup; whoever does it again each time is another implementation.
const yieldAfter = 3

// contests tell who gives Services their addresses beside us, by what happens to the statuses that we write.
type contests map[types.UID]*contest

type contest struct {
	want    []corev1.LoadBalancerIngress // what we wrote last
	version string                       // of the Service as we wrote it; "" until the API took it
	changed int                          // by somebody else since
	rival   string                       // its field manager, if that is known
}

// stale says that what is known of a Service is older than what we wrote to it.
func (c contests) stale(s *corev1.Service) bool {
	known, ok := c[s.UID]
	if !ok {
		return false
	}
	order, err := resourceversion.CompareResourceVersion(s.ResourceVersion, known.version)
	return err == nil && order < 0
}

// changed counts that the status of s is not want. It is to be written unless the Service is lost.
func (c contests) changed(s *corev1.Service, want []corev1.LoadBalancerIngress) {
	known, ok := c[s.UID]
	switch {
	case !ok || !sameIngress(known.want, want): // we have changed our mind
		c[s.UID] = &contest{want: want}
	case known.version != "":
		known.changed++
		known.rival, known.version = rival(s), ""
	}
}

// wrote keeps which version of a Service has our status.
func (c contests) wrote(s *corev1.Service) {
	if known, ok := c[s.UID]; ok {
		known.version = s.ResourceVersion
	}
}

// lost says that a Service is left to another implementation.
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

// rival is who wrote the Service's status last, but us.
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
