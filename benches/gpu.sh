#!/usr/bin/env bash
# Checks and measures frostline on a GPU, unattended. Two steps, for the machine with the GPU needs no cargo:
#
#   benches/gpu.sh bundle DIR     here: builds with the kernels embedded, and puts into DIR all that the next step needs
#   DIR/gpu.sh run [OUT]          there: checks first, then measures; results go to OUT [DIR/results]
#
# `run` needs a driver; with compute-sanitizer on PATH it also looks for invalid accesses and races, and with a
# python3 that has torch and transformers it runs the same scenarios in PyTorch. It stops at the first wrong result:
# figures of wrong kernels are worth nothing. Exit status: 0 all there, 3 no usable GPU, 1 a check failed.
set -euo pipefail

WORKLOADS=(
    "bert-base 128 128 none,lower:6,backbone,all"
    "bert-base 32 512 none,lower:6,backbone,all"
    "minilm-l6 256 64 none,lower:3,backbone,all"
)
TASKS=(--task topic=5 --task sentiment=3)

bundle() {
    local to=$1 root
    root=$(cd "$(dirname "$0")/.." && pwd)
    (cd "$root" && bash scripts/install_cuda_toolchain.sh && cargo build --release)
    # freeze.py finds the freeze grammar two folders up, under tests/golden.
    mkdir -p "$to/benches/pytorch" "$to/tests/golden"
    install -s "${CARGO_TARGET_DIR:-$root/target}/release/frostline" "$to/frostline"
    cp "$root/benches/gpu.sh" "$to/gpu.sh"
    cp "$root/benches/pytorch/freeze.py" "$to/benches/pytorch/"
    cp "$root/tests/golden/reference.py" "$to/tests/golden/"
    du -sh "$to"
}

step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

run() {
    local here out
    here=$(cd "$(dirname "$0")" && pwd)
    out=${1:-$here/results}
    mkdir -p "$out"

    step "doctor"
    "$here/frostline" doctor --device cuda --json >"$out/doctor.json"
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,temperature.gpu --format=csv >"$out/gpu.csv" || true

    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            step "compute-sanitizer $tool"
            timeout 300 compute-sanitizer --tool "$tool" --error-exitcode 1 \
                "$here/frostline" doctor --device cuda >"$out/$tool.txt"
        done
    else
        echo "gpu.sh: no compute-sanitizer on PATH: accesses and races are not checked" >&2
    fi

    for workload in "${WORKLOADS[@]}"; do
        read -r arch size length scenarios <<<"$workload"
        local name="$arch-$size-$length"
        local options=(--arch "$arch" "${TASKS[@]}" --batch-size "$size" --max-length "$length"
            --scenarios "$scenarios" --rounds 30 --json)
        step "$name"
        "$here/frostline" bench "${options[@]}" --device cuda >"$out/$name.json"
        if python3 -c 'import torch, transformers' 2>/dev/null; then
            for mode in "" --compile; do
                step "$name, PyTorch $mode"
                python3 "$here/benches/pytorch/freeze.py" "${options[@]}" --device cuda --dtype bf16 $mode \
                    >"$out/$name-pytorch$mode.json"
            done
        else
            echo "gpu.sh: no python3 with torch and transformers: PyTorch is not measured" >&2
        fi
    done
    step "done, see $out"
}

case "${1:-}" in
    bundle) bundle "${2:?the folder to write}" ;;
    run) shift && run "$@" ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
