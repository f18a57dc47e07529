#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

namespace mt {

// A file mapped read-only. Shared by everything that points into it.
class MappedFile {
 public:
  // Throws Error where the file cannot be opened or is not a regular file.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  MappedFile() = default;
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Writes to a temporary beside `path`; `commit` syncs and renames it, so that an interrupted run
// leaves the old file or the new one. Else it is removed; after a kill, by the next write of
// `path`.
class AtomicFile {
 public:
  // replace: over what stands there at the end; without it commit() throws Error where something
  // does.
  explicit AtomicFile(std::filesystem::path path, bool replace = true);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  // Throws Error (disk full, ...) naming the file.
  void write(std::span<const std::byte> bytes);
  void write(const std::string& text);
  uint64_t offset() const { return offset_; }
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  bool replace_;
  int fd_ = -1;
  uint64_t offset_ = 0;
};

// The whole file as text. Throws Error.
std::string read_text_file(const std::filesystem::path& path);

// Lower-case hex of the SHA-256.
std::string sha256_hex(std::span<const std::byte> bytes);
std::string sha256_hex(const std::string& text);

}  // namespace mt
