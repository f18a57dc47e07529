#include "cut/refine_state.h"

#include <fmt/format.h>

#include <cstring>

#include "base/files.h"

namespace mt {
namespace {

// Goes into the key: raised when the arithmetic of a step changes.
constexpr const char* kVersion = "microtome refinement 2\n";

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

std::string head_of(const std::string& key, const RefineState& state) {
  return fmt::format("{}{}\n{:20}\n{:20}\n", kVersion, key, state.losses.size(),
                     state.master.size());
}

}  // namespace

std::string refine_key(const Model& original, const Model& cut,
                       const std::vector<std::vector<int32_t>>& windows,
                       const RefineSettings& settings) {
  std::string text = kVersion;
  auto add_model = [&](const Model& model) {
    for (const LinearMap* map : linear_maps(model))
      text += fmt::format("{} {} {}\n", map->name, name(map->weight.dtype),
                          sha256_hex(map->weight.data.bytes));
    for (const auto& norm : norms(model))
      text += fmt::format("{} {}\n", norm.name, sha256_hex(bytes_of(*norm.gain)));
  };
  add_model(original);
  add_model(cut);
  for (const auto& window : windows) text += sha256_hex(bytes_of(window)) + "\n";
  text += fmt::format("{} {} {} {} {} {} {} {} {} {} {}", settings.steps, settings.step_tokens,
                      settings.seed, settings.scale_step, settings.norm_step, settings.beta1,
                      settings.beta2, settings.warm_up, settings.decay_to, settings.kept,
                      settings.path == Path::exact ? "exact" : "bf16");
  return sha256_hex(text);
}

void save_refine_state(const std::filesystem::path& path, const std::string& key,
                       const RefineState& state) {
  AtomicFile file(path);
  file.write(head_of(key, state));
  file.write(bytes_of(state.losses));
  file.write(bytes_of(state.master));
  file.write(bytes_of(state.mean));
  file.write(bytes_of(state.square));
  file.commit();
}

bool load_refine_state(const std::filesystem::path& path, const std::string& key,
                       RefineState& state) {
  std::error_code none;
  if (!std::filesystem::is_regular_file(path, none)) return false;
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  // The number of steps is read from the file's size, then the whole head is held against it.
  const size_t head = head_of(key, state).size(), floats = 3 * state.master.size() * sizeof(float);
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
  read(found.master);
  read(found.mean);
  read(found.square);
  state = std::move(found);
  return true;
}

}  // namespace mt
