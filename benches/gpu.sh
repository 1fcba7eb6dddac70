#!/usr/bin/env bash
# Checks and measures frostline on a GPU, unattended, in the time that there is. The machine with the GPU needs no cargo:
#
#   benches/gpu.sh bundle DIR            here: builds with the kernels embedded, and puts all that `run` needs into DIR
#   DIR/gpu.sh run --part a [OUT]        there: every kernel against the reference, steps against the CPU, then figures
#                                        beside PyTorch; 240 s at most
#   DIR/gpu.sh run --part b [OUT]        there: further workloads, torch.compile, counters of five kernels, and last
#                                        the sanitizers; 300 s at most
#
#   --seconds N         takes N seconds at most: what does not fit any more is left out, and that is said
#   --device emulated   rehearses on the emulator, in tiny shapes; the bundle is then one of `bundle DIR --emulator`
#
# OUT [DIR/results] gets summary-PART.txt, written as it goes, and PART.tar.gz with all documents and logs, packed anew
# after every step: it is there whatever ends the run. Each step goes on where another fails. PyTorch beside it needs a
# python3 (or $PYTHON) with torch, transformers and safetensors, the sanitizers and counters compute-sanitizer and ncu on
# PATH.
# Exit status: 0 no check failed, 1 one did, or did not end in time, 3 no usable GPU, 2 usage.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
    sed -n '2,20s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

bundle() (
    set -e
    to=$1 features=()
    case ${2:-} in
        "") ;;
        --emulator) features=(--features emulator) ;;
        *) usage ;;
    esac
    root=$(cd "$here/.." && pwd)
    (cd "$root" && bash scripts/install_cuda_toolchain.sh &&
        cargo build --release "${features[@]}" --bin frostline --example gpu)
    built=${CARGO_TARGET_DIR:-$root/target}/release
    # freeze.py finds the freeze grammar two folders up, under tests/golden.
    mkdir -p "$to/benches/pytorch" "$to/tests/golden"
    install -s "$built/frostline" "$to/frostline"
    install -s "$built/examples/gpu" "$to/gpu"
    cp "$root/benches/gpu.sh" "$to/gpu.sh"
    cp "$root"/benches/pytorch/{freeze,shapes}.py "$to/benches/pytorch/"
    cp "$root/tests/golden/reference.py" "$to/tests/golden/"
    du -sh "$to"
)

# What is measured, and how long a step may take. The emulator's network is one of `gpu model --tiny`.
choose_workloads() {
    tasks=(--task topic=5 --task sentiment=3)
    if [ "$device" = cuda ]; then
        main=(--arch bert-base "${tasks[@]}" --batch-size 128 --max-length 128
            --scenarios none,lower:6,backbone,all)
        compiled=none,backbone
        others=("bert-base 32 512 none,lower:6,backbone,all" "minilm-l6 256 64 none,lower:3,backbone,all")
        profiled=(--arch bert-base "${tasks[@]}" --batch-size 128 --max-length 128)
        doctor=() rounds=30 torch_device=cuda torch_dtype=bf16 tiny=()
    else
        main=(--model "$work/model" "${tasks[@]}" --batch-size 2 --max-length 16 --scenarios none,backbone)
        compiled=backbone
        others=()
        profiled=(--model "$work/model" "${tasks[@]}" --batch-size 2 --max-length 16)
        doctor=(--quick) rounds=2 torch_device=cpu torch_dtype=f32 tiny=(--tiny)
    fi
}

left() { echo $((seconds - (SECONDS - begun))); }

# A line of the summary.
note() { printf '%-26s %-9s %5s s  %s\n' "$1" "$2" "$3" "${4:-}" | tee -a "$out/summary-$part.txt"; }

# All that is there so far, under its name only when it is whole.
pack() {
    cp "$out/summary-$part.txt" "$work/results/" 2>/dev/null
    tar -czf "$out/.$part.tar.gz" -C "$work/results" .
    # 1 says that a file grew meanwhile: what there is is in it.
    [ $? -le 1 ] && mv "$out/.$part.tar.gz" "$out/$part.tar.gz"
}

