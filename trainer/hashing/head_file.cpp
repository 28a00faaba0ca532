#include "trainer/hashing/head_file.h"

#include <span>
#include <vector>

#include "kernels/runtime/check.h"
#include "trainer/files/crc32c.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/hdf5.h"
#include "trainer/files/not_finite.h"
#include "trainer/files/outputs.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kLossFields = 4;
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
    values.insert(values.end(),
                  {loss.similarity, loss.balance, loss.decorrelation, loss.orthogonality});
  }
  return values;
}

using PerBudget = std::array<double, kBudgets.size()>;

void write_pair(hdf5::File& file, const char* name, const PerBudget& learned,
                const PerBudget& random) {
  std::vector<double> values(learned.begin(), learned.end());
  values.insert(values.end(), random.begin(), random.end());
  write<double>(file, name, {2, kNumBudgets}, values);
}

void read_pair(const hdf5::File& file, const char* name, PerBudget& learned, PerBudget& random) {
  const std::vector<double> values = read<double>(file, name);
  require(values.size() == 2 * kBudgets.size(), "{} holds {} values", name, values.size());
  std::copy_n(values.begin(), kBudgets.size(), learned.begin());
  std::copy_n(values.begin() + kNumBudgets, kBudgets.size(), random.begin());
}

void write_quality(hdf5::File& file, const HashQuality& learned, const HashQuality& random) {
  file.set_int("queries", learned.queries);
  write_pair(file, "recall", learned.recall, random.recall);
  write_pair(file, "attention_mass", learned.attention_mass, random.attention_mass);
  write_pair(file, "best_mass", learned.best_mass, random.best_mass);
}

bool has_key(const hdf5::File& file) { return file.has_attribute("key"); }

HeadResult read_result(const hdf5::File& file) {
  const std::vector<float> weight = read<float>(file, "weight");
  HeadResult result{.weight = Tensor(Shape(file.dataset("weight").shape()), DType::f32),
                    .losses = {},
                    .learned = {},
                    .random = {}};
  std::copy(weight.begin(), weight.end(), result.weight.data<float>());
  const std::vector<double> losses = read<double>(file, "losses");
  for (size_t i = 0; i + kLossFields <= losses.size(); i += kLossFields) {
    result.losses.push_back({losses[i], losses[i + 1], losses[i + 2], losses[i + 3]});
  }
  if (!file.has_attribute("queries")) return result;
  HashQuality learned, random;
  learned.queries = random.queries = file.get_int("queries");
  read_pair(file, "recall", learned.recall, random.recall);
  read_pair(file, "attention_mass", learned.attention_mass, random.attention_mass);
  read_pair(file, "best_mass", learned.best_mass, random.best_mass);
  result.learned = learned;
  result.random = random;
  return result;
}

}  // namespace

void save_head(const fs::path& path, const std::string& key, const HeadResult& result) {
  const Tensor& weight = result.weight;
  const std::span values(weight.data<float>(), static_cast<size_t>(weight.num_elements()));
  const NotFinite count = count_not_finite(values);
  require(count.total() == 0, "{} is not written: the projection would hold {}; {}", path.string(),
          describe(count), kHashLearningRemedy);
  require_replaceable({"train-hash", path}, "a head that train-hash has learned",
                      [](const fs::path& old) { return is_hdf5(old, has_key); });
  write_durably(path, [&](const fs::path& unfinished) {
    hdf5::File file = hdf5::File::create(unfinished);
    file.set_string("key", key);
    write<float>(file, "weight", {weight.shape()[0], weight.shape()[1]}, values);
    write<double>(file, "losses", {std::ssize(result.losses), kLossFields}, flatten(result.losses));
    if (result.learned && result.random) write_quality(file, *result.learned, *result.random);
    file.close();
  });
}

std::optional<HeadResult> load_head(const fs::path& path, const std::string& key) {
  if (!fs::exists(path)) return {};
  try {
    const hdf5::File file = hdf5::File::open(path);
    if (file.get_string("key") == key) return read_result(file);
  } catch (const Error&) {
    // The file is damaged, so the head is learned again.
  }
  return {};
}

}  // namespace switchyard
