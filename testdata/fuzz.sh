#!/bin/sh
# Runs every fuzz target of the module for the time given (default 10s).
# Minimising is cut short: with the default the workers do little else.
set -eu
time=${1:-10s}

# one DIR TARGET: fails when the target has a finding. The go command itself
# now and then reports its own deadline as a failure, when the time ends while
# a worker starts ("context deadline exceeded", and no failing input): that
# run is done again, twice at most.
one() {
	for _ in 1 2 3; do
		if out=$(cd "$1" && go test -run '^$' -fuzz "^$2\$" -fuzztime "$time" -fuzzminimizetime 10x . 2>&1); then
			echo "$out" | tail -n 1
			return 0
		fi
		case $out in
		*"Failing input"* | *"seed corpus"* | *panic* | *"hung or terminated"*) break ;;
		*"context deadline exceeded"*) echo "the deadline struck the go command: again" ;;
		*) break ;;
		esac
	done
	echo "$out"
	return 1
}

for dir in $(go list -f '{{.Dir}}' ./...); do
	for f in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go 2>/dev/null | sed 's/^func //' | sort -u); do
		echo "fuzz $(basename "$dir").$f $time"
		one "$dir" "$f"
	done
done
