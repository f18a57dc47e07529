#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace mt {

// Second moments of one linear map y = x W^T, mean over calibration tokens.
struct MapMoments {
  std::vector<float> in2;   // E[x_i^2], [in]
  std::vector<float> out2;  // E[(d log p(label) / d y_o)^2], labels drawn from the model, [out]
};

// What one streamed pass over calibration text leaves: enough to weigh every rounding error by
// its second-order effect on the KL divergence,
//   KL per token ~ 1/2 sum_oi out2_o in2_i (W_oi - W'_oi)^2
// (the diagonal of the Fisher matrix in Kronecker form).
struct Profile {
  int64_t n_tokens = 0;
  std::map<std::string, MapMoments> maps;  // by GGUF name; the head under its own tensor's name
  std::vector<float> embedding_out2;       // E[(d log p / d embedding row)_i^2], [d_model]
  std::vector<float> token_share;          // how often each token occurs, smoothed, [n_vocab]
};

// What a tensor does: a tied embedding is read at both ends.
enum class Role { map, embedding, head, embedding_and_head };

// The weight of each squared rounding error in one row: half of d2 KL / dW^2, nats a token.
// weights: [in]. Throws Error where the profile lacks the tensor.
void error_weights(const Profile& profile, const std::string& tensor, Role role, int64_t row,
                   std::span<float> weights);

}  // namespace mt
