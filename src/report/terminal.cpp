#include "report/terminal.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "report/format.h"

namespace mt {
namespace {

struct Character {
  char32_t code = 0;
  size_t bytes = 1;
  bool valid = false;
};

// The next UTF-8 character: no overlong forms, surrogates or codes beyond U+10FFFF.
Character next_character(std::string_view s) {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned char c = at(0);
  if (c < 0x80) return {c, 1, true};
  const size_t n = c >= 0xf0 && c < 0xf5   ? 4
                   : c >= 0xe0 && c < 0xf0 ? 3
                   : c >= 0xc2 && c < 0xe0 ? 2
                                           : 0;
  if (n == 0 || s.size() < n) return {};
  char32_t code = c & (0x7f >> n);
  for (size_t i = 1; i < n; ++i) {
    if ((at(i) & 0xc0) != 0x80) return {};
    code = code << 6 | (at(i) & 0x3f);
  }
  const bool overlong = (n == 3 && code < 0x800) || (n == 4 && code < 0x10000);
  if (overlong || (code >= 0xd800 && code < 0xe000) || code > 0x10ffff) return {};
  return {code, n, true};
}

// The locale of the program is not ours to set, so wcwidth cannot be asked: the wide blocks of
// Unicode's East Asian Width and the common combining and invisible ranges.
int columns_of(char32_t c) {
  const auto in = [c](char32_t low, char32_t high) { return c >= low && c <= high; };
  if (in(0x300, 0x36f) || in(0x483, 0x489) || in(0x591, 0x5bd) || in(0x610, 0x61a) ||
      in(0x64b, 0x65f) || in(0x93a, 0x93c) || in(0x941, 0x948) || in(0xe31, 0xe31) ||
      in(0xe34, 0xe3a) || in(0xe47, 0xe4e) || in(0x1ab0, 0x1aff) || in(0x1dc0, 0x1dff) ||
      in(0x200b, 0x200f) || in(0x202a, 0x202e) || in(0x2060, 0x2064) || in(0x20d0, 0x20ff) ||
      in(0xfe00, 0xfe0f) || in(0xfe20, 0xfe2f) || in(0xe0100, 0xe01ef))
    return 0;
  if (in(0x1100, 0x115f) || in(0x2e80, 0x303e) || in(0x3041, 0xa4cf) || in(0xa960, 0xa97f) ||
      in(0xac00, 0xd7a3) || in(0xf900, 0xfaff) || in(0xfe30, 0xfe6f) || in(0xff00, 0xff60) ||
      in(0xffe0, 0xffe6) || in(0x1f300, 0x1f64f) || in(0x1f680, 0x1f6ff) || in(0x1f900, 0x1faff) ||
      in(0x20000, 0x3fffd))
    return 2;
  return 1;
}

// Control characters and the marks that turn the reading direction.
bool harmless(char32_t c) {
  return c >= 0x20 && !(c >= 0x7f && c < 0xa0) && !(c >= 0x202a && c <= 0x202e) &&
         !(c >= 0x2066 && c <= 0x2069) && c != 0x2028 && c != 0x2029;
}

std::string clean(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const Character c = next_character(text);
    out += c.valid && harmless(c.code) ? std::string(text.substr(0, c.bytes)) : "?";
    text.remove_prefix(c.bytes);
  }
  return out;
}

std::string left(std::string_view text, int width) {
  std::string out = fitted(text, width);
  out.append(size_t(std::max(0, width - display_width(out))), ' ');
  return out;
}

std::string right(std::string_view text, int width) {
  std::string out = fitted(text, width);
  return std::string(size_t(std::max(0, width - display_width(out))), ' ') + out;
}

std::string bar(double share, int width) {
  static constexpr const char* eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const int units = int(std::lround(std::clamp(share, 0.0, 1.0) * width * 8));
  std::string out;
  for (int i = 0; i < units / 8; ++i) out += "█";
  return out + eighths[units % 8];
}

class Page {
 public:
  explicit Page(const TerminalStyle& style) : width_(std::max(40, style.width)), style_(style) {}

