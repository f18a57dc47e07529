#include "cli/run_helper.h"

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace mt::test {
namespace {

[[noreturn]] void become(const std::vector<std::string>& arguments) {
  std::vector<char*> argv{const_cast<char*>(MT_BINARY)};
  for (const auto& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  ::execv(MT_BINARY, argv.data());
  ::_exit(127);
}

int code_of(int pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

Outcome run(const std::vector<std::string>& arguments, const std::string& input) {
  // The input goes through a file: nothing can block then.
  TemporaryFile in(input);
  int out[2], err[2];
  if (::pipe(out) != 0 || ::pipe(err) != 0) throw std::runtime_error("pipe");
  int pid = ::fork();
  if (pid == 0) {
    ::dup2(::open(in.path().c_str(), O_RDONLY), 0);
    ::dup2(out[1], 1);
    ::dup2(err[1], 2);
    for (int fd : {out[0], out[1], err[0], err[1]}) ::close(fd);
    become(arguments);
  }
  ::close(out[1]);
  ::close(err[1]);
  Outcome result;
  pollfd fds[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
  std::string* texts[2] = {&result.out, &result.err};
  for (int open = 2; open > 0;) {
    ::poll(fds, 2, -1);
    for (int i = 0; i < 2; ++i) {
      if (fds[i].fd < 0 || !fds[i].revents) continue;
      char buffer[4096];
      ssize_t n = ::read(fds[i].fd, buffer, sizeof buffer);
      if (n > 0) {
        texts[i]->append(buffer, static_cast<size_t>(n));
      } else {
        ::close(fds[i].fd);
        fds[i].fd = -1;
        --open;
      }
    }
  }
  result.code = code_of(pid);
  return result;
}

Outcome run_in_terminal(const std::vector<std::string>& arguments, int columns,
                        const std::string& typed,
                        const std::function<void(int pid, const std::string& so_far)>& during) {
  winsize size{};
  size.ws_row = 24;
  size.ws_col = static_cast<unsigned short>(columns);
  int master = -1;
  int pid = ::forkpty(&master, nullptr, nullptr, &size);
  if (pid < 0) throw std::runtime_error("forkpty");
  if (pid == 0) {
    ::setenv("TERM", "xterm", 1);
    ::unsetenv("NO_COLOR");
    become(arguments);
  }
  if (!typed.empty() && ::write(master, typed.data(), typed.size()) < 0)
    throw std::runtime_error("write");
  Outcome result;
  for (;;) {
    pollfd fd{master, POLLIN, 0};
    int ready = ::poll(&fd, 1, 50);
    if (during) during(pid, result.out);
    if (ready <= 0) continue;
    char buffer[4096];
    ssize_t n = ::read(master, buffer, sizeof buffer);
    if (n <= 0) break;  // the other side is closed
    result.out.append(buffer, static_cast<size_t>(n));
  }
  ::close(master);
  result.code = code_of(pid);
  return result;
}

std::string golden(const std::string& name) {
  return std::string(MT_TEST_DATA) + "/" + name;
}

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) out.push_back(line);
  return out;
}

std::string some_text(int n) {
  std::string text;
  for (int i = 0; i < n; ++i) text += "a bc de f" + std::to_string(i % 7) + " ";
  return text;
}

TemporaryFile::TemporaryFile(const std::string& content, const std::string& suffix) {
  path_ = (std::filesystem::temp_directory_path() / ("mt-cli-XXXXXX" + suffix)).string();
  int fd = ::mkostemps(path_.data(), static_cast<int>(suffix.size()), O_CLOEXEC);
  if (fd < 0) throw std::runtime_error("temporary file");
  ::close(fd);
  std::ofstream(path_, std::ios::binary) << content;
}

TemporaryFile::~TemporaryFile() {
  std::error_code ignored;
  std::filesystem::remove(path_, ignored);
}

}  // namespace mt::test
