#pragma once
#include <functional>
#include <string>
#include <vector>

namespace mt::test {

struct Outcome {
  int code = -1;  // exit code; 128 + signal where one ended it
  std::string out, err;
};

// Runs the built program with pipes for its three streams.
Outcome run(const std::vector<std::string>& arguments, const std::string& input = "");

// Runs it in a pseudo terminal of so many columns; out holds both streams as the terminal got
// them. typed: what the user types. during: called again and again with the process id and what
// has come so far, for tests that act while it works.
Outcome run_in_terminal(const std::vector<std::string>& arguments, int columns,
                        const std::string& typed = "",
                        const std::function<void(int pid, const std::string& so_far)>& during = {});

std::string golden(const std::string& name);

std::vector<std::string> lines(const std::string& text);
// Text that the tiny models' tokenizers take apart into some hundred tokens or more.
std::string some_text(int n);

// A file that is removed at the end of its life.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& content, const std::string& suffix = ".txt");
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace mt::test
