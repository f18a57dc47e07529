#pragma once
#include <string>
#include <utility>
#include <vector>

#include "compress/places.h"
#include "measure/eval.h"

namespace mt {

// What a tensor name says: "blk.3.attn_q.weight" is {3, "attn_q"}, "output.weight" {-1, "output"}.
struct TensorRole {
  int64_t layer = -1;
  std::string role;
};
TensorRole role_of(const std::string& tensor);

// Measured over predicted KL of every candidate and option. The prediction is doubtful where tokens
// act together (queries and keys), where much hangs on one tensor (embedding, head) and below three
// bits: so `n_measured` candidates are cut alone to about four bits and measured on `windows`, half
// as many to about two, the embedding and the head to every format that costs much. The layers
// measured lie evenly apart; the others take the geometric mean of their role's measured ratios,
// near layers counting more. Kept in the selected run of `db`, place by place, as "measured_kl"; a
// killed run goes on. `losses` are the predictions. The first option's is that of about four bits.
// more: further places to measure, [candidate, option].
using PlaceOptions = std::vector<std::pair<size_t, size_t>>;
std::vector<std::vector<double>> measure_corrections(const Runtime& rt, const Model& model,
                                                     const Windows& windows,
                                                     const Candidates& candidates,
                                                     const std::vector<std::vector<double>>& losses,
                                                     int64_t n_measured, Measurements& db,
                                                     const PlaceOptions& more = {});

}  // namespace mt
