#!/bin/sh
# Runs the tile product of a build on Bochs' model of a Sapphire Rapids:
#   tests/tiles/run.sh BOCHS [BUILD]
# BOCHS: source folder of Bochs 3.0, built with --enable-x86-64 --enable-avx --enable-evex
# --enable-amx --with-nogui. Needs Debian's isolinux, syslinux-common and xorriso.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bochs=$(cd "$1" && pwd)
build=${2:-$here/../../build}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
object=$(find "$build/CMakeFiles/microtome_lib.dir" -name amx.cpp.o)
g++ -std=c++20 -O2 -mno-red-zone -ffreestanding -fno-pie -fno-stack-protector -fno-exceptions \
  -fno-rtti -I"$here/../../src" -c "$here/trials.cpp" -o "$work/trials.o"
gcc -c "$here/boot.S" -o "$work/boot.o"
mkdir "$work/disk"
ld -n -static -z noexecstack --no-warn-rwx-segments -Ttext 0x200000 --section-start=.multiboot=0x1ff000 -e start -o "$work/disk/trials" \
  "$work/boot.o" "$work/trials.o" "$object"
strip "$work/disk/trials"
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 \
  /usr/lib/syslinux/modules/bios/mboot.c32 /usr/lib/syslinux/modules/bios/libcom32.c32 "$work/disk"
printf 'DEFAULT t\nLABEL t\nKERNEL mboot.c32\nAPPEND trials\n' > "$work/disk/isolinux.cfg"
xorriso -as mkisofs -quiet -o "$work/t.iso" -b isolinux.bin -c boot.cat -no-emul-boot \
  -boot-load-size 4 -boot-info-table "$work/disk" 2> /dev/null
cat > "$work/rc" << RC
megs: 64
cpu: model=sapphire_rapids, ips=100000000, reset_on_triple_fault=0
romimage: file=$bochs/bios/BIOS-bochs-latest
vgaromimage: file=$bochs/bios/VGABIOS-lgpl-latest.bin
ata0-master: type=cdrom, path=$work/t.iso, status=inserted
boot: cdrom
port_e9_hack: enabled=1
display_library: nogui
log: $work/log
panic: action=fatal
RC
timeout 600 "$bochs/bochs" -q -f "$work/rc" > "$work/out" 2>&1 || true
grep -a -A1 '^tiles' "$work/out" || cat "$work/out" "$work/log" >&2
grep -q '^tiles are offered: yes' "$work/out" && grep -q ' sums, wrong: 0$' "$work/out"
