#pragma once
#include <cstddef>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace mt {

// What a parse does not look for: objects with a key twice, and too many levels or keys. In one
// pass of its own: the library's callback takes time that grows with the square of an array's
// length.
class JsonCheck : public nlohmann::json_sax<nlohmann::json> {
 public:
  enum class Problem { none, too_deep, key_twice, too_many_keys };
  struct Found {
    Problem problem = Problem::none;
    std::string key;  // near it
  };

  // Text that is no JSON has no problem here: parsing it says what is wrong.
  static Found in(std::string_view text, size_t most_levels, size_t most_keys) {
    JsonCheck check(most_levels, most_keys);
    nlohmann::json::sax_parse(text.begin(), text.end(), &check);
    return check.found_;
  }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override { return open(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    found_.key = name;
    if (keys_.back().size() >= most_keys_) return stop(Problem::too_many_keys);
    return keys_.back().insert(name).second || stop(Problem::key_twice);
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception&) override {
    return false;
  }

 private:
  JsonCheck(size_t most_levels, size_t most_keys)
      : most_levels_(most_levels), most_keys_(most_keys) {}
  bool open() {
    keys_.emplace_back();
    return keys_.size() <= most_levels_ || stop(Problem::too_deep);
  }
  bool close() {
    keys_.pop_back();
    return true;
  }
  bool stop(Problem problem) {
    found_.problem = problem;
    return false;
  }

  const size_t most_levels_, most_keys_;
  std::vector<std::set<std::string>> keys_;  // of what is open
  Found found_;
};

}  // namespace mt
