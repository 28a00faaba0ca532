#include "tests/fuzz/checksums.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <span>

#include "trainer/files/crc32c.h"
#include "trainer/files/file_io.h"

namespace switchyard::fuzz {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kField = "\"crc32c_of_this_file\": \"";
constexpr size_t kDigits = 8;

void repair_file(Json& entry, const std::filesystem::path& folder) {
  if (!entry.is_object() || !entry.contains("file") || !entry["file"].is_string()) return;
  const auto path = folder / entry["file"].get<std::string>();
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return;
  const InputFile file(path);
  entry["bytes"] = file.size();
  entry["crc32c"] = fmt::format("{:08x}", file.checksum(0, file.size()));
}

}  // namespace

void repair_manifest(std::string& text) {
  const size_t field = text.find(kField);
  if (field == text.npos || field + kField.size() + kDigits > text.size()) return;
  const size_t place = field + kField.size();
  text.replace(place, kDigits, std::string(kDigits, '0'));
  const uint32_t checksum = crc32c(std::as_bytes(std::span(text)));
  text.replace(place, kDigits, fmt::format("{:08x}", checksum));
}

void repair_files_of_manifest(std::string& text, const std::filesystem::path& folder) {
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return;
  if (json.contains("model_file")) repair_file(json["model_file"], folder);
  if (json.contains("shards")) {
    for (Json& shard : json["shards"]) repair_file(shard, folder);
  }
  text = json.dump(1, ' ', false, Json::error_handler_t::replace) + '\n';
  repair_manifest(text);
}

}  // namespace switchyard::fuzz
