package server

import (
	"context"
	"fmt"
	"os"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
)

// trustHook is ours alone and replaces none of upstream's.
const trustHook = "mote/cluster-authentication-trust"

// forgetAuthorities takes authorities that the apiserver does not trust any more out of the ConfigMap by which aggregated
// API servers learn whom to trust: upstream's controller only ever adds to it.
func (s *apiServer) forgetAuthorities() genericapiserver.PostStartHookFunc {
	files := map[string]string{
		"client-ca-file":               s.options.Authentication.ClientCert.ClientCA,
		"requestheader-client-ca-file": s.options.Authentication.RequestHeader.ClientCAFile,
	}
	return hook(func(client kubernetes.Interface) []task {
		return []task{func(ctx context.Context) error {
			return forgetAuthorities(ctx, client, files)
		}}
	})
}

func forgetAuthorities(ctx context.Context, client kubernetes.Interface, files map[string]string) error {
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	config, err := maps.Get(ctx, "extension-apiserver-authentication", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // a first start: upstream's controller makes it
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
		known := certificatesIn(trusted)
		for _, cert := range certificatesIn([]byte(config.Data[key])) {
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
