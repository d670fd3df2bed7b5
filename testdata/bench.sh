#!/bin/bash
# Pairs imgmaint with its peers, run in alternation, and prints medians.
#
#   bench.sh BINARY [PAIRS]
#
# Each row: median wall seconds of ours and of the peer, the median of the
# ratios pair by pair, and peak memory in MiB. BENCH_DIR is where the disks
# are made (default: /dev/shm, so that the figures are of the programs and not
# of a disk); BENCH_TREE is what the sample file system is filled with.
set -euo pipefail
bin=$(readlink -f "$1")
pairs=${2:-5}
here=$(dirname "$(readlink -f "$0")")
base=${BENCH_DIR:-/dev/shm}
tree=${BENCH_TREE:-/usr/lib/x86_64-linux-gnu}
dir=$(mktemp -d "$base/imgmaint-bench.XXXXXX")
trap 'rm -rf "$dir"' EXIT
cd "$dir"
PATH=$PATH:/usr/sbin:/sbin

median() { sort -g | awk '{v[NR]=$1} END {print (NR%2 ? v[(NR+1)/2] : (v[NR/2]+v[NR/2+1])/2)}'; }

# once FILE COMMAND...: appends "seconds KiB" to FILE.
once() {
	local log=$1
	shift
	rm -f out out2
	/usr/bin/time -a -o "$log" -f '%e %M' "$@" >/dev/null 2>stderr || { cat stderr >&2; exit 1; }
}

# precise FILE COMMAND...: as once, the time in nanoseconds for short runs.
precise() {
	local log=$1 t0 t1
	shift
	rm -f out out2
	t0=$(date +%s%N)
	/usr/bin/time -o mem -f '%M' "$@" >/dev/null 2>stderr || { cat stderr mem >&2; exit 1; }
	t1=$(date +%s%N)
	awk -v ns=$((t1 - t0)) '{printf "%.4f %s\n", ns/1e9, $1}' mem >>"$log"
}

# pair NAME OURS PEER: both are commands in one word each.
pair() {
	local name=$1 i
	rm -f a b
	precise /dev/null $2
	precise /dev/null $3
	for ((i = 0; i < pairs; i++)); do
		if ((i % 2)); then
			precise b $3
			precise a $2
		else
			precise a $2
			precise b $3
		fi
	done
	local size_a size_b
	precise /dev/null $3; size_b=$(stat -c %s out 2>/dev/null || echo 0)
	precise /dev/null $2; size_a=$(stat -c %s out 2>/dev/null || echo 0)
	printf '| %-34s | %8.3f | %8.3f | %5.2f | %6.1f | %6.1f | %s |\n' "$name" \
		"$(cut -d' ' -f1 a | median)" "$(cut -d' ' -f1 b | median)" \
		"$(paste -d' ' a b | awk '{print $1/$3}' | median)" \
		"$(cut -d' ' -f2 a | sort -g | tail -1 | awk '{print $1/1024}')" \
		"$(cut -d' ' -f2 b | sort -g | tail -1 | awk '{print $1/1024}')" \
		"$(awk -v a="$size_a" -v b="$size_b" 'BEGIN {if (a && b) printf "%.3f", a/b; else printf "-"}')"
}

echo "sample: ext4 of $tree, $pairs pairs, in $base"
mke2fs -q -F -t ext4 -d "$tree" a.raw "${BENCH_SIZE:-2G}" >/dev/null 2>&1
qemu-img convert -O qcow2 a.raw a.qcow2
qemu-img convert -O qcow2 -c a.raw az.qcow2
qemu-img convert -O qcow2 -c -o compression_type=zstd a.raw azs.qcow2
qemu-img convert -O vpc a.raw a.vhd
qemu-img convert -O vmdk -o subformat=streamOptimized a.raw a.vmdk
echo "virtual size $(stat -c %s a.raw), data $(($(stat -c %b a.raw) * 512)) bytes"
echo
printf '| %-34s | %8s | %8s | %5s | %6s | %6s | %s |\n' "what" "ours s" "peer s" "ratio" "MiB" "peer" "size"
echo '|---|---|---|---|---|---|---|'
for q in "" "-m 16 -W"; do
	pair "raw to raw; qemu-img $q" "$bin convert a.raw out --to raw" "qemu-img convert $q -O raw a.raw out"
	pair "raw to qcow2; qemu-img $q" "$bin convert a.raw out --to qcow2" "qemu-img convert $q -O qcow2 a.raw out"
	pair "qcow2 to raw; qemu-img $q" "$bin convert a.qcow2 out --to raw" "qemu-img convert $q -O raw a.qcow2 out"
	pair "qcow2 to qcow2; qemu-img $q" "$bin convert a.qcow2 out --to qcow2" "qemu-img convert $q -O qcow2 a.qcow2 out"
	pair "raw to vhd; qemu-img $q" "$bin convert a.raw out --to vhd" "qemu-img convert $q -O vpc a.raw out"
	pair "vhd to raw; qemu-img $q" "$bin convert a.vhd out --to raw" "qemu-img convert $q -f vpc -O raw a.vhd out"
done
pair "zlib qcow2 to raw" "$bin convert az.qcow2 out --to raw" "qemu-img convert -O raw az.qcow2 out"
pair "zstd qcow2 to raw" "$bin convert azs.qcow2 out --to raw" "qemu-img convert -O raw azs.qcow2 out"
pair "streamOptimized vmdk to raw" "$bin convert a.vmdk out --to raw" "qemu-img convert -O raw a.vmdk out"
pair "raw to qcow2, zlib" "$bin convert a.raw out --to qcow2 --compress" "qemu-img convert -c -O qcow2 a.raw out"
pair "raw to qcow2, zlib; qemu-img -m 16 -W" "$bin convert a.raw out --to qcow2 --compress" "qemu-img convert -c -m 16 -W -O qcow2 a.raw out"
pair "raw to qcow2, zstd" "$bin convert a.raw out --to qcow2 --compress=zstd" "qemu-img convert -c -o compression_type=zstd -O qcow2 a.raw out"
pair "raw to streamOptimized vmdk" "$bin convert a.raw out --to vmdk" "qemu-img convert -o subformat=streamOptimized -O vmdk a.raw out"
pair "compare raw, qcow2" "$bin compare a.raw a.qcow2" "qemu-img compare a.raw a.qcow2"
pair "check qcow2" "$bin check a.qcow2" "qemu-img check a.qcow2"
pair "map qcow2" "$bin map a.qcow2 --json" "qemu-img map --output=json a.qcow2"

echo
echo "largest memory over virtual sizes (data is the same):"
for size in 4G 64G 1T; do
	cp --sparse=always a.raw big.raw
	truncate -s $size big.raw
	/usr/bin/time -o mem -f %M "$bin" convert big.raw out --to qcow2 --compress
	printf '  %-4s to compressed qcow2: %s KiB\n' $size "$(cat mem)"
	rm -f big.raw out
done

echo
echo "inspect and the ext4 reader:"
(cd "$here/.." && go test -run '^$' -bench 'Walk|ReadFiles|Inspect|Peer' -benchtime 1x -count 5 -timeout 20m \
	./formats/filesys/ext4 ./formats/internal/godiskfs ./inspect) | grep -E '^(Benchmark|pkg)' || true
