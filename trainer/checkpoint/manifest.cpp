#include "trainer/checkpoint/manifest.h"

#include <fmt/format.h>

#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>

#include "kernels/basic/random.h"
#include "kernels/runtime/check.h"
#include "trainer/checkpoint/tensor_piece.h"
#include "trainer/files/crc32c.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;
// Reading needs no order, and an ordered object copies its values whenever it grows, which takes
// stack for each of their levels.
using ParsedJson = nlohmann::json;

constexpr char kFormat[] = "switchyard checkpoint";
// The checksum is computed with zeros in its own field.
constexpr std::string_view kChecksumField = "\"crc32c_of_this_file\": \"";
constexpr std::string_view kNoChecksum = "00000000";

std::string to_hex(uint32_t value) { return fmt::format("{:08x}", value); }

uint32_t from_hex(std::string_view digits) {
  uint32_t value = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
  require(error == std::errc() && end == digits.data() + digits.size() &&
              digits.size() == kNoChecksum.size(),
          "'{}' is not a checksum", digits);
  return value;
}

Json to_json(const Shape& shape) {
  Json dims = Json::array();
  for (const int64_t dim : shape.dims()) dims.push_back(dim);
  return dims;
}

// All numbers of a manifest are counts or places. The library would convert any other number.
int64_t to_count(const ParsedJson& json, int64_t most = std::numeric_limits<int64_t>::max()) {
  require(json.is_number_unsigned() && json.get<uint64_t>() <= static_cast<uint64_t>(most),
          "there is no count from 0 to {} where one is expected", most);
  return json.get<int64_t>();
}

Shape to_shape(const ParsedJson& json) {
  require(json.is_array(), "there is no list where a shape is expected");
  std::vector<int64_t> dims;
  for (const ParsedJson& dim : json) dims.push_back(to_count(dim));
  return Shape(std::span<const int64_t>(dims));
}

Json to_json(const StoredPiece& piece) {
  return {{"kind", piece.kind},
          {"name", piece.name},
          {"shape", to_json(piece.geometry.global_shape)},
          {"offset", to_json(piece.geometry.offset)},
          {"extent", to_json(piece.geometry.extent)},
          {"begin", piece.geometry.begin},
          {"end", piece.geometry.end},
          {"address", piece.address},
          {"crc32c", to_hex(piece.crc32c)}};
}

StoredPiece to_piece(const ParsedJson& json) {
  StoredPiece piece;
  piece.kind = json.at("kind").get<std::string>();
  piece.name = json.at("name").get<std::string>();
  piece.geometry = {to_shape(json.at("shape")), to_shape(json.at("offset")),
                    to_shape(json.at("extent")), to_count(json.at("begin")),
                    to_count(json.at("end"))};
  piece.address = to_count(json.at("address"));
  piece.crc32c = from_hex(json.at("crc32c").get<std::string>());
  check_geometry(piece.geometry, piece.name);
  return piece;
}

Json to_json(const StoredFile& file) {
  Json pieces = Json::array();
  for (const StoredPiece& piece : file.pieces) pieces.push_back(to_json(piece));
  return {{"file", file.name},
          {"bytes", file.bytes},
          {"crc32c", to_hex(file.crc32c)},
          {"pieces", pieces}};
}

// The name of a file in the manifest's own folder.
std::string to_file_name(const ParsedJson& json) {
  const auto name = json.get<std::string>();
  require(
      name != "." && name != ".." && name.find_first_of(std::string_view("/\0", 2)) == name.npos,
      "{} is not the name of a file", Json(name).dump());
  return name;
}

