#include "cut/refine_state.h"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <vector>

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

// sha256: of what follows the head, part by part.
std::string head_of(const std::string& key, const RefineState& state, const std::string& sha256) {
  return fmt::format("{}{}\n{:20}\n{:20}\n{:20}\n{:20}\n{}\n", kVersion, key, state.losses.size(),
                     state.master.size(), state.sub_latent.size(), state.latent.size(), sha256);
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
                       const RefineSettings& settings, bool by_layer) {
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
  if (by_layer) {
    text += fmt::format(" by layer {}\n", settings.stream_bytes);
    for (const auto& weights : settings.channel_weights) text += sha256_hex(bytes_of(weights));
  }
  return sha256_hex(text);
}

void save_refine_state(const std::filesystem::path& path, const std::string& key,
                       const RefineState& state) {
  std::string hashes = sha256_hex(bytes_of(state.losses));
  for (const auto* values : floats_of(state)) hashes += sha256_hex(bytes_of(*values));
  AtomicFile file(path);
  file.write(head_of(key, state, sha256_hex(hashes)));
  file.write(bytes_of(state.losses));
  for (const auto* values : floats_of(state)) file.write(bytes_of(*values));
  file.commit();
}

namespace {

// Weights in a file begin where a cache line may.
constexpr size_t kAlignment = 64;

size_t padded_size(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

std::string padded(std::string text) {
  text.resize(padded_size(text.size()), '\n');
  return text;
}

std::string part_head(const std::string& key, int64_t number, const std::string& sha256) {
  return padded(fmt::format("{}{}\npart {}\n{}\n", kVersion, key, number, sha256));
}

// Everything of a part in one order: losses, gains, then weights, each from a boundary on.
template <class Part, class Values, class Visit>
void visit_part(Part& part, const std::set<std::string>& free, Values& losses, const Visit& visit) {
  visit(losses);
  for (const auto& norm : norms(part))
    if (free.contains(norm.name)) visit(*norm.gain);
  for (auto* map : linear_maps(part))
    if (free.contains(map->name)) visit(map->weight);
}

std::span<const std::byte> content(const Weight& w) {
  return w.data.bytes.first(static_cast<size_t>(w.bytes()));
}
template <class T>
std::span<const std::byte> content(const std::vector<T>& values) {
  return bytes_of(values);
}

}  // namespace

std::filesystem::path part_of_state(const std::filesystem::path& checkpoint, int64_t number) {
  auto path = checkpoint;
  path += fmt::format(".part-{}", number);
  return path;
}

void save_refined_part(const std::filesystem::path& path, const std::string& key, int64_t number,
                       const Model& part, const std::set<std::string>& free,
                       const std::vector<double>& losses) {
  std::string hashes;
  visit_part(part, free, losses, [&](const auto& value) { hashes += sha256_hex(content(value)); });
  AtomicFile file(path);
  file.write(part_head(key, number, sha256_hex(hashes)));
  const std::string zeros(kAlignment, '\0');
  visit_part(part, free, losses, [&](const auto& value) {
    const auto bytes = content(value);
    file.write(bytes);
    file.write(std::as_bytes(std::span(zeros)).first(padded_size(bytes.size()) - bytes.size()));
  });
  file.commit();
}

bool load_refined_part(const std::filesystem::path& path, const std::string& key, int64_t number,
                       Model& part, const std::set<std::string>& free,
                       std::vector<double>& losses) {
  std::error_code none;
  if (!std::filesystem::is_regular_file(path, none)) return false;
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  const size_t head = part_head(key, number, std::string(64, '0')).size();
  size_t size = head;
  visit_part(part, free, losses,
             [&](const auto& value) { size += padded_size(content(value).size()); });
  if (bytes.size() != size) return false;
  std::string hashes;
  size_t at = head;
  visit_part(part, free, losses, [&](const auto& value) {
    const size_t n = content(value).size();
    hashes += sha256_hex(bytes.subspan(at, n));
    at += padded_size(n);
  });
  const std::string expected = part_head(key, number, sha256_hex(hashes));
  if (std::memcmp(bytes.data(), expected.data(), head) != 0) return false;
  at = head;
  visit_part(part, free, losses, [&](auto& value) {
    const size_t n = content(value).size();
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, Weight>)
      value.data = {file, bytes.subspan(at, n)};
    else if (n)
      std::memcpy(value.data(), bytes.data() + at, n);
    at += padded_size(n);
  });
  return true;
}

void remove_refine_state(const std::filesystem::path& checkpoint) {
  std::error_code none;
  std::filesystem::remove(checkpoint, none);
  const std::string parts = checkpoint.filename().string() + ".part-";
  const auto folder = checkpoint.has_parent_path() ? checkpoint.parent_path() : ".";
  std::vector<std::filesystem::path> found;
  for (const auto& entry : std::filesystem::directory_iterator(folder, none))
    if (entry.path().filename().string().starts_with(parts)) found.push_back(entry.path());
  for (const auto& path : found) std::filesystem::remove(path, none);
}

bool load_refine_state(const std::filesystem::path& path, const std::string& key,
                       RefineState& state) {
  std::error_code none;
  if (!std::filesystem::is_regular_file(path, none)) return false;
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  // The number of steps is read from the file's size, then the whole head is held against it.
  const size_t head = head_of(key, state, std::string(64, '0')).size();
  size_t floats = 0;
  for (const auto* values : floats_of(state)) floats += values->size() * sizeof(float);
  if (bytes.size() < head + floats || (bytes.size() - head - floats) % sizeof(double)) return false;
  const std::vector<double> losses = state.losses;
  state.losses.resize((bytes.size() - head - floats) / sizeof(double));
  std::string hashes;
  size_t at = head;
  auto hash = [&](const auto& values) {
    const size_t n = values.size() * sizeof(values[0]);
    hashes += sha256_hex(bytes.subspan(at, n));
    at += n;
  };
  hash(state.losses);
  for (const auto* values : floats_of(state)) hash(*values);
  const std::string expected = head_of(key, state, sha256_hex(hashes));
  if (std::memcmp(bytes.data(), expected.data(), head) != 0) {
    state.losses = losses;
    return false;
  }
  at = head;
  auto read = [&](auto& values) {
    const size_t n = values.size() * sizeof(values[0]);
    if (n) std::memcpy(values.data(), bytes.data() + at, n);
    at += n;
  };
  read(state.losses);
  for (auto* values : floats_of(state)) read(*values);
  return true;
}

}  // namespace mt
