#!/bin/sh
# install.sh PYTHON PART...: installs parts of ops/constraints.txt (base, engine, test) into the environment of a Python.
# Nothing is installed whose hash is not in that file, and nothing that is not listed there. pip's own variables
# (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, ...) are honoured as they are.
set -eu
cd "$(dirname "$0")"
python=$1
shift
wanted=$(mktemp)
trap 'rm -f "$wanted"' EXIT
quiet=--quiet
if [ -t 2 ]; then quiet=; fi # pip's progress bars, where somebody can see them

install() { # install PART...
  : > "$wanted"
  for part in "$@"; do
    sed -n "/^# part $part\$/,/^# part /p" constraints.txt >> "$wanted"
  done
  "$python" -m pip install $quiet --disable-pip-version-check --no-deps --require-hashes --requirement "$wanted"
}

case " $* " in
  *" engine "*)
    # A wheel of torch in a folder that pip knows comes before any index; pip itself would have it the other way round,
    # because an index tells the hash beforehand.
    sed -n '/^torch==/,/[^\\]$/p' constraints.txt > "$wanted"
    "$python" -m pip install --quiet --no-index --no-deps --require-hashes --requirement "$wanted" 2> /dev/null || true
    ;;
esac
install "$@"
case " $* " in
  *" engine "*)
    # torch's CUDA build comes without its libraries; its CPU build needs none of those gigabytes.
    case $("$python" -c 'from importlib.metadata import version; print(version("torch"))') in
      *+cpu) ;;
      *) install cuda ;;
    esac
    ;;
esac
