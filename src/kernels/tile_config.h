#pragma once
#include <cstddef>
#include <cstdint>

namespace mt {

// What ldtilecfg reads (Intel's Software Developer's Manual, volume 1, palette 1): eight tiles of
// up to 16 rows of 64 bytes. Tiles 0 to 3 hold sums, 4 and 5 the rows of a, 6 and 7 the columns of
// b.
struct alignas(64) TileConfig {
  static constexpr int64_t kRows = 16;

  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  // Sums and inputs of `first` and then `second` tokens; all of b.
  constexpr TileConfig(int64_t first, int64_t second) {
    const int64_t rows_of[8] = {first, first, second, second, first, second, kRows, kRows};
    for (size_t t = 0; t < 8; ++t)
      if (rows_of[t] > 0) row_bytes[t] = 64, rows[t] = static_cast<uint8_t>(rows_of[t]);
  }
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace mt