# step NAME LEAST MOST KIND COMMAND...: runs a command for MOST seconds at most, if LEAST are left. Its output goes to
# NAME.json (where it is a document) or NAME.txt, what it says to NAME.log. KIND: `check` makes the run fail where the
# command does, `figure` does not.
step() {
    local name=$1 least=$2 most=$3 kind=$4 start=$SECONDS limit status last ending=txt
    shift 4
    # What comes last is left its time.
    limit=$(($(left) - reserve))
    if ((limit < least)); then
        [ "$kind" = check ] && n_skipped=$((n_skipped + 1))
        note "$name" skipped 0 "it takes $least s, $limit s are left"
        return 4
    fi
    ((limit > most)) && limit=$most
    # In the background, so that a signal to this script does not wait for the command.
    timeout --kill-after=3 "$limit" "$@" >"$work/out" 2>"$work/results/$name.log" &
    child=$!
    wait "$child"
    status=$?
    child=
    [ "$(head -c 1 "$work/out")" = "{" ] && ending=json
    mv "$work/out" "$work/results/$name.$ending"
    last=$(tail -n 1 "$work/results/$name.log" 2>/dev/null | cut -c1-200)
    case $status in
        0) note "$name" done $((SECONDS - start)) ;;
        124 | 137)
            note "$name" "timed out" $((SECONDS - start)) "after $limit s"
            [ "$kind" = check ] && has_failed=1
            ;;
        *)
            note "$name" FAILED $((SECONDS - start)) "exit status $status: $last"
            [ "$kind" = check ] && has_failed=1
            ;;
    esac
    pack
    return "$status"
}

absent() { note "$1" skipped 0 "$2"; }

