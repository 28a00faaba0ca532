#include "trainer/interop/sentencepiece_json.h"

#include <algorithm>
#include <boost/archive/iterators/base64_from_binary.hpp>
#include <boost/archive/iterators/transform_width.hpp>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "kernels/runtime/check.h"
#include "trainer/data/utf8.h"

namespace switchyard {
namespace {

using nlohmann::json;
using Model = SentencePieceModel;
using PieceType = SentencePieceModel::PieceType;

constexpr char kSpace[] = "\u2581";

std::string base64(const std::string& bytes) {
  using namespace boost::archive::iterators;
  using Digits = base64_from_binary<transform_width<std::string::const_iterator, 6, 8>>;
  std::string text(Digits(bytes.begin()), Digits(bytes.end()));
  return text.append((3 - bytes.size() % 3) % 3, '=');
}

void require_an_equal(const Model& model) {
  require(
      model.kind != Model::Kind::unigram,
      "unigram models have no equal: the library adds scores in f64 and SentencePiece in f32, so "
      "some words would be cut differently");
  require(model.kind == Model::Kind::bpe, "only models of the type bpe have an equal");
  require(!model.space_is_suffix, "treat_whitespace_as_suffix has no equal");
  require(model.escape_whitespaces, "escape_whitespaces: false has no equal");
  require(!model.restores_characters, "a table of characters for decoding has no equal");
  for (const Model::Piece& piece : model.pieces) {
    require(find_invalid_utf8(piece.text) == std::string::npos, "one of its pieces is not UTF-8");
  }
  const auto unused = std::ranges::find(model.pieces, PieceType::unused, &Model::Piece::type);
  require(unused == model.pieces.end(), "an unused piece ({}) has no equal", unused->text);
}

std::string unknown_piece(const Model& model) {
  const auto unknown = std::ranges::find(model.pieces, PieceType::unknown, &Model::Piece::type);
  require(unknown != model.pieces.end(), "it has no piece for unknown text");
  return unknown->text;
}

// SentencePiece joins two neighbours if both together are a normal piece, those of the best score
// first; the library wants every pair, best first. Pairs of one piece follow the order of their
// left parts' ids.
json merges_of(const Model& model) {
  std::unordered_map<std::string_view, size_t> ids;  // of normal pieces
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    if (model.pieces[id].type == PieceType::normal) ids[model.pieces[id].text] = id;
  }
  using Merge = std::tuple<float, size_t, size_t, std::string_view, std::string_view>;
  std::vector<Merge> merges;
  for (const auto& [text, id] : ids) {
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const auto left = ids.find(text.substr(0, cut)), right = ids.find(text.substr(cut));
      if (left == ids.end() || right == ids.end()) continue;
      merges.emplace_back(-model.pieces[id].score, id, left->second, left->first, right->first);
    }
  }
  std::ranges::sort(merges);
  // SentencePiece takes the leftmost of two pairs of one score, the library the one that is listed
  // first.
  const auto tied = std::ranges::adjacent_find(merges, [](const Merge& a, const Merge& b) {
    return std::get<0>(a) == std::get<0>(b) && std::get<1>(a) != std::get<1>(b);
  });
  require(tied == merges.end(), "pieces of one score ({}{} and others) have no equal",
          tied == merges.end() ? "" : std::get<3>(*tied),
          tied == merges.end() ? "" : std::get<4>(*tied));
  json pairs = json::array();
  for (const Merge& merge : merges) pairs.push_back({std::get<3>(merge), std::get<4>(merge)});
  return pairs;
}

json bpe(const Model& model) {
  json vocab;
  bool user_defined = false;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    vocab[model.pieces[id].text] = id;
    user_defined |= model.pieces[id].type == PieceType::user_defined;
  }
  require(vocab.size() == model.pieces.size(), "two of its pieces have the same text");
  return {{"type", "BPE"},
          {"unk_token", unknown_piece(model)},
          {"fuse_unk", true},
          {"byte_fallback", model.byte_fallback},
          {"ignore_merges", user_defined},  // which are never made of parts
          {"vocab", std::move(vocab)},
          {"merges", merges_of(model)}};
}

json replace(const json& pattern, const std::string& content) {
  return {{"type", "Replace"}, {"pattern", pattern}, {"content", content}};
}

// In SentencePiece's order. White space other than U+0020 is text.
json normalizer(const Model& model) {
  json steps = json::array();
  if (!model.charsmap.empty()) {
    steps.push_back({{"type", "Precompiled"}, {"precompiled_charsmap", base64(model.charsmap)}});
  }
  if (model.remove_extra_whitespaces) {
    // At the end it also removes what looks like an escaped space.
    steps.push_back(replace({{"Regex", std::string("\\A +|[ ") + kSpace + "]+\\z"}}, ""));
    steps.push_back(replace({{"Regex", " {2,}"}}, " "));
  }
  if (model.add_dummy_prefix) steps.push_back({{"type", "Prepend"}, {"prepend", " "}});
  steps.push_back(replace({{"String", " "}}, kSpace));
  return {{"type", "Sequence"}, {"normalizers", steps}};
}

// User-defined pieces are found before anything else, the longest first.
json pre_tokenizer(const Model& model) {
  std::vector<std::string> pieces;
  for (const Model::Piece& piece : model.pieces) {
    if (piece.type == PieceType::user_defined) pieces.push_back(piece.text);
  }
  if (pieces.empty()) return nullptr;
  std::ranges::stable_sort(pieces, std::ranges::greater(), &std::string::size);
  std::string pattern;
  for (const std::string& piece : pieces) {
    if (!pattern.empty()) pattern += '|';
    for (const char c : piece) {
      if (std::string_view("\\^$.|?*+()[]{}").find(c) != std::string_view::npos) pattern += '\\';
      pattern += c;
    }
  }
  return {{"type", "Split"},
          {"pattern", {{"Regex", pattern}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

json decoder(const Model& model) {
  json steps = json::array({replace({{"String", kSpace}}, " ")});
  if (model.byte_fallback) steps.push_back({{"type", "ByteFallback"}});
  steps.push_back({{"type", "Fuse"}});
  if (model.add_dummy_prefix) {
    steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  return {{"type", "Sequence"}, {"decoders", steps}};
}

}  // namespace

json sentencepiece_json(const SentencePieceModel& model) {
  require_an_equal(model);
  return {{"version", "1.0"},
          {"added_tokens", json::array()},
          {"normalizer", normalizer(model)},
          {"pre_tokenizer", pre_tokenizer(model)},
          {"post_processor", nullptr},
          {"decoder", decoder(model)},
          {"model", bpe(model)}};
}

}  // namespace switchyard
