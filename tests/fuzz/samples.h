#pragma once

#include <filesystem>
#include <string>

// Small files of every format, written by the program's own writers: what the fuzzer starts from.
namespace switchyard::fuzz {

// A checkpoint of two shards.
void write_checkpoint(const std::filesystem::path& folder);
void write_token_file(const std::filesystem::path& path, bool loss_mask);
void write_hash_weights(const std::filesystem::path& path);
void write_head(const std::filesystem::path& path);
void write_query_keys(const std::filesystem::path& path);
void write_tokenizer(const std::filesystem::path& path);
void write_gzip(const std::filesystem::path& path, const std::string& text);

}  // namespace switchyard::fuzz