  void line(const std::string& text = "") { text_ += fitted(text, width_) + "\n"; }
  void title(const std::string& text) {
    const std::string cut = fitted(text, width_);
    text_ += style_.colour ? "\n\x1b[1m" + cut + "\x1b[0m\n" : "\n" + cut + "\n";
  }
  // Words that do not fit go on below, indented.
  void paragraph(const std::string& text, const std::string& indent = "  ") {
    std::string row;
    const std::string whole = clean(text);
    for (size_t start = 0; start < whole.size();) {
      const size_t end = std::min(whole.find(' ', start), whole.size());
      const std::string word = whole.substr(start, end - start);
      start = end + 1;
      // A word too long for any line (a hash) is cut where it stands.
      if (!row.empty() && display_width(row) + 1 + display_width(word) > width_ &&
          display_width(indent) + display_width(word) <= width_) {
        line(row);
        row = indent;
      }
      row += (row.empty() || row == indent ? "" : " ") + word;
    }
    if (!row.empty()) line(row);
  }
  void fact(const std::string& name, const std::string& value) {
    const int names = 16;
    paragraph(left(name, names) + value, std::string(size_t(names), ' '));
  }
  // A row whose cells are padded already; the last may carry colour around it.
  void row(const std::string& cells, const std::string& last, const char* colour) {
    const int room = width_ - display_width(cells);
    const std::string end = fitted(last, std::max(0, room));
    text_ += fitted(cells, width_);
    text_ += style_.colour && colour && !end.empty() ? colour + end + "\x1b[0m" : end;
    while (!text_.empty() && text_.back() == ' ') text_.pop_back();
    text_ += "\n";
  }
  int width() const { return width_; }
  std::string take() { return std::move(text_); }

 private:
  int width_;
  TerminalStyle style_;
  std::string text_;
};

void headline(Page& page, const Report& r) {
  page.title(fmt::format("{} → {}", clean(r.source), clean(r.output)));
  page.fact("asked for", r.goal);
  page.fact("size", fmt::format("{} → {} ({:+.1f} %)", readable_bytes(r.source_bytes),
                                readable_bytes(r.output_bytes),
                                r.source_bytes > 0
                                    ? 100.0 * (double(r.output_bytes) / double(r.source_bytes) - 1)
                                    : 0.0));
  page.fact("bits per weight", fmt::format("{:.3f} → {:.3f}", r.source_bits, r.output_bits));
  const std::string optimal =
      r.optimality_gap < 0      ? ""
      : r.optimality_gap < 1e-6 ? " (optimal)"
                                : fmt::format(" (optimal within {:.2g} %)", 100 * r.optimality_gap);
  page.fact("predicted KL", readable_number(r.predicted_kl) + optimal);
}

void comparison(Page& page, const Comparison& c) {
  page.title(fmt::format("measured on {}", clean(c.corpus)));
  page.fact("text", fmt::format("{} tokens scored, {} windows of {}, {} path", c.n_tokens,
                                c.n_windows, c.n_ctx, c.path));
  const auto estimate = [&](const Estimate& e) {
    return c.intervals_hold() ? readable_estimate(e) : readable_number(e.value);
  };
  page.fact("intervals", c.intervals_hold() ? "95 %, by bootstrap over windows"
                                            : fmt::format("none: they need {} windows",
                                                          Comparison::kLeastWindows));
  page.fact("perplexity", estimate(c.base_perplexity) + " → " + estimate(c.perplexity));
  page.fact("KL mean", estimate(c.kl_mean) + " nats a token");
  page.fact("KL median", estimate(c.kl_median));
  page.fact("KL 90 / 99 %",
            readable_number(c.kl_p90.value) + " / " + readable_number(c.kl_p99.value));
  page.fact("KL 99.9 %, max",
            readable_number(c.kl_p999.value) + ", " + readable_number(c.kl_max.value));
  page.fact("same top token",
            readable_share(c.same_top.value) +
                (c.intervals_hold() ? fmt::format(" [{}, {}]", readable_share(c.same_top.low),
                                                  readable_share(c.same_top.high))
                                    : ""));
  page.fact("Δp mean, RMS",
            readable_share(c.dp_mean.value) + ", " + readable_share(c.dp_rms.value));
}

void places(Page& page, const Report& r, int max_places) {
  if (r.places.empty()) return;
  std::vector<const PlaceReport*> order;
  double total = 0, largest = 0;
  for (const auto& p : r.places) {
    const double loss = ranking_loss(p);
    if (loss == 0 && p.from == p.to) continue;
    order.push_back(&p);
    if (loss > 0) total += loss, largest = std::max(largest, loss);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return ranking_loss(*a) > ranking_loss(*b);
  });
  const size_t shown = max_places < 0 ? order.size() : std::min(order.size(), size_t(max_places));
  page.title(fmt::format("largest losses ({} of {} places)", shown, r.places.size()));

