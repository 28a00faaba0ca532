#include "trainer/data/sentencepiece_model.h"

#include <cmath>
#include <cstring>

#include "kernels/runtime/check.h"
#include "trainer/data/normalization_table.h"
#include "trainer/data/protobuf_fields.h"

namespace switchyard {
namespace {

using Model = SentencePieceModel;

Model::Piece parse_piece(std::string_view message) {
  Model::Piece piece;
  ProtobufFields fields(message);
  while (const auto field = fields.next()) {
    if (field->number == 1) {
      piece.text = field->bytes;
      require(piece.text.find('\0') == piece.text.npos, "a piece holds a zero byte");
    }
    if (field->number == 2) {
      require(field->bytes.size() == sizeof(float), "the score of a piece is no f32");
      std::memcpy(&piece.score, field->bytes.data(), sizeof(float));
      require(std::isfinite(piece.score), "the score of a piece is not finite");
    }
    if (field->number == 3) piece.type = static_cast<Model::PieceType>(field->value);
  }
  return piece;
}

void parse_trainer(std::string_view message, Model& model) {
  ProtobufFields fields(message);
  while (const auto field = fields.next()) {
    if (field->number == 3) model.kind = static_cast<Model::Kind>(field->value);
    if (field->number == 24) model.space_is_suffix = field->value != 0;
    if (field->number == 35) model.byte_fallback = field->value != 0;
  }
}

void parse_normalizer(std::string_view message, Model& model) {
  ProtobufFields fields(message);
  while (const auto field = fields.next()) {
    if (field->number == 2) {
      require_sound_normalization(field->bytes);
      model.charsmap = field->bytes;
    }
    if (field->number == 3) model.add_dummy_prefix = field->value != 0;
    if (field->number == 4) model.remove_extra_whitespaces = field->value != 0;
    if (field->number == 5) model.escape_whitespaces = field->value != 0;
  }
}

}  // namespace

Model parse_sentencepiece_model(std::string_view bytes) {
  Model model;
  ProtobufFields fields(bytes);
  while (const auto field = fields.next()) {
    if (field->number == 1) model.pieces.push_back(parse_piece(field->bytes));
    if (field->number == 2) parse_trainer(field->bytes, model);
    if (field->number == 3) parse_normalizer(field->bytes, model);
    if (field->number == 5) {
      Model denormalizer;
      parse_normalizer(field->bytes, denormalizer);
      model.restores_characters = !denormalizer.charsmap.empty();
    }
  }
  return model;
}

}  // namespace switchyard
