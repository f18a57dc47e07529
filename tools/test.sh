#!/bin/bash
# Everything that `make test` checks, after the set-up: all stages run, whatever one of them finds.
# With CI or SANITIZE set also the fast tests under ASan and UBSan; with CI or FUZZ set also each
# fuzz target for FUZZ_SECONDS (60). The last line is "N passed, N failed".
set -u
cd "$(dirname "$0")/.."
jobs=$(nproc)
passed=0
failed=0
problems=()

stage() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

one() {  # a check that counts as one test
  if "${@:2}"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    problems+=("$1")
  fi
}

build() {  # folder, cmake options...
  cmake -S . -B "$1" -G Ninja "${@:2}" >"$1.log" 2>&1 || { cat "$1.log"; return 1; }
  ninja -C "$1" -j "$jobs" --quiet || return 1
}

tests() {  # build folder, label, jobs
  local out="$1/ctest-$2.log" n
  ctest --test-dir "$1" -L "$2" -j "$3" --output-on-failure --no-tests=error >"$out" 2>&1
  local code=$?
  # Of a passing run only the count is of interest.
  if [ $code -eq 0 ]; then grep -E 'tests passed|Total Test time' "$out"; else
    grep -vE '^ *[0-9]+/[0-9]+ .* Passed |^ +Start +[0-9]+:' "$out"
  fi
  n=$(grep -cE '^ *[0-9]+/[0-9]+ Test +#.* Passed ' "$out")
  passed=$((passed + n))
  n=$(grep -cE '^ *[0-9]+/[0-9]+ Test +#.*\*\*\*(Failed|Timeout|Exception|Not Run)' "$out")
  if [ $code -ne 0 ] && [ "$n" -eq 0 ]; then n=1; fi
  failed=$((failed + n))
  [ "$n" -eq 0 ] || problems+=("$n of the $2 tests in $1")
}

mkdir -p build build-sanitize
stage 'build'
if build build -DCMAKE_BUILD_TYPE=Release; then
  stage 'fast tests'
  tests build fast "$jobs"
  stage 'format'
  one 'clang-format' tools/check_format.sh
  stage 'slow tests'
  tests build slow 1
else
  failed=$((failed + 1))
  problems+=('the build')
fi

if [ -n "${CI:-}${SANITIZE:-}" ]; then
  stage 'build with sanitizers'
  if build build-sanitize -DMT_SANITIZE=ON -DCMAKE_BUILD_TYPE=Release; then
    stage 'fast tests under ASan and UBSan'
    export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1
    tests build-sanitize fast "$jobs"
  else
    failed=$((failed + 1))
    problems+=('the build with sanitizers')
  fi
fi

fuzz_one() {  # target; from the seeds in the repository and what earlier runs here found
  local corpus="build-fuzz/corpus/$1" seeds="tests/fuzz/corpus/${1%_fuzz}"
  mkdir -p "$corpus"
  [ -d "$seeds" ] || { echo "$1: no seeds in $seeds"; return 1; }
  nice "build-fuzz/$1" -max_total_time="${FUZZ_SECONDS:-60}" -timeout=10 -rss_limit_mb=2048 \
    -artifact_prefix=build-fuzz/ "$corpus" "$seeds" >"build-fuzz/$1.log" 2>&1 ||
    { echo "$1:"; tail -n 40 "build-fuzz/$1.log"; return 1; }
  grep -H --label="$1" -E '^Done ' "build-fuzz/$1.log"
}

if [ -n "${CI:-}${FUZZ:-}" ]; then
  stage 'build of the fuzz targets'
  targets=$(for f in tests/fuzz/*_fuzz.cpp; do basename "$f" .cpp; done)
  mkdir -p build-fuzz
  if cmake -S . -B build-fuzz -G Ninja -DMT_FUZZ=ON -DCMAKE_CXX_COMPILER=clang++ \
      -DCMAKE_C_COMPILER=clang >build-fuzz.log 2>&1 &&
      ninja -C build-fuzz -j "$jobs" --quiet $targets; then
    stage "fuzz targets side by side, ${FUZZ_SECONDS:-60} s"
    declare -A runs
    for target in $targets; do
      fuzz_one "$target" &
      runs[$target]=$!
    done
    for target in $targets; do one "$target" wait "${runs[$target]}"; done
  else
    cat build-fuzz.log
    failed=$((failed + 1))
    problems+=('the build of the fuzz targets')
  fi
fi

printf '\n'
for p in "${problems[@]}"; do echo "FAILED: $p"; done
echo "took $SECONDS s"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
