#include "cut/refine_state.h"

#include <fmt/format.h>

#include <array>
#include <cstring>

#include "base/files.h"

namespace mt {
namespace {

// Goes into the key: raised when the arithmetic of a step changes.
constexpr const char* kVersion = "microtome refinement 5\n";

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

template <class State>
auto floats_of(State& state) {
  return std::array{&state.master,     &state.mean,        &state.square,
                    &state.sub_latent, &state.sub_mean,    &state.sub_square,
                    &state.latent,     &state.latent_mean, &state.latent_square};
}

std::string head_of(const std::string& key, const RefineState& state) {
  return fmt::format("{}{}\n{:20}\n{:20}\n{:20}\n{:20}\n", kVersion, key, state.losses.size(),
                     state.master.size(), state.sub_latent.size(), state.latent.size());
}

}  // namespace

std::string content_hash(const Model& model) {
  std::string text;
  for (const LinearMap* map : linear_maps(model)) {
    text += fmt::format("{} {} {}\n", map->name, name(map->weight.dtype),
                        sha256_hex(map->weight.data.bytes));
    if (!map->bias.empty())
      text += fmt::format("{} bias {}\n", map->name, sha256_hex(bytes_of(map->bias)));
  }
  for (const auto& norm : norms(model))
    text += fmt::format("{} {}\n", norm.name, sha256_hex(bytes_of(*norm.gain)));
  return sha256_hex(text);
}

std::string refine_key(const Model& original, const Model& cut,
                       const std::vector<std::vector<int32_t>>& windows,
                       const RefineSettings& settings) {
  std::string text = kVersion + content_hash(original) + content_hash(cut) + "\n";
  for (const auto& window : windows) text += sha256_hex(bytes_of(window)) + "\n";
  std::string formats;
  for (Dtype dtype : settings.sub_scale_formats) formats += fmt::format("{},", name(dtype));
  text += fmt::format("{} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {}", settings.steps,
                      settings.step_tokens, settings.seed, settings.scale_step, settings.norm_step,
                      settings.beta1, settings.beta2, settings.warm_up, settings.decay_to,
                      settings.kept, settings.sub_scale_step, formats, settings.rounding_step,
                      settings.latent_bytes, settings.whole_steps_from,
                      settings.path == Path::exact ? "exact" : "bf16");
  return sha256_hex(text);
}

void save_refine_state(const std::filesystem::path& path, const std::string& key,
                       const RefineState& state) {
  AtomicFile file(path);
  file.write(head_of(key, state));
  file.write(bytes_of(state.losses));
  for (const auto* values : floats_of(state)) file.write(bytes_of(*values));
  file.commit();
}

bool load_refine_state(const std::filesystem::path& path, const std::string& key,
                       RefineState& state) {
  std::error_code none;
  if (!std::filesystem::is_regular_file(path, none)) return false;
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  // The number of steps is read from the file's size, then the whole head is held against it.
  const size_t head = head_of(key, state).size();
  size_t floats = 0;
  for (const auto* values : floats_of(state)) floats += values->size() * sizeof(float);
  if (bytes.size() < head + floats || (bytes.size() - head - floats) % sizeof(double)) return false;
  RefineState found = state;
  found.losses.resize((bytes.size() - head - floats) / sizeof(double));
  const std::string expected = head_of(key, found);
  if (std::memcmp(bytes.data(), expected.data(), head) != 0) return false;
  size_t at = head;
  auto read = [&](auto& values) {
    const size_t n = values.size() * sizeof(values[0]);
    if (n) std::memcpy(values.data(), bytes.data() + at, n);
    at += n;
  };
  read(found.losses);
  for (auto* values : floats_of(found)) read(*values);
  state = std::move(found);
  return true;
}

}  // namespace mt
