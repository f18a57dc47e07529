#pragma once
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>

namespace mt {

// Uninitialised memory on a cache line's boundary.
template <class T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t n) : size_(n) {
    size_t bytes = (n * sizeof(T) + 63) / 64 * 64;
    data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes ? bytes : 64)));
    if (!data_) throw std::bad_alloc();
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data_.get()[i]; }
  const T& operator[](size_t i) const { return data_.get()[i]; }
  operator std::span<T>() { return {data_.get(), size_}; }
  operator std::span<const T>() const { return {data_.get(), size_}; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

// A view of a row-major matrix [rows, cols], rows `stride` elements apart.
template <class T>
struct MatrixView {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  T* row(int64_t r) const { return data + r * stride; }
  std::span<T> row_span(int64_t r) const { return {row(r), static_cast<size_t>(cols)}; }
  MatrixView slice_rows(int64_t begin, int64_t end) const {
    assert(begin >= 0 && begin <= end && end <= rows);
    return {row(begin), end - begin, cols, stride};
  }
  MatrixView slice_cols(int64_t begin, int64_t end) const {
    assert(begin >= 0 && begin <= end && end <= cols);
    return {data + begin, rows, end - begin, stride};
  }
  operator MatrixView<const T>() const { return {data, rows, cols, stride}; }
};
using Matrix = MatrixView<float>;
using ConstMatrix = MatrixView<const float>;

// An owned row-major matrix; uninitialised unless `zero` is called.
class MatrixBuffer {
 public:
  MatrixBuffer() = default;
  MatrixBuffer(int64_t rows, int64_t cols)
      : buffer_(static_cast<size_t>(rows * cols)), rows_(rows), cols_(cols) {}
  Matrix view() { return {buffer_.data(), rows_, cols_, cols_}; }
  ConstMatrix view() const { return {buffer_.data(), rows_, cols_, cols_}; }
  operator Matrix() { return view(); }
  operator ConstMatrix() const { return view(); }
  float* row(int64_t r) { return buffer_.data() + r * cols_; }
  const float* row(int64_t r) const { return buffer_.data() + r * cols_; }
  float* data() { return buffer_.data(); }
  const float* data() const { return buffer_.data(); }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  void zero() {
    for (size_t i = 0; i < buffer_.size(); ++i) buffer_[i] = 0.0f;
  }

 private:
  AlignedBuffer<float> buffer_;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
};

}  // namespace mt
