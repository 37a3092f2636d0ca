# An image that runs a whole Kubernetes node in one container:
#
#   docker build -t mote .
#   docker run -d --name mote --privileged --cgroupns=private --hostname mote --tmpfs /run \
#     -v mote-data:/var/lib/mote -v mote-kubelet:/var/lib/kubelet -p 127.0.0.1:6443:6443 mote
#   docker exec mote mote kubectl get nodes
#   docker cp mote:/var/lib/mote/kubeconfig . && kubectl --kubeconfig=kubeconfig get nodes
#
# --privileged      mounts, cgroups, packet rules and devices are what a node is made of.
# --cgroupns        the node's cgroups lie below the container's, and go with it.
# --hostname        the node's name, which otherwise changes with each new container.
# --tmpfs /run      what is there belongs to running pods, and the container's end is their end.
# the volumes       the cluster; a container's own root is an overlay, on which overlayfs does not work.
#
# Further settings follow the image's name: "mote server --tls-san=kube.example.com", or -e MOTE_TLS_SAN=...
# kube-proxy wants the module br_netfilter; load it on the machine: modprobe br_netfilter.
# "docker stop" keeps the cluster: the next start makes its pods again.
# For another architecture: docker build --platform=linux/arm64; the build itself is not emulated.

FROM --platform=$BUILDPLATFORM golang:1.26.8-bookworm AS build
ARG TARGETARCH
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    GOARCH=$TARGETARCH scripts/build && mv bin/mote* /mote

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates iptables mount nftables \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /mote /usr/local/bin/mote
RUN ln -s mote /usr/local/bin/kubectl
VOLUME ["/var/lib/mote", "/var/lib/kubelet"]
EXPOSE 6443
# Mounts of the node reach pods only from a shared tree, and a container's is private. As the first process
# mote puts its small init before itself.
ENTRYPOINT ["/bin/sh", "-c", "mount --make-rshared / 2>/dev/null; exec mote \"$@\"", "mote"]
CMD ["server"]
