// Kinds of access, and lines of source for messages about them.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace emulator {

enum Access { ACCESS_READ, ACCESS_WRITE };

// Races are looked for in units of two bytes, the smallest element that kernels have.
constexpr size_t UNIT_BYTES = 2;

// An instruction of a kernel in 4 bytes: its distance from some point of the program.
class Instruction {
 public:
  Instruction() = default;
  explicit Instruction(const void* pc);
  const void* pc() const;

 private:
  int32_t distance_ = 0;
};

// The line of an instruction, with the lines that inlined it: "common.cuh:59 < layernorm.cu:120". Asks
// addr2line, as it is for error messages only; without it, the offset into the program. The text lives until
// some calls later.
const char* line_of(const void* pc);

}  // namespace emulator
