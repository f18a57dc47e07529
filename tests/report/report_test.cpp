#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "report/html.h"
#include "report/report_json.h"
#include "report/sample_helper.h"
#include "report/terminal.h"

namespace mt {
namespace {

using report_test::hostile_report;
using report_test::sample_report;

TEST(ReportJson, RoundTripsExactly) {
  Report report = sample_report();
  report.predicted_kl = 0.1 + 0.2;
  report.places[3].predicted_kl = 5e-324;
  report.peak_memory_bytes = INT64_MAX;
  const std::string text = to_json(report);
  const Report back = report_from_json(text, "r.json");
  EXPECT_EQ(to_json(back), text);
  EXPECT_EQ(back.predicted_kl, 0.1 + 0.2);
  EXPECT_EQ(back.places[3].predicted_kl, 5e-324);
  EXPECT_EQ(back.peak_memory_bytes, INT64_MAX);
  ASSERT_EQ(back.comparisons.size(), 1u);
  EXPECT_EQ(back.comparisons[0].kl_p999.high, report.comparisons[0].kl_p999.high);
  EXPECT_EQ(back.places.back().place, report.places.back().place);
  EXPECT_EQ(back.notes, report.notes);
  EXPECT_EQ(back.frontier.size(), report.frontier.size());
  EXPECT_EQ(to_json(report_from_json(to_json(Report{}), "r")), to_json(Report{}));
}

TEST(ReportJson, NotFiniteIsNull) {
  Report report = sample_report(1);
  report.comparisons[0].kl_max.value = INFINITY;
  const Report back = report_from_json(to_json(report), "r");
  EXPECT_TRUE(std::isnan(back.comparisons[0].kl_max.value));
}

TEST(ReportJson, NamesWhatIsWrong) {
  const auto message = [](const std::string& text) -> std::string {
    try {
      report_from_json(text, "r.json");
    } catch (const Error& e) {
      return e.what();
    }
    return "was read";
  };
  EXPECT_NE(message("{").find("r.json: not JSON"), std::string::npos);
  EXPECT_NE(message("[]").find("expected an object"), std::string::npos);
  EXPECT_NE(message("{}").find("microtome_report: missing"), std::string::npos);
  EXPECT_NE(message(R"({"microtome_report": 9})").find("version 9"), std::string::npos);
  const std::string good = to_json(sample_report(1));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return message(text.replace(at, from.size(), to));
  };
  EXPECT_NE(with("\"n_ctx\": 512", "\"n_ctx\": \"512\"").find("comparisons[0].n_ctx"),
            std::string::npos);
  EXPECT_NE(with("\"n_ctx\": 512,", "").find("comparisons[0].n_ctx: missing"), std::string::npos);
  EXPECT_NE(with("\"layer\": -1", "\"layer\": 1.5").find("places[0].layer"), std::string::npos);
  EXPECT_NE(with("\"notes\": [", "\"notes\": [3, ").find("notes[0]"), std::string::npos);
  for (size_t n = 0; n + 2 < good.size(); n += 97)
    EXPECT_NE(message(good.substr(0, n)), "was read") << n;
}

TEST(ReportJson, ScriptBlockCannotBeLeft) {
  const std::string text = to_script_json(hostile_report());
  for (const char c : text) {
    EXPECT_TRUE(c >= 0x20 && c < 0x7f) << int(c);
    EXPECT_TRUE(c != '<' && c != '>' && c != '&') << c;
  }
  // What is read back is what was written, but for the broken bytes and what is not finite.
  EXPECT_EQ(to_json(report_from_json(text, "s")), to_json(hostile_report()));
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t start = 0; start < text.size();) {
    const size_t end = std::min(text.find('\n', start), text.size());
    lines.push_back(text.substr(start, end - start));
    start = end + 1;
  }
  return lines;
}

TEST(Terminal, NoLineIsWiderThanAsked) {
  Report utf8 = sample_report(4);
  utf8.source = "модель-模型模型模型模型模型模型模型模型模型模型模型模型模型模型模型模型-🚀🚀🚀.gguf";
  utf8.goal = "--größe 75MB " + std::string(200, 'x');
  for (auto& p : utf8.places) p.place = "层.注意力.é\xcc\x81." + p.place + ".重量重量重量重量";
  for (const Report& report : {sample_report(), hostile_report(), utf8, Report{}})
    for (const int width : {40, 60, 80, 120, 200}) {
      const std::string text =
          terminal_report(report, {.width = width, .colour = false, .max_places = -1});
      for (const auto& line : lines_of(text)) EXPECT_LE(display_width(line), width) << line;
      EXPECT_EQ(text.find('\x1b'), std::string::npos) << "a name wrote to the terminal";
    }
}

