package machine

import (
	"net/netip"
	"net/url"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http/httpproxy"

	"github.com/mote-k8s/mote/machine/settings"
)

// TestBypassProxy checks which requests would use the proxy, with the code that net/http itself
// uses.
func TestBypassProxy(t *testing.T) {
	const proxy = "http://user:secret@192.0.2.20:3128"
	for name, given := range map[string]struct {
		environ  map[string]string
		settings settings.Settings
		proxied  bool // requests to the outside
	}{
		"no proxy":           {},
		"upper case":         {environ: map[string]string{"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy}, proxied: true},
		"lower case":         {environ: map[string]string{"https_proxy": proxy, "http_proxy": proxy}, proxied: true},
		"with an old list":   {environ: map[string]string{"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "NO_PROXY": "localhost, 127.0.0.1"}, proxied: true},
		"with no_proxy":      {environ: map[string]string{"https_proxy": proxy, "http_proxy": proxy, "no_proxy": "intern.example"}, proxied: true},
		"everything is kept": {environ: map[string]string{"HTTPS_PROXY": proxy, "NO_PROXY": "*"}},
		"settings":           {settings: settings.Settings{HTTPProxy: proxy, HTTPSProxy: proxy}, proxied: true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, v := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"} {
				t.Setenv(v, "")
				os.Unsetenv(v)
			}
			for k, v := range given.environ {
				t.Setenv(k, v)
			}
			s := given.settings
			s.ClusterCIDR, s.ServiceCIDR = netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16")
			s.NodeIP, s.NodeName, s.ClusterDomain = netip.MustParseAddr("192.0.2.7"), "edge-7", "cluster.local"
			s.HTTPSListenAddress = netip.MustParseAddr("192.0.2.8")
			s.LoadBalancerPool = netip.MustParsePrefix("192.0.2.64/26")
			require.NoError(t, New(&s, Env{Getenv: os.Getenv}).BypassProxy())

			through := httpproxy.FromEnvironment().ProxyFunc()
			to := func(address string) string {
				u, err := url.Parse(address)
				require.NoError(t, err)
				p, err := through(u)
				require.NoError(t, err)
				if p == nil {
					return ""
				}
				return p.String()
			}
			for _, own := range []string{
				"https://127.0.0.1:6443", "https://localhost:6443", "https://[::1]:6443", "https://10.42.0.1:10250/pods", "http://10.42.0.9:8080/healthz",
				"https://10.43.0.1", "https://hook.default.svc:443", "https://hook.default.svc.cluster.local", "https://edge-7:10250",
				"https://192.0.2.7:10250", "https://192.0.2.8:6443", "https://192.0.2.70",
			} {
				require.Empty(t, to(own), "%s would go to the proxy", own)
			}
			want := ""
			if given.proxied {
				want = proxy
				require.Equal(t, os.Getenv("NO_PROXY"), os.Getenv("no_proxy"))
				require.Equal(t, os.Getenv("HTTPS_PROXY"), os.Getenv("https_proxy"))
			}
			require.Equal(t, want, to("https://registry.example/v2/"))
			require.Equal(t, want, to("http://registry.example/v2/"))
			if given.environ["no_proxy"] != "" {
				require.Empty(t, to("https://intern.example"))
			}
		})
	}
}
