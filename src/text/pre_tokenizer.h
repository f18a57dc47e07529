#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mt {

// Cuts text into the words within which byte-level BPE merges.
class WordCutter {
 public:
  // `name`: the value of tokenizer.ggml.pre; `path` for messages. Throws Error for a name that is
  // not known, listing those that are.
  WordCutter(const std::string& name, const std::string& path);
  ~WordCutter();

  // The ends of the words, ascending, the last one text.size(). `text` must be valid UTF-8. Throws
  // Error where a pattern exceeds its limits.
  void split(std::string_view text, std::vector<size_t>& ends) const;

  bool whole_words_first() const {
    return whole_words_first_;
  }  // a word in the vocabulary is not
     // merged from its bytes
  bool adds_bos() const { return adds_bos_; }

 private:
  struct Pattern;
  std::vector<std::unique_ptr<Pattern>> patterns_;
  std::string path_;
  bool whole_words_first_ = false;
  bool adds_bos_ = false;
};

}  // namespace mt
