// Every format that both programs write, on the maps of a model that need not run (MiniLM, an
// encoder): relative error of ours and of ggml's quantizer, all weights counting alike. From the
// project's folder, GGML the folder of llama.cpp's libraries:
//   g++ -std=c++20 -O2 -Isrc tests/acceptance/formats.cpp build/libmicrotome.a -L$GGML -lggml-base
//     -Wl,-rpath,$GGML -lfmt -lcrypto -lpcre2-8 -lsqlite3 $(pkg-config --libs cbc) -o formats
//   ./formats MODEL
#include <cmath>
#include <cstdio>
#include <vector>

#include "dtype/dtype.h"
#include "file/open.h"

extern "C" {
size_t ggml_quantize_chunk(int type, const float* from, void* to, int64_t first, int64_t rows,
                           int64_t cols, const float* importance);
void ggml_quantize_init(int type);
bool ggml_quantize_requires_imatrix(int type);
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const mt::TensorFile file = mt::open_model_file(argv[1]);
  std::printf("| format | maps | M weights | ours | ggml | ratio | maps where ours is less |\n");
  for (const mt::DtypeInfo& format : mt::all_dtypes()) {
    if (!format.encodes || format.block_length < 2) continue;
    const int type = static_cast<int>(format.dtype);
    ggml_quantize_init(type);
    double ours = 0, theirs = 0, energy = 0;
    int maps = 0, less = 0;
    int64_t weights = 0;
    for (const mt::Tensor& tensor : file.tensors) {
      if (tensor.shape.size() != 2 || tensor.name.find("position") != std::string::npos) continue;
      const int64_t rows = tensor.shape[0], cols = tensor.shape[1];
      if (rows < 16 || cols % format.block_length != 0) continue;  // token types are two rows
      const std::vector<float> ones(static_cast<size_t>(cols), 1.0f);
      std::vector<float> row(ones), decoded(ones);
      const int64_t bytes = mt::row_bytes(format.dtype, cols);
      std::vector<std::byte> block(static_cast<size_t>(bytes));
      auto error = [&] {
        mt::decode_row(format.dtype, block.data(), decoded.data(), cols);
        double sum = 0;
        for (size_t i = 0; i < row.size(); ++i) {
          const double off = double(decoded[i]) - double(row[i]);
          sum += off * off;
        }
        return sum;
      };
      double our_map = 0, their_map = 0;
      for (int64_t r = 0; r < rows; ++r) {
        mt::decode_row(tensor.dtype,
                       tensor.data.bytes.data() + r * mt::row_bytes(tensor.dtype, cols), row.data(),
                       cols);
        for (float w : row) energy += double(w) * double(w);
        mt::encode_row(format.dtype, row.data(), ones.data(), block.data(), cols);
        our_map += error();
        ggml_quantize_chunk(type, row.data(), block.data(), 0, 1, cols,
                            ggml_quantize_requires_imatrix(type) ? ones.data() : nullptr);
        their_map += error();
      }
      ours += our_map, theirs += their_map;
      less += our_map < their_map;
      ++maps;
      weights += rows * cols;
    }
    if (maps > 0)
      std::printf("| %s | %d | %.1f | %.5f | %.5f | %.3f | %d |\n", format.name.data(), maps,
                  double(weights) / 1e6, std::sqrt(ours / energy), std::sqrt(theirs / energy),
                  std::sqrt(ours / theirs), less);
  }
}
