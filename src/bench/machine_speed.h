#pragma once
#include <cstdint>
#include <string>
#include <vector>

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

// Reads `bytes` of memory (several times a last-level cache, for the figure to mean memory) in
// eight streams a thread, and keeps every unit busy for a few tens of milliseconds; the best of
// `repeats` is kept, since neighbours only ever make a machine slower.
MachineSpeed measure_machine(ThreadPool& pool, int64_t bytes, int repeats);

}  // namespace mt
