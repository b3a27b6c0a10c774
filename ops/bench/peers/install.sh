#!/usr/bin/env bash
# Makes the environment of llama.cpp for `fairlead bench engine` in .venv-llama-cpp: built for this processor, in minutes.
# Apart from ours, so that no peer's dependency moves a pinned one. Needs g++ and cmake.
set -euo pipefail
cd "$(dirname "$0")/../../.."
environment=.venv-llama-cpp
"${PYTHON:-python3}" -m venv "$environment"
CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_CURL=OFF" "$environment/bin/python" -m pip install \
  --disable-pip-version-check llama-cpp-python==0.3.36 gguf==0.19.0 numpy==2.4.6 safetensors==0.8.0
