#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>
#include <tuple>

#include "base/checked.h"
#include "base/progress.h"
#include "cli/inspect_facts.h"
#include "cli/terminal.h"
#include "model/duplicate.h"

namespace mt::cli {
namespace {

int64_t size_of(const Tensor& t) {
  return static_cast<int64_t>(t.data.bytes.size());
}

void add_duplicated_head(const TensorFile& file, std::vector<Waste>& wastes) {
  auto difference = head_is_embedding(file);
  if (!difference) return;
  const Tensor& head = *file.find_tensor("output.weight");
  const Tensor& embedding = *file.find_tensor("token_embd.weight");
  wastes.push_back(
      {.kind = "head_is_embedding",
       .text = fmt::format(
           "output.weight ({}, {}) and token_embd.weight ({}, {}) are one matrix stored twice "
           "(they differ by {:.2g} of its RMS, within their rounding): one of them can serve both",
           name(head.dtype), human_bytes(size_of(head)), name(embedding.dtype),
           human_bytes(size_of(embedding)), *difference),
       .bytes = std::min(size_of(head), size_of(embedding)),
       .relative_rms = *difference});
}

// Matrices of the same bytes. Small ones are not worth a line.
void add_identical(const TensorFile& file, bool skip_head, std::vector<Waste>& wastes) {
  std::map<std::tuple<Dtype, std::vector<int64_t>>, std::vector<const Tensor*>> alike;
  for (const Tensor& t : file.tensors)
    if (t.shape.size() >= 2 && size_of(t) >= 65536) alike[{t.dtype, t.shape}].push_back(&t);
  for (auto& [key, group] : alike)
    for (size_t i = 0; i < group.size(); ++i)
      for (size_t j = i + 1; j < group.size();) {
        auto a = group[i]->data.bytes, b = group[j]->data.bytes;
        bool head_pair =
            skip_head && (group[i]->name == "output.weight" || group[j]->name == "output.weight");
        // Two tensors of zeros are no copy of each other.
        bool same = !head_pair && a.size() == b.size() &&
                    std::memcmp(a.data(), b.data(), a.size()) == 0 &&
                    std::any_of(a.begin(), a.end(), [](std::byte x) { return x != std::byte{0}; });
        if (!same) {
          ++j;
          continue;
        }
        wastes.push_back({.kind = "identical_tensors",
                          .text = fmt::format("{} holds the same bytes as {}",
                                              printable(group[j]->name), printable(group[i]->name)),
                          .bytes = size_of(*group[j])});
        group.erase(group.begin() + static_cast<std::ptrdiff_t>(j));
      }
}

enum class Narrow { no, f16, bf16 };

// Whether every value of an F32 tensor is exactly a 16-bit float. Ends at the first that is not.
Narrow narrows(const Tensor& t, ThreadPool& pool) {
  int64_t n = size_of(t) / 4;
  constexpr int64_t block = 1 << 16;
  std::atomic<bool> f16{true}, bf16{true};
  pool.parallel_for(ceil_div(n, block), [&](int64_t b, int) {
    bool half = f16, brain = bf16;
    for (int64_t i = b * block; i < std::min(n, (b + 1) * block) && (half || brain); ++i) {
      float x;
      std::memcpy(&x, t.data.bytes.data() + i * 4, 4);
      if (half && half_to_float(float_to_half(x)) != x) half = false;
      if (brain && bf16_to_float(float_to_bf16(x)) != x) brain = false;
    }
    if (!half) f16 = false;
    if (!brain) bf16 = false;
  });
  return f16 ? Narrow::f16 : bf16 ? Narrow::bf16 : Narrow::no;
}

// Matrices only: norms and biases are small and readers expect them in F32.
void add_wide_floats(const TensorFile& file, ThreadPool& pool, std::vector<Waste>& wastes) {
  std::vector<const Tensor*> wide;
  for (const Tensor& t : file.tensors)
    if (t.dtype == Dtype::F32 && t.shape.size() >= 2 && size_of(t) >= 65536) wide.push_back(&t);
  Progress progress("reading F32 tensors", wide.size());
  int64_t bytes[3] = {}, count[3] = {};
  for (const Tensor* t : wide) {
    Narrow narrow = narrows(*t, pool);
    bytes[int(narrow)] += size_of(*t) / 2;
    ++count[int(narrow)];
    progress.advance();
  }
  for (Narrow narrow : {Narrow::f16, Narrow::bf16})
    if (count[int(narrow)])
      wastes.push_back(
          {.kind = "f32_fits_16_bits",
           .text = fmt::format("{} F32 matrices hold only values that {} holds too",
                               count[int(narrow)], narrow == Narrow::f16 ? "F16" : "BF16"),
           .bytes = bytes[int(narrow)]});
}

void add_padding(const TensorFile& file, std::vector<Waste>& wastes) {
  if (file.format != "gguf") return;
  uint64_t alignment = static_cast<uint64_t>(file.get_int("general.alignment").value_or(32));
  if (alignment == 0) return;
  int64_t padding = 0;
  for (const Tensor& t : file.tensors) {
    uint64_t n = static_cast<uint64_t>(size_of(t));
    padding += static_cast<int64_t>((alignment - n % alignment) % alignment);
  }
  // Less than a thousandth of the file is the format's way, not waste.
  int64_t all = 0;
  for (const Tensor& t : file.tensors) all += size_of(t);
  if (padding > 4096 && padding > all / 1000)
    wastes.push_back({.kind = "padding",
                      .text = fmt::format("padding between tensors (alignment {})", alignment),
                      .bytes = padding});
}

}  // namespace

std::vector<Waste> find_waste(const TensorFile& file, ThreadPool& pool) {
  std::vector<Waste> wastes;
  add_duplicated_head(file, wastes);
  add_identical(file, !wastes.empty(), wastes);
  add_wide_floats(file, pool, wastes);
  add_padding(file, wastes);
  std::stable_sort(wastes.begin(), wastes.end(),
                   [](const Waste& a, const Waste& b) { return a.bytes > b.bytes; });
  return wastes;
}

}  // namespace mt::cli
