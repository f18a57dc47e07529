#pragma once
#include <atomic>
#include <cstdint>
#include <string>
#include <thread>

namespace mt {

// The processor's name with the instruction sets that matter here: "AMD EPYC (avx512 vnni bf16)".
std::string cpu_name();

// Physical memory of the machine; 0 where unknown.
int64_t machine_bytes();

// Memory that this process may still take without pushing others out: of the machine and of its
// cgroup, pages of files that can be read again counted as free. INT64_MAX where unknown.
int64_t free_memory_bytes();

// Addresses that limits (ulimit -v, -d) leave this process; INT64_MAX where there are none.
int64_t free_address_bytes();

// Anonymous memory of this process now (mapped model files not counted); 0 where unknown.
int64_t anonymous_bytes();

// Lets malloc keep freed blocks of up to 256 MB for the next that asks, instead of giving them back
// to the kernel, which has to clear every page again: a tenth of a refinement step. For the start
// of a program; where the C library is not glibc it does nothing.
void keep_freed_memory();

// Watches anonymous memory for as long as it lives, ten times a second.
class MemoryWatch {
 public:
  MemoryWatch();
  ~MemoryWatch();
  MemoryWatch(const MemoryWatch&) = delete;
  MemoryWatch& operator=(const MemoryWatch&) = delete;
  int64_t peak_bytes();

 private:
  void look();
  std::atomic<int64_t> peak_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace mt
