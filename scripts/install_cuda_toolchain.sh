#!/usr/bin/env bash
# Installs a CUDA compiler for machines without a CUDA toolkit: nvcc and what it needs, from Python
# packages (about 105 MB to fetch, 280 MB on disk), into target/cuda-toolchain, where build.rs looks
# for it last. Nothing else on the machine changes; no GPU or driver is needed. Run again, it finds
# its own work done. Needs Linux and Python 3 with pip.
set -euo pipefail
cd "$(dirname "$0")/.."

# All of one release: nvcc's own requirements leave the others open, and a newer nvvm writes PTX that
# this ptxas refuses. The two readers of machine code exist from 13.2 on and read older code as well.
pins=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
    nvidia-cuda-cuobjdump==13.2.51
    nvidia-cuda-nvdisasm==13.2.51
)
folder=target/cuda-toolchain
nvcc=$folder/nvidia/cu13/bin/nvcc

if [ "$(cat "$folder/pins" 2>/dev/null)" = "${pins[*]}" ] && "$nvcc" --version >/dev/null 2>&1; then
    echo "$nvcc is there"
    exit 0
fi

rm -rf "$folder"
mkdir -p "$folder"
PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check \
    --no-deps --only-binary=:all: --target "$folder" "${pins[@]}"
"$nvcc" --version | tail -n 2
echo "${pins[*]}" >"$folder/pins" # Last: an installation that was cut short does not count.

# A build that found no nvcc looks again when this folder has changed.
touch kernels
