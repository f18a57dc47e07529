#include "cut/field_gradient.h"

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "dtype/scale_fields.h"
#include "run/layers.h"
#include "run/linear.h"

namespace mt {
namespace {

// What a stretch of one row of dW says of its blocks' fields and scales of sub-blocks.
class Contraction {
 public:
  Contraction(const Weight& w, const Kernels& k, std::span<float> gradient,
              const SubScaleTap& sub_tap)
      : w_(w),
        k_(k),
        format_(info(w.dtype)),
        offsets_(scale_offsets(w.dtype)),
        subs_(sub_scales(w.dtype)),
        gradient_(gradient),
        sub_tap_(sub_tap) {}

  // dw: n floats, n and `column` multiples of the block length
  void add(int64_t row, int64_t column, int64_t n, const float* dw) {
    const int64_t length = format_.block_length, first = (row * w_.cols + column) / length;
    const std::byte* from = w_.row(row) + column / length * format_.block_bytes;
    const size_t fields = offsets_.size();
    basis_.resize(fields * static_cast<size_t>(n));
    for (size_t field = 0; field < fields; ++field) {
      bytes_.assign(from, from + row_bytes(w_.dtype, n));
      isolate_levels(w_.dtype, field, bytes_);
      k_.decode_row(w_.dtype, bytes_.data(), basis(field, n), n);
    }
    for (int64_t b = 0; b < n / length; ++b) {
      float* to = gradient_.data() + (first + b) * std::ssize(offsets_);
      const float* d = dw + b * length;
      if (subs_.count > 0)
        add_subs(first + b, from + b * format_.block_bytes, d, b * length, n, to);
      else
        for (size_t field = 0; field < fields; ++field)
          to[field] += k_.dot(d, basis(field, n) + b * length, length);
    }
  }

 private:
  float* basis(size_t field, int64_t n) { return basis_.data() + field * static_cast<size_t>(n); }

  // decoded = field * scale * basis, so each of the two has the other times the same sum.
  void add_subs(int64_t block, const std::byte* bytes, const float* dw, int64_t at, int64_t n,
                float* to) {
    int scales[kMostSubScales];
    float gradient[kMostSubScales];
    read_sub_scales(w_.dtype, bytes, scales);
    size_t i = 0;
    for (size_t field = 0; field < offsets_.size(); ++field) {
      uint16_t half;
      std::memcpy(&half, bytes + offsets_[field], sizeof half);
      const float value = half_to_float(half), *levels = basis(field, n) + at;
      for (int s = 0; s < subs_.count; ++s, ++i) {
        const float sum = k_.dot(dw + s * subs_.length, levels + s * subs_.length, subs_.length);
        to[field] += static_cast<float>(scales[i]) * sum;
        gradient[i] = value * sum;
      }
    }
    if (sub_tap_) sub_tap_(block, {gradient, i});
  }

  const Weight& w_;
  const Kernels& k_;
  const DtypeInfo& format_;
  const std::span<const int> offsets_;
  const SubScales subs_;
  const std::span<float> gradient_;
  const SubScaleTap& sub_tap_;
  std::vector<std::byte> bytes_;
  std::vector<float> basis_;
};

int64_t fields_of_row(const Weight& w) {
  return w.cols / info(w.dtype).block_length * std::ssize(scale_offsets(w.dtype));
}

constexpr int64_t kRows = 48;  // of dW at a time: four times twelve rows of a product

// dW = dy^T x, f32: rows o .. o+rows-1, columns i .. i+width-1 into dw, rows kChunk apart.
class ExactOuter {
 public:
  ExactOuter(const Runtime& rt, ConstMatrix x, ConstMatrix dy)
      : k_(rt.kernels), x_(x), turned_(dy.cols, dy.rows + 16) {
    rt.pool.parallel_for(ceil_div(dy.cols, kPanel), [&](int64_t panel, int) {
      const int64_t begin = panel * kPanel, end = std::min(begin + kPanel, dy.cols);
      for (int64_t t0 = 0; t0 < dy.rows; t0 += 16)
        for (int64_t o = begin; o < end; ++o)
          for (int64_t t = t0; t < std::min(t0 + 16, dy.rows); ++t)
            turned_.row(o)[t] = dy.row(t)[o];
    });
  }

  struct Tile {};
  Tile tile(int64_t, int64_t) const { return {}; }
  void multiply(const Tile&, int64_t o, int64_t rows, int64_t i, int64_t width, float* dw) const {
    for (int64_t j = 0; j < width; j += kPanel)
      for (int64_t t = 0; t < x_.rows; t += kChunk)
        k_.gemm_panel(rows, kPanel, std::min(kChunk, x_.rows - t), turned_.row(o) + t,
                      turned_.cols(), x_.row(t) + i + j, x_.stride, dw + j, kChunk, t > 0);
  }

