#!/bin/sh
# First program of the machine: finds the disk and hands over to it.
set -e
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
	insmod "/modules/$module.ko"
done
until [ -b /dev/vda ]; do :; done
mount -t ext4 /dev/vda /root
umount /proc
mount -o move /dev /root/dev
exec switch_root /root /sbin/init
