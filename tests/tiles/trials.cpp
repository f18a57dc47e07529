// The tile product of a build (its amx.cpp.o) on a processor model that has tiles, without an
// operating system: run.sh links and starts it. Prints to the console of Bochs.
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "kernels/amx.h"

namespace {

void out(uint16_t port, char byte) {
  __asm__ volatile("outb %0, %1" : : "a"(byte), "Nd"(port));
}

void put(char c) {
  out(0xe9, c);  // Bochs' console
}

void print(const char* text) {
  while (*text != 0) put(*text++);
}

void print(uint64_t n) {
  if (n >= 10) print(n / 10);
  put(static_cast<char>('0' + n % 10));
}

uint32_t state = 31;
uint32_t random16() {
  state = state * 1664525 + 1013904223;
  return state >> 16;
}

// bf16 between 2^-4 and 2^4, of both signs
uint32_t half() {
  return (random16() & 0x807f) | (123 + random16() % 8) << 7;
}

double value(uint32_t bits) {
  float f;
  __builtin_memcpy(&f, &bits, sizeof f);
  return static_cast<double>(f);
}
double first(uint32_t pair) {
  return value(pair << 16);
}
double second(uint32_t pair) {
  return value(pair & 0xffff0000u);
}

constexpr int64_t kRows = 83, kPairs = 128, kLda = kPairs + 16, kLdb = 32;
uint32_t a[kRows * kLda], b[kPairs * kLdb];
float c[kRows * (32 + 3)];

uint64_t wrong = 0, sums = 0;

void trial(int64_t m, int64_t n, int64_t k, bool accumulate) {
  const int64_t ldc = n + 3;
  for (uint32_t& w : a) w = half() | half() << 16;
  for (uint32_t& w : b) w = half() | half() << 16;
  for (float& f : c) f = 0.5f;
  mt::amx_gemm_pairs(m, n, k, a, kLda, b, kLdb, c, ldc, accumulate);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < ldc; ++j) {
      double sum = accumulate || j >= n ? 0.5 : 0.0, magnitude = j >= n ? 0.0 : 0.5;
      for (int64_t p = 0; p < k && j < n; ++p) {
        const uint32_t x = a[i * kLda + p], y = b[p * kLdb + j];
        const double products[] = {first(x) * first(y), second(x) * second(y)};
        for (double product : products) {
          sum += product;
          magnitude += __builtin_fabs(product);
        }
      }
      ++sums;
      if (!(__builtin_fabs(static_cast<double>(c[i * ldc + j]) - sum) <= 2e-6 * magnitude)) ++wrong;
    }
}

}  // namespace

// What amx.cpp.o takes from a C library.
extern "C" {
float fmaf(float x, float y, float z) {
  return static_cast<float>(static_cast<double>(x) * static_cast<double>(y) +
                            static_cast<double>(z));
}
char* getenv(const char*) {
  return nullptr;
}
int strcmp(const char* x, const char* y) {
  while (*x != 0 && *x == *y) ++x, ++y;
  return *x - *y;
}
void* memcpy(void* to, const void* from, size_t n) {
  for (size_t i = 0; i < n; ++i)
    static_cast<volatile char*>(to)[i] = static_cast<const char*>(from)[i];
  return to;
}
void* memset(void* to, int byte, size_t n) {
  for (size_t i = 0; i < n; ++i) static_cast<volatile char*>(to)[i] = static_cast<char>(byte);
  return to;
}
long syscall(long, ...) {
  return 0;  // nobody to ask for permission
}
int __cxa_guard_acquire(uint64_t* guard) {
  return *reinterpret_cast<char*>(guard) == 0;
}
void __cxa_guard_release(uint64_t* guard) {
  *reinterpret_cast<char*>(guard) = 1;
}
void __cxa_guard_abort(uint64_t*) {}
void _Unwind_Resume() {}
void __gxx_personality_v0() {}

void run_trials() {
  print("tiles are offered: ");
  print(mt::amx_runs() ? "yes\n" : "no\n");
  for (int64_t m : {1, 5, 16, 17, 31, 32, 33, 64, 83})
    for (int64_t n : {1, 15, 16, 20, 32})
      for (int64_t k : {16, 32, 128})
        for (bool accumulate : {false, true}) trial(m, n, k, accumulate);
  print(sums);
  print(" sums, wrong: ");
  print(wrong);
  print("\n");
  for (const char* c = "Shutdown"; *c != 0; ++c) out(0x8900, *c);  // ends Bochs
}
}
