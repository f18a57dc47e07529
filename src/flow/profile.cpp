#include "flow/profile.h"

#include "base/error.h"

namespace mt {

void error_weights(const Profile& profile, const std::string& tensor, Role role, int64_t row,
                   std::span<float> weights) {
  const size_t r = static_cast<size_t>(row);
  for (float& w : weights) w = 0;
  if (role != Role::embedding) {
    auto it = profile.maps.find(tensor);
    if (it == profile.maps.end()) throw_error("the profile has nothing about '{}'", tensor);
    const float scale = 0.5f * it->second.out2[r];
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = scale * it->second.in2[i];
  }
  if (role == Role::embedding || role == Role::embedding_and_head)
    for (size_t i = 0; i < weights.size(); ++i)
      weights[i] += 0.5f * profile.token_share[r] * profile.embedding_out2[i];
}

}  // namespace mt
