package server

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-k8s/mote/server/pki"
)

// trustHook is a hook of mote's own and replaces none of upstream's.
const trustHook = "mote/cluster-authentication-trust"

// trustRetry is the pause between attempts to remove authorities from the list for aggregated API
// servers.
const trustRetry = 5 * time.Second

// forgetAuthorities removes authorities that the apiserver no longer trusts from the ConfigMap with
// the authorities that aggregated API servers trust: upstream's controller only ever adds to it.
func (s *apiServer) forgetAuthorities() genericapiserver.PostStartHookFunc {
	files := map[string]string{
		"client-ca-file":               s.options.Authentication.ClientCert.ClientCA,
		"requestheader-client-ca-file": s.options.Authentication.RequestHeader.ClientCAFile,
	}
	return func(hook genericapiserver.PostStartHookContext) error {
		client, err := kubernetes.NewForConfig(hook.LoopbackClientConfig)
		if err != nil {
			return fmt.Errorf("make client: %w", err)
		}
		// The start does not wait for it: a webhook that must be asked may be a pod, which can only
		// start after the apiserver.
		go func() {
			said := ""
			_ = wait.PollUntilContextCancel(hook, trustRetry, true, func(ctx context.Context) (bool, error) {
				err := forgetAuthorities(ctx, client, files)
				if err != nil && !apierrors.IsConflict(err) && err.Error() != said {
					said = err.Error()
					slog.Warn("cannot take old authorities from extension-apiserver-authentication; will be tried again",
						"component", "kube-apiserver", "err", err)
				}
				return err == nil, nil
			}) // its error only means that the server stops
		}()
		return nil
	}
}

func forgetAuthorities(ctx context.Context, client kubernetes.Interface, files map[string]string) error {
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	config, err := maps.Get(ctx, "extension-apiserver-authentication", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // the first start: upstream's controller creates the ConfigMap
	}
	if err != nil {
		return err
	}
	stale := false
	for key, path := range files {
		if path == "" {
			continue
		}
		trusted, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read who is trusted: %w", err)
		}
		known := pki.CertificatesIn(trusted)
		for _, cert := range pki.CertificatesIn([]byte(config.Data[key])) {
			if !slices.ContainsFunc(known, cert.Equal) {
				config.Data[key], stale = string(trusted), true
				break
			}
		}
	}
	if !stale {
		return nil
	}
	_, err = maps.Update(ctx, config, metav1.UpdateOptions{})
	return err
}