  // Columns by what the width allows: place, format, predicted, measured always; then bytes, bar.
  const bool wide = page.width() >= 76;
  const int formats = 14, number = 10, bytes = wide ? 10 : 0;
  const int bars = page.width() >= 100 ? 20 : wide ? 8 : 0;
  int names = page.width() - formats - 2 * number - bytes - bars - 1;
  int longest = 8;
  for (size_t i = 0; i < shown; ++i)
    longest = std::max(longest, display_width(clean(order[i]->place)) + 2);
  names = std::clamp(longest, 8, std::max(8, names));
  page.row(left("place", names) + left("format", formats) + (wide ? right("bytes", bytes) : "") +
               right("predicted", number) + right("measured", number) + " ",
           "", nullptr);
  for (size_t i = 0; i < shown; ++i) {
    const PlaceReport& p = *order[i];
    const double loss = ranking_loss(p);
    const std::string change = p.from == p.to ? p.to : p.from + "→" + p.to;
    page.row(
        left(fitted(p.place, names - 1), names) + left(fitted(change, formats - 1), formats) +
            (wide ? right(readable_bytes(p.bytes_to), bytes) : "") +
            right(readable_number(p.predicted_kl), number) +
            right(std::isnan(p.measured_kl) ? "–" : readable_number(p.measured_kl), number) + " ",
        largest > 0 ? bar(loss / largest, bars) : "", loss > 0.1 * total ? "\x1b[31m" : "\x1b[33m");
  }
}

}  // namespace

int display_width(std::string_view utf8) {
  int width = 0;
  while (!utf8.empty()) {
    const Character c = next_character(utf8);
    width += c.valid && harmless(c.code) ? columns_of(c.code) : 1;
    utf8.remove_prefix(c.bytes);
  }
  return width;
}

std::string fitted(std::string_view utf8, int width) {
  const std::string text = clean(utf8);
  if (width <= 0) return "";
  if (display_width(text) <= width) return text;
  std::string out;
  int used = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const Character c = next_character(rest);
    const int columns = columns_of(c.code);
    if (used + columns > width - 1) break;
    used += columns;
    out += rest.substr(0, c.bytes);
    rest.remove_prefix(c.bytes);
  }
  return out + "…";
}

std::string terminal_report(const Report& report, const TerminalStyle& style) {
  Page page(style);
  headline(page, report);
  for (const Comparison& c : report.comparisons) comparison(page, c);
  places(page, report, style.max_places);
  if (!report.notes.empty()) {
    page.title("notes");
    for (const auto& note : report.notes) page.paragraph("· " + note);
  }
  page.title("receipt");
  page.fact("source sha256", report.source_sha256);
  page.fact("output sha256", report.output_sha256);
  page.fact("took", fmt::format("{}, peak memory {}, {}", readable_seconds(report.seconds),
                                readable_bytes(report.peak_memory_bytes), report.cpu));
  page.fact("microtome", report.version);
  return page.take();
}

}  // namespace mt
