#include "run/draft.h"

#include <algorithm>
#include <cassert>

namespace mt {

NgramMatch find_ngram(std::span<const int32_t> text) {
  NgramMatch best;
  const int64_t n = std::ssize(text);
  for (int64_t i = n - 2; i >= 0 && best.length < kLongestMatch; --i) {
    int64_t length = 0;
    while (length < kLongestMatch && length <= i &&
           text[size_t(i - length)] == text[size_t(n - 1 - length)])
      ++length;
    if (length > best.length) best = {length, i + 1};
  }
  return best;
}

std::vector<int32_t> continuation(std::span<const int32_t> text, const NgramMatch& match,
                                  int64_t n) {
  assert(match.length > 0);
  std::vector<int32_t> out;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t at = match.next + i;
    out.push_back(at < std::ssize(text) ? text[size_t(at)] : out[size_t(at - std::ssize(text))]);
  }
  return out;
}

namespace {
// Longer matches are rare: several lengths share a count.
size_t bucket(int64_t length) {
  if (length <= 4) return size_t(length);
  return length <= 6 ? 5 : length <= 9 ? 6 : 7;
}
}  // namespace

Acceptance::Acceptance() {
  // What is assumed of a text before it has shown it: as much as four tokens count.
  constexpr double kAssumed[] = {0, 0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.85};
  for (size_t b = 1; b < std::size(kAssumed); ++b) {
    seen_[b] = 4;
    right_[b] = 4 * kAssumed[b];
  }
}

void Acceptance::count(int64_t length, bool right) {
  if (length <= 0) return;
  constexpr double kKept = 0.96;  // 25 tokens
  const size_t b = bucket(length);
  seen_[b] = kKept * seen_[b] + 1;
  right_[b] = kKept * right_[b] + (right ? 1 : 0);
}

void Acceptance::learn(std::span<const int32_t> text) {
  constexpr int64_t kLast = 256;
  for (int64_t i = std::max<int64_t>(1, std::ssize(text) - kLast); i < std::ssize(text); ++i) {
    const NgramMatch match = find_ngram(text.first(size_t(i)));
    if (match.length > 0) count(match.length, text[size_t(match.next)] == text[size_t(i)]);
  }
}

double Acceptance::probability(int64_t length) const {
  if (length <= 0) return 0;
  const size_t b = bucket(std::min(length, kLongestMatch));
  return right_[b] / seen_[b];
}

void BatchCost::add(int64_t n, double seconds) {
  ++n_batches_;
  if (n < 1 || n > kMost) return;
  Times& t = times_[size_t(n)];
  t.seconds[size_t(t.n++ % kKept)] = seconds;
  t.last = n_batches_;
}

int64_t BatchCost::age(int64_t n) const {
  const Times& t = times_[size_t(n)];
  return t.n > 0 ? n_batches_ - t.last : int64_t{1} << 40;
}

double BatchCost::of(int64_t n) const {
  auto median = [&](int64_t m) {
    auto list = times_[size_t(m)].seconds;
    const auto end = list.begin() + std::min(times_[size_t(m)].n, kKept);
    // Of few the least: a first batch is slow by what it finds cold.
    const auto middle = list.begin() + (end - list.begin() < 3 ? 0 : (end - list.begin()) / 2);
    std::nth_element(list.begin(), middle, end);
    return *middle;
  };
  int64_t below = n, above = n;
  while (below >= 1 && times_[size_t(below)].n == 0) --below;
  while (above <= kMost && times_[size_t(above)].n == 0) ++above;
  if (below == n) return median(n);
  if (below < 1 && above > kMost) return 0;
  // A token more costs a quarter of a single one: about the best there is. What is slower is found
  // so as soon as it is tried; what were taken for slow would never be. (Times are no straight
  // line: the kernels take tokens by four, two and one.)
  constexpr double kMore = 0.25;
  auto line = [](int64_t m) { return 1 + kMore * double(m - 1); };
  if (below < 1) return median(above) * line(n) / line(above);
  int64_t first = 1;
  while (times_[size_t(first)].n == 0) ++first;
  const double assumed = median(below) + median(first) / line(first) * kMore * double(n - below);
  return above > kMost ? assumed : std::min(assumed, std::max(median(below), median(above)));
}

void BatchCost::forget_drafts(int64_t n_single) {
  for (int64_t n = n_single + 1; n <= kMost; ++n) times_[size_t(n)].n = 0;
}

}  // namespace mt
