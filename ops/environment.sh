# Sourced by ops/up and ops/test: makes .venv and brings it to the pinned state. Sets $python.
# pip's own variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, ...) are honoured as they are.

prepare_environment() { # prepare_environment EXTRAS
  local extras=$1 base
  base=${PYTHON:-python3}
  if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "fairlead: $base is missing or older than Python 3.11; install Python 3.11 or set PYTHON=/path/to/python3.11" >&2
    exit 2
  fi
  python=.venv/bin/python
  if [ ! -x "$python" ]; then
    "$base" -m venv .venv || {
      echo "fairlead: cannot make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv" >&2
      rm -rf .venv
      exit 2
    }
  fi
  # The stamp holds what the environment was made from: a changed pin or dependency installs again.
  local want stamp=.venv/fairlead-"$extras"
  want=$(cat pyproject.toml ops/constraints.txt ops/install.sh ops/environment.sh | sha256sum)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
    echo "fairlead: installing the pinned dependencies into .venv (the first time takes minutes: torch is large)" >&2
    ops/install.sh "$PWD/$python" base ${extras//,/ }
    # What builds it is among the pinned ones: pip's isolated build would fetch whatever is newest.
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
    "$python" -m pip check
    echo "$want" > "$stamp"
  fi
  # Optional and quick: where there is no compiler it says so, and the engine is only slower.
  "$python" -m engine.native.make
}
