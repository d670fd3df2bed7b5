#!/bin/sh
# Runs every fuzz target of the module for the time given (default 10s).
# Minimising is cut short: with the default the workers do little else.
set -eu
time=${1:-10s}
for dir in $(go list -f '{{.Dir}}' ./...); do
	for f in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go 2>/dev/null | sed 's/^func //' | sort -u); do
		echo "fuzz $(basename "$dir").$f $time"
		if ! out=$(cd "$dir" && go test -run '^$' -fuzz "^$f\$" -fuzztime "$time" -fuzzminimizetime 10x . 2>&1); then
			echo "$out"
			exit 1
		fi
		echo "$out" | tail -n 1
	done
done
