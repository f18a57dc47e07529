#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "flow/tensor_file.h"

namespace mt {

// The numbers are those of tokenizer.ggml.token_type.
enum class TokenKind : uint8_t {
  Undefined = 0,
  Normal = 1,
  Unknown = 2,
  Control = 3,
  UserDefined = 4,
  Unused = 5,
  Byte = 6,
};

// What every kind of tokenizer reads from tokenizer.ggml.*.
struct Vocab {
  // `family`: the value of tokenizer.ggml.model; it decides the defaults of BOS, EOS, unknown.
  // Throws Error: no tokens, arrays of other lengths, special ids outside the vocabulary.
  Vocab(const TensorFile& file, const std::string& family);
  Vocab(const Vocab&) = delete;
  Vocab& operator=(const Vocab&) = delete;

  std::string path;  // for messages
  std::vector<std::string> texts;
  std::vector<float> scores;  // 0 where the file has none
  std::vector<TokenKind> types;
  std::unordered_map<std::string_view, int32_t> ids;  // the last of equal texts
  std::vector<bool> ends;                             // end of generation
  std::vector<bool> strips_right;  // swallows white space after it (Phi-3's special tokens)
  size_t longest = 0;              // bytes of the longest text

  int32_t bos = -1, eos = -1, unknown = -1, separator = -1;

  int32_t size() const { return static_cast<int32_t>(texts.size()); }
  // -1 where there is none.
  int32_t find(std::string_view text) const {
    const auto it = ids.find(text);
    return it == ids.end() ? -1 : it->second;
  }
  TokenKind type(int32_t id) const { return types[static_cast<size_t>(id)]; }
  const std::string& text(int32_t id) const { return texts[static_cast<size_t>(id)]; }
  // Control and unknown tokens: what ordinary text must never become.
  bool hidden(int32_t id) const {
    return type(id) == TokenKind::Control || type(id) == TokenKind::Unknown;
  }

 private:
  void read_special_ids(const TensorFile& file, const std::string& family);
  void mark_by_text();
};

// The value of "<0xHH>" tokens, or -1.
int byte_token_value(std::string_view text);

// Cuts special tokens out of a text before anything else sees it.
class SpecialTokens {
 public:
  explicit SpecialTokens(const Vocab& vocab);  // `vocab` must outlive it

  struct Fragment {
    int32_t id;             // a token, or -1:
    std::string_view text;  // ordinary text, never empty
  };
  // Longer tokens are found first, over the whole text; equal ones from left to right. `control`:
  // control and unknown tokens too, otherwise user-defined ones only.
  std::vector<Fragment> split(std::string_view text, bool control) const;

 private:
  // Texts in byte order: the candidates at a position are a range that narrows byte by byte.
  struct Sorted {
    std::vector<int32_t> ids;
    std::array<uint32_t, 257> first{};  // where the texts of each first byte begin
  };
  Sorted sort(std::vector<int32_t> ids) const;

  const Vocab& vocab_;
  Sorted user_defined_, all_;
};

}  // namespace mt