TEST(Terminal, WideEnoughShowsNamesWhole) {
  const std::string text =
      terminal_report(sample_report(), {.width = 80, .colour = false, .max_places = -1});
  EXPECT_NE(text.find("blk.29.attn_output.weight "), std::string::npos);
  EXPECT_NE(text.find(std::string(32, '4') + std::string(32, 'e')), std::string::npos);
  EXPECT_NE(text.find("98.36 MB → 75.00 MB (-23.8 %)"), std::string::npos) << text;
  EXPECT_NE(text.find("0.04470 [0.04280, 0.04660]"), std::string::npos);
  const std::string coloured =
      terminal_report(sample_report(), {.width = 80, .colour = true, .max_places = 20});
  EXPECT_NE(coloured.find("\x1b[1m"), std::string::npos);
}

TEST(Terminal, FewWindowsGiveNoIntervals) {
  Report report = sample_report(1);
  for (int64_t n : {4, 5}) {
    report.comparisons[0].n_windows = n;
    const std::string text = terminal_report(report, {.width = 80, .colour = false});
    EXPECT_EQ(text.find("0.04470 [0.04280, 0.04660]") != std::string::npos, n == 5) << text;
    EXPECT_EQ(text.find(" %]") == std::string::npos, n == 4) << text;
    EXPECT_EQ(text.find("none: they need 5 windows") != std::string::npos, n == 4) << text;
  }
}

TEST(Terminal, WhatWasNotOptimisedIsNotCalledOptimal) {
  Report report = sample_report(1);
  const std::pair<double, const char*> cases[] = {
      {3.2e-6, "(optimal within 0.00032 %)"}, {0, "(optimal)"}, {-1, ""}};
  for (const auto& [gap, said] : cases) {
    report.optimality_gap = gap;
    const std::string text = terminal_report(report, {.width = 80, .colour = false});
    if (*said)
      EXPECT_NE(text.find(said), std::string::npos) << text;
    else
      EXPECT_EQ(text.find("optimal"), std::string::npos) << text;
  }
}

TEST(Terminal, LargestLossesFirst) {
  Report report = sample_report(2);
  for (auto& p : report.places) p.predicted_kl = 0.001, p.measured_kl = -1;
  report.places[5].place = "second";
  report.places[5].predicted_kl = 0.5;
  report.places[9].place = "first";
  report.places[9].measured_kl = 0.7;  // measured counts before predicted
  report.places[2].place = "unknown";
  report.places[2].predicted_kl = NAN;
  const std::string text =
      terminal_report(report, {.width = 80, .colour = false, .max_places = -1});
  const size_t first = text.find("\nfirst"), second = text.find("\nsecond"),
               last = text.find("\nunknown");
  EXPECT_LT(first, second);
  EXPECT_LT(second, last);
  EXPECT_NE(last, std::string::npos);
  EXPECT_EQ(text.find("blk.", last), std::string::npos);
}

TEST(Terminal, WidthsOfCharacters) {
  EXPECT_EQ(display_width("abc"), 3);
  EXPECT_EQ(display_width("模型"), 4);
  EXPECT_EQ(display_width("e\xcc\x81"), 1);
  EXPECT_EQ(display_width("\xff\xc0\xaf"), 3);
  EXPECT_EQ(fitted("模型模型", 5), "模型…");
  EXPECT_EQ(fitted("模型模型", 4), "模…");
  EXPECT_EQ(fitted("ab\x1b[1m\n", 20), "ab?[1m?");
  EXPECT_EQ(fitted("\xed\xa0\x80", 9), "???") << "a surrogate";
  EXPECT_EQ(fitted("abc", 0), "");
}

TEST(Html, IsOneSafePage) {
  const std::string page = html_page(hostile_report());
  const auto count = [&](const std::string& what) {
    size_t n = 0;
    for (size_t at = page.find(what); at != std::string::npos; at = page.find(what, at + 1)) ++n;
    return n;
  };
  EXPECT_EQ(count("</script"), 3u) << "the block, Chart.js, the page's own";
  EXPECT_EQ(count("hacked=1;document.title='x'"), count("\\u003cscript\\u003ewindow.hacked=1"))
      << "names stand in the JSON block alone";
  EXPECT_EQ(count("<img"), 0u);
  EXPECT_EQ(count("Content-Security-Policy"), 1u);
  EXPECT_NE(page.find("Chart.js v3"), std::string::npos) << "its licence notice stays";
}

}  // namespace
}  // namespace mt
