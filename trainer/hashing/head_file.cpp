#include "trainer/hashing/head_file.h"

#include <algorithm>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/runtime/check.h"
#include "trainer/files/crc32c.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/file_io.h"
#include "trainer/files/hdf5.h"
#include "trainer/files/not_finite.h"
#include "trainer/files/outputs.h"
#include "trainer/hashing/hash_weights.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kLossFields = 5;
constexpr int64_t kQualityKinds = 3;  // recall, attention mass, best mass
constexpr auto kNumBudgets = static_cast<int64_t>(kBudgets.size());

template <class T>
void write(hdf5::File& file, const char* name, std::vector<int64_t> shape,
           std::span<const T> values) {
  hdf5::Dataset dataset = file.create_dataset(name, hdf5::element_of<T>(), shape);
  dataset.set_int("crc32c", crc32c(std::as_bytes(values)));
  dataset.write(values);
}

template <class T>
std::vector<T> read(const hdf5::File& file, const char* name) {
  const hdf5::Dataset dataset = file.dataset(name);
  std::vector<T> values = dataset.read_all<T>();
  require(dataset.get_int("crc32c") == crc32c(std::as_bytes(std::span(values))),
          "{} was altered: its checksum does not match", dataset.where());
  return values;
}

std::vector<double> flatten(const std::vector<HashLoss>& losses) {
  std::vector<double> values;
  for (const HashLoss& loss : losses) {
    values.insert(values.end(), {loss.ranking, loss.similarity, loss.balance, loss.decorrelation,
                                 loss.orthogonality});
  }
  return values;
}

// Values of each of the measured projections, one row per projection and kind.
std::vector<double> flatten(const std::vector<NamedQuality>& held_out) {
  std::vector<double> values;
  for (const NamedQuality& of : held_out) {
    for (const auto& kind : {of.quality.recall, of.quality.attention_mass, of.quality.best_mass}) {
      values.insert(values.end(), kind.begin(), kind.end());
    }
  }
  return values;
}

void write_quality(hdf5::File& file, const std::vector<NamedQuality>& held_out) {
  std::string names;
  for (const NamedQuality& of : held_out) names += (names.empty() ? "" : " ") + of.name;
  file.set_string("held_out", names);
  file.set_int("queries", held_out.front().quality.queries);
  write<double>(file, "quality", {std::ssize(held_out), kQualityKinds, kNumBudgets},
                flatten(held_out));
}

std::vector<NamedQuality> read_quality(const hdf5::File& file) {
  const std::vector<double> values = read<double>(file, "quality");
  std::istringstream names(file.get_string("held_out"));
  std::vector<NamedQuality> held_out;
  auto next = values.begin();
  for (std::string name; names >> name;) {
    require(values.end() - next >= kQualityKinds * kNumBudgets, "quality holds {} values",
            values.size());
    HashQuality quality{.queries = file.get_int("queries")};
    for (auto* kind : {&quality.recall, &quality.attention_mass, &quality.best_mass}) {
      std::copy_n(next, kNumBudgets, kind->begin());
      next += kNumBudgets;
    }
    held_out.push_back({name, quality});
  }
  return held_out;
}

bool has_key(const hdf5::File& file) { return file.has_string("key"); }

HeadResult read_result(const hdf5::File& file) {
  HeadResult result;
  result.hash.key_planes = file.get_int("key_planes");
  for (const NamedHashTensor& of : kHashTensors) {
    if (!file.contains(of.name)) continue;
    const std::vector<float> values = read<float>(file, of.name);
    Tensor& tensor = result.hash.*of.tensor;
    tensor = Tensor(Shape(file.dataset(of.name).shape()), DType::f32);
    std::copy(values.begin(), values.end(), tensor.data<float>());
  }
  const std::vector<double> losses = read<double>(file, "losses");
  for (size_t i = 0; i + kLossFields <= losses.size(); i += kLossFields) {
    result.losses.push_back(
        {losses[i], losses[i + 1], losses[i + 2], losses[i + 3], losses[i + 4]});
  }
  if (file.has_attribute("held_out")) result.held_out = read_quality(file);
  return result;
}

std::span<const float> elements_of(const Tensor& tensor) {
  return {tensor.data<float>(), static_cast<size_t>(tensor.num_elements())};
}

}  // namespace

void save_head(const fs::path& path, const std::string& key, const HeadResult& result) {
  NotFinite count;
  for (const NamedHashTensor& of : kHashTensors) {
    if (result.hash.*of.tensor) count += count_not_finite(elements_of(result.hash.*of.tensor));
  }
  require(count.total() == 0,
          "{} is not written: the projection would hold {}; lower {} and run train-hash again",
          path.string(), describe(count), learning_rate_key(bool(result.hash.queries)));
  require_replaceable({"train-hash", path}, "a head that train-hash has learned",
                      [](const fs::path& old) { return is_hdf5(old, has_key); });
  write_durably(path, [&](const fs::path& unfinished) {
    hdf5::File file = hdf5::File::create(unfinished);
    file.set_string("key", key);
    file.set_int("key_planes", result.hash.key_planes);
    for (const NamedHashTensor& of : kHashTensors) {
      const Tensor& tensor = result.hash.*of.tensor;
      if (!tensor) continue;
      const std::span dims = tensor.shape().dims();
      write<float>(file, of.name, {dims.begin(), dims.end()}, elements_of(tensor));
    }
    write<double>(file, "losses", {std::ssize(result.losses), kLossFields}, flatten(result.losses));
    if (!result.held_out.empty()) write_quality(file, result.held_out);
    file.close();
  });
}

std::optional<HeadResult> load_head(const fs::path& path, const std::string& key) {
  if (!fs::exists(path)) return {};
  try {
    const hdf5::File file = hdf5::File::open(path);
    if (file.get_string("key") == key) return read_result(file);
  } catch (const CannotReadError&) {
    throw;
  } catch (const Error&) {
    // The file is damaged, so the head is learned again.
  }
  return {};
}

}  // namespace switchyard
