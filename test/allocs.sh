#!/usr/bin/env bash
# Runs the tests of every file that the race detector leaves out, by name: a gate
# that is renamed or moved is still run, and one that does not run is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t files < <(grep -rlE --include='*_test.go' '^//go:build !race$' . | sort)
if [ ${#files[@]} -eq 0 ]; then
  echo "allocs: no allocation gate found"
  exit 1
fi
total=0
for dir in $(printf '%s\n' "${files[@]}" | xargs -n1 dirname | sort -u); do
  names=$(printf '%s\n' "${files[@]}" | grep -E "^$dir/[^/]*$" | xargs sed -nE 's/^func (Test[A-Za-z0-9_]+)\(t .*/\1/p')
  want=$(grep -c . <<<"$names" || true)
  out=$(go test -count=1 -v -run "^($(paste -sd'|' <<<"$names"))\$" "$dir" 2>&1) || { echo "$out"; exit 1; }
  got=$(grep -c '^--- PASS: Test' <<<"$out" || true)
  if [ "$want" -eq 0 ] || [ "$got" -ne "$want" ]; then
    echo "allocs: $dir: $got of $want gates ran"
    exit 1
  fi
  total=$((total + got))
  echo "allocs: $dir: $got passed"
done
echo "allocs: $total gates passed"
