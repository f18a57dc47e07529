#pragma once
#include <string>
#include <vector>

#include "flow/tensor_file.h"

namespace mt {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

// The prompt text of a conversation in the model's own chat format, ending where the assistant
// speaks. Recognises the families by their Jinja template (ChatML, Llama 2, Llama 3, Gemma,
// Mistral, Zephyr, Phi-3); BOS is not included (the caller adds it where the model asks for it).
// Throws Error where the file has no template or an unknown one; the message names --raw.
std::string format_chat(const TensorFile& file, const std::vector<ChatMessage>& messages);
// "chatml", "llama3", ... or "" where unknown.
std::string chat_family(const TensorFile& file);

}  // namespace mt
