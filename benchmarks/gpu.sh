#!/usr/bin/env bash
# `make gpu`: finds a Python that has torch and hands over. Installs nothing.
set -u
cd "$(dirname "$0")/.."
for python in "${PYTHON:-}" .venv/bin/python python3 python; do
    if [ -n "$python" ] && "$python" -c 'import torch' 2>/dev/null; then
        exec "$python" -m benchmarks.gpu
    fi
done
echo "make gpu: found no Python with torch; say which: make gpu PYTHON=/path/to/python" >&2
exit 1
