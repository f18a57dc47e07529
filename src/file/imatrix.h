#pragma once
#include <filesystem>
#include <string>
#include <vector>

namespace mt {

// An importance matrix: per weight, the sum of squares of each input channel over `count` rows.
struct ImatrixEntry {
  std::string tensor;          // "blk.0.attn_q.weight"
  std::vector<float> in_sum2;  // [in]
  double count = 0;
};
struct Imatrix {
  std::vector<std::string> datasets;
  int64_t chunk_count = 0;
  int64_t chunk_size = 0;
  std::vector<ImatrixEntry> entries;
};
// GGUF form (general.type = "imatrix", <tensor>.in_sum2 and <tensor>.counts). Throws Error.
Imatrix read_imatrix(const std::filesystem::path& path);
void write_imatrix(const std::filesystem::path& path, const Imatrix& imatrix);

}  // namespace mt
