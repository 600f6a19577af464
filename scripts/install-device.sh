#!/usr/bin/env bash
# Install one half of a device: the agent beside the machine's own torch, or the bridge without one.
# The Dockerfiles and docs/jetson.md use this file, so there is one way to install and one test of it.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: install-device.sh --extras agent|bridge [--python PYTHON] [--into DIR] [--wheels DIR]

  --extras agent   into an interpreter that has torch (Python 3.10 or later); torch is never replaced
  --extras bridge  into an environment of its own (Python 3.11 or later); torch never comes along
  --python PYTHON  the interpreter to start from (default: python3)
  --into DIR       virtual environment to make; for the agent it sees PYTHON's torch.
                   Without it the packages go into PYTHON's own environment.
  --wheels DIR     install from this folder alone, without a network (scripts/bundle-wheels.sh)
TEXT
}

fail() {
  echo "error: $1" >&2
  [ -z "${2:-}" ] || echo "hint: $2" >&2
  exit 1
}

extras='' python=python3 into='' wheels=''
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --extras | --python | --into | --wheels)
      [ $# -ge 2 ] || fail "$1 needs a value" "install-device.sh --help"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    *) fail "there is no option $1" "install-device.sh --help" ;;
  esac
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

case $extras in
  agent) oldest='3, 10' ;;
  bridge) oldest='3, 11' ;;
  *) fail "--extras is agent or bridge, not '$extras'" "install-device.sh --help" ;;
esac
found=$(command -v "$python") || fail "there is no interpreter $python" "Name one by --python."
absolute() { case $1 in '' | /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
python=$(absolute "$found") into=$(absolute "$into") wheels=$(absolute "$wheels")
# Python looks into the current folder first, and a checkout would pass for what was installed.
cd "$scratch"
"$python" -c "import sys; sys.exit(sys.version_info < ($oldest))" ||
  fail "$("$python" --version) is too old for the $extras, which needs ${oldest/, /.}" \
    "docs/jetson.md says where a newer one comes from."

# Version, file and size of torch, and numpy's version; nothing of torch is imported, because an
# image is built on machines without the driver that the import may ask for.
look_at_torch() {
  "$1" - <<'PYTHON'
import importlib.metadata as metadata
import importlib.util
import os

spec = importlib.util.find_spec("torch")
if spec is None or spec.origin is None:
    raise SystemExit(3)
size = os.stat(spec.origin)
print("torch", metadata.version("torch"), spec.origin, size.st_size, size.st_mtime_ns)
PYTHON
}

version_of() {
  "$1" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$2" 2>/dev/null || true
}

in_environment() { # whether PYTHON is a virtual environment's
  "$1" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'
}

# The versions that the project is tested with, but for those that a machine's torch decides.
constraints=$scratch/constraints.txt
grep -Ev '^(torch|numpy)==' "$root/constraints.txt" >"$constraints" ||
  fail "$root/constraints.txt cannot be read" "Run the script from a checkout or a bundle."

before=''
if [ "$extras" = agent ]; then
  before=$(look_at_torch "$python") ||
    fail "$python has no torch, and none is installed for it" \
      "Install the torch that fits the JetPack first; docs/jetson.md has the table."
  echo "torch=="$(version_of "$python" torch) >>"$constraints"
  # A torch that was built with NumPy 1 may not speak to NumPy 2.
  case $(version_of "$python" numpy) in 1.*) echo 'numpy<2' >>"$constraints" ;; esac
else
  [ -n "$into" ] || in_environment "$python" ||
    fail "the bridge goes into an environment of its own" "Name one by --into DIR."
  grep -E '^numpy==' "$root/constraints.txt" >>"$constraints"
fi

target=$python
if [ -n "$into" ]; then
  if [ "$extras" = agent ]; then
    if in_environment "$python"; then
      # A second environment would see the system's packages, not those of the first.
      fail "$python belongs to a virtual environment" "Leave --into out to install into that one."
    fi
    # Without pip, since Debian's Python lacks ensurepip; the system's own pip is seen and used.
    "$python" -m venv --system-site-packages --without-pip "$into"
  else
    "$python" -m venv "$into"
  fi
  target=$into/bin/python
fi

options=(--disable-pip-version-check --no-cache-dir --constraint "$constraints")
source=$root
if [ -n "$wheels" ]; then
  [ -d "$wheels" ] || fail "there is no folder $wheels" "scripts/bundle-wheels.sh makes one."
  own=("$wheels"/corefleet-*.whl)
  [ -f "${own[0]}" ] || fail "$wheels has no wheel of corefleet" "scripts/bundle-wheels.sh makes one."
  [ ${#own[@]} -eq 1 ] || fail "$wheels has ${#own[@]} wheels of corefleet" "Keep one."
  source=${own[0]}
  options+=(--no-index --find-links "$wheels")
fi
# NVIDIA's images pin every package of theirs by PIP_CONSTRAINT; those packages stay untouched, but
# pins that the device's own environment must keep to would refuse what it needs.
unset PIP_CONSTRAINT
"$target" -m pip install "${options[@]}" "$source[device-$extras]" ||
  fail "pip could not install corefleet[device-$extras] into $target" \
    "Its own message is above; with --wheels the folder must be made for this Python and machine."

if [ "$extras" = agent ]; then
  after=$(look_at_torch "$target") || fail "torch is gone from $target"
  [ "$before" = "$after" ] || fail "torch was changed: '$before' became '$after'"
  [ -z "$(version_of "$target" flwr)" ] ||
    echo "note: $target has Flower, which the agent does not need" >&2
  "$target" -c 'import clients.agent.store.store'
  "$target" -c 'import sys; from clients.agent.cli.root import main; sys.exit(main())' --help >/dev/null
  echo "agent: $target keeps $before"
else
  [ -z "$(version_of "$target" torch)" ] || fail "the bridge brought a torch into $target"
  "$target" -c 'import flwr.clientapp, fleet.federate.wire'
  echo "bridge: $target has Flower $(version_of "$target" flwr) and no torch"
fi
