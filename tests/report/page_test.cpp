// The page in a real browser: headless Chromium.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>

#include "base/files.h"
#include "report/html.h"
#include "report/report_json.h"
#include "report/sample_helper.h"

namespace mt {
namespace {

namespace fs = std::filesystem;

struct Rendered {
  std::string dom, log;
  int status = -1;
};

class SlowPage : public testing::Test {
 protected:
  void SetUp() override {
    if (std::system("command -v chromium >/dev/null 2>&1") != 0)
      GTEST_SKIP() << "chromium is not installed (make setup installs it)";
    std::string name = (fs::temp_directory_path() / "microtome-page-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override {
    if (!folder_.empty()) fs::remove_all(folder_);
  }

  Rendered render(const std::string& html, const std::string& options = "") {
    std::ofstream(folder_ / "page.html") << html;
    const std::string command =
        "HOME=" + folder_.string() + " timeout 100 chromium --headless --no-sandbox --disable-gpu" +
        " --disable-dev-shm-usage --user-data-dir=" + (folder_ / "profile").string() +
        " --enable-logging=stderr --v=0 --virtual-time-budget=5000 " + options +
        " --dump-dom file://" + (folder_ / "page.html").string() + " 2>" +
        (folder_ / "log").string();
    Rendered r;
    FILE* pipe = popen(command.c_str(), "r");
    EXPECT_NE(pipe, nullptr);
    char buffer[65536];
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) r.dom.append(buffer, n);
    r.status = pclose(pipe);
    r.log = read_text_file(folder_ / "log");
    return r;
  }

  fs::path folder_;
};

// The number a person reads, and half a unit of its last digit.
std::pair<double, double> read_number(std::string text) {
  std::erase(text, ',');
  size_t end = 0;
  const double value = std::stod(text, &end);
  const std::string digits = text.substr(0, end), unit = text.substr(end);
  static const std::map<std::string, double> units = {
      {"", 1}, {" B", 1}, {" bytes", 1}, {" kB", 1e3}, {" MB", 1e6}, {" GB", 1e9}, {" %", 0.01}};
  const auto scale = units.find(unit);
  if (scale == units.end()) throw std::invalid_argument("unit '" + unit + "'");
  const size_t e = digits.find('e'), dot = digits.find('.');
  const double decimals =
      dot == std::string::npos ? 0 : double(std::min(e, digits.size()) - dot - 1);
  const double exponent = e == std::string::npos ? 0 : std::stod(digits.substr(e + 1));
  return {value * scale->second, 0.5001 * std::pow(10, exponent - decimals) * scale->second};
}

TEST_F(SlowPage, NumbersEqualTheJson) {
  const Report report = report_test::sample_report();
  const Rendered page = render(html_page(report));
  EXPECT_EQ(page.status, 0) << page.log;
  EXPECT_EQ(page.log.find("CONSOLE"), std::string::npos) << page.log;
  ASSERT_NE(page.dom.find("data-rendered=\"yes\""), std::string::npos) << page.dom.substr(0, 2000);
  EXPECT_NE(page.dom.find("<canvas"), std::string::npos);

  const auto json = nlohmann::json::parse(to_json(report));
  const std::regex shown("data-path=\"([^\"]*)\" data-value=\"([^\"]*)\"[^>]*>([^<]*)<");
  std::map<std::string, int> seen;
  for (std::sregex_iterator it(page.dom.begin(), page.dom.end(), shown), end; it != end; ++it) {
    const std::string path = (*it)[1], exact = (*it)[2], text = (*it)[3];
    ++seen[path];
    const auto& value = json.at(nlohmann::json::json_pointer(path));
    EXPECT_EQ(nlohmann::json::parse(exact), value) << path;
    if (path == "/seconds") continue;  // "3 min 35 s"
    const auto [number, half_digit] = read_number(text);
    EXPECT_NEAR(number, value.get<double>(), half_digit) << path << " reads " << text;
  }
  // Every number of the headline, the proof, the curve and the places is there.
  for (const char* path : {"/output_bytes", "/source_bytes", "/output_bits", "/source_bits",
                           "/predicted_kl", "/optimality_gap", "/n_weights", "/peak_memory_bytes"})
    EXPECT_GE(seen[path], 1) << path;
  for (const char* field : {"base_perplexity", "perplexity", "kl_mean", "kl_median", "kl_p90",
                            "kl_p99", "kl_p999", "kl_max", "same_top", "dp_mean", "dp_rms"})
    for (const char* part : {"/value", "/low", "/high"})
      EXPECT_GE(seen[std::string("/comparisons/0/") + field + part], 1) << field << part;
  for (size_t i = 0; i < report.frontier.size(); ++i)
    EXPECT_EQ(seen["/frontier/" + std::to_string(i) + "/predicted_kl"], 1);
  for (size_t i = 0; i < report.places.size(); ++i) {
    EXPECT_EQ(seen["/places/" + std::to_string(i) + "/predicted_kl"], 1);
    EXPECT_EQ(seen["/places/" + std::to_string(i) + "/measured_kl"],
              report.places[i].measured_kl >= 0);
  }
  // Two heat-maps of as many cells as places.
  const std::regex cell("<td colspan=\"[0-9]+\" title=");
  EXPECT_EQ(size_t(std::distance(std::sregex_iterator(page.dom.begin(), page.dom.end(), cell), {})),
            2 * report.places.size());
}

TEST_F(SlowPage, NamesStayNames) {
  const Rendered page = render(html_page(report_test::hostile_report()));
  EXPECT_EQ(page.log.find("CONSOLE"), std::string::npos) << page.log;
  ASSERT_NE(page.dom.find("data-rendered=\"yes\""), std::string::npos);
  EXPECT_EQ(page.dom.find("<img"), std::string::npos);
  EXPECT_EQ(page.dom.find("<title>x</title>"), std::string::npos);
  size_t scripts = 0;
  for (size_t at = page.dom.find("<script"); at != std::string::npos;
       at = page.dom.find("<script", at + 1)) {
    // Titles and cells escape '<'; what is left are elements, and the text of Chart.js.
    ++scripts;
  }
  EXPECT_EQ(scripts, 3u);
}

TEST_F(SlowPage, EmptyReportAndPhoneWidth) {
  const Rendered empty = render(html_page(Report{}));
  EXPECT_EQ(empty.log.find("CONSOLE"), std::string::npos) << empty.log;
  EXPECT_NE(empty.dom.find("data-rendered=\"yes\""), std::string::npos);
  // In a narrow window (Chromium's narrowest is 500) nothing but the scrolling tables is wider.
  std::string html = html_page(report_test::sample_report());
  const std::string probe =
      "<script>document.body.dataset.wide = innerWidth + "
      "(document.documentElement.scrollWidth > innerWidth ? ' too wide' : ' fits');</script>";
  html.insert(html.rfind("</body>"), probe);
  const Rendered phone = render(html, "--hide-scrollbars --window-size=390,844");
  EXPECT_TRUE(std::regex_search(phone.dom, std::regex("data-wide=\"[345][0-9][0-9] fits\"")))
      << phone.dom.substr(phone.dom.find("<body"), 200);
}

TEST_F(SlowPage, ConsoleErrorsAreSeen) {
  // The other tests would pass on a browser that hides its console.
  const Rendered page =
      render("<!doctype html><script>console.error('seen'); undefinedName();</script>");
  EXPECT_NE(page.log.find("CONSOLE"), std::string::npos) << page.log;
}

}  // namespace
}  // namespace mt
