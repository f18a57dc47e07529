#include "cut/field_gradient.h"

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "dtype/scale_fields.h"
#include "run/linear.h"

namespace mt {
namespace {

// Blocks of a stretch of one row with one field 1 and the others 0.
class Basis {
 public:
  explicit Basis(const Weight& w)
      : dtype_(w.dtype), format_(info(w.dtype)), offsets_(scale_offsets(w.dtype)) {}

  // dst: n floats, n and `column` multiples of the block length
  template <class Decode>
  void decode(const Weight& w, int64_t row, int64_t column, int64_t n, size_t field, float* dst,
              Decode&& read) {
    const size_t length = static_cast<size_t>(row_bytes(dtype_, n));
    bytes_.resize(length);
    std::memcpy(bytes_.data(), w.row(row) + column / format_.block_length * format_.block_bytes,
                length);
    const uint16_t zero = 0, one = float_to_half(1.0f);
    for (size_t at = 0; at < length; at += static_cast<size_t>(format_.block_bytes))
      for (size_t k = 0; k < offsets_.size(); ++k)
        std::memcpy(bytes_.data() + at + offsets_[k], k == field ? &one : &zero, sizeof one);
    read(dtype_, bytes_.data(), dst, n);
  }

 private:
  Dtype dtype_;
  const DtypeInfo& format_;
  std::span<const int> offsets_;
  std::vector<std::byte> bytes_;
};

int64_t fields_of_row(const Weight& w) {
  return w.cols / info(w.dtype).block_length * std::ssize(scale_offsets(w.dtype));
}

// [in, n] with rows a little apart from a power of two, so that they do not share cache sets.
struct Transposed {
  MatrixBuffer values;
  int64_t stride;

  Transposed(const Runtime& rt, ConstMatrix x)
      : values(x.cols, x.rows + 16), stride(values.cols()) {
    rt.pool.parallel_for(ceil_div(x.cols, kPanel), [&](int64_t panel, int) {
      const int64_t begin = panel * kPanel, end = std::min(begin + kPanel, x.cols);
      for (int64_t t0 = 0; t0 < x.rows; t0 += 16)
        for (int64_t i = begin; i < end; ++i)
          for (int64_t t = t0; t < std::min(t0 + 16, x.rows); ++t) values.row(i)[t] = x.row(t)[i];
    });
  }
};

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
  constexpr int64_t kRows = 64;
  rt.pool.parallel_for(ceil_div(w.rows, kRows), [&](int64_t piece, int) {
    for (int64_t r = piece * kRows; r < std::min(w.rows, (piece + 1) * kRows); ++r) {
      size_t f = static_cast<size_t>(r * per_row);
      for (int64_t at = r * length; at < (r + 1) * length; at += step)
        for (int offset : offsets) {
          const uint16_t half = float_to_half(fields[f++]);
          std::memcpy(bytes.data() + at + offset, &half, sizeof half);
        }
    }
  });
}

void add_field_gradient(const Runtime& rt, const Weight& w, ConstMatrix x, ConstMatrix dy,
                        std::span<float> gradient) {
  const Kernels& k = rt.kernels;
  const int64_t n = x.rows, length = info(w.dtype).block_length, per_row = fields_of_row(w);
  const size_t fields = scale_offsets(w.dtype).size();
  const Transposed xt(rt, x);
  rt.pool.parallel_for(ceil_div(w.rows, kPanel), [&](int64_t panel, int) {
    const int64_t o = panel * kPanel, width = std::min(kPanel, w.rows - o);
    // Columns o.. of dy, side by side for the kernel.
    AlignedBuffer<float> packed(static_cast<size_t>(n * kPanel));
    for (int64_t t = 0; t < n; ++t) {
      float* to = packed.data() + t * kPanel;
      std::copy_n(dy.row(t) + o, width, to);
      std::fill(to + width, to + kPanel, 0.0f);
    }
    alignas(64) float dw[kChunk * kPanel];     // [column, row of the panel]
    alignas(64) float rows[kPanel * kChunk];   // [row of the panel, column]
    alignas(64) float basis[kChunk * kPanel];  // as dw
    Basis decoder(w);
    for (int64_t i = 0; i < w.cols; i += kChunk) {
      const int64_t depth = std::min(kChunk, w.cols - i);
      for (int64_t t = 0; t < n; t += kChunk)
        k.gemm_panel(depth, kPanel, std::min(kChunk, n - t), xt.values.row(i) + t, xt.stride,
                     packed.data() + t * kPanel, kPanel, dw, kPanel, t > 0);
      for (size_t field = 0; field < fields; ++field) {
        for (int64_t r = 0; r < width; ++r)
          decoder.decode(w, o + r, i, depth, field, rows + r * kChunk, k.decode_row);
        k.transpose_panel(width, depth, rows, kChunk, basis);
        for (int64_t b = 0; b < depth; b += length) {
          alignas(64) float sum[kPanel] = {};
          for (int64_t p = b * kPanel; p < (b + length) * kPanel; p += kPanel)
            for (int64_t r = 0; r < kPanel; ++r) sum[r] += dw[p + r] * basis[p + r];
          for (int64_t r = 0; r < width; ++r)
            gradient[static_cast<size_t>((o + r) * per_row) +
                     static_cast<size_t>((i + b) / length) * fields + field] += sum[r];
        }
      }
    }
  });
}

void add_row_field_gradient(const Weight& w, std::span<const int32_t> rows, ConstMatrix d,
                            std::span<float> gradient) {
  const int64_t length = info(w.dtype).block_length, per_row = fields_of_row(w);
  const size_t fields = scale_offsets(w.dtype).size();
  Basis decoder(w);
  std::vector<float> basis(static_cast<size_t>(w.cols));
  for (size_t t = 0; t < rows.size(); ++t)
    for (size_t field = 0; field < fields; ++field) {
      decoder.decode(w, rows[t], 0, w.cols, field, basis.data(), decode_row);
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