StoredFile to_file(const ParsedJson& json) {
  StoredFile file;
  file.name = to_file_name(json.at("file"));
  file.bytes = to_count(json.at("bytes"));
  file.crc32c = from_hex(json.at("crc32c").get<std::string>());
  for (const ParsedJson& entry : json.at("pieces")) {
    const StoredPiece& piece = file.pieces.emplace_back(to_piece(entry));
    const int64_t bytes = piece.geometry.num_elements() * static_cast<int64_t>(sizeof(float));
    require(bytes <= file.bytes && piece.address <= file.bytes - bytes,
            "{} {} is not inside {}, which has {} bytes", piece.kind, piece.name, file.name,
            file.bytes);
  }
  return file;
}

Json to_json(const TrainingState& state) {
  Json json = {{"step", state.step},
               {"optimizer_steps", state.optimizer_steps},
               {"skipped_steps", state.skipped_steps},
               {"samples_consumed", state.samples_consumed},
               {"tokens", state.tokens},
               {"dataset_fingerprint", state.dataset_fingerprint},
               {"config", state.config}};
  // The text of an older manifest, and so its fingerprint, stays as it was.
  if (!state.tokenizer_hash.empty()) json["tokenizer_hash"] = state.tokenizer_hash;
  if (!state.loss_mask_hash.empty()) json["loss_mask_hash"] = state.loss_mask_hash;
  for_each_op(state.methods, [&](std::string_view op, const auto& method) {
    if (method) json[std::string(op)] = to_string(*method);
  });
  for (const Origin& origin : state.origins) {
    json["origins"].push_back({{"path", origin.path}, {"fingerprint", origin.fingerprint}});
  }
  return json;
}

TrainingState to_state(const ParsedJson& json) {
  TrainingState state;
  state.step = to_count(json.at("step"));
  state.optimizer_steps = to_count(json.at("optimizer_steps"));
  state.skipped_steps = to_count(json.at("skipped_steps"));
  state.samples_consumed = to_count(json.at("samples_consumed"));
  state.tokens = to_count(json.at("tokens"));
  state.dataset_fingerprint = json.at("dataset_fingerprint").get<std::string>();
  state.config = json.at("config").get<std::string>();
  state.tokenizer_hash = json.value("tokenizer_hash", std::string());
  state.loss_mask_hash = json.value("loss_mask_hash", std::string());
  for_each_op(state.methods, [&]<class Method>(std::string_view op, std::optional<Method>& method) {
    const auto name = json.value(std::string(op), std::string());
    if (name.empty()) return;
    method = value_of<Method>(name);
    require(method.has_value(), "'{}' is no method of {}", name, op_in_words(op));
  });
  for (const Json& origin : json.value("origins", Json::array())) {
    state.origins.push_back(
        {origin.at("path").get<std::string>(), origin.at("fingerprint").get<std::string>()});
  }
  return state;
}

Manifest to_manifest(const ParsedJson& json) {
  Manifest manifest;
  manifest.state = to_state(json.at("state"));
  const ParsedJson& layout = json.at("layout");
  const auto ranks = [&](const char* key) {
    return static_cast<int>(to_count(layout.at(key), std::numeric_limits<int>::max()));
  };
  manifest.layout = {ranks("world_size"), ranks("tp"), ranks("ep")};
  manifest.model_fingerprint = json.at("model_fingerprint").get<std::string>();
  manifest.model_file = to_file(json.at("model_file"));
  for (const ParsedJson& shard : json.at("shards")) manifest.shards.push_back(to_file(shard));
  return manifest;
}

uint32_t checksum(std::string_view text) { return crc32c(std::as_bytes(std::span(text))); }

// Called before the checksum is checked: programs of other versions must be able to report it. Only
// numbers are printed, because copying or printing any JSON takes stack for each of its levels.
void check_version(std::string_view text, const std::string& source) {
  const ParsedJson json = ParsedJson::parse(text, nullptr, /*allow_exceptions=*/false);
  require(json.is_object() && json.contains("format") && json["format"] == kFormat &&
              json.contains("version") && json["version"].is_number(),
          "{} is damaged, or not the manifest of a checkpoint", source);
  const ParsedJson& version = json["version"];
  require(version == kCheckpointVersion, "{} has format version {}; this program reads version {}",
          source, version.dump(), kCheckpointVersion);
}

