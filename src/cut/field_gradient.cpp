#include "cut/field_gradient.h"

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "dtype/scale_fields.h"
#include "run/layers.h"
#include "run/linear.h"

namespace mt {
namespace {

// Blocks of a stretch of one row with one field 1 and the others 0.
class Basis {
 public:
  using Decode = decltype(Kernels::decode_row);
  Basis(const Weight& w, Decode how) : w_(w), format_(info(w.dtype)), decode_(how) {}

  // dst: n floats, n and `column` multiples of the block length
  void decode(int64_t row, int64_t column, int64_t n, size_t field, float* dst) {
    const std::byte* from = w_.row(row) + column / format_.block_length * format_.block_bytes;
    bytes_.assign(from, from + row_bytes(w_.dtype, n));
    isolate_field(w_.dtype, field, bytes_);
    decode_(w_.dtype, bytes_.data(), dst, n);
  }

 private:
  const Weight& w_;
  const DtypeInfo& format_;
  const Decode decode_;
  std::vector<std::byte> bytes_;
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
              const TileTap& tap) {
  const Kernels& k = rt.kernels;
  const int64_t length = info(w.dtype).block_length, per_row = fields_of_row(w);
  const size_t fields = scale_offsets(w.dtype).size();
  rt.pool.parallel_for(ceil_div(w.rows, kRows), [&](int64_t part, int) {
    const int64_t o = part * kRows, rows = std::min(kRows, w.rows - o);
    const auto tile = outer.tile(o, rows);
    alignas(64) float dw[kRows * kChunk];
    alignas(64) float basis[kChunk];
    Basis decoder(w, k.decode_row);
    for (int64_t i = 0; i < w.cols; i += kChunk) {
      const int64_t width = std::min(kChunk, w.cols - i);
      outer.multiply(tile, o, rows, i, width, dw);
      if (tap) tap(o, rows, i, width, dw, kChunk);
      for (int64_t r = 0; r < rows; ++r)
        for (size_t field = 0; field < fields; ++field) {
          decoder.decode(o + r, i, width, field, basis);
          float* to = gradient.data() + (o + r) * per_row;
          for (int64_t b = 0; b < width; b += length)
            to[static_cast<size_t>((i + b) / length) * fields + field] +=
                k.dot(dw + r * kChunk + b, basis + b, length);
        }
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
                        ConstMatrix dy, std::span<float> gradient, const TileTap& tap) {
  if (path == Path::exact)
    contract(rt, ExactOuter(rt, x, dy), w, gradient, tap);
  else
    contract(rt, RoundedOuter(rt, x, dy), w, gradient, tap);
}

void add_row_field_gradient(const Weight& w, std::span<const int32_t> rows, ConstMatrix d,
                            std::span<float> gradient) {
  const int64_t length = info(w.dtype).block_length, per_row = fields_of_row(w);
  const size_t fields = scale_offsets(w.dtype).size();
  Basis decoder(w, decode_row);
  std::vector<float> basis(static_cast<size_t>(w.cols));
  for (size_t t = 0; t < rows.size(); ++t)
    for (size_t field = 0; field < fields; ++field) {
      decoder.decode(rows[t], 0, w.cols, field, basis.data());
      const float* dw = d.row(static_cast<int64_t>(t));
      for (int64_t b = 0; b < w.cols; b += length) {
        float sum = 0;
        for (int64_t i = b; i < b + length; ++i) sum += dw[i] * basis[static_cast<size_t>(i)];
        gradient[static_cast<size_t>(rows[t] * per_row + b / length * int64_t(fields)) + field] +=
            sum;
      }
    }
}

}  // namespace mt
