#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mt::cli {

// What one of the standard streams is connected to.
struct Terminal {
  explicit Terminal(int fd);
  int fd;
  bool is_terminal = false;
  bool colour = false;  // a terminal that is not "dumb", and NO_COLOR is not set
  int width() const;    // columns, at least 20; asked anew, windows change
};

// Columns that a text takes: code points, for want of a table of wide ones.
int64_t columns(std::string_view text);
// At most n columns; what is cut off shows as "…".
std::string fit(std::string_view text, int64_t n);
// `first` and the words of `text`, broken so that no line is wider than `width` (0: never); lines
// after the first begin with `indent` spaces. A word too long for a line is broken within. Ends
// with a newline.
std::string wrapped(std::string_view first, std::string_view text, int64_t width, int64_t indent);
// Text of a file for a terminal: control characters and invalid UTF-8 become visible escapes, so
// that a name in a file cannot drive the terminal.
std::string printable(std::string_view text);

// Columns of text under headings. The column `flexible` shrinks where the line is wider than
// `width`; width 0 means that nothing shrinks (the output is not a terminal).
class Table {
 public:
  enum class Align { left, right };
  struct Column {
    std::string title;
    Align align = Align::left;
  };
  explicit Table(std::vector<Column> table_columns, size_t flexible = 0);
  void row(std::vector<std::string> cells);
  std::string text(int width, bool colour) const;

 private:
  std::vector<Column> columns_;
  size_t flexible_;
  std::vector<std::vector<std::string>> rows_;
};

// 98362432 -> "98.36 MB" (MB = 10^6), with the unit that gives 1..999.
std::string human_bytes(int64_t bytes);
// 134515008 -> "134.5 M"
std::string human_count(int64_t n);
// 98362432 -> "98,362,432"
std::string grouped(int64_t n);
// 75 -> "1:15"; 3675 -> "1:01:15"
std::string human_time(double seconds);

}  // namespace mt::cli
