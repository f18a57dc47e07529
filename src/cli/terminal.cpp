#include "cli/terminal.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace mt::cli {

Terminal::Terminal(int descriptor) : fd(descriptor), is_terminal(::isatty(descriptor) == 1) {
  const char* term = std::getenv("TERM");
  const char* no_colour = std::getenv("NO_COLOR");
  bool dumb = !term || std::strcmp(term, "dumb") == 0;
  colour = is_terminal && !dumb && !(no_colour && *no_colour);
}

int Terminal::width() const {
  winsize size{};
  int n = 0;
  if (is_terminal && ::ioctl(fd, TIOCGWINSZ, &size) == 0) n = size.ws_col;
  if (n == 0)
    if (const char* text = std::getenv("COLUMNS")) n = std::atoi(text);
  return n == 0 ? 80 : std::max(n, 20);
}

namespace {

// Length of the UTF-8 character at the start of text, 0 where the bytes are none.
size_t character_length(std::string_view text) {
  auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  unsigned char lead = byte(0);
  size_t n = lead < 0x80                   ? 1
             : lead >= 0xc2 && lead < 0xe0 ? 2
             : lead >= 0xe0 && lead < 0xf0 ? 3
             : lead >= 0xf0 && lead < 0xf5 ? 4
                                           : 0;
  if (n == 0 || n > text.size()) return 0;
  for (size_t i = 1; i < n; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  if (lead == 0xe0 && byte(1) < 0xa0) return 0;
  if (lead == 0xed && byte(1) >= 0xa0) return 0;  // surrogates
  if (lead == 0xf0 && byte(1) < 0x90) return 0;
  if (lead == 0xf4 && byte(1) >= 0x90) return 0;
  return n;
}

}  // namespace

int64_t columns(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

std::string fit(std::string_view text, int64_t n) {
  if (n <= 0) return "";
  if (columns(text) <= n) return std::string(text);
  size_t end = 0;
  for (int64_t kept = 0; end < text.size(); ++end) {
    bool starts = (static_cast<unsigned char>(text[end]) & 0xc0) != 0x80;
    if (starts && kept++ == n - 1) break;
  }
  return std::string(text.substr(0, end)) + "…";
}

std::string wrapped(std::string_view first, std::string_view text, int64_t width, int64_t indent) {
  std::string out, line(first);
  bool fresh = true;  // nothing but the indentation is on the line
  auto next_line = [&] {
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
    line.assign(static_cast<size_t>(indent), ' ');
    fresh = true;
  };
  if (width > 0) {  // room for a word, however narrow
    indent = std::min(indent, width / 2);
    if (!text.empty() && columns(line) >= width) next_line();
  }
  while (!text.empty()) {
    std::string_view word = text.substr(0, text.find(' '));
    text.remove_prefix(std::min(text.size(), word.size() + 1));
    if (width > 0 && !fresh && columns(line) + 1 + columns(word) > width) next_line();
    if (!fresh) line += ' ';
    fresh = false;
    for (; width > 0 && columns(line) + columns(word) > width; fresh = false) {
      size_t end = 0;
      const int64_t room = std::max<int64_t>(1, width - columns(line));
      for (int64_t kept = 0; end < word.size(); ++end)
        if ((static_cast<unsigned char>(word[end]) & 0xc0) != 0x80 && kept++ == room) break;
      line += word.substr(0, end);
      word.remove_prefix(end);
      next_line();
    }
    line += word;
  }
  line.erase(line.find_last_not_of(' ') + 1);
  return out + line + "\n";
}

std::string printable(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    size_t n = character_length(text);
    auto byte = static_cast<unsigned char>(text[0]);
    bool c1_control = n == 2 && byte == 0xc2 && static_cast<unsigned char>(text[1]) < 0xa0;
    if (n == 0 || byte < 0x20 || byte == 0x7f || c1_control) {
      n = std::max<size_t>(n, 1);
      for (size_t i = 0; i < n; ++i)
        out += fmt::format("\\x{:02x}", static_cast<unsigned char>(text[i]));
    } else {
      out += text.substr(0, n);
    }
    text.remove_prefix(n);
  }
  return out;
}

Table::Table(std::vector<Column> table_columns, size_t flexible)
    : columns_(std::move(table_columns)), flexible_(flexible) {}

void Table::row(std::vector<std::string> cells) {
  cells.resize(columns_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::text(int width, bool colour) const {
  std::vector<int64_t> widths;
  for (size_t c = 0; c < columns_.size(); ++c) {
    int64_t w = columns(columns_[c].title);
    for (const auto& r : rows_) w = std::max(w, columns(r[c]));
    widths.push_back(w);
  }
  if (width > 0) {
    int64_t total = 2 * static_cast<int64_t>(widths.size() - 1);
    for (int64_t w : widths) total += w;
    if (total > width) {
      int64_t least = std::min<int64_t>(widths[flexible_], 8);
      widths[flexible_] = std::max(least, widths[flexible_] - (total - width));
    }
  }
  auto line = [&](auto&& cell) {
    std::string text;
    for (size_t c = 0; c < columns_.size(); ++c) {
      std::string s = fit(cell(c), widths[c]);
      std::string pad(static_cast<size_t>(widths[c] - columns(s)), ' ');
      if (c) text += "  ";
      text += columns_[c].align == Align::right ? pad + s : s + pad;
    }
    text.erase(text.find_last_not_of(' ') + 1);
    return width > 0 ? fit(text, width) : text;
  };
  std::string head = line([&](size_t c) { return columns_[c].title; });
  std::string out = colour ? "\x1b[1m" + head + "\x1b[0m\n" : head + "\n";
  if (head.empty()) out.clear();
  for (const auto& r : rows_) out += line([&](size_t c) { return r[c]; }) + "\n";
  return out;
}

std::string human_bytes(int64_t bytes) {
  constexpr std::array<const char*, 6> units = {"B", "kB", "MB", "GB", "TB", "PB"};
  double value = static_cast<double>(bytes);
  size_t u = 0;
  while (std::abs(value) >= 999.95 && u + 1 < units.size()) value /= 1000, ++u;
  if (u == 0) return fmt::format("{} B", bytes);
  int decimals = std::abs(value) < 10 ? 2 : 1;
  return fmt::format("{:.{}f} {}", value, decimals, units[u]);
}

std::string human_count(int64_t n) {
  if (n < 10000) return std::to_string(n);
  constexpr std::array<const char*, 5> units = {"", "k", "M", "G", "T"};
  double value = static_cast<double>(n);
  size_t u = 0;
  while (value >= 999.95 && u + 1 < units.size()) value /= 1000, ++u;
  return fmt::format("{:.{}f} {}", value, value < 10 ? 2 : 1, units[u]);
}

std::string grouped(int64_t n) {
  std::string digits = std::to_string(n);
  for (auto i = static_cast<int64_t>(digits.size()) - 3; i > (n < 0 ? 1 : 0); i -= 3)
    digits.insert(static_cast<size_t>(i), 1, ',');
  return digits;
}

std::string human_time(double seconds) {
  auto s = static_cast<int64_t>(std::llround(std::clamp(seconds, 0.0, 3.6e8)));
  if (s < 3600) return fmt::format("{}:{:02}", s / 60, s % 60);
  return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

}  // namespace mt::cli
