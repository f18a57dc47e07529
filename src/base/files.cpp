#include "base/files.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace mt {

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  // A pipe without a writer would keep a blocking open waiting.
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) throw_error("{}: cannot be opened: {}", path.string(), std::strerror(errno));
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    throw_error("{}: not a regular file", path.string());
  }
  std::shared_ptr<MappedFile> file(new MappedFile);
  file->path_ = path;
  file->size_ = static_cast<size_t>(info.st_size);
  if (file->size_ > 0) {
    void* p = ::mmap(nullptr, file->size_, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED) {
      int why = errno;
      ::close(fd);
      throw_error("{}: cannot be mapped: {}", path.string(), std::strerror(why));
    }
    file->data_ = static_cast<const std::byte*>(p);
  }
  ::close(fd);
  return file;
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

namespace {

constexpr std::string_view kTemporaryEnd = ".tmp";

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.parent_path().empty() ? std::filesystem::path(".") : path.parent_path();
}

// Temporaries of `path` begin so. A long name is cut, to leave room for the rest.
std::string temporary_start(const std::filesystem::path& path) {
  return "." + path.filename().string().substr(0, 200) + ".microtome-";
}

// A process that has ended holds no lock; one of another machine or container, whose number says
// nothing here, does.
bool is_left_over(const std::filesystem::path& temporary, pid_t writer) {
  if (::kill(writer, 0) == 0 || errno != ESRCH) return false;
  const int fd = ::open(temporary.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return false;
  const bool ended = ::flock(fd, LOCK_EX | LOCK_NB) == 0;
  ::close(fd);
  return ended;
}

void remove_left_over(const std::filesystem::path& path) {
  const std::string start = temporary_start(path);
  std::error_code none;
  for (std::filesystem::directory_iterator entry(folder_of(path), none), end; entry != end;
       entry.increment(none)) {
    const std::string name = entry->path().filename().string();
    if (!name.starts_with(start) || !name.ends_with(kTemporaryEnd)) continue;
    pid_t writer = 0;
    const auto [stop, error] =
        std::from_chars(name.data() + start.size(), name.data() + name.size(), writer);
    if (error == std::errc() && writer > 0 && *stop == '-' && is_left_over(entry->path(), writer))
      ::unlink(entry->path().c_str());
  }
}

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path path, bool replace)
    : path_(std::move(path)), replace_(replace) {
  remove_left_over(path_);
  std::string name = folder_of(path_) / fmt::format("{}{}-XXXXXX{}", temporary_start(path_),
                                                    ::getpid(), kTemporaryEnd);
  fd_ = ::mkostemps(name.data(), static_cast<int>(kTemporaryEnd.size()), O_CLOEXEC);
  if (fd_ < 0) throw_error("{}: cannot be written: {}", path_.string(), std::strerror(errno));
  temporary_ = name;
  ::flock(fd_, LOCK_EX | LOCK_NB);  // where there are no locks, none can be had to remove it either
  mode_t mask = ::umask(0);
  ::umask(mask);
  ::fchmod(fd_, 0666 & ~mask);
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_error("{}: writing failed: {}", path_.string(), std::strerror(errno));
    offset_ += static_cast<uint64_t>(n);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

void AtomicFile::write(const std::string& text) {
  write(std::as_bytes(std::span(text.data(), text.size())));
}

void AtomicFile::commit() {
  if (::fsync(fd_) != 0) throw_error("{}: sync failed: {}", path_.string(), std::strerror(errno));
  ::close(std::exchange(fd_, -1));
  const bool moved = !replace_ && ::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(),
                                              RENAME_NOREPLACE) == 0;
  if (!replace_ && !moved && errno == EEXIST)
    throw_error("{}: exists; it was not there when this began", path_.string());
  // Not every file system can refuse.
  if (!moved && ::rename(temporary_.c_str(), path_.c_str()) != 0)
    throw_error("{}: rename failed: {}", path_.string(), std::strerror(errno));
  temporary_.clear();
  int fd = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd >= 0) {
    ::fsync(fd);
    ::close(fd);
  }
}

std::string read_text_file(const std::filesystem::path& path) {
  auto file = MappedFile::open(path);
  auto bytes = file->bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string sha256_hex(std::span<const std::byte> bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned length = 0;
  if (!EVP_Digest(bytes.data(), bytes.size(), digest.data(), &length, EVP_sha256(), nullptr))
    throw Error("sha256: the digest failed");
  std::string hex;
  for (unsigned i = 0; i < length; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

std::string sha256_hex(const std::string& text) {
  return sha256_hex(std::as_bytes(std::span(text.data(), text.size())));
}

}  // namespace mt
