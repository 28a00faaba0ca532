#include "trainer/data/text_source.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <memory>

#include "kernels/check.h"
#include "kernels/random.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

bool is_text(fs::path path) {
  if (path.extension() == ".gz") path.replace_extension();
  constexpr std::array<const char*, 3> kExtensions = {".txt", ".rst", ".md"};
  return std::any_of(kExtensions.begin(), kExtensions.end(),
                     [&](const char* extension) { return path.extension() == extension; });
}

}  // namespace

std::vector<TextFile> find_text(const std::vector<std::string>& roots) {
  require(!roots.empty(), "data.text names no text; give files or folders");
  std::vector<TextFile> files;
  for (const std::string& root : roots) {
    const size_t before = files.size();
    if (fs::is_directory(root)) {
      for (const auto& entry : fs::recursive_directory_iterator(root)) {
        if (entry.is_regular_file() && is_text(entry.path())) {
          files.push_back({entry.path(), fs::relative(entry.path(), root).string()});
        }
      }
    } else {
      require(fs::exists(root), "data.text: {} is not there", root);
      files.push_back({root, fs::path(root).filename().string()});
    }
    require(files.size() > before, "data.text: {} holds no *.txt, *.rst or *.md", root);
  }
  std::sort(files.begin(), files.end(),
            [](const TextFile& a, const TextFile& b) { return a.name < b.name; });
  return files;
}

std::string read_text_file(const fs::path& path) {
  // zlib reads files that are not packed as they are.
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  require(file != nullptr, "{} cannot be read", path.string());
  std::string text;
  std::array<char, 1 << 16> buffer;
  for (;;) {
    const int count = gzread(file.get(), buffer.data(), static_cast<unsigned>(buffer.size()));
    require(count >= 0, "{} cannot be unpacked: it is damaged", path.string());
    if (count == 0) return text;
    text.append(buffer.data(), static_cast<size_t>(count));
  }
}

bool is_held_out(const TextFile& file, double share) {
  return random_uniform({0, stream_id("held out")}, stream_id(file.name)) < share;
}

}  // namespace switchyard
