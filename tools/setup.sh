#!/bin/sh
# Installs the Debian packages listed in the files given, where they are missing.
set -eu
wanted=$(cat "$@" | sed 's/#.*//' | tr -s ' \n' ' ')
missing=
native=$(dpkg --print-architecture 2>/dev/null || true)
for package in $wanted; do
  # A package may be there for other architectures only.
  case $package in *:*) of=${package#*:} ;; *) of="$native\|all" ;; esac
  if ! dpkg-query -W -f '${Architecture} ${db:Status-Status}\n' "${package%:*}" 2>/dev/null |
    grep -qx "\($of\) installed"; then
    missing="$missing $package"
  fi
done
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null; then
  echo "setup: no apt-get here; install what corresponds to these Debian packages:$missing" >&2
  exit 1
fi
sudo=
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "setup: neither root nor sudo; install as root:$missing" >&2
    exit 1
  fi
  sudo=sudo
fi
echo "installing:$missing"
apt="env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# A machine whose lists are fresh enough needs no update; a first failure asks for one.
if ! $sudo $apt install --no-install-recommends -y $missing >"$log" 2>&1; then
  if ! { $sudo $apt update && $sudo $apt install --no-install-recommends -y $missing; } >"$log" 2>&1
  then
    tail -n 20 "$log" >&2
    echo "setup: these packages could not be installed:$missing" >&2
    exit 1
  fi
fi
