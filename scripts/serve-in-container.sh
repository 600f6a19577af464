#!/bin/sh
# What docker/server.Dockerfile starts: `fleet` with the words given, and the image's health check.
#
#   serve-in-container.sh server up        the command `fleet server up`
#   serve-in-container.sh healthy          exit code 0 when the server's SuperLink answers
#
# A registry on PostgreSQL has its password in a file, COREFLEET_REGISTRY_PASSWORD_FILE. libpq takes
# a password from a file of its own form that only its owner may read, and Compose mounts secrets
# with their owner's mode on the host, so the one is written from the other at each start.
set -eu

# `fleet server status` tells the same, but loads all of the server for it, once a minute.
healthy() {
  python - "$COREFLEET_SERVER" <<'PYTHON'
import pathlib
import ssl
import sys
import tomllib
import urllib.request as request

LIMIT_S = 10.0
folder = pathlib.Path(sys.argv[1])
try:
    config = tomllib.loads((folder / "server.toml").read_text())
    port = config.get("superlink", {}).get("port", 9393)
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    # No proxy of the environment may come between.
    handlers = (request.ProxyHandler({}), request.HTTPSHandler(context=context))
    with request.build_opener(*handlers).open(f"https://127.0.0.1:{port}/health", timeout=LIMIT_S):
        pass
except (OSError, ValueError) as error:
    sys.exit(f"not healthy: {error}")
PYTHON
}

if [ "${1:-}" = healthy ]; then
  healthy
  exit
fi
if [ -n "${COREFLEET_REGISTRY_PASSWORD_FILE:-}" ]; then
  [ -r "$COREFLEET_REGISTRY_PASSWORD_FILE" ] || {
    echo "error: $COREFLEET_REGISTRY_PASSWORD_FILE cannot be read by user $(id -u)" >&2
    echo "hint: the file is for all to read, in a folder that only you may enter" >&2
    exit 1
  }
  umask 077
  # The image names it for whatever is run in the container beside this.
  PGPASSFILE=${PGPASSFILE:-${TMPDIR:-/dev/shm}/pgpass}
  # A backslash and a colon mean something in that form.
  escaped=$(sed -e 's/[\\:]/\\&/g' <"$COREFLEET_REGISTRY_PASSWORD_FILE")
  # Whoever reads it meanwhile must never find half a line.
  printf '*:*:*:*:%s\n' "$escaped" >"$PGPASSFILE.$$"
  mv -f "$PGPASSFILE.$$" "$PGPASSFILE"
  export PGPASSFILE
fi

exec fleet "$@"
