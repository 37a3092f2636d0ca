package loadbalancer

import (
	"errors"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clientgotesting "k8s.io/client-go/testing"

	"github.com/mote-k8s/mote/addons/api"
)

// contested is an API with one Service. Both mote and a rival write its status.
type contested struct {
	controller *Controller
	service    *corev1.Service
	version    int
	writes     int
	refuse     error
}

func newContested(t *testing.T) *contested {
	kube := fake.NewClientset()
	c := &contested{service: balanced("a", 1, 80)}
	c.set("")
	kube.PrependReactor("patch", "services", func(clientgotesting.Action) (bool, runtime.Object, error) {
		if c.refuse != nil {
			return true, nil, c.refuse
		}
		c.writes++
		c.set("192.0.2.1")
		return true, c.service, nil
	})
	c.controller = &Controller{kube: kube, events: api.NewEvents(kube, Name), contests: make(contests)}
	t.Cleanup(c.controller.events.Close)
	return c
}

// set gives the Service a status, and so a new version.
func (c *contested) set(address string) {
	c.version++
	c.service = c.service.DeepCopy()
	c.service.ResourceVersion = strconv.Itoa(c.version)
	c.service.Status.LoadBalancer.Ingress = nil
	if address != "" {
		holding(c.service, address)
	}
}

func (c *contested) rival(address string) {
	c.set(address)
	c.service.ManagedFields = []metav1.ManagedFieldsEntry{
		{Manager: "metallb", Subresource: "status", Time: &metav1.Time{Time: time.Unix(int64(c.version), 0)}},
	}
}

// sync does what the controller does when it receives s.
func (c *contested) sync(t *testing.T, s *corev1.Service) error {
	g := grant{address: netip.MustParseAddr("192.0.2.1")}
	if c.controller.contests.lost(s) {
		g = grant{}
	}
	err := c.controller.give(t.Context(), s, g)
	c.controller.tell(s, g.problem)
	return err
}

// TestRivalWins checks that mote gives up. Otherwise two implementations for one Service would
// write its status for ever.
func TestRivalWins(t *testing.T) {
	for how, address := range map[string]string{"it gives another address": "198.51.100.7", "it takes ours away": ""} {
		t.Run(how, func(t *testing.T) {
			c := newContested(t)
			require.NoError(t, c.sync(t, c.service))
			for range 20 {
				c.rival(address)
				require.NoError(t, c.sync(t, c.service))
			}
			require.Equal(t, yieldAfter, c.writes)
			require.Equal(t, address, current(c.service))
			require.Len(t, c.controller.Trouble(), 1)
			require.Contains(t, c.controller.Trouble()[0], "Service ns/a: the address is left to metallb")
			c.controller.forget(nil)
			require.Empty(t, c.controller.Trouble())
			require.Empty(t, c.controller.contests)
		})
	}
}

// TestStaleServicesAreNoRivals checks that updates that have not arrived yet, and writes that the
// API rejected, do not count as changes by a rival.
func TestStaleServicesAreNoRivals(t *testing.T) {
	c := newContested(t)
	before := c.service
	require.NoError(t, c.sync(t, before))
	for range 20 {
		require.NoError(t, c.sync(t, before))
		require.NoError(t, c.sync(t, c.service))
	}
	require.Equal(t, 1, c.writes)
	c.rival("198.51.100.7")
	c.refuse = errors.New("no answer")
	for range 20 {
		require.Error(t, c.sync(t, c.service))
	}
	c.refuse = nil
	require.NoError(t, c.sync(t, c.service))
	require.Equal(t, 2, c.writes)
	require.Empty(t, c.controller.Trouble())
}
