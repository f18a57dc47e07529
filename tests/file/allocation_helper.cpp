// Counts what the program allocates: a reader may not take memory by a malformed file's word.
#include <malloc.h>

#include <cstdlib>
#include <new>

#include "file/bytes.h"

namespace {
thread_local size_t live = 0;
thread_local size_t peak = 0;

void* counted_or_null(size_t n) noexcept {
  void* p = std::malloc(n ? n : 1);
  if (!p) return nullptr;
  live += malloc_usable_size(p);
  if (live > peak) peak = live;
  return p;
}
void* counted(size_t n) {
  void* p = counted_or_null(n);
  if (!p) throw std::bad_alloc();
  return p;
}
void release(void* p) {
  if (!p) return;
  live -= malloc_usable_size(p);
  std::free(p);
}
}  // namespace

void* operator new(size_t n) {
  return counted(n);
}
void* operator new[](size_t n) {
  return counted(n);
}
void* operator new(size_t n, const std::nothrow_t&) noexcept {
  return counted_or_null(n);
}
void* operator new[](size_t n, const std::nothrow_t&) noexcept {
  return counted_or_null(n);
}
void operator delete(void* p) noexcept {
  release(p);
}
void operator delete[](void* p) noexcept {
  release(p);
}
void operator delete(void* p, size_t) noexcept {
  release(p);
}
void operator delete[](void* p, size_t) noexcept {
  release(p);
}

namespace mt::test {
size_t live_allocations() {
  return live;
}
void reset_peak_allocations() {
  peak = live;
}
size_t peak_allocations() {
  return peak;
}
}  // namespace mt::test
