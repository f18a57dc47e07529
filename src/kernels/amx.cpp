#include "kernels/amx.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "kernels/attributes.h"
#include "kernels/tile_config.h"

// Tiles 0 to 3 hold 32 x 32 sums, 4 and 5 the rows of a, 6 and 7 the columns of b: four products
// for four tiles that are loaded. A tile is 16 rows of 64 bytes: 16 sums, or 16 pairs.
namespace mt {
namespace {

constexpr int64_t kTile = TileConfig::kRows;

#define MT_TILES __attribute__((target("amx-tile,amx-bf16")))

// The instructions are written out: g++ 12's intrinsics tell the compiler neither what memory they
// read (stores before them get lost) nor take a template's number for a tile's.
struct Hardware {
  MT_TILES static void configure(const TileConfig& config) {
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }
  MT_TILES static void release() { __asm__ volatile("tilerelease"); }
  template <int T>
  MT_TILES static void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(T));
  }
  // stride: bytes from row to row
  template <int T>
  MT_TILES static void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(T), "r"(from), "r"(stride) : "memory");
  }
  template <int T>
  MT_TILES static void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(T), "r"(to), "r"(stride) : "memory");
  }
  template <int C, int A, int B>
  MT_TILES static void multiply() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
};

// Intel's Software Developer's Manual, volume 2: TDPBF16PS and the loads. The first values of the
// pairs are summed apart from the second ones.
struct Plain {
  static inline thread_local TileConfig config{0, 0};
  static inline thread_local uint32_t tile[8][kTile][kTile];

  static void configure(const TileConfig& c) {
    config = c;
    std::memset(tile, 0, sizeof tile);
  }
  static void release() { configure(TileConfig(0, 0)); }
  template <int T>
  static void zero() {
    std::memset(tile[T], 0, sizeof tile[T]);
  }
  template <int T>
  static void load(const void* from, int64_t stride) {
    zero<T>();
    for (int64_t r = 0; r < config.rows[T]; ++r)
      std::memcpy(tile[T][r], static_cast<const char*>(from) + r * stride, config.row_bytes[T]);
  }
  template <int T>
  static void store(void* to, int64_t stride) {
    for (int64_t r = 0; r < config.rows[T]; ++r)
      std::memcpy(static_cast<char*>(to) + r * stride, tile[T][r], config.row_bytes[T]);
  }
  template <int C, int A, int B>
  static void multiply() {
    auto first = [](uint32_t pair) { return std::bit_cast<float>(pair << 16); };
    auto second = [](uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); };
    for (int64_t r = 0; r < config.rows[C]; ++r)
      for (int64_t j = 0; j < config.row_bytes[C] / 4; ++j) {
        float sums[2] = {};
        for (int64_t p = 0; p < config.row_bytes[A] / 4; ++p) {
          sums[0] = std::fma(first(tile[A][r][p]), first(tile[B][p][j]), sums[0]);
          sums[1] = std::fma(second(tile[A][r][p]), second(tile[B][p][j]), sums[1]);
        }
        tile[C][r][j] =
            std::bit_cast<uint32_t>(std::bit_cast<float>(tile[C][r][j]) + (sums[0] + sums[1]));
      }
  }
};

// Up to 32 rows of c, all 32 columns. second: rows beyond the first 16, 0 for none.
template <class Tiles>
MT_TILES void block(int64_t second, int64_t k, const uint32_t* a, int64_t lda, const uint32_t* b,
                    int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  const int64_t a_step = lda * 4, b_step = ldb * 4, c_step = ldc * 4;
  Tiles::template zero<0>();
  Tiles::template zero<1>();
  if (accumulate) {
    Tiles::template load<0>(c, c_step);
    Tiles::template load<1>(c + kTile, c_step);
  }
  if (second > 0) {
    Tiles::template zero<2>();
    Tiles::template zero<3>();
    if (accumulate) {
      Tiles::template load<2>(c + kTile * ldc, c_step);
      Tiles::template load<3>(c + kTile * ldc + kTile, c_step);
    }
  }
  for (int64_t p = 0; p < k; p += kTile) {
    Tiles::template load<6>(b + p * ldb, b_step);
    Tiles::template load<7>(b + p * ldb + kTile, b_step);
    Tiles::template load<4>(a + p, a_step);
    Tiles::template multiply<0, 4, 6>();
    Tiles::template multiply<1, 4, 7>();
    if (second > 0) {
      Tiles::template load<5>(a + kTile * lda + p, a_step);
      Tiles::template multiply<2, 5, 6>();
      Tiles::template multiply<3, 5, 7>();
    }
  }
  Tiles::template store<0>(c, c_step);
  Tiles::template store<1>(c + kTile, c_step);
  if (second > 0) {
    Tiles::template store<2>(c + kTile * ldc, c_step);
    Tiles::template store<3>(c + kTile * ldc + kTile, c_step);
  }
}

