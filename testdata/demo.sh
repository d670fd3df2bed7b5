#!/bin/sh
# Makes a small real disk from this machine's own files and runs the main
# verbs on it. Needs no root and no network; of other tools mke2fs alone.
set -eu
bin=$(readlink -f "$1")
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT INT TERM
cd "$dir"
PATH=$PATH:/usr/sbin:/sbin

# A root file system with this machine's release, packages and a few programs.
mkdir -p root/etc root/var/lib/dpkg/info root/usr/bin root/boot
ln -s usr/bin root/bin
for f in /etc/os-release /etc/debian_version /etc/hostname /var/lib/dpkg/status /bin/sh /bin/ls; do
	[ -r "$f" ] && mkdir -p "root$(dirname "$f")" && cp -L "$f" "root$f"
done
echo golden >root/etc/hostname

# One Linux partition (type 83) from 1 MiB to the end of 64 MiB.
dd if=/dev/zero of=golden.raw bs=1 count=0 seek=64M 2>/dev/null
printf '\000\040\041\000\203\377\377\377\000\010\000\000\000\370\001\000' |
	dd of=golden.raw bs=1 seek=446 conv=notrunc 2>/dev/null
printf '\125\252' | dd of=golden.raw bs=1 seek=510 conv=notrunc 2>/dev/null
mke2fs -q -F -t ext4 -L golden -E offset=1048576 -d root golden.raw 63M >/dev/null 2>&1

show() {
	printf '\n$ imgmaint %s\n' "$*"
	"$bin" "$@"
}
show convert golden.raw golden.qcow2 --to qcow2 --compress=zstd --verify
show info golden.qcow2
printf '\n$ imgmaint inspect golden.qcow2   (the first 40 lines)\n'
"$bin" inspect golden.qcow2 >report.txt
head -n 40 report.txt
show convert golden.qcow2 golden.vhd --to vhd --verify
show convert golden.qcow2 golden.vmdk --to vmdk --verify
show compare golden.raw golden.vmdk
show cat golden.vhd /etc/hostname
printf '\n$ ls -s --block-size=K\n'
ls -s --block-size=K golden.*
