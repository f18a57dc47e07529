#pragma once
#include <string>
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

// Measured over predicted KL of every candidate. The prediction is doubtful where tokens act
// together (queries and keys) and where much hangs on one tensor (embedding, head): so `n_measured`
// candidates are cut alone to about four bits and measured on `windows`, the embedding and the
// head first, then every role in layers evenly apart. The others take the geometric mean of their
// role's measured ratios, near layers counting more. Kept in the selected run of `db`, place by
// place, as "measured_kl"; a killed run goes on. `losses` are the predictions.
std::vector<double> measure_corrections(const Runtime& rt, const Model& model,
                                        const Windows& windows, const Candidates& candidates,
                                        const std::vector<std::vector<double>>& losses,
                                        int64_t n_measured, Measurements& db);

}  // namespace mt
