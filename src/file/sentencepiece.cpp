#include "file/sentencepiece.h"

#include <cstdint>
#include <cstring>

#include "file/cursor.h"
#include "file/names.h"

namespace mt {
namespace {

// Field numbers of sentencepiece_model.proto.
enum : uint64_t { kPieces = 1, kTrainer = 2, kNormalizer = 3 };        // ModelProto
enum : uint64_t { kText = 1, kScore = 2, kType = 3 };                  // SentencePiece
enum : uint64_t { kModelType = 3, kByteFallback = 35 };                // TrainerSpec
enum : uint64_t { kAddDummyPrefix = 3, kRemoveExtraWhitespaces = 4 };  // NormalizerSpec
enum Wire : uint64_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

struct Message {
  Message(const std::string& file, std::string_view from)
      : in(file, "sentencepiece", std::as_bytes(std::span(from.data(), from.size()))) {}

  bool next() {
    if (in.remaining() == 0) return false;
    uint64_t tag = take_varint();
    field = tag >> 3;
    wire = tag & 7;
    number = 0;
    bytes = {};
    if (wire == kVarint) {
      number = take_varint();
    } else if (wire == kFixed32) {
      number = in.take<uint32_t>("message");
    } else if (wire == kFixed64) {
      number = in.take<uint64_t>("message");
    } else if (wire == kBytes) {
      auto b = in.take_bytes(take_varint(), "message");
      bytes = {reinterpret_cast<const char*>(b.data()), b.size()};
    } else {
      in.fail("message", "a wire type of 0, 1, 2 or 5", std::to_string(wire));
    }
    return true;
  }
  bool is(uint64_t f, uint64_t w) const { return field == f && wire == w; }

  uint64_t take_varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      auto byte = in.take<uint8_t>("message");
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    in.fail("message", "a number of at most 10 bytes", "a longer one");
  }

  Cursor in;
  uint64_t field = 0, wire = 0, number = 0;
  std::string_view bytes;
};

SentencePiece parse_piece(const std::string& file, std::string_view bytes) {
  SentencePiece piece;
  Message m(file, bytes);
  while (m.next()) {
    if (m.is(kText, kBytes)) piece.text = m.bytes;
    if (m.is(kScore, kFixed32)) {
      auto bits = static_cast<uint32_t>(m.number);
      std::memcpy(&piece.score, &bits, sizeof bits);
    }
    if (m.is(kType, kVarint)) {
      if (m.number < 1 || m.number > 6)
        m.in.fail("piece", "a type of 1 to 6", std::to_string(m.number));
      piece.type = static_cast<int>(m.number);
    }
  }
  if (!is_utf8(piece.text)) m.in.fail("piece", "UTF-8", "'" + printable(piece.text) + "'");
  return piece;
}

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}
void put_number(std::string& out, uint64_t field, uint64_t value) {
  put_varint(out, field << 3 | kVarint);
  put_varint(out, value);
}
void put_bytes(std::string& out, uint64_t field, std::string_view bytes) {
  put_varint(out, field << 3 | kBytes);
  put_varint(out, bytes.size());
  out += bytes;
}

}  // namespace

SentencePieceModel parse_sentencepiece(const std::string& file, std::string_view bytes) {
  SentencePieceModel model;
  Message m(file, bytes);
  while (m.next()) {
    if (m.is(kPieces, kBytes)) model.pieces.push_back(parse_piece(file, m.bytes));
    if (m.is(kTrainer, kBytes)) {
      Message trainer(file, m.bytes);
      while (trainer.next())
        if (trainer.is(kModelType, kVarint))
          model.model_type = static_cast<int>(trainer.number & 7);
    }
    if (m.is(kNormalizer, kBytes)) {
      Message normalizer(file, m.bytes);
      while (normalizer.next())
        if (normalizer.is(kAddDummyPrefix, kVarint))
          model.add_dummy_prefix = normalizer.number != 0;
    }
  }
  if (model.pieces.empty()) m.in.fail("model", "pieces", "none");
  return model;
}

std::string write_sentencepiece(const SentencePieceModel& model) {
  std::string out;
  for (const auto& piece : model.pieces) {
    std::string p;
    put_bytes(p, kText, piece.text);
    put_varint(p, kScore << 3 | kFixed32);
    p.append(reinterpret_cast<const char*>(&piece.score), sizeof piece.score);
    if (piece.type != 1) put_number(p, kType, static_cast<uint64_t>(piece.type));
    put_bytes(out, kPieces, p);
  }
  std::string trainer, normalizer;
  put_number(trainer, kModelType, static_cast<uint64_t>(model.model_type));
  put_number(trainer, kByteFallback, 1);
  put_bytes(out, kTrainer, trainer);
  put_bytes(normalizer, 1, "identity");
  put_number(normalizer, kAddDummyPrefix, model.add_dummy_prefix);
  put_number(normalizer, kRemoveExtraWhitespaces, 0);
  put_bytes(out, kNormalizer, normalizer);
  return out;
}

}  // namespace mt
