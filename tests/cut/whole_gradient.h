#pragma once
#include <cstddef>
#include <random>
#include <vector>

#include "base/matrix.h"
#include "dtype/dtype.h"

namespace mt::test {

// A random product y = x W^T, the gradient dy of its outputs and dW = dy^T x summed in f64, all of
// it at once: what gradients that never hold dW are compared with.
class WholeGradient {
  std::mt19937 random_{3};  // before what it fills
  std::normal_distribution<float> normal_;

 public:
  int64_t n, out, in;
  MatrixBuffer x, dy, values;  // [n, in], [n, out]; W before it is encoded [out, in]
  std::vector<double> dw;      // [out, in]

  WholeGradient(int64_t tokens, int64_t rows, int64_t cols)
      : n(tokens),
        out(rows),
        in(cols),
        x(filled(n, in)),
        dy(filled(n, out)),
        values(filled(out, in)),
        dw(static_cast<size_t>(out * in)) {
    for (int64_t t = 0; t < n; ++t)
      for (int64_t o = 0; o < out; ++o)
        for (int64_t i = 0; i < in; ++i)
          dw[static_cast<size_t>(o * in + i)] += double(dy.row(t)[o]) * double(x.row(t)[i]);
  }

  // W in a format, row after row.
  std::vector<std::byte> encoded(Dtype dtype) const {
    const int64_t length = row_bytes(dtype, in);
    std::vector<std::byte> bytes(static_cast<size_t>(out * length));
    for (int64_t o = 0; o < out; ++o)
      encode_row(dtype, values.row(o), nullptr, bytes.data() + o * length, in);
    return bytes;
  }

 private:
  MatrixBuffer filled(int64_t rows, int64_t cols) {
    MatrixBuffer m(rows, cols);
    for (int64_t i = 0; i < rows * cols; ++i) m.data()[i] = normal_(random_);
    return m;
  }
};

}  // namespace mt::test
