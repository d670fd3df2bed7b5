#!/bin/sh
# Makes a small real disk and runs the main verbs on it. Needs no root and no
# network, and no tool but the program itself.
set -eu
bin=$(readlink -f "$1")
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT INT TERM
here=$(dirname "$(readlink -f "$0")")
gzip -dc "$here/demo.qcow2.gz" >"$dir/golden.qcow2"
cd "$dir"
show() { printf '\n$ imgmaint %s\n' "$*"; "$bin" "$@"; }
show info golden.qcow2
show inspect golden.qcow2
show convert golden.qcow2 golden.vhd --to vhd --verify
show convert golden.qcow2 small.qcow2 --to qcow2 --compress=zstd --verify
show compare golden.vhd small.qcow2
show cat golden.qcow2 /etc/os-release
ls -l golden.qcow2 golden.vhd small.qcow2
