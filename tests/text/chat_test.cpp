#include "text/chat.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace mt {
namespace {

TensorFile with_template(const std::string& text) {
  TensorFile file;
  file.path = "test.gguf";
  file.set_meta("tokenizer.chat_template", {text});
  file.set_meta("tokenizer.ggml.tokens", {std::vector<std::string>{"<unk>", "<s>", "</s>"}});
  file.set_meta("tokenizer.ggml.bos_token_id", {uint32_t{1}});
  file.set_meta("tokenizer.ggml.eos_token_id", {uint32_t{2}});
  return file;
}

const std::vector<ChatMessage> kTalk = {{"user", "A"}, {"assistant", "B"}, {"user", "C"}};
const std::vector<ChatMessage> kSystem = {{"system", "S"}, {"user", "A"}};

TEST(Chat, ChatMlTakesTheTemplatesOwnSystemPrompt) {
  const auto file = with_template(
      "{% if messages[0]['role'] == 'system' %}{{ '<|im_start|>system\\n' + messages[0]['content'] "
      "}}{% else %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}");
  EXPECT_EQ(chat_family(file), "chatml");
  EXPECT_EQ(format_chat(file, {{"user", "A"}}),
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nA<|im_end|>\n"
            "<|im_start|>assistant\n");
  EXPECT_EQ(format_chat(file, kSystem),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n"
            "<|im_start|>assistant\n");
}

TEST(Chat, MistralSpacingFollowsTheTemplate) {
  const auto v3 = with_template(
      "{{ '[INST] ' + message['content'] + '[/INST]' }}{{ ' ' + "
      "message['content'] + eos_token }}loop.last and system_message");
  EXPECT_EQ(chat_family(v3), "mistral");
  EXPECT_EQ(format_chat(v3, kTalk), "[INST] A[/INST] B</s>[INST] C[/INST]");
  const auto tekken =
      with_template("{{ '[INST]' + content + '[/INST]' }}{{ content + eos_token }}");
  EXPECT_EQ(format_chat(tekken, kTalk), "[INST]A[/INST]B</s>[INST]C[/INST]");
  EXPECT_EQ(format_chat(tekken, kSystem), "[INST]S\n\nA[/INST]");
}

TEST(Chat, GemmaPutsTheSystemPromptIntoTheFirstTurn) {
  const auto file = with_template("{{ '<start_of_turn>' + role }}");
  EXPECT_EQ(format_chat(file, kSystem),
            "<start_of_turn>user\nS\n\nA<end_of_turn>\n<start_of_turn>model\n");
}

TEST(Chat, UnknownOrMissingFormatsNameRaw) {
  TensorFile none;
  none.path = "none.gguf";
  for (const TensorFile& file :
       {none, with_template("{{ 'Question: ' + messages[0]['content'] }}"),
        // a family's marks, with a prompt of its own that the plain form would leave out
        with_template("{{ '<|im_start|>assistant\\n<think>\\n' }}")}) {
    EXPECT_EQ(chat_family(file), "");
    try {
      format_chat(file, kTalk);
      ADD_FAILURE() << "no error";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("--raw"), std::string::npos) << e.what();
    }
  }
}

TEST(Chat, RolesAreChecked) {
  const auto file = with_template("<start_of_turn>");
  EXPECT_THROW(format_chat(file, {{"user", "A"}, {"system", "S"}}), Error);
  EXPECT_THROW(format_chat(file, {{"tool", "A"}}), Error);
  EXPECT_THROW(format_chat(file, {}), Error);
}

}  // namespace
}  // namespace mt
