#!/usr/bin/env bash
# All tests. The GPU kernels are tested on the emulator, which takes a C++ compiler to build; without one
# everything else is tested, and that is said. Further options go to `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v "${CXX:-c++}" >/dev/null; then
    exec cargo test --features emulator,parquet "$@"
fi
echo "test.sh: no C++ compiler (${CXX:-c++}): the GPU kernels are NOT tested" >&2
exec cargo test --features parquet "$@"
