#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "layers/model_config.h"

namespace switchyard {

// The config.json of a foreign folder, read key by key. Problems are collected, so that one error
// names all of them: a key that is missing or of another type, and a value that means something
// that this program does not compute.
class ConfigJson {
 public:
  // Throws Error if the file cannot be read or is not a JSON object.
  explicit ConfigJson(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  const nlohmann::json& object() const { return json_; }

  // A key that is null counts as missing. Without a default it is a problem then, and the result is
  // 0 or empty.
  int64_t integer(const std::string& key, std::optional<int64_t> fallback = {});
  int count(const std::string& key, std::optional<int64_t> fallback = {});
  double real(const std::string& key, std::optional<double> fallback = {});
  bool boolean(const std::string& key, std::optional<bool> fallback = {});
  std::string text(const std::string& key, std::optional<std::string> fallback = {});
  // The most positions: what the user wishes, else the key's value.
  int64_t positions(const std::string& key) { return seq_len_ > 0 ? seq_len_ : integer(key); }
  void wish_positions(int64_t seq_len) { seq_len_ = seq_len; }
  bool has(const std::string& key) const { return json_.contains(key) && !json_[key].is_null(); }

  // Adds a problem unless the key is missing or has this value.
  template <class Value>
  void expect(const std::string& key, const Value& value) {
    if (has(key) && json_[key] != nlohmann::json(value)) cannot(key);
  }
  // Says that the key's value cannot be honoured; `why` follows it.
  void cannot(const std::string& key, const std::string& why = "");
  void problem(const std::string& text) { problems_.push_back(text); }
  // Throws Error with all problems.
  void finish() const;

 private:
  const nlohmann::json* find(const std::string& key, bool is_required);

  std::filesystem::path path_;
  nlohmann::json json_;
  std::vector<std::string> problems_;
  int64_t seq_len_ = 0;
};

// Whether an architecture has attention in a sliding window.
enum class Window { none, if_given, switched, always };

// Positions as Hugging Face writes them: 5.x in rope_parameters, earlier versions in rope_theta,
// rope_scaling and partial_rotary_factor. https://github.com/huggingface/transformers,
// modeling_rope_utils.py
//   default_theta, default_partial  of the architecture, where the file has none
//   rotates_in_part                 whether transformers honours partial_rotary_factor
void read_rope(ConfigJson& config, double default_theta, double default_partial,
               bool rotates_in_part, ModelConfig& model);
// Writes both dialects. `default_partial` is what readers take for the share of a head that turns
// if the file does not say it.
void write_rope(const ModelConfig& model, double default_partial, nlohmann::ordered_json& json);

// Refuses a sliding window that is shorter than the model's sequences. switched: it exists with
// use_sliding_window only. A key that is missing, and not null, means 4096, but none with if_given.
void refuse_short_window(ConfigJson& config, const ModelConfig& model, Window window);

}  // namespace switchyard
