// The rooms of src/ and who may include whom (docs/design.md, Rooms).
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace {
namespace fs = std::filesystem;

// A room includes only rooms before it.
const std::vector<std::string> kRooms = {"base", "dtype", "kernels", "linalg",   "flow",    "file",
                                         "text", "model", "run",     "bench",    "measure", "plan",
                                         "cut",  "edit",  "report",  "compress", "serve",   "cli"};
// These five do not include one another, save that measuring may try a cut.
const std::set<std::string> kApart = {"measure", "plan", "cut", "edit", "report"};

bool may_include(const std::string& from, const std::string& to) {
  if (from == to) return true;
  if (kApart.contains(from) && kApart.contains(to)) return from == "measure" && to == "cut";
  auto at = [](const std::string& room) { return std::ranges::find(kRooms, room); };
  return at(to) < at(from);
}

// One line per include that is not allowed, or that names no room.
std::vector<std::string> violations(const fs::path& src, int* n_includes = nullptr) {
  static const std::regex include(R"re(^\s*#\s*include\s*["<]([^">]+)[">])re");
  std::vector<std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(src)) {
    if (entry.path().extension() != ".h" && entry.path().extension() != ".cpp") continue;
    fs::path file = fs::relative(entry.path(), src);
    std::string from = file.begin()->string();
    if (std::ranges::find(kRooms, from) == kRooms.end()) {
      found.push_back(fmt::format("{}: '{}' is no room of docs/design.md", file.string(), from));
      continue;
    }
    std::ifstream in(entry.path());
    std::string line;
    for (int number = 1; std::getline(in, line); ++number) {
      std::smatch match;
      if (!std::regex_search(line, match, include)) continue;
      fs::path what = match[1].str();
      auto say = [&](const std::string& why) {
        found.push_back(
            fmt::format("{}:{}: includes {}: {}", file.string(), number, what.string(), why));
      };
      std::string name = what.string();
      if (from != "kernels" && name.ends_with("intrin.h")) say("intrinsics belong to kernels/");
      if (from != "linalg" && (name.starts_with("cblas") || name.starts_with("lapacke")))
        say("BLAS and LAPACK belong to linalg/");
      bool quoted = line.find('"') != std::string::npos;
      if (!quoted) continue;
      std::string to = what.begin()->string();
      if (n_includes) ++*n_includes;
      if (!fs::exists(src / what)) {
        say("no such file under src/");
      } else if (!may_include(from, to)) {
        say(fmt::format("{}/ may not include {}/", from, to));
      }
    }
  }
  std::ranges::sort(found);
  return found;
}

TEST(Rooms, IncludeOnlyRoomsBeforeThem) {
  int n_includes = 0;
  auto found = violations(fs::path(MT_SOURCE_DIR) / "src", &n_includes);
  for (const auto& line : found) ADD_FAILURE() << line;
  EXPECT_GT(n_includes, 50);  // the reading itself works
}

TEST(Rooms, TheCheckerSeesWhatIsNotAllowed) {
  std::string name = (fs::temp_directory_path() / "microtome-rooms-XXXXXX").string();
  ASSERT_NE(::mkdtemp(name.data()), nullptr);
  fs::path src = name;
  auto put = [&](const std::string& file, const std::string& text) {
    fs::create_directories((src / file).parent_path());
    std::ofstream(src / file) << text;
  };
  put("base/a.h", "#include \"flow/a.h\"\n#include <vector>\n");
  put("flow/a.h", "#include \"base/a.h\"\n  #  include <immintrin.h>\n");
  put("cut/a.h", "#include \"flow/a.h\"\n#include \"cut/missing.h\"\n");
  put("measure/a.cpp", "#include \"cut/a.h\"\n#include \"flow/a.h\"\n");
  put("report/a.cpp", "#include \"cut/a.h\"\n");
  put("cli/a.cpp", "#include \"cut/a.h\"\n#include \"report/a.cpp\"\n#include <cblas.h>\n");
  put("attic/a.cpp", "");
  auto found = violations(src);
  fs::remove_all(src);
  std::vector<std::string> wanted = {
      "attic/a.cpp: 'attic' is no room of docs/design.md",
      "base/a.h:1: includes flow/a.h: base/ may not include flow/",
      "cli/a.cpp:3: includes cblas.h: BLAS and LAPACK belong to linalg/",
      "cut/a.h:2: includes cut/missing.h: no such file under src/",
      "flow/a.h:2: includes immintrin.h: intrinsics belong to kernels/",
      "report/a.cpp:1: includes cut/a.h: report/ may not include cut/"};
  EXPECT_EQ(found, wanted);
}

}  // namespace
