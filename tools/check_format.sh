#!/bin/sh
# Names the C++ files that clang-format would change; fails where there are any.
set -eu
cd "$(dirname "$0")/.."
bad=$(find src tests bench \( -name '*.h' -o -name '*.cpp' \) -print0 2>/dev/null |
  xargs -0 -n 1 -P "$(nproc)" sh -c 'clang-format --dry-run -Werror "$0" >/dev/null 2>&1 || echo "$0"')
[ -z "$bad" ] && exit 0
echo "$bad" | sort
echo 'not formatted: run clang-format -i on them'
exit 1
