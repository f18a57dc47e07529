#!/bin/sh
# Builds for arm64 on a Debian machine of another kind; kernels and formats are tested by qemu.
set -eu
cd "$(dirname "$0")/.."
if ! dpkg --print-foreign-architectures | grep -qx arm64; then
  sudo=
  [ "$(id -u)" -eq 0 ] || sudo=sudo
  $sudo dpkg --add-architecture arm64
  $sudo apt-get -qq update
fi
tools/setup.sh tools/packages.txt tools/packages-arm64.txt
cmake -S . -B build-arm64 -G Ninja --toolchain tools/arm64.cmake >/dev/null
ninja -C build-arm64 microtome test_kernels test_dtype
for room in kernels dtype; do
  qemu-aarch64 "build-arm64/test_$room" --gtest_brief=1
done
