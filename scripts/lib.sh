# Shared by the scripts of this folder; source it from the root of the repository.

# Build, vet and test use the same flags and tags, so that they share the build cache.
export CGO_ENABLED=0
export GOFLAGS="-buildvcs=false -trimpath -tags=no_btrfs,no_devmapper,no_zfs,no_aufs"

die() {
	echo "$(basename "$0"): $*" >&2
	exit 1
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
