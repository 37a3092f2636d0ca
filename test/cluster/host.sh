#!/bin/sh
# Turns this process, the first of new PID, mount, network, UTS and IPC namespaces, into a private
# host: the machine's files below an overlay, so that every change is found in /.changes and
# nothing reaches the machine; cgroups of its own; a network with only loopback; no resolv.conf.
#
# usage: sh host.sh join|setup DIR REAPER
#   DIR     a folder of the test, visible under the same path inside
#   REAPER  the program that becomes PID 1
#   MOTE_TEST_CGROUPS  folders, one for each hierarchy, made for this host by the test
set -eu
phase=$1 dir=$2 reaper=$3

if [ "$phase" = join ]; then
	for group in $MOTE_TEST_CGROUPS; do echo $$ >"$group/cgroup.procs"; done
	# Only a process that is already in its groups may make them the root of a cgroup namespace.
	exec unshare --cgroup -- sh "$0" setup "$dir" "$reaper"
fi

mount --make-rprivate /
work=$dir/root
mkdir -p "$work"
mount -t tmpfs -o mode=0755 tmpfs "$work"
mkdir "$work/changes" "$work/work" "$work/new"
mount -t overlay -o "lowerdir=/,upperdir=$work/changes,workdir=$work/work" overlay "$work/new"
cgroups=$(awk '$3 == "cgroup" || $3 == "cgroup2" { print $2, $3, $4 }' /proc/mounts)
new=$work/new
cd "$new"

mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
# containerd's overlays need a file system that may be an upper layer; an overlay may not.
for d in run tmp var/lib/mote; do
	mkdir -p "$d"
	mount -t tmpfs -o mode=0755 tmpfs "$d"
done
chmod 0700 var/lib/mote
chmod 1777 tmp
mkdir -p "./$dir" .changes .machine usr/local/bin
mount --bind "$dir" "./$dir"
mount --bind "$work/changes" .changes
mount --bind -o ro / .machine
: >.reaper && mount --bind "$reaper" .reaper
: >usr/local/bin/mote && mount --bind "$MOTE_TEST_BINARY" usr/local/bin/mote
rm -f etc/resolv.conf && : >etc/resolv.conf

# name=systemd and other hierarchies without a controller are mounted by their name.
if ! echo "$cgroups" | grep -q '^/sys/fs/cgroup cgroup2'; then
	mount -t tmpfs -o mode=0755 tmpfs sys/fs/cgroup
fi
echo "$cgroups" | while read -r path type options; do
	mkdir -p ".$path"
	case $options in
	*name=*) options="none,name=$(echo "$options" | sed 's/.*name=//; s/,.*//')" ;;
	*) options=$(echo "$options" | tr , '\n' | grep -vxE 'rw|ro|relatime|nosuid|nodev|noexec' | paste -sd,) ;;
	esac
	if [ "$type" = cgroup2 ]; then
		mount -t cgroup2 cgroup2 ".$path"
		# A group with processes of its own may not hand controllers to its children.
		mkdir ".$path/host"
		echo $$ >".$path/host/cgroup.procs"
	else
		mount -t "$type" -o "$options" "$type" ".$path"
	fi
done
mkdir .old
pivot_root . .old
cd /
umount -l /.old
rmdir /.old
mount --make-rshared /
ip link set lo up
hostname "$MOTE_TEST_HOSTNAME"
exec /.reaper