void check_checksum(std::string_view text, const std::string& source) {
  const size_t field = text.find(kChecksumField);
  require(field != std::string_view::npos, "{} has no checksum", source);
  const size_t place = field + kChecksumField.size();
  std::string zeroed(text);
  zeroed.replace(place, kNoChecksum.size(), kNoChecksum);
  require(to_hex(checksum(zeroed)) == text.substr(place, kNoChecksum.size()),
          "{} is damaged: its checksum does not match", source);
}

}  // namespace

void require_same_tokenizer(const TrainingState& state, const std::string& tokenizer_hash,
                            const std::string& checkpoint) {
  require(state.tokenizer_hash.empty() || state.tokenizer_hash == tokenizer_hash,
          "data.tokenizer.model: this tokenizer ({}) is not that of the checkpoint {} ({}), whose "
          "model knows other tokens; name the file that the model was trained with",
          tokenizer_hash, checkpoint, state.tokenizer_hash);
}

std::string to_text(const Manifest& manifest) {
  Json json = {{"format", kFormat},
               {"version", kCheckpointVersion},
               {"crc32c_of_this_file", kNoChecksum},
               {"state", to_json(manifest.state)},
               {"layout",
                {{"world_size", manifest.layout.world_size},
                 {"tp", manifest.layout.tp},
                 {"ep", manifest.layout.ep}}},
               {"model_fingerprint", manifest.model_fingerprint},
               {"model_file", to_json(manifest.model_file)},
               {"shards", Json::array()}};
  for (const StoredFile& shard : manifest.shards) json["shards"].push_back(to_json(shard));
  std::string text = json.dump(1) + '\n';
  const size_t place = text.find(kChecksumField) + kChecksumField.size();
  text.replace(place, kNoChecksum.size(), to_hex(checksum(text)));
  return text;
}

Manifest parse_manifest(std::string_view text, const std::string& source) {
  check_version(text, source);
  check_checksum(text, source);
  try {
    return to_manifest(ParsedJson::parse(text));
  } catch (const std::exception& error) {
    fail("{} cannot be parsed as a manifest: {}", source, error.what());
  }
}

std::string to_text(const StoredFile& file) { return to_json(file).dump(); }

StoredFile parse_stored_file(std::string_view text) { return to_file(ParsedJson::parse(text)); }

std::map<TensorKey, Shape> tensors_of(const std::vector<StoredFile>& shards) {
  std::map<TensorKey, Shape> shapes;
  std::map<TensorKey, int64_t> found;
  for (const StoredFile& shard : shards) {
    for (const StoredPiece& piece : shard.pieces) {
      const TensorKey key{piece.kind, piece.name};
      const Shape& shape = shapes.try_emplace(key, piece.geometry.global_shape).first->second;
      require(shape == piece.geometry.global_shape, "{} {} is {} in one shard and {} in another",
              piece.kind, piece.name, shape, piece.geometry.global_shape);
      found[key] += piece.geometry.num_elements();
    }
  }
  for (const auto& [key, shape] : shapes) {
    require(found[key] == shape.num_elements(), "{} {}: {} of {} elements are in the shards",
            key.first, key.second, found[key], shape.num_elements());
  }
  return shapes;
}

std::string checkpoint_fingerprint(const Manifest& manifest) {
  // The manifest contains the checksum of every file.
  return fmt::format("{:016x}", hash64(to_text(manifest)));
}

std::string model_fingerprint(const std::map<TensorKey, Shape>& tensors) {
  std::string lines;
  for (const auto& [key, shape] : tensors) {
    if (key.first == kWeights) lines += key.second + ' ' + to_string(shape) + '\n';
  }
  return to_hex(checksum(lines));
}

}  // namespace switchyard
