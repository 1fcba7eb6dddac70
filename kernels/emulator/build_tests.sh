#!/usr/bin/env bash
# Builds and runs the checks of one family of kernels on the emulator.
#   kernels/emulator/build_tests.sh FAMILY [plain | asan | tsan]
# plain: all schedules, and the emulator's own checks for races. asan: accesses out of bounds and undefined
# behaviour. tsan: data races, with the compiler's detector. Objects are kept under target/emulator.
set -euo pipefail
cd "$(dirname "$0")/../.."

family=${1:?which family?}
mode=${2:-plain}
case $family in
  embedding | layernorm | elementwise | head | optimizer) kernels=$family ;;
  gemm) kernels="gemm_f32 gemm_bf16" ;;
  attention) kernels="attention_plain attention_tile attention_long" ;;
  selftest) kernels="emulator/tests/selftest" ;;
  *) echo "unknown family $family" >&2; exit 2 ;;
esac

# kernel_flags: for kernels only. The calls that -fsanitize=thread inserts go to the emulator itself in
# plain mode, see cuda_host.h.
case $mode in
  plain) flags="-O2"; kernel_flags="-fsanitize=thread"; link_flags="" ;;
  asan)
    flags="-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
    kernel_flags=""; link_flags="-fsanitize=address,undefined" ;;
  tsan) flags="-O1 -DEMULATOR_TSAN"; kernel_flags="-fsanitize=thread"; link_flags="-fsanitize=thread" ;;
  *) echo "unknown mode $mode" >&2; exit 2 ;;
esac

out=target/emulator/$mode
mkdir -p "$out"
compile="nice ${CXX:-g++} -std=c++17 -g $flags -Wall -Wextra -Wno-unknown-pragmas -Wno-class-memaccess
  -Wno-sign-compare -Wno-tsan -Ikernels -Ikernels/emulator -Ikernels/emulator/shim
  -include kernels/emulator/cuda_host.h"
objects=()

# make_object SOURCE OBJECT FLAGS...: compiles unless the object is newer than all it was made from.
make_object() {
  local source=$1 object=$out/$2.o
  shift 2
  objects+=("$object")
  if [[ -f $object && -f $object.d ]]; then
    local newer
    newer=$(sed -e 's/^[^:]*://' -e 's/\\$//' "$object.d" |
      xargs -r sh -c 'for file; do if [ "$file" -nt "$0" ]; then echo "$file"; fi; done' "$object")
    if [[ -z $newer && ! $0 -nt $object ]]; then return; fi
  fi
  $compile "$@" -MMD -MF "$object.d" -x c++ -c "$source" -o "$object.$$"
  mv "$object.$$" "$object"
}

for source in kernels/emulator/*.cpp; do make_object "$source" "runtime_$(basename "$source" .cpp)"; done
for kernel in $kernels; do make_object "kernels/$kernel.cu" "$(basename "$kernel")" $kernel_flags; done
make_object "kernels/emulator/tests/$family.cpp" "test_$family"

${CXX:-g++} "${objects[@]}" $link_flags -o "$out/$family" -lpthread
"$out/$family"