# Where PyTorch is, without importing it: that takes seconds, and the steps do it themselves.
find_torch() {
    python=${PYTHON:-$(command -v python3 || command -v python)}
    no_torch=""
    if [ -z "$python" ]; then
        no_torch="no python3 on PATH"
    else
        no_torch=$(timeout 20 "$python" -c 'import importlib.util as find
print(*(name for name in ("torch", "transformers", "safetensors") if find.find_spec(name) is None))' 2>&1) ||
            no_torch="$python does not run: $no_torch"
        [ -n "$no_torch" ] && no_torch="$python has no $no_torch"
    fi
    # Nothing is to be fetched, and the home folder may not be writable. Triton compiles with a C compiler.
    export HF_HUB_OFFLINE=1 TRITON_CACHE_DIR="$work/triton" TORCHINDUCTOR_CACHE_DIR="$work/inductor"
}

# torch_step NAME LEAST MOST KIND ARGUMENT...: a step of PyTorch, if it is there.
torch_step() {
    local name=$1 least=$2 most=$3 kind=$4
    shift 4
    if [ -z "$no_torch" ]; then
        step "$name" "$least" "$most" "$kind" "$python" "$@"
    else
        absent "$name" "$no_torch"
    fi
}

# Losses, logits, gradients, and what three steps change, on the device against the CPU. In f32 only the order of sums
# differs. In bf16 the emulator, with this network, is off by 1.1 % of a gradient at most, and by 12 % of an update: AdamW
# divides gradients that are nearly nothing by their own size. Three and two times that is allowed.
compare_steps() {
    local dtype tolerance update_tolerance allowed
    step model 1 20 check "$here/gpu" model "$work/model" "${tiny[@]}" || return
    local common=(--model "$work/model" --batch "$work/model/batch.safetensors" "${tasks[@]}" --pooling mean
        --learning-rate 1e-4 --json)
    step step-cpu 3 40 check "$here/frostline" step "${common[@]}" --steps 3 --device cpu --dtype f32 \
        --dump "$work/cpu.safetensors" || return
    for allowed in "f32 1e-4 1e-2" "bf16 3e-2 2.5e-1"; do
        read -r dtype tolerance update_tolerance <<<"$allowed"
        step "step-$dtype" 3 40 check "$here/frostline" step "${common[@]}" --steps 3 --device "$device" \
            --dtype "$dtype" --dump "$work/$dtype.safetensors" &&
            step "compare-$dtype" 1 20 check "$here/gpu" compare "$work/cpu.safetensors" "$work/$dtype.safetensors" \
                --initial "$work/model/model.safetensors" --tolerance "$tolerance" \
                --update-tolerance "$update_tolerance"
    done
}

part_a() {
    step doctor 5 90 check "$here/frostline" doctor --device "$device" --json "${doctor[@]}"
    timeout 10 nvidia-smi --query-gpu=name,driver_version,clocks.sm,temperature.gpu --format=csv >"$work/results/gpu.csv" 2>&1
    compare_steps
    step bench-main 5 60 check "$here/frostline" bench "${main[@]}" --rounds "$rounds" --quick --device "$device" --json
    torch_step torch-main 15 60 figure "$here/benches/pytorch/freeze.py" "${main[@]}" --rounds "$rounds" \
        --device "$torch_device" --dtype "$torch_dtype" --seconds 20 --json
    step shapes 5 40 check "$here/gpu" shapes "$work/shapes" --device "$device"
    cp "$work/shapes/shapes.json" "$work/results/" 2>/dev/null
    torch_step torch-shapes 15 60 check "$here/benches/pytorch/shapes.py" "$work/shapes" --device "$torch_device" --json
    step profile 5 40 figure "$here/frostline" profile "${profiled[@]}" --device "$device" --json
}

part_b() {
    local workload arch size length scenarios
    # For the counters and the sanitizers.
    reserve=$((seconds / 3))
    if [ "$device" = emulated ]; then step model 1 20 figure "$here/gpu" model "$work/model" --tiny; fi
    for workload in "${others[@]}"; do
        read -r arch size length scenarios <<<"$workload"
        local options=(--arch "$arch" "${tasks[@]}" --batch-size "$size" --max-length "$length" --scenarios "$scenarios"
            --rounds "$rounds" --json)
        step "bench-$arch-$size-$length" 8 30 check "$here/frostline" bench "${options[@]}" --quick --device "$device"
        torch_step "torch-$arch-$size-$length" 15 30 figure "$here/benches/pytorch/freeze.py" "${options[@]}" \
            --device "$torch_device" --dtype "$torch_dtype" --seconds 8
    done
    torch_step torch-main-compile 30 110 figure "$here/benches/pytorch/freeze.py" "${main[@]}" --scenarios "$compiled" \
        --rounds "$rounds" --device "$torch_device" --dtype "$torch_dtype" --seconds 10 --compile --json
    reserve=$((seconds / 5))
    count_kernels
    reserve=0
    sanitize
}

# What five kernels do to the memory and the multiprocessors, two launches of each shape in the one step that the
# profiler is told to record. Clocks stay as they are: the counts are to be read beside the times.
count_kernels() {
    local kernels='gemm_fwd_bf16_128x128|gemm_wgrad_bf16_128x128|attention_fwd_bf16_tile_64|layernorm_bwd_bf16_3|adamw_step'
    if ! command -v ncu >/dev/null; then
        absent ncu "no ncu on PATH"
        return
    fi
    step ncu 15 60 figure ncu --profile-from-start off --csv --page raw --clock-control none \
        --section SpeedOfLight --section MemoryWorkloadAnalysis --section Occupancy --section SchedulerStats \
        --kernel-name "regex:^($kernels)\$" --filter-mode per-launch-config --launch-count 2 \
        "$here/frostline" profile "${profiled[@]}" --rounds 1 --warmup 1 --profile-steps 1:2 --device "$device"
}

sanitize() {
    local tool
    if ! command -v compute-sanitizer >/dev/null; then
        absent sanitizers "no compute-sanitizer on PATH: accesses and barriers are not checked"
        return
    fi
    for tool in memcheck synccheck; do
        step "$tool" 10 60 check compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$here/frostline" doctor --device "$device" --quick
    done
}

# Whatever ends the run: what there is is packed, and nothing of ours goes on.
finish() {
    trap - EXIT INT TERM HUP
    if [ -n "$child" ]; then
        kill -TERM "$child" 2>/dev/null
        wait "$child" 2>/dev/null
        mv "$work/out" "$work/results/stopped.txt" 2>/dev/null
    fi
    [ -n "${1:-}" ] && note "$1" stopped $((SECONDS - begun)) "by a signal"
    pack
    rm -rf "$work"
}

run() {
    part="" seconds="" device=cuda out=""
    while [ $# -gt 0 ]; do
        case $1 in
            --part) part=${2:-} && shift ;;
            --seconds) seconds=${2:-} && shift ;;
            --device) device=${2:-} && shift ;;
            -*) usage ;;
            *) out=$1 ;;
        esac
        shift
    done
    case $part in
        a) : "${seconds:=240}" ;;
        b) : "${seconds:=300}" ;;
        *) usage ;;
    esac
    case $device in cuda | emulated) ;; *) usage ;; esac
    case $seconds in '' | *[!0-9]*) usage ;; esac
    out=${out:-$here/results} begun=$SECONDS child="" has_failed=0 n_skipped=0 reserve=0
    mkdir -p "$out" || exit 1
    work=$(mktemp -d) || exit 1
    mkdir "$work/results"
    : >"$out/summary-$part.txt"
    trap 'finish' EXIT
    trap 'finish "part $part"; exit 130' INT TERM HUP
    choose_workloads
    find_torch
    # By a question to the driver: a kernel that fails is no reason to stop.
    if [ "$device" = cuda ]; then
        step probe 1 20 figure "$here/gpu" probe
        [ $? = 3 ] && exit 3
    fi
    "part_$part"
    local verdict="no check failed"
    ((has_failed)) && verdict="a check failed, or did not end"
    ((n_skipped)) && verdict+="; $n_skipped checks left out for lack of time"
    note "part $part" done $((SECONDS - begun)) "$verdict"
    exit "$has_failed"
}

case "${1:-}" in
    bundle) bundle "${2:?the folder to write}" "${3:-}" ;;
    run) shift && run "$@" ;;
    *) usage ;;
esac