template <class Tiles>
MT_TILES void gemm(int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t lda,
                   const uint32_t* b, int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  int64_t configured = 0;  // rows
  alignas(64) float narrow[2 * kTile][2 * kTile];
  for (int64_t i = 0; i < m; i += 2 * kTile) {
    const int64_t rows = std::min(2 * kTile, m - i), second = std::max<int64_t>(0, rows - kTile);
    if (rows != configured) Tiles::configure(TileConfig(std::min(rows, kTile), second));
    configured = rows;
    const uint32_t* from = a + i * lda;
    float* to = c + i * ldc;
    if (n == 2 * kTile) {
      block<Tiles>(second, k, from, lda, b, ldb, to, ldc, accumulate);
      continue;
    }
    for (int64_t r = 0; r < rows && accumulate; ++r) {
      std::copy_n(to + r * ldc, n, narrow[r]);
      std::fill(narrow[r] + n, narrow[r] + 2 * kTile, 0.0f);
    }
    block<Tiles>(second, k, from, lda, b, ldb, narrow[0], 2 * kTile, accumulate);
    for (int64_t r = 0; r < rows; ++r) std::copy_n(narrow[r], n, to + r * ldc);
  }
  if (configured > 0) Tiles::release();
}

bool has_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned wanted = 1u << 22 | 1u << 24 | 1u << 25;  // AMX-BF16, AMX-TILE, AMX-INT8
  if ((d & wanted) != wanted) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// MICROTOME_ISA with another name keeps the unit untouched: no permission asked, no product tried.
bool wanted() {
  const char* isa = std::getenv("MICROTOME_ISA");
  return isa == nullptr || *isa == '\0' || std::strcmp(isa, "avx512amx") == 0;
}

}  // namespace

bool agrees_with_plain_tiles(GemmTiles gemm_of_unit) {
  // Rows of three batches, the last of one row; columns that are copied by and by, and 32, which
  // the unit reads and writes where they lie.
  constexpr int64_t m = 33, k = 32;
  uint32_t a[m * k], b[k * 32];
  float on_unit[m * 32], plain[m * 32];
  uint32_t bits = 1;
  auto fill = [&](uint32_t* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      bits = bits * 1664525 + 1013904223;
      const uint32_t first = 0x3f80 + (bits >> 16 & 0x7f), second = 0xbf00 + (bits >> 8 & 0x7f);
      to[i] = first | second << 16;
    }
  };
  fill(a, m * k);
  fill(b, k * 32);
  for (const int64_t n : {20, 32})
    for (const bool accumulate : {false, true}) {
      for (int64_t i = 0; i < m * n; ++i) on_unit[i] = plain[i] = static_cast<float>(i % 89);
      gemm_of_unit(m, n, k, a, k, b, 32, on_unit, n, accumulate);
      plain_tiles_gemm_pairs(m, n, k, a, k, b, 32, plain, n, accumulate);
      for (int64_t i = 0; i < m * n; ++i)
        if (!(std::fabs(on_unit[i] - plain[i]) <= 1e-4f * std::fabs(plain[i]))) return false;
    }
  return true;
}

bool amx_runs() {
  static const bool runs = wanted() && has_tiles() && agrees_with_plain_tiles(amx_gemm_pairs);
  return runs;
}

void amx_gemm_pairs(int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t lda,
                    const uint32_t* b, int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  gemm<Hardware>(m, n, k, a, lda, b, ldb, c, ldc, accumulate);
}

void plain_tiles_gemm_pairs(int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t lda,
                            const uint32_t* b, int64_t ldb, float* c, int64_t ldc,
                            bool accumulate) {
  gemm<Plain>(m, n, k, a, lda, b, ldb, c, ldc, accumulate);
}

}  // namespace mt
