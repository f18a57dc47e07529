#pragma once
#include <functional>
#include <span>

#include "flow/model.h"
#include "run/forward.h"

namespace mt {

// A tile of dW = dy^T x: rows first .. first+rows-1, columns column .. column+width-1, `stride`
// floats apart. Called from several threads, for rows of its own from each.
using TileTap = std::function<void(int64_t first, int64_t rows, int64_t column, int64_t width,
                                   const float* dw, int64_t stride)>;

// Gradient by the whole-number scales of sub-blocks of one block (dtype/scale_fields.h), the block
// counted from the weight's first: [fields, count], for a format that has some. Called from several
// threads, for rows of its own from each.
using SubScaleTap = std::function<void(int64_t block, std::span<const float> gradient)>;

// f16 fields of a weight: scale_offsets of every block, row after row.
int64_t n_fields(const Weight& w);
// In the order row, block, field.
void read_fields(const Weight& w, std::span<float> fields);
// Rounds to nearest even; `bytes` are those of a weight of this shape and format.
void write_fields(const Runtime& rt, const Weight& w, std::span<const float> fields,
                  std::span<std::byte> bytes);

// gradient[f] += d loss / d field f, where dW = dy^T x: every decoded value is linear in its
// fields, so this is sum_i dW_i * basis_i over the block, basis being the block decoded with that
// field 1 and the others 0. dW exists 48 rows by 256 columns at a time. x:[n,in]  dy:[n,out]
// Path::bf16 rounds x and dy. The same bits for any number of threads and in every instruction
// set. tap: sees every tile of dW; may be empty. sub_tap: sees the gradient by every block's scales
// of sub-blocks, taken for real numbers; may be empty.
void add_field_gradient(const Runtime& rt, Path path, const Weight& w, ConstMatrix x,
                        ConstMatrix dy, std::span<float> gradient, const TileTap& tap = {},
                        const SubScaleTap& sub_tap = {});

// The same for a matrix that is read row by row (an embedding): dW[rows[t],:] += d[t,:].
// d:[rows.size(), in]
void add_row_field_gradient(const Runtime& rt, const Weight& w, std::span<const int32_t> rows,
                            ConstMatrix d, std::span<float> gradient,
                            const SubScaleTap& sub_tap = {});

}  // namespace mt
