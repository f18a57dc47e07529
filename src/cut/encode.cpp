#include "cut/encode.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/checked.h"
#include "base/error.h"

namespace mt {

RowWeights row_weights(const Profile* profile, const std::string& tensor, Role role) {
  if (!profile) return [](int64_t, std::span<float> w) { std::fill(w.begin(), w.end(), 1.0f); };
  return [profile, tensor, role](int64_t row, std::span<float> w) {
    error_weights(*profile, tensor, role, row, w);
  };
}

namespace {

// Encoders compare errors within a block: only ratios matter, and very small numbers would be
// lost in f32.
void normalise(std::span<float> w) {
  double sum = std::accumulate(w.begin(), w.end(), 0.0);
  if (!(sum > 0)) {
    std::fill(w.begin(), w.end(), 1.0f);
    return;
  }
  const float scale = static_cast<float>(double(w.size()) / sum);
  for (float& x : w) x *= scale;
}

struct RowEncoder {
  const Runtime& rt;
  std::vector<float> values, weights, decoded;
  std::vector<std::byte> bytes;

  RowEncoder(const Runtime& runtime, int64_t cols)
      : rt(runtime),
        values(static_cast<size_t>(cols)),
        weights(static_cast<size_t>(cols)),
        decoded(static_cast<size_t>(cols)),
        bytes(static_cast<size_t>(cols) * 8) {}
};

}  // namespace

Weight encode_weight(const Runtime& rt, const Weight& source, Dtype dtype,
                     const RowWeights& weights) {
  const DtypeInfo& format = info(dtype);
  if (source.cols % format.block_length)
    throw_error("rows of {} do not fit {}, whose blocks hold {}", source.cols, format.name,
                format.block_length);
  const int64_t out_bytes = row_bytes(dtype, source.cols);
  auto buffer =
      std::make_shared<AlignedBuffer<std::byte>>(static_cast<size_t>(out_bytes * source.rows));
  constexpr int64_t kRows = 8;
  rt.pool.parallel_for(ceil_div(source.rows, kRows), [&](int64_t piece, int) {
    RowEncoder e(rt, source.cols);
    for (int64_t r = piece * kRows; r < std::min(source.rows, (piece + 1) * kRows); ++r) {
      rt.kernels.decode_row(source.dtype, source.row(r), e.values.data(), source.cols);
      weights(r, e.weights);
      normalise(e.weights);
      encode_row(dtype, e.values.data(), e.weights.data(), buffer->data() + r * out_bytes,
                 source.cols);
    }
  });
  return {.rows = source.rows,
          .cols = source.cols,
          .dtype = dtype,
          .data = {buffer, std::span<const std::byte>(buffer->data(), buffer->size())}};
}

std::vector<double> rounding_loss(const Runtime& rt, const Weight& source,
                                  std::span<const Expectation> expectations,
                                  std::span<const Dtype> dtypes, int64_t n_rows) {
  const int64_t rows = source.rows, cols = source.cols;
  const size_t n_options = dtypes.size();
  // Weighted energy of each row: what is lost if the row became zero.
  std::vector<double> energy(static_cast<size_t>(rows));
  constexpr int64_t kRows = 64;
  rt.pool.parallel_for(ceil_div(rows, kRows), [&](int64_t piece, int) {
    RowEncoder e(rt, cols);
    for (int64_t r = piece * kRows; r < std::min(rows, (piece + 1) * kRows); ++r) {
      double sum = 0;
      for (const Expectation& x : expectations) {
        rt.kernels.decode_row(x.values.dtype, x.values.row(r), e.values.data(), cols);
        x.weights(r, e.weights);
        for (size_t i = 0; i < e.values.size(); ++i)
          sum += double(e.weights[i]) * double(e.values[i]) * double(e.values[i]);
      }
      energy[static_cast<size_t>(r)] = std::isfinite(sum) ? sum : 0;
    }
  });
  const double total = std::accumulate(energy.begin(), energy.end(), 0.0);
  std::vector<double> losses(n_options, 0.0);
  if (!(total > 0)) return losses;

  // Rows with the factor that each stands for.
  struct Drawn {
    int64_t row;
    double factor;
  };
  std::vector<Drawn> drawn;
  if (rows <= n_rows) {
    for (int64_t r = 0; r < rows; ++r) drawn.push_back({r, 1.0});
  } else {
    double seen = 0, next = 0.5;  // in units of total / n_rows
    for (int64_t r = 0; r < rows; ++r) {
      const double e = energy[static_cast<size_t>(r)];
      seen += e / total * double(n_rows);
      int64_t hits = 0;
      for (; next < seen; next += 1) ++hits;
      if (hits) drawn.push_back({r, double(hits) * total / double(n_rows) / e});
    }
  }
  std::vector<double> errors(drawn.size() * n_options);
  rt.pool.parallel_for(std::ssize(drawn), [&](int64_t d, int) {
    const Drawn& row = drawn[static_cast<size_t>(d)];
    RowEncoder e(rt, cols);
    rt.kernels.decode_row(source.dtype, source.row(row.row), e.values.data(), cols);
    // The sum of what the expectations weigh is what the encoder sees.
    std::vector<float> sum(static_cast<size_t>(cols), 0.0f);
    for (const Expectation& x : expectations) {
      x.weights(row.row, e.weights);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += e.weights[i];
    }
    normalise(sum);
    std::vector<std::vector<float>> expected, weight;
    for (const Expectation& x : expectations) {
      expected.emplace_back(static_cast<size_t>(cols));
      weight.emplace_back(static_cast<size_t>(cols));
      rt.kernels.decode_row(x.values.dtype, x.values.row(row.row), expected.back().data(), cols);
      x.weights(row.row, weight.back());
    }
    for (size_t o = 0; o < n_options; ++o) {
      if (dtypes[o] == source.dtype) {
        e.decoded = e.values;
      } else {
        encode_row(dtypes[o], e.values.data(), sum.data(), e.bytes.data(), cols);
        rt.kernels.decode_row(dtypes[o], e.bytes.data(), e.decoded.data(), cols);
      }
      double error = 0;
      for (size_t x = 0; x < expected.size(); ++x)
        for (size_t i = 0; i < e.decoded.size(); ++i) {
          const double difference = double(e.decoded[i]) - double(expected[x][i]);
          error += double(weight[x][i]) * difference * difference;
        }
      errors[static_cast<size_t>(d) * n_options + o] = error * row.factor;
    }
  });
  for (size_t d = 0; d < drawn.size(); ++d)
    for (size_t o = 0; o < n_options; ++o) losses[o] += errors[d * n_options + o];
  return losses;
}

}  // namespace mt
