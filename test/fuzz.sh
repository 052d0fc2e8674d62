#!/usr/bin/env bash
# fuzz.sh PART FUZZTIME: runs each fuzz target of the module for FUZZTIME. PART i/n
# takes every n-th target, from the i-th on. It fails when it finds no target, one
# without seeds, or one that did not execute.
set -euo pipefail
cd "$(dirname "$0")/.."

part=${1:-1/1} time=${2:-60s}
if ! [[ $part =~ ^([1-9][0-9]*)/([1-9][0-9]*)$ ]] || ((BASH_REMATCH[1] > BASH_REMATCH[2])); then
  echo "fuzz: PART is i/n with i from 1 to n, not $part"
  exit 2
fi
i=${BASH_REMATCH[1]} n=${BASH_REMATCH[2]}

mapfile -t all < <(grep -rnoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . |
  sed -E 's#^(.*)/[^/]+:[0-9]+:func (.*)$#\1 \2#' | sort -u)
if [ ${#all[@]} -eq 0 ]; then
  echo "fuzz: no target found"
  exit 1
fi
targets=()
for k in "${!all[@]}"; do
  if ((k % n == i - 1)); then targets+=("${all[k]}"); fi
done
if [ ${#targets[@]} -eq 0 ]; then
  echo "fuzz: part $part has none of the ${#all[@]} targets"
  exit 1
fi
echo "fuzz: ${#targets[@]} of ${#all[@]} targets, $time each"

module=$(go list -m)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Each package's test binary is built once: most of a short run was linking. Coverage
# guides by our own packages only: -fuzz instruments all that they import, SQLite and
# OpenAI's SDK too, which takes minutes to build and leaves a tenth of the executions.
built=
build() {
  go test -c -gcflags="$module/...=-d=libfuzzer" -o "$scratch/fuzz.test" "$1"
  built=$1
}

once() {
  (cd "$1" && "$scratch/fuzz.test" -test.run '^$' -test.fuzz "^$2\$" -test.fuzztime "$time" \
    -test.fuzzminimizetime 5s -test.fuzzcachedir "$scratch/cache" 2>&1)
}

for target in "${targets[@]}"; do
  read -r dir name <<<"$target"
  [ "$dir" = "$built" ] || build "$dir"
  seeds=$(cd "$dir" && "$scratch/fuzz.test" -test.v -test.run "^$name\$") || { echo "$seeds"; exit 1; }
  seeds=$(grep -cE "^ +--- PASS: $name/" <<<"$seeds" || true)
  if [ "$seeds" -eq 0 ]; then
    echo "fuzz: $dir $name has no seeds: f.Add some"
    exit 1
  fi
  if ! out=$(once "$dir" "$name"); then
    # The fuzzing engine may take its own deadline for a failure; a finding leaves an input behind.
    if grep -q 'context deadline exceeded' <<<"$out" && ! grep -q 'Failing input written' <<<"$out"; then
      out=$(once "$dir" "$name") || { echo "$out"; exit 1; }
    else
      echo "$out"
      exit 1
    fi
  fi
  if grep -q 'not built with coverage instrumentation' <<<"$out"; then
    echo "fuzz: $dir $name ran without coverage guidance"
    exit 1
  fi
  execs=$(sed -nE 's/^fuzz: elapsed: .* execs: ([0-9]+) .*/\1/p' <<<"$out" | tail -1)
  if [ "${execs:-0}" -eq 0 ]; then
    echo "$out"
    echo "fuzz: $dir $name executed nothing"
    exit 1
  fi
  echo "fuzz: $dir $name: $seeds seeds, $execs executions, no finding"
done
