#!/bin/sh
# Put a service of the tests under .services/ from Debian's packages, without root.
#     fetch.sh PACKAGE PROGRAM
# What is on PATH, or was fetched before, is used. No package is installed and no script of one runs.
set -eu
package=$1 program=$2
folder=.services/$package
PATH=$PATH:/usr/sbin:/sbin

if command -v "$program" >/dev/null 2>&1; then exit 0; fi
if test -e "$folder/.fetched"; then exit 0; fi

give_up() {
  echo "the tests of services need $program, and $1." >&2
  echo "Install it (Debian, Ubuntu: apt-get install $package) or put it on PATH; try again." >&2
  exit 1
}

command -v apt-get >/dev/null 2>&1 || give_up "there is no apt-get to fetch the package $package"
command -v dpkg >/dev/null 2>&1 || give_up "there is no dpkg to unpack the package $package"
# What an installation would add to this system: the package and the libraries that are missing.
names=$(apt-get install --simulate --no-install-recommends "$package" 2>/dev/null |
  awk '/^Inst/ { print $2 }') || true
test -n "$names" || give_up "apt-get knows no package $package (apt-get update may help)"

rm -rf "$folder"
mkdir -p "$folder/debs" "$folder/root"
echo "fetching" $names
(cd "$folder/debs" && apt-get download --quiet $names >/dev/null 2>"../apt.log") ||
  give_up "apt-get could not download it: $(tail -n 1 "$folder/apt.log")"
for deb in "$folder"/debs/*.deb; do dpkg -x "$deb" "$folder/root"; done
touch "$folder/.fetched"
