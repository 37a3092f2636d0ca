# Becomes a private host and executes a command in it: own cgroups, network with only loopback, mounts
# and PIDs (the caller made those namespaces); the directories that a node writes to are empty.
# usage: MOTE_TEST_CGROUPS="DIR..." sh privatehost.sh COMMAND...
set -eu
if [ -n "${MOTE_TEST_CGROUPS-}" ]; then
	for group in $MOTE_TEST_CGROUPS; do echo $$ >"$group/cgroup.procs"; done
	unset MOTE_TEST_CGROUPS
	# Only a process that is already in its groups may make them the root of a cgroup namespace.
	exec unshare --cgroup -- sh "$0" "$@"
fi
mount --make-rprivate /
mount -t proc proc /proc
cgroups=$(awk '$3 == "cgroup" || $3 == "cgroup2" { print $2, $3, $4 }' /proc/mounts)
mount -t tmpfs -o mode=0755 tmpfs /sys/fs/cgroup
echo "$cgroups" | while read -r path type options; do
	mkdir -p "$path"
	case $options in
	*name=*) options="none,name=${options##*name=}" ;;
	*) options=$(echo "$options" | tr , '\n' | grep -vxE 'rw|ro|relatime|nosuid|nodev|noexec|nsdelegate' | paste -sd,) ;;
	esac
	[ "$type" = cgroup2 ] && options=rw
	mount -t "$type" -o "$options" "$type" "$path"
done
for dir in /run /var/lib /var/log /etc/mote; do
	mkdir -p "$dir"
	mount -t tmpfs -o mode=0755 tmpfs "$dir"
done
ip link set lo up
mount --make-rshared /
exec "$@"
