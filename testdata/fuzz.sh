#!/bin/sh
# Runs every fuzz target of the module for the time given (default 10s).
set -eu
time=${1:-10s}
go list -f '{{.Dir}}' ./... | while read -r dir; do
	grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go 2>/dev/null | sed 's/^func //' | sort -u | while read -r f; do
		echo "fuzz $(basename "$dir").$f $time"
		(cd "$dir" && go test -run '^$' -fuzz "^$f\$" -fuzztime "$time" -fuzzminimizetime 10x . </dev/null) | grep -v '^fuzz: elapsed' || exit 1
	done || exit 1
done
