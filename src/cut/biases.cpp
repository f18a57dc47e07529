#include "cut/biases.h"

#include <algorithm>

#include "base/checked.h"
#include "base/error.h"
#include "base/progress.h"
#include "flow/tensor_file.h"
#include "model/arch/table.h"

namespace mt {
namespace {

struct Read {
  const LinearMap* map;
  Point point;  // where its input is watched
  int64_t layer;
};

std::vector<Read> free_biases(const Model& model) {
  const Architecture* arch = find_architecture(model.architecture);
  const OptionalBiases readers = arch ? arch->biases : OptionalBiases::none;
  std::vector<Read> found;
  for (const Step& step : model.steps)
    for (const Site& site : step.sites) {
      auto add = [&](const LinearMap& map, Point point, bool more) {
        bool free = map.bias.empty() && more;
        if (!map.bias.empty()) {
          const Tensor* t = model.file->find_tensor(bias_name(map));
          free = t && t->dtype == Dtype::F32;
        }
        if (free) found.push_back({&map, point, step.layer});
      };
      const bool all = readers == OptionalBiases::all;
      if (const auto* a = std::get_if<Attention>(&site.what)) {
        add(a->q, Point::attn_in, false);
        add(a->k, Point::attn_in, false);
        add(a->v, Point::attn_in, all);
        add(a->o, Point::attn_out, all);
      } else {
        const auto& f = std::get<Mlp>(site.what);
        add(f.gate, Point::mlp_in, false);
        add(f.up, Point::mlp_in, false);
        add(f.down, Point::mlp_act, all);
      }
    }
  return found;
}

// sums[i] += sum over t of x[t,i]
void add_columns(const Runtime& rt, ConstMatrix x, std::vector<double>& sums) {
  sums.resize(static_cast<size_t>(x.cols));
  constexpr int64_t kPiece = 256;
  rt.pool.parallel_for(ceil_div(x.cols, kPiece), [&](int64_t piece, int) {
    const int64_t begin = piece * kPiece, end = std::min(begin + kPiece, x.cols);
    for (int64_t t = 0; t < x.rows; ++t)
      for (int64_t i = begin; i < end; ++i) sums[static_cast<size_t>(i)] += double(x.row(t)[i]);
  });
}

}  // namespace

std::string bias_name(const LinearMap& map) {
  return map.name.substr(0, map.name.rfind('.')) + ".bias";
}

std::vector<const LinearMap*> maps_with_free_bias(const Model& model) {
  std::vector<const LinearMap*> maps;
  for (const Read& r : free_biases(model)) maps.push_back(r.map);
  return maps;
}

InputMeans input_means(const Runtime& rt, const Model& model,
                       const std::vector<std::vector<int32_t>>& windows) {
  const std::vector<Read> reads = free_biases(model);
  InputMeans means;
  if (reads.empty()) return means;
  std::map<std::pair<Point, int64_t>, std::vector<double>> sums;
  for (const Read& r : reads) sums[{r.point, r.layer}];
  int64_t n_tokens = 0;
  Progress progress("reading mean inputs", windows.size());
  for (const auto& tokens : windows) {
    KvCache cache(model, 1, std::ssize(tokens));
    const Chunk chunk{0, tokens};
    forward(rt, model, cache, {&chunk, 1},
            {.path = Path::bf16, .tap = [&](Point point, int64_t layer, Matrix x) {
               if (const auto it = sums.find({point, layer}); it != sums.end())
                 add_columns(rt, x, it->second);
             }});
    n_tokens += std::ssize(tokens);
    progress.advance();
  }
  for (const Read& r : reads) {
    std::vector<double>& mean = means[r.map->name] = sums.at({r.point, r.layer});
    mean.resize(static_cast<size_t>(r.map->weight.cols));  // zeros where there is no text
    for (double& x : mean) x /= double(std::max<int64_t>(1, n_tokens));
  }
  return means;
}

void correct_biases(const Runtime& rt, const Model& source, const InputMeans& means, Model& cut) {
  std::map<std::string, LinearMap*> cut_maps;
  for (LinearMap* map : linear_maps(cut)) cut_maps[map->name] = map;
  for (const LinearMap* map : maps_with_free_bias(source)) {
    LinearMap& now = *cut_maps.at(map->name);
    const Weight &before = map->weight, &after = now.weight;
    if (after.data.bytes.data() == before.data.bytes.data()) continue;
    const auto it = means.find(map->name);
    if (it == means.end() || std::ssize(it->second) != before.cols)
      throw_error("biases: the mean input of '{}' is not known", map->name);
    const std::vector<double>& mean = it->second;
    now.bias = map->bias;
    now.bias.resize(static_cast<size_t>(before.rows), 0.0f);
    constexpr int64_t kRows = 64;
    rt.pool.parallel_for(ceil_div(before.rows, kRows), [&](int64_t piece, int) {
      std::vector<float> was(mean.size()), is(mean.size());
      for (int64_t r = piece * kRows; r < std::min(before.rows, (piece + 1) * kRows); ++r) {
        rt.kernels.decode_row(before.dtype, before.row(r), was.data(), before.cols);
        rt.kernels.decode_row(after.dtype, after.row(r), is.data(), after.cols);
        double error = 0;
        for (size_t i = 0; i < mean.size(); ++i)
          error += (double(was[i]) - double(is[i])) * mean[i];
        now.bias[static_cast<size_t>(r)] += static_cast<float>(error);
      }
    });
  }
}

}  // namespace mt
