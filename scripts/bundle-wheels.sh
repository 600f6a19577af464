#!/usr/bin/env bash
# Gather everything that a device without a network installs: wheels for the agent and the bridge,
# their SHA-256 sums, and the script that installs them. No torch: a device keeps its own.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bundle-wheels.sh [--arch aarch64|x86_64] [--agent-python PYTHON] [--bridge-python PYTHON]
                        [--out DIR]

  --arch           the device's machine (default: aarch64)
  --agent-python   a Python here of the version that has the device's torch (default: python3.10)
  --bridge-python  a Python here of the version that the bridge gets (default: python3.12)
  --out DIR        folder to make (default: dist/device-ARCH)

Both interpreters need pip and may be for another machine than the device; only their versions count.
TEXT
}

fail() {
  echo "error: $1" >&2
  [ -z "${2:-}" ] || echo "hint: $2" >&2
  exit 1
}

arch=aarch64 agent_python=python3.10 bridge_python=python3.12 out=''
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --arch | --agent-python | --bridge-python | --out)
      [ $# -ge 2 ] || fail "$1 needs a value" "bundle-wheels.sh --help"
      name=${1#--}
      printf -v "${name//-/_}" '%s' "$2"
      shift 2
      ;;
    *) fail "there is no option $1" "bundle-wheels.sh --help" ;;
  esac
done
case $arch in aarch64 | x86_64) ;; *) fail "--arch is aarch64 or x86_64, not '$arch'" ;; esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${out:-$root/dist/device-$arch}
[ ! -e "$out" ] || fail "$out exists already" "Remove it, or name another folder by --out."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

pip() { "$1" -m pip "$2" --quiet --disable-pip-version-check "${@:3}"; }

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

# Resolve one half for the device's machine. pip reads a requirement's "python_version" from the
# interpreter that runs it, whatever --python-version says, so each half has its own.
gather() { # half, interpreter, constraints
  local half=$1 interpreter=$2 constraints=$3 version digits each platforms=()
  version=$(version_of "$interpreter")
  digits=${version/./}
  # JetPack 6 is Ubuntu 22.04 with glibc 2.35; of two wheels pip takes the one named first.
  for each in 2_35 2_34 2_31 2_28 2_27 2_26 2_24 2_17; do
    platforms+=(--platform "manylinux_${each}_$arch")
  done
  pip "$interpreter" download --dest "$scratch/$half" --only-binary=:all: "${platforms[@]}" \
    --platform "manylinux2014_$arch" --implementation cp --python-version "$version" \
    --abi "cp$digits" --abi abi3 --abi none --constraint "$constraints" \
    "$own[device-$half]" || fail "no full set of wheels for the $half, Python $version, $arch"
  ! compgen -G "$scratch/$half/torch-*" >/dev/null || fail "the extra device-$half brings a torch"
}

for each in "$agent_python" "$bridge_python"; do
  version_of "$each" >/dev/null 2>&1 || fail "$each does not run here" \
    "Name an interpreter of that version by --agent-python or --bridge-python."
done
pip "$agent_python" wheel --no-deps --wheel-dir "$scratch/own" "$root" ||
  fail "the project's own wheel cannot be made"
own=$(echo "$scratch"/own/corefleet-*.whl)
# For the agent NumPy 1.26, which every torch speaks to; torches built with NumPy 1 speak to no other.
{ grep -Ev '^(torch|numpy)==' "$root/constraints.txt" && echo 'numpy<2'; } >"$scratch/agent.txt"
gather agent "$agent_python" "$scratch/agent.txt"
gather bridge "$bridge_python" "$root/constraints.txt"

agent_version=$(version_of "$agent_python") bridge_version=$(version_of "$bridge_python")
mkdir -p "$scratch/bundle/scripts"
cp "$root/constraints.txt" "$scratch/bundle/"
cp "$root/scripts/install-device.sh" "$root/scripts/measure_device.py" "$scratch/bundle/scripts/"
mv "$scratch/agent" "$scratch/bridge" "$scratch/bundle/"
cat >"$scratch/bundle/INSTALL.txt" <<TEXT
Corefleet for a device: $arch, agent on Python $agent_version, bridge on Python $bridge_version.

  sha256sum --check --quiet SHA256SUMS
  sudo scripts/install-device.sh --extras agent  --wheels agent  --python python$agent_version --into /opt/corefleet/agent
  sudo scripts/install-device.sh --extras bridge --wheels bridge --python python$bridge_version --into /opt/corefleet/bridge

The agent's Python must have the device's torch; none is in here.
TEXT
(cd "$scratch/bundle" && find . -type f ! -name SHA256SUMS | sort | xargs -d '\n' sha256sum) \
  >"$scratch/SHA256SUMS"
mv "$scratch/SHA256SUMS" "$scratch/bundle/"
mkdir -p "$(dirname "$out")"
mv "$scratch/bundle" "$out"
for half in agent bridge; do
  echo "$half: $(find "$out/$half" -name '*.whl' | wc -l) wheels, $(du -sm "$out/$half" | cut -f1) MiB"
done
echo "$out"
