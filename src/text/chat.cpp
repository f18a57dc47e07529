#include "text/chat.h"

#include <algorithm>
#include <cctype>
#include <initializer_list>

#include "base/error.h"

namespace mt {
namespace {

bool has(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

std::string trimmed(const std::string& text) {
  const auto space = [](unsigned char c) { return std::isspace(c) != 0; };
  const auto begin = std::find_if_not(text.begin(), text.end(), space);
  const auto end = std::find_if_not(text.rbegin(), text.rend(), space).base();
  return begin < end ? std::string(begin, end) : std::string();
}

// What a template knows beyond its own text.
struct Scene {
  std::string_view chat_template;
  std::string bos, eos;  // texts of the tokens
  std::vector<ChatMessage> messages;
};

bool has_system(const Scene& s) {
  return !s.messages.empty() && s.messages[0].role == "system";
}

// The system prompt that a ChatML template writes where the user gives none: the one system turn
// that stands in it as a whole, without a variable.
std::string default_system(std::string_view t) {
  constexpr std::string_view open = "<|im_start|>system", close = "<|im_end|>";
  for (size_t at = t.find(open); at != std::string_view::npos; at = t.find(open, at + 1)) {
    size_t begin = at + open.size();
    if (t.substr(begin, 2) == "\\n")
      begin += 2;
    else if (t.substr(begin, 1) == "\n")
      begin += 1;
    else
      continue;
    const size_t end = t.find(close, begin);
    if (end == std::string_view::npos) continue;
    std::string text;
    bool whole = end > begin;
    for (size_t i = begin; i < end && whole; ++i) {
      if (t[i] == '\\' && i + 1 < end) {
        ++i;
        text += t[i] == 'n' ? '\n' : t[i] == 't' ? '\t' : t[i];
      } else if (t[i] == '\'' || t[i] == '"' || t[i] == '{') {
        whole = false;
      } else {
        text += t[i];
      }
    }
    if (whole) return text;
  }
  return "";
}

std::string chatml(const Scene& s) {
  const bool trims =
      has(s.chat_template, "content'] | trim") || has(s.chat_template, "content|trim");
  std::string out;
  if (!has_system(s))
    if (const std::string system = default_system(s.chat_template); !system.empty())
      out += "<|im_start|>system\n" + system + "<|im_end|>\n";
  for (const auto& m : s.messages)
    out +=
        "<|im_start|>" + m.role + "\n" + (trims ? trimmed(m.content) : m.content) + "<|im_end|>\n";
  return out + "<|im_start|>assistant\n";
}

std::string llama2(const Scene& s) {
  std::string out, system;
  size_t i = 0;
  if (has_system(s)) system = "<<SYS>>\n" + s.messages[i++].content + "\n<</SYS>>\n\n";
  for (bool first = true; i < s.messages.size(); ++i, first = false) {
    const ChatMessage& m = s.messages[i];
    const std::string content = trimmed(first ? system + m.content : m.content);
    if (m.role == "user")
      out += (first ? "" : s.bos) + "[INST] " + content + " [/INST]";
    else
      out += " " + content + " " + s.eos;
  }
  return out;
}

std::string llama3(const Scene& s) {
  const auto turn = [](const std::string& role, const std::string& content) {
    return "<|start_header_id|>" + role + "<|end_header_id|>\n\n" + content + "<|eot_id|>";
  };
  std::string out;
  size_t i = 0;
  if (has(s.chat_template, "Cutting Knowledge Date")) {
    // The date is the template's own fixed one, so that a prompt is the same every day.
    out += turn("system", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n" +
                              (has_system(s) ? trimmed(s.messages[i++].content) : ""));
  }
  for (; i < s.messages.size(); ++i)
    out += turn(s.messages[i].role, trimmed(s.messages[i].content));
  return out + "<|start_header_id|>assistant<|end_header_id|>\n\n";
}

std::string gemma(const Scene& s) {
  std::string out, prefix;
  size_t i = 0;
  if (has_system(s)) prefix = s.messages[i++].content + "\n\n";
  for (bool first = true; i < s.messages.size(); ++i, first = false) {
    const ChatMessage& m = s.messages[i];
    out += "<start_of_turn>" + (m.role == "assistant" ? "model" : m.role) + "\n" +
           (first ? prefix : "") + trimmed(m.content) + "<end_of_turn>\n";
  }
  return out + "<start_of_turn>model\n";
}

// The versions differ in the spaces around the brackets and in where the system prompt goes.
std::string mistral(const Scene& s) {
  const std::string_view t = s.chat_template;
  const auto quoted = [&](const std::string& text) {
    return has(t, "'" + text) || has(t, "\"" + text);
  };
  const std::string open =
      std::string(quoted(" [INST]") ? " " : "") + "[INST]" + (has(t, "[INST] ") ? " " : "");
  const std::string close = has(t, " [/INST]") ? " [/INST]" : "[/INST]";
  const bool space_before = has(t, "' ' + message") || has(t, "\" \" + message");
  const bool space_after =
      has(t, "eos_token + ' '") || has(t, "eos_token + \" \"") || has(t, "eos_token+ ' '");
  const bool trims = has(t, "content'] | trim") || has(t, "content\"]|trim") ||
                     has(t, "content\"] | trim") || has(t, "content|trim");
  size_t i = 0;
  std::string system;
  if (has_system(s)) system = s.messages[i++].content + "\n\n";
  const size_t carrier = has(t, "loop.last and system_message") ? s.messages.size() - 1 : i;
  std::string out;
  for (; i < s.messages.size(); ++i) {
    const ChatMessage& m = s.messages[i];
    if (m.role == "user")
      out += open + (i == carrier ? system : "") + m.content + close;
    else
      out += (space_before ? " " : "") + (trims ? trimmed(m.content) : m.content) + s.eos +
             (space_after ? " " : "");
  }
  return out;
}

std::string zephyr(const Scene& s) {
  std::string out;
  for (const auto& m : s.messages) out += "<|" + m.role + "|>\n" + m.content + s.eos + "\n";
  return out + "<|assistant|>\n";
}

std::string phi3(const Scene& s) {
  std::string out;
  for (const auto& m : s.messages) {
    // The first Phi-3 templates pass over a system turn.
    if (m.role == "system" && !has(s.chat_template, "system")) continue;
    out += "<|" + m.role + "|>\n" + m.content + "<|end|>\n";
  }
  return out + "<|assistant|>\n";
}

// What some templates of a family add to it unasked (thinking, tools, prompts of their own): there
// the plain form would not be what the template gives.
bool has_any(std::string_view text, std::initializer_list<std::string_view> parts) {
  return std::any_of(parts.begin(), parts.end(), [&](auto part) { return has(text, part); });
}
bool is_chatml(std::string_view t) {
  return has(t, "<|im_start|>") &&
         !has_any(
             t, {"<|im_sep|>", "Reasoning Mode", "function calling AI model", "assistant\\n<think>",
                 "assistant\n<think>", "<think>\\n' }", "<think>\\n\" }"});
}
bool is_llama2(std::string_view t) {
  return has(t, "<<SYS>>") && has(t, "bos_token + '[INST] ' + content.strip() + ' [/INST]'");
}
bool is_llama3(std::string_view t) {
  return has(t, "<|start_header_id|>") && has(t, "<|eot_id|>") && !has(t, ">>>") &&
         has(t, "Cutting Knowledge Date") == has(t, "Today Date");
}
bool is_mistral(std::string_view t) {
  return has(t, "[INST]") && !has_any(t, {"[SYSTEM_PROMPT]", "<<SYS>>"});
}
bool is_phi3(std::string_view t) {
  return has(t, "<|user|>") && has(t, "<|end|>") && !has(t, "FINAL RESPONSE");
}

struct Family {
  const char* name;
  bool (*fits)(std::string_view chat_template);
  std::string (*format)(const Scene&);
};
const Family kFamilies[] = {
    {"chatml", is_chatml, chatml},
    {"llama2", is_llama2, llama2},
    {"llama3", is_llama3, llama3},
    {"gemma", [](std::string_view t) { return has(t, "<start_of_turn>"); }, gemma},
    {"mistral", is_mistral, mistral},
    {"phi3", is_phi3, phi3},
    {"zephyr",
     [](std::string_view t) {
       return has(t, "<|user|>") && has(t, "eos_token") && !has(t, "<|end|>");
     },
     zephyr},
};

const Family* family_of(std::string_view chat_template) {
  for (const Family& f : kFamilies)
    if (f.fits(chat_template)) return &f;
  return nullptr;
}

std::string token_text(const TensorFile& file, const char* key) {
  const auto id = file.get_int(key);
  const auto* tokens = file.get_strings("tokenizer.ggml.tokens");
  if (!id || !tokens || *id < 0 || static_cast<size_t>(*id) >= tokens->size()) return "";
  return (*tokens)[static_cast<size_t>(*id)];
}

}  // namespace

std::string chat_family(const TensorFile& file) {
  const Family* family = family_of(file.get_string("tokenizer.chat_template").value_or(""));
  return family ? family->name : "";
}

std::string format_chat(const TensorFile& file, const std::vector<ChatMessage>& messages) {
  const auto chat_template = file.get_string("tokenizer.chat_template");
  if (!chat_template)
    throw_error(
        "{}: metadata 'tokenizer.chat_template' is missing: this model has no chat format; "
        "--raw takes the prompt as it is",
        file.path);
  const Family* family = family_of(*chat_template);
  if (!family) {
    std::string known;
    for (const Family& f : kFamilies) known += (known.empty() ? "" : ", ") + std::string(f.name);
    throw_error(
        "{}: metadata 'tokenizer.chat_template': not one of the known formats ({}); --raw "
        "takes the prompt as it is",
        file.path, known);
  }
  if (messages.empty()) throw_error("{}: chat: expected at least one message", file.path);
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role != "user" && role != "assistant" && (role != "system" || i > 0))
      throw_error(
          "{}: chat: message {}: expected the role user or assistant (or system, first), "
          "found '{}'",
          file.path, i, role);
  }
  return family->format({.chat_template = *chat_template,
                         .bos = token_text(file, "tokenizer.ggml.bos_token_id"),
                         .eos = token_text(file, "tokenizer.ggml.eos_token_id"),
                         .messages = messages});
}

}  // namespace mt
