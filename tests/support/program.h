#pragma once
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "support/folder.h"

namespace mt::test {

struct ProgramSetting {
  std::vector<std::pair<std::string, std::string>> environment = {};
  long largest_file = -1;  // bytes; a write beyond it fails as on a full disk
  bool as_nobody = false;  // gives up root's right to write anywhere
};

// The built program with its two output streams in files, so that nothing blocks and it can be
// killed at any moment.
class Program {
 public:
  struct Outcome {
    int code = -1;  // 128 + signal where one ended it
    std::string out, err;
  };

  explicit Program(std::vector<std::string> arguments, const ProgramSetting& setting = {}) {
    arguments.insert(arguments.begin(), MT_BINARY);
    std::vector<char*> argv;
    for (auto& a : arguments) argv.push_back(a.data());
    argv.push_back(nullptr);
    const int out = ::open((folder_ / "out").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    const int err = ::open((folder_ / "err").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    pid_ = ::fork();
    if (pid_ < 0) throw std::runtime_error("fork");
    if (pid_ == 0) {
      ::dup2(out, 1);
      ::dup2(err, 2);
      for (const auto& [name, value] : setting.environment)
        ::setenv(name.c_str(), value.c_str(), 1);
      if (setting.largest_file >= 0) {
        const rlimit limit{rlim_t(setting.largest_file), rlim_t(setting.largest_file)};
        ::setrlimit(RLIMIT_FSIZE, &limit);
      }
      if (setting.as_nobody && ::geteuid() == 0 &&
          (::setgroups(0, nullptr) != 0 || ::setgid(65534) != 0 || ::setuid(65534) != 0))
        ::_exit(126);
      ::execv(MT_BINARY, argv.data());
      ::_exit(127);
    }
    ::close(out);
    ::close(err);
  }
  ~Program() {
    if (pid_ > 0) {
      kill();
      wait();
    }
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void kill(int signal = SIGKILL) { ::kill(pid_, signal); }
  Outcome wait() {
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
            bytes_of(folder_ / "out"), bytes_of(folder_ / "err")};
  }

 private:
  TemporaryFolder folder_;
  int pid_ = -1;
};

inline Program::Outcome run_program(std::vector<std::string> arguments,
                                    const ProgramSetting& setting = {}) {
  return Program(std::move(arguments), setting).wait();
}

}  // namespace mt::test