 private:
  const Kernels& k_;
  ConstMatrix x_;
  MatrixBuffer turned_;  // dy^T; rows a little apart from a power of two
};

// The same with x and dy rounded to bf16, two tokens a word.
class RoundedOuter {
 public:
  RoundedOuter(const Runtime& rt, ConstMatrix x, ConstMatrix dy)
      : k_(rt.kernels),
        dy_(dy),
        pairs_(ceil_div(x.rows, 2)),
        panels_(static_cast<size_t>(ceil_div(x.cols, kPanel) * kPanel * pairs_)) {
    rt.pool.parallel_for(ceil_div(x.cols, kPanel), [&](int64_t panel, int) {
      k_.interleave_pairs(kPanel, x.rows, x.data + panel * kPanel, x.stride,
                          panels_.data() + panel * kPanel * pairs_, kPanel);
    });
  }

  using Tile = AlignedBuffer<uint32_t>;  // columns of dy
  Tile tile(int64_t o, int64_t rows) const {
    Tile turned(static_cast<size_t>(pairs_ * kRows));
    k_.interleave_pairs(rows, dy_.rows, dy_.data + o, dy_.stride, turned.data(), kRows);
    return turned;
  }
  void multiply(const Tile& turned, int64_t, int64_t rows, int64_t i, int64_t width,
                float* dw) const {
    for (int64_t j = 0; j < width; j += kPanel)
      k_.gemm_pairs(rows, kPanel, pairs_, turned.data(), 1, kRows,
                    panels_.data() + (i + j) * pairs_, kPanel, dw + j, kChunk, false);
  }

 private:
  const Kernels& k_;
  ConstMatrix dy_;
  int64_t pairs_;
  AlignedBuffer<uint32_t> panels_;  // x, panel by panel
};

template <class Outer>
void contract(const Runtime& rt, const Outer& outer, const Weight& w, std::span<float> gradient,
              const TileTap& tap, const SubScaleTap& sub_tap) {
  rt.pool.parallel_for(ceil_div(w.rows, kRows), [&](int64_t part, int) {
    const int64_t o = part * kRows, rows = std::min(kRows, w.rows - o);
    const auto tile = outer.tile(o, rows);
    alignas(64) float dw[kRows * kChunk];
    Contraction blocks(w, rt.kernels, gradient, sub_tap);
    for (int64_t i = 0; i < w.cols; i += kChunk) {
      const int64_t width = std::min(kChunk, w.cols - i);
      outer.multiply(tile, o, rows, i, width, dw);
      if (tap) tap(o, rows, i, width, dw, kChunk);
      for (int64_t r = 0; r < rows; ++r) blocks.add(o + r, i, width, dw + r * kChunk);
    }
  });
}

}  // namespace

int64_t n_fields(const Weight& w) {
  return w.rows * fields_of_row(w);
}

void read_fields(const Weight& w, std::span<float> fields) {
  const auto offsets = scale_offsets(w.dtype);
  const int64_t step = info(w.dtype).block_bytes;
  size_t f = 0;
  for (int64_t at = 0; at < w.bytes(); at += step)
    for (int offset : offsets) {
      uint16_t half;
      std::memcpy(&half, w.data.bytes.data() + at + offset, sizeof half);
      fields[f++] = half_to_float(half);
    }
}

void write_fields(const Runtime& rt, const Weight& w, std::span<const float> fields,
                  std::span<std::byte> bytes) {
  const auto offsets = scale_offsets(w.dtype);
  const int64_t step = info(w.dtype).block_bytes, per_row = fields_of_row(w);
  const int64_t length = row_bytes(w.dtype, w.cols);
  for_rows(rt, w.rows, [&](int64_t r) {
    size_t f = static_cast<size_t>(r * per_row);
    for (int64_t at = r * length; at < (r + 1) * length; at += step)
      for (int offset : offsets) {
        const uint16_t half = float_to_half(fields[f++]);
        std::memcpy(bytes.data() + at + offset, &half, sizeof half);
      }
  });
}

void add_field_gradient(const Runtime& rt, Path path, const Weight& w, ConstMatrix x,
                        ConstMatrix dy, std::span<float> gradient, const TileTap& tap,
                        const SubScaleTap& sub_tap) {
  if (path == Path::exact)
    contract(rt, ExactOuter(rt, x, dy), w, gradient, tap, sub_tap);
  else
    contract(rt, RoundedOuter(rt, x, dy), w, gradient, tap, sub_tap);
}

void add_row_field_gradient(const Runtime& rt, const Weight& w, std::span<const int32_t> rows,
                            ConstMatrix d, std::span<float> gradient, const SubScaleTap& sub_tap) {
  Contraction blocks(w, rt.kernels, gradient, sub_tap);
  for (size_t t = 0; t < rows.size(); ++t)
    blocks.add(rows[t], 0, w.cols, d.row(static_cast<int64_t>(t)));
}

}  // namespace mt
