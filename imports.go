//go:build deps

package main

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver/app"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	_ "k8s.io/kubernetes/cmd/kube-scheduler/app"
	_ "k8s.io/kubernetes/cmd/kubelet/app"
	_ "k8s.io/kubernetes/cmd/kube-proxy/app"
	_ "github.com/containerd/containerd/v2/cmd/containerd/server"
	_ "github.com/containerd/containerd/v2/cmd/containerd/builtins"
	_ "github.com/containerd/containerd/v2/cmd/ctr/app"
	_ "github.com/k3s-io/kine/pkg/server"
	_ "k8s.io/kubectl/pkg/cmd"
	_ "go.etcd.io/bbolt"
	_ "github.com/spf13/cobra"
	_ "github.com/vishvananda/netlink"
	_ "github.com/coreos/go-iptables/iptables"
	_ "sigs.k8s.io/knftables"
	_ "github.com/klauspost/compress/zstd"
	_ "github.com/coreos/go-systemd/v22/daemon"
	_ "github.com/rogpeppe/go-internal/testscript"
	_ "sigs.k8s.io/yaml"
	_ "golang.org/x/sys/unix"
	_ "go.uber.org/goleak"
	_ "go.etcd.io/etcd/client/v3"
	_ "github.com/stretchr/testify/require"
)
func main(){}
