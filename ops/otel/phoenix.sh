#!/usr/bin/env bash
# Makes the environment of Arize Phoenix, a backend of OTLP that is not ours, in .venv-phoenix (0.9 GB, a few minutes)
# for tests/stories/test_otlp_backend.py. Apart from ours, so that none of its 156 packages moves a pinned one.
set -euo pipefail
cd "$(dirname "$0")/../.."
environment=${FAIRLEAD_PHOENIX:-.venv-phoenix}
"${PYTHON:-python3}" -m venv "$environment"
"$environment/bin/python" -m pip install --disable-pip-version-check arize-phoenix==20.26.1
