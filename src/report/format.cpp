#include "report/format.h"

#include <fmt/format.h>

#include <cmath>

namespace mt {

std::string readable_bytes(int64_t bytes) {
  const double b = double(bytes);
  if (b >= 1e9) return fmt::format("{:.3f} GB", b / 1e9);
  if (b >= 1e6) return fmt::format("{:.2f} MB", b / 1e6);
  if (b >= 1e3) return fmt::format("{:.1f} kB", b / 1e3);
  return fmt::format("{} B", bytes);
}

std::string readable_number(double value) {
  if (!std::isfinite(value)) return "–";
  if (value == 0) return "0";
  const double size = std::abs(value);
  if (size < 1e-4 || size >= 1e6) return fmt::format("{:.2e}", value);
  const int whole = int(std::floor(std::log10(size)));
  return fmt::format("{:.{}f}", value, std::max(0, 3 - whole));
}

std::string readable_share(double share) {
  return std::isfinite(share) ? fmt::format("{:.2f} %", 100 * share) : "–";
}

std::string readable_estimate(const Estimate& e) {
  if (!std::isfinite(e.low) || !std::isfinite(e.high) || (e.low == 0 && e.high == 0))
    return readable_number(e.value);
  return fmt::format("{} [{}, {}]", readable_number(e.value), readable_number(e.low),
                     readable_number(e.high));
}

std::string readable_seconds(double seconds) {
  if (!std::isfinite(seconds)) return "–";
  const auto s = int64_t(seconds + 0.5);
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{} min {} s", s / 60, s % 60);
  return fmt::format("{} h {} min", s / 3600, s % 3600 / 60);
}

double ranking_loss(const PlaceReport& place) {
  const double loss = place.measured_kl >= 0 ? place.measured_kl : place.predicted_kl;
  return std::isfinite(loss) ? loss : -INFINITY;
}

}  // namespace mt
