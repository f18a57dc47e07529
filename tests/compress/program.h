#pragma once
// What the tests that run the program share: a folder with a copy of a model, and short runs.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "support/folder.h"
#include "support/program.h"

#define EXPECT_SAYS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

namespace mt::test {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

// Little text, so that a run takes a fraction of a second.
inline Words small(Words words) {
  for (const char* w :
       {"--windows", "6", "--proof-windows", "4", "--n-ctx", "40", "--measured", "6"})
    words.push_back(w);
  if (words[0] == "compress" && std::find(words.begin(), words.end(), "--refine") == words.end())
    for (const char* w : {"--refine", "0"}) words.push_back(w);
  return words;
}

class CompressFolder : public testing::Test {
 protected:
  TemporaryFolder folder;
  std::string model = copied("tiny_llama");

  // Measurements lie beside a model: each test has its own copy.
  std::string copied(const std::string& name) {
    const std::string to = folder / (name + ".gguf");
    fs::copy_file(std::string(MT_TEST_DATA) + "/" + name + ".gguf", to);
    fs::permissions(to, fs::perms::owner_write, fs::perm_options::add);
    return to;
  }
  std::set<std::string> files() const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder.path()))
      names.insert(entry.path().filename().string());
    return names;
  }
};

}  // namespace mt::test
