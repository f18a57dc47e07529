#!/bin/bash
# The main job on a real model: SmolLM2-135M-Instruct cut from 98 to 75 MB, proved, and run.
set -euo pipefail
cd "$(dirname "$0")/.."
model=models/SmolLM2-135M-Instruct.Q4_1.gguf
small=out/SmolLM2-135M-Instruct.75MB.gguf
mkdir -p out
say() { printf '\n$ %s\n' "${*@Q}" | sed "s/'\([-A-Za-z0-9_.\/]*\)'/\1/g"; "$@"; }
# Into a file or a pipe, progress is lines.
[ -t 2 ] && progress= || progress=--progress
# Without refinement, which takes two minutes more and lowers the KL by a fifth.
say build/microtome compress "$model" --size 75MB --refine 0 -o "$small" --force $progress
say build/microtome generate "$small" -p 'Why is the sky blue?' -n 60 --temp 0
printf '\nThe small model: %s (%d bytes; the original has %d)\nThe page:        %s\n' \
  "$small" "$(stat -Lc %s "$small")" "$(stat -Lc %s "$model")" ${small%.gguf}.html
