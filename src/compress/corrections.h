#pragma once
#include <functional>
#include <map>
#include <set>
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

// [candidate, option]
using PlaceOptions = std::vector<std::pair<size_t, size_t>>;

// What to measure before anything is planned. A prediction is doubtful where tokens act together
// (queries and keys), where much hangs on one tensor (embedding, head) and below three bits: so
// `n_measured` candidates are cut alone to about four bits, half as many to about two, the
// embedding and the head to every format that costs much; layers evenly apart. losses: the
// predictions, [candidate][option].
PlaceOptions sampled_places(const Candidates& candidates,
                            const std::vector<std::vector<double>>& losses, int64_t n_measured);

// Nats a token that may be predicted of one place and format before it is measured: so much often
// hangs on a few weights, and then it is not a quadratic of their errors.
constexpr double kMuch = 0.02;

// Places are measured on so few windows, for a ratio needs little text.
constexpr int64_t kWindowsOfPlaces = 2;

// How much less or more is lost on the calibration text than on its first windows, on which places
// are measured: of a model with all of `places` cut at once, to about four bits each, on up to
// 3,072 tokens. Kept in `db`, window by window. 1 where there are no other windows.
double text_factor(const Runtime& rt, const Model& model, const Windows& windows,
                   const Candidates& candidates, const std::vector<std::vector<double>>& losses,
                   const PlaceOptions& places, Measurements& db);

// Losses of places do not quite add up: at low bits the layers of one role together lose more than
// the sum, or less. Mean KL on `windows`, all positions, nats a token, with all the places of a
// role of the plan cut; for each of `roles`. `cut` gives the plan carried out. Kept in `db`.
std::map<std::string, double> role_losses(const Runtime& rt, const Model& model, const Plan& plan,
                                          const std::function<Model()>& cut,
                                          const std::set<std::string>& roles,
                                          const Windows& windows, Measurements& db);

// The same of the whole plan.
double whole_loss(const Runtime& rt, const Model& model, const Plan& plan,
                  const std::function<Model()>& cut, const Windows& windows, Measurements& db);

// Windows from the first on, up to 3,072 tokens: what stands for the text.
Windows windows_of_text(const Windows& windows);

// Measured over predicted KL of every candidate and option: that of `places`, each cut alone and
// measured on `windows`; others take their layer's ratio, or the geometric mean of their role's,
// near layers counting more, and below three bits besides what the role's low formats lost more.
// Without places: 1. Kept in the selected run of `db`, place by place, as "measured_kl"; a killed
// run goes on. The first option's is that of about four bits.
std::vector<std::vector<double>> measure_corrections(const Runtime& rt, const Model& model,
                                                     const Windows& windows,
                                                     const Candidates& candidates,
                                                     const std::vector<std::vector<double>>& losses,
                                                     const PlaceOptions& places, Measurements& db);

}  // namespace mt
