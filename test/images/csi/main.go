// Command csi is a minimal but complete CSI node driver: it registers through the kubelet's plugin
// registry and serves inline (ephemeral) volumes, each a directory with one file, "hello". With it
// the tests prove that the kubelet writes CSINode and mounts CSI volumes.
//
// It expects the kubelet's directories at the same paths as on the node (hostPath mounts).
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const (
	driverName  = "csi.test.mote"
	kubeletRoot = "/var/lib/kubelet"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "csi:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	driverSocket := filepath.Join(kubeletRoot, "plugins", driverName, "csi.sock")
	driver, err := listen(driverSocket)
	if err != nil {
		return err
	}
	// The kubelet connects to the driver as soon as it sees the registration socket, so that comes
	// last.
	registry, err := listen(filepath.Join(kubeletRoot, "plugins_registry", driverName+"-reg.sock"))
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	node := &nodeDriver{id: os.Getenv("NODE_NAME")}
	csi.RegisterIdentityServer(server, node)
	csi.RegisterNodeServer(server, node)
	registration.RegisterRegistrationServer(server, &registrar{endpoint: driverSocket})
	go func() {
		<-ctx.Done()
		server.Stop()
	}()
	served := make(chan error, 2)
	for _, l := range []net.Listener{driver, registry} {
		go func() { served <- server.Serve(l) }()
	}
	fmt.Println("csi: serving on", driverSocket)
	return errors.Join(<-served, <-served)
}

func listen(socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return nil, err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return net.Listen("unix", socket)
}

// registrar answers the kubelet's plugin watcher.
type registrar struct {
	registration.UnimplementedRegistrationServer
	endpoint string
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              driverName,
		Endpoint:          r.endpoint,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (r *registrar) NotifyRegistrationStatus(
	_ context.Context, s *registration.RegistrationStatus,
) (*registration.RegistrationStatusResponse, error) {
	fmt.Println("csi: registered", s.PluginRegistered, s.Error)
	return &registration.RegistrationStatusResponse{}, nil
}

// nodeDriver is the identity and node service.
type nodeDriver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer
	id string
}

func (n *nodeDriver) GetPluginInfo(
	context.Context, *csi.GetPluginInfoRequest,
) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: driverName, VendorVersion: "1"}, nil
}

func (n *nodeDriver) GetPluginCapabilities(
	context.Context, *csi.GetPluginCapabilitiesRequest,
) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{}, nil
}

func (n *nodeDriver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func (n *nodeDriver) NodeGetInfo(
	context.Context, *csi.NodeGetInfoRequest,
) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: n.id, MaxVolumesPerNode: 7}, nil
}

func (n *nodeDriver) NodeGetCapabilities(
	context.Context, *csi.NodeGetCapabilitiesRequest,
) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{}, nil
}

func (n *nodeDriver) NodePublishVolume(
	_ context.Context, req *csi.NodePublishVolumeRequest,
) (*csi.NodePublishVolumeResponse, error) {
	dir := req.GetTargetPath()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := os.WriteFile(filepath.Join(dir, "hello"), []byte(driverName+"\n"), 0o644); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func (n *nodeDriver) NodeUnpublishVolume(
	_ context.Context, req *csi.NodeUnpublishVolumeRequest,
) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := os.RemoveAll(req.GetTargetPath()); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}
