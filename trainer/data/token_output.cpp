#include "trainer/data/token_output.h"

#include <fmt/ostream.h>

#include <filesystem>
#include <vector>

#include "kernels/runtime/check.h"

namespace switchyard {

std::string output_path(const std::vector<DataSource>& sources, std::string_view setting) {
  require(sources.size() <= 1,
          "{} lists {} files, and `tokenize` writes its text to one: name it by {}=FILE", setting,
          sources.size(), setting);
  return sources.empty() ? "" : sources[0].path;
}

void require_token_outputs(const DataSection& config, std::span<const NamedFile> others,
                           std::span<const NamedFile> inputs) {
  std::vector<NamedFile> outputs = {{"data.train", output_path(config.train, "data.train")}};
  const std::string validation = output_path(config.validation, "data.validation");
  if (!validation.empty()) outputs.push_back({"data.validation", validation});
  for (const NamedFile& output : outputs) {
    require_replaceable(output, "a token file", [](const std::filesystem::path& path) {
      return is_hdf5(path, says_token_file);
    });
  }
  outputs.insert(outputs.end(), others.begin(), others.end());
  require_distinct(outputs, inputs);
}

std::unique_ptr<TokenFileWriter> open_token_output(const std::string& path,
                                                   const TokenFileInfo& info, std::ostream& log) {
  if (path.empty()) return nullptr;
  if (std::filesystem::exists(path)) {
    try {
      TokenFile file(path);
      if (file.info().source_hash == info.source_hash &&
          file.info().tokenizer_hash == info.tokenizer_hash &&
          file.info().loss_mask == info.loss_mask) {
        file.verify();
        fmt::print(log, "up to date: {}\n", path);
        return nullptr;
      }
      fmt::print(log, "made from other data or by another tokenizer, replacing: {}\n", path);
    } catch (const Error& error) {
      fmt::print(log, "replacing: {}\n", error.what());
    }
  }
  return std::make_unique<TokenFileWriter>(path, info);
}

void require_documents(const TokenFileWriter* train, const TokenFileWriter* validation) {
  require(!train || train->num_documents() > 0,
          "data.text has too few documents: all of them are held out, and none is left for "
          "data.train; give more documents or lower data.validation_share");
  require(!validation || validation->num_documents() > 0,
          "data.text has too few documents: none of them is held out for data.validation; give "
          "more documents, raise data.validation_share, or take data.validation out");
}

int64_t finish_token_output(TokenFileWriter* writer, const std::string& path, std::ostream& log) {
  if (!writer) return 0;
  writer->finish();
  fmt::print(log, "wrote {} tokens of {} documents: {}\n", writer->num_tokens(),
             writer->num_documents(), path);
  return writer->num_tokens();
}

}  // namespace switchyard
