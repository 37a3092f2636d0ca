# Shared by the scripts of this folder; source it from the root of the repository.

# Build, vet and test use the same flags and tags, so that they share the build cache.
export CGO_ENABLED=0
export GOFLAGS="-buildvcs=false -trimpath -tags=no_btrfs,no_devmapper,no_zfs,no_aufs"

die() {
	echo "$(basename "$0"): $*" >&2
	exit 1
}

# Under sudo PATH lacks the folder that Go's own archive is unpacked to.
command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin

# need_go ends the script unless there is a Go that can build this, or can fetch one that can.
need_go() {
	local wanted have
	wanted=$(sed -n 's/^go //p' go.mod)
	command -v go >/dev/null || die "go is not installed; install Go $wanted or newer from https://go.dev/dl"
	have=$(cd / && go env GOVERSION)
	# Since 1.21 an older Go fetches the one that go.mod names.
	[ "$(printf '%s\n' 1.21 "${have#go}" | sort -V | head -1)" = 1.21 ] ||
		die "$have is too old; install Go $wanted or newer from https://go.dev/dl"
}

# debian_install PACKAGE... installs those of the packages that are missing.
debian_install() {
	local missing=() package
	for package in "$@"; do
		dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
			missing+=("$package")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] || die "missing packages; install them as root: apt-get install ${missing[*]}"
	echo "installing ${missing[*]}" >&2
	for package in "${missing[@]}"; do
		[[ $package != *:* ]] || dpkg --add-architecture "${package#*:}"
	done
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
}

# mote_version prints the version that git gives this tree: the tag, or the next version and the commit.
mote_version() {
	local version=v0.1.0-dev commit
	if commit=$(git rev-parse HEAD 2>/dev/null); then
		version=$(git describe --tags --match 'v*' 2>/dev/null) || version=v0.1.0-dev-g${commit:0:12}
		[ -z "$(git status --porcelain)" ] || version=$version-dirty
	fi
	echo "$version"
}

# c_toolchain sets triple and CC for the payload's programs of $GOARCH, and PKG_CONFIG_LIBDIR.
c_toolchain() {
	case $GOARCH in
	amd64) triple=x86_64-linux-gnu ;;
	arm64) triple=aarch64-linux-gnu ;;
	*) die "cannot build for GOARCH=$GOARCH; amd64 and arm64 are supported" ;;
	esac
	export CC=$triple-gcc PKG_CONFIG_LIBDIR=/usr/lib/$triple/pkgconfig
}

# static_libraries prints the C libraries that are linked into the payload's programs.
static_libraries() {
	realpath "$($CC -print-file-name=libc.a)" "$($CC -print-libgcc-file-name)" \
		"$(pkg-config --variable=libdir libseccomp)/libseccomp.a"
}

# release_tool ARGUMENT... runs scripts/tools/release, on this machine whatever the build is for.
release_tool() {
	local tool=$PWD/bin/release-tool
	GOARCH='' GOOS='' GOFLAGS='-buildvcs=false -trimpath' go -C scripts/tools build -o "$tool" ./release
	"$tool" "$@"
}

# kubernetes_stamps prints the linker's flags that give upstream's programs their version. Without them they would
# take themselves for v0.0.0.
kubernetes_stamps() {
	local version major minor package=k8s.io/component-base/version
	version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
	IFS=. read -r major minor _ <<<"${version#v}"
	echo "-X $package.gitVersion=$version -X $package.gitMajor=$major -X $package.gitMinor=$minor"
}

# build_etcd builds bin/stock/etcd, the reference of tests and benchmarks.
build_etcd() {
	go build -C test/bench/stock -ldflags "-s -w" -o "$PWD/bin/stock/etcd" go.etcd.io/etcd/server/v3
}

# build_conformance builds what upstream's conformance specs need, of the modules that mote is built from, in
# bin/conformance: e2e.test, ginkgo, which runs it, and the programs of its images.
build_conformance() {
	local out=$PWD/bin/conformance kubernetes=k8s.io/kubernetes
	debian_install gcc libc6-dev
	mkdir -p "$out"
	go test -vet=off -c -ldflags "-s -w $(kubernetes_stamps)" -o "$out/e2e.test" $kubernetes/test/e2e
	go build -ldflags "-s -w" -o "$out/ginkgo" github.com/onsi/ginkgo/v2/ginkgo
	go build -ldflags "-s -w" -o "$out/agnhost" $kubernetes/test/images/agnhost
	go build -ldflags "-s -w" -o "$out/nonewprivs" $kubernetes/test/images/nonewprivs
	go build -ldflags "-s -w" -o "$out/sample-apiserver" k8s.io/sample-apiserver
	gcc -Os -static -DVERSION=mote -o "$out/pause" "$(go list -m -f '{{.Dir}}' $kubernetes)/build/pause/linux/pause.c"
	build_etcd
	cp bin/stock/etcd "$out/etcd"
}

# build_helm builds bin/helm, Helm's own client, of the version that mote has as a library.
build_helm() {
	go build -C test/helm -ldflags "-s -w" -o "$PWD/bin/helm" helm.sh/helm/v4/cmd/helm
}

# without_starting COMMAND... runs COMMAND, and no package that it installs may start its server.
without_starting() {
	local policy=/usr/sbin/policy-rc.d status=0
	if [ -e "$policy" ]; then # whoever put it there has decided
		"$@"
		return
	fi
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
	("$@") || status=$?
	rm -f "$policy"
	return $status
}
