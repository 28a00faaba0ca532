#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/files/durable_file.h"
#include "trainer/files/file_io.h"

// The safetensors format: a 64-bit length, a JSON header of that length, and the tensors' elements,
// row-major and little-endian, in the order of the header's offsets without gaps.
// https://huggingface.co/docs/safetensors
namespace switchyard::safetensors {

// The element types that weights have. Files may hold others, which are listed but not read.
enum class Element { f32, f16, bf16 };

int64_t size_of(Element element);

struct TensorInfo {
  std::string type;                // as in the file: "F32", "BF16", "I64", ...
  std::optional<Element> element;  // empty for a type that is not read
  std::vector<int64_t> shape;
  int64_t offset = 0;  // of the first byte in the file
  int64_t bytes = 0;

  int64_t num_elements() const;
};

// One file. Opening it checks the whole header: every error names the file and the tensor.
class Reader {
 public:
  explicit Reader(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // The elements from `first` on as f32, exactly. Throws Error if the tensor is not there, is of a
  // type that is not read, or ends before.
  void read(const std::string& name, int64_t first, std::span<float> values) const;

 private:
  void read_header();

  std::filesystem::path path_;
  InputFile file_;
  std::map<std::string, TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

// A tensor to write, f32 or bf16.
struct Declaration {
  std::string name;
  Element element = Element::f32;
  std::vector<int64_t> shape;
};

// Writes one file without holding a tensor. The file gets its name when it is complete and on the
// disk. Several threads may write, each its own tensors.
class Writer {
 public:
  // The file holds the tensors in the order of the declarations.
  Writer(const std::filesystem::path& path, std::vector<Declaration> tensors,
         const std::map<std::string, std::string>& metadata);

  // The next elements of the tensor; for bf16 they are rounded to the nearest, ties to even. Throws
  // Error if it was not declared, or gets too many.
  void write(const std::string& name, std::span<const float> values);
  // Throws Error if an element is missing.
  void publish();

 private:
  struct Progress {
    Declaration declaration;
    int64_t offset;       // in the file, of the tensor's first byte
    int64_t written = 0;  // elements
  };

  UnfinishedFile unfinished_;
  OutputFile file_;
  std::map<std::string, Progress> tensors_;
};

}  // namespace switchyard::safetensors
