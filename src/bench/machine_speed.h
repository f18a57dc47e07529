#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/matrix.h"
#include "base/threads.h"

namespace mt {

// What the threads of a pool reach together on this machine: the bounds of every model's speed.
struct UnitSpeed {
  std::string name;       // of the multiplying unit (kernels/peak.h)
  double operations = 0;  // a second; a multiply-add counts as two
};
struct MachineSpeed {
  int threads = 0;
  double read_bytes = 0;  // bytes a second from memory
  std::vector<UnitSpeed> units;

  // The fastest unit whose name begins so; 0 where there is none.
  double fastest(std::string_view kind) const;
};

// Memory that is read to see how fast that goes.
class MemoryToRead {
 public:
  // bytes: several times a last-level cache, for the figures to mean memory.
  explicit MemoryToRead(int64_t bytes);
  int64_t bytes() const { return static_cast<int64_t>(memory_.size()); }
  // Bytes a second, all threads in eight streams each; the best of `repeats` passes, since
  // neighbours only ever make a machine slower.
  double speed(ThreadPool& pool, int repeats) const;

 private:
  AlignedBuffer<std::byte> memory_;
};

// Reads the memory and keeps every unit busy for a few tens of milliseconds; the best of
// `repeats`.
MachineSpeed measure_machine(ThreadPool& pool, const MemoryToRead& memory, int repeats);

}  // namespace mt
