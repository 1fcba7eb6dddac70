#include "access.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

namespace emulator {

namespace {

const char ORIGIN = 0;

}  // namespace

Instruction::Instruction(const void* pc)
    : distance_(static_cast<int32_t>(reinterpret_cast<intptr_t>(pc) - reinterpret_cast<intptr_t>(&ORIGIN))) {}

const void* Instruction::pc() const {
  return reinterpret_cast<const void*>(reinterpret_cast<intptr_t>(&ORIGIN) + distance_);
}

const char* line_of(const void* pc) {
  static thread_local char texts[4][512];
  static thread_local int next;
  char* text = texts[next++ % 4];
  snprintf(text, sizeof texts[0], "an unknown line");
  Dl_info info{};
  char program[1024] = "";
  if (!pc || dladdr(pc, &info) == 0) return text;
  if (readlink("/proc/self/exe", program, sizeof program - 1) < 0) return text;
  // pc is the address that a call returns to: one byte before lies in the call.
  const uintptr_t offset = reinterpret_cast<uintptr_t>(pc) - reinterpret_cast<uintptr_t>(info.dli_fbase) - 1;
  snprintf(text, sizeof texts[0], "offset 0x%zx", size_t(offset));
  char command[1200];
  snprintf(command, sizeof command, "addr2line -s -i -e '%s' 0x%zx 2>/dev/null", program, size_t(offset));
  FILE* output = popen(command, "r");
  if (!output) return text;
  size_t length = 0;
  char line[256];
  while (fgets(line, sizeof line, output) && line[0] != '?' && length + sizeof line < sizeof texts[0]) {
    line[strcspn(line, " \n")] = 0;  // a line number may be followed by a discriminator
    length += size_t(snprintf(text + length, sizeof texts[0] - length, "%s%s", length ? " < " : "", line));
  }
  pclose(output);
  return text;
}

}  // namespace emulator
