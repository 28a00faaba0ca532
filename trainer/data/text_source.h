#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace switchyard {

// One document of a corpus.
struct TextFile {
  std::filesystem::path path;
  std::string name;  // relative to where it was found; decides its order and whether it is held out
};

// The files that `roots` name: files themselves, and of folders every *.txt, *.rst, *.md and their
// .gz below them; sorted by name. Throws Error for a root that is missing or holds none.
std::vector<TextFile> find_text(const std::vector<std::string>& roots);

// The contents, unpacked. Throws Error with the path.
std::string read_text_file(const std::filesystem::path& path);

// A share of the documents, by a hash of the name: the same ones in every run.
bool is_held_out(const TextFile& file, double share);

}  // namespace switchyard
