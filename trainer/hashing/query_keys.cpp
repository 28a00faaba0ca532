#include "trainer/hashing/query_keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <utility>

#include "kernels/runtime/check.h"
#include "trainer/files/crc32c.h"
#include "trainer/files/not_finite.h"
#include "trainer/files/outputs.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr char kVisible[] = "visible";
constexpr char kChecksums[] = "crc32c_of_heads";

std::string query_name(int layer) { return fmt::format("layers.{}/q", layer); }
std::string key_name(int layer) { return fmt::format("layers.{}/k", layer); }

std::span<const float> values_of(ConstTensorView x) {
  return {x.data<float>(), static_cast<size_t>(x.num_elements())};
}

bool says_key(const hdf5::File& file) { return file.has_string("key"); }

int64_t checksum(ConstTensorView x) { return crc32c(std::as_bytes(values_of(x))); }

}  // namespace

QueryKeyWriter::QueryKeyWriter(fs::path path, const std::string& key, int64_t first_sequence,
                               int64_t queries_per_sequence, std::vector<KeyRange> visible)
    : unfinished_(std::move(path)),
      file_(hdf5::File::create(unfinished_.path())),
      first_sequence_(first_sequence),
      queries_per_sequence_(queries_per_sequence),
      visible_(std::move(visible)) {
  file_.set_string("key", key);
  std::vector<int64_t> ranges;
  for (const KeyRange& range : visible_) ranges.insert(ranges.end(), {range.begin, range.end});
  file_.create_dataset(kVisible, hdf5::Element::i64, {std::ssize(visible_), 2})
      .write(std::span<const int64_t>(ranges));
}

void QueryKeyWriter::write_layer(int layer, ConstTensorView q, ConstTensorView k) {
  int64_t row = 0;
  for (int64_t first = 0; first < std::ssize(visible_); first += queries_per_sequence_) {
    const int64_t sequence = first / queries_per_sequence_, end = first + queries_per_sequence_;
    const int64_t last_row = visible_[static_cast<size_t>(end) - 1].end;
    require_finite(layer, "queries", q, first, end, sequence);
    require_finite(layer, "keys", k, row, last_row, sequence);
    row = last_row;
  }
  write(query_name(layer), q);
  write(key_name(layer), k);
}

void QueryKeyWriter::require_finite(int layer, const char* what, ConstTensorView x, int64_t begin,
                                    int64_t end, int64_t sequence) const {
  for (int64_t head = 0; head < x.dim(0); ++head) {
    const std::span values = values_of(x.rows(head, 1));
    const int64_t width = x.dim(2);
    const NotFinite count = count_not_finite(values.subspan(
        static_cast<size_t>(begin * width), static_cast<size_t>((end - begin) * width)));
    require(count.total() == 0,
            "layer {}, sequence {} of the text to learn from: the {} of head {} hold {}, so the "
            "model has diverged; name an earlier checkpoint with checkpoint.resume",
            layer, first_sequence_ + sequence, what, head, describe(count));
  }
}

void QueryKeyWriter::write(const std::string& name, ConstTensorView x) {
  hdf5::Dataset dataset =
      file_.create_dataset(name, hdf5::Element::f32, {x.dim(0), x.dim(1), x.dim(2)});
  std::vector<int64_t> checksums;
  for (int64_t head = 0; head < x.dim(0); ++head) checksums.push_back(checksum(x.rows(head, 1)));
  dataset.set_ints(kChecksums, checksums);
  dataset.write(values_of(x));
}

void QueryKeyWriter::finish() {
  file_.close();
  unfinished_.publish();
}

QueryKeyFile::QueryKeyFile(const fs::path& path) : file_(hdf5::File::open(path)) {}

Tensor QueryKeyFile::read_heads(const std::string& name, int64_t first, int64_t count) const {
  const hdf5::Dataset dataset = file_.dataset(name);
  const std::vector<int64_t>& shape = dataset.shape();
  const std::vector<int64_t> checksums = dataset.get_ints(kChecksums);
  require(std::ssize(checksums) == shape[0] && first + count <= shape[0],
          "{}: heads {} to {} of {} were asked for, and there are {} checksums", dataset.where(),
          first, first + count - 1, shape[0], checksums.size());
  dataset.require_stored();
  Tensor x({count, shape[1], shape[2]}, DType::f32);
  if (x.num_elements() > 0) {
    dataset.read(std::span(x.data<float>(), static_cast<size_t>(x.num_elements())),
                 {{first, 0, 0}, {count, shape[1], shape[2]}});
  }
  for (int64_t head = 0; head < count; ++head) {
    require(checksums[static_cast<size_t>(first + head)] == checksum(x.view().rows(head, 1)),
            "{}: the values of head {} were altered; remove the file and run train-hash again",
            dataset.where(), first + head);
  }
  // An earlier program may have written them.
  const NotFinite not_finite = count_not_finite(values_of(x));
  require(not_finite.total() == 0,
          "{} holds {}: the model had diverged; remove the file, and name an earlier checkpoint "
          "with checkpoint.resume",
          dataset.where(), describe(not_finite));
  return x;
}

std::vector<KeyRange> QueryKeyFile::visible() const {
  const hdf5::Dataset dataset = file_.dataset(kVisible);
  const std::vector<int64_t> ranges = dataset.read_all<int64_t>();
  std::vector<KeyRange> visible;
  for (size_t i = 0; i + 1 < ranges.size(); i += 2) {
    visible.push_back({ranges[i], ranges[i + 1]});
    require(ranges[i] >= 0 && ranges[i + 1] > ranges[i],
            "{}: query {} sees the rows {} to {}; remove the file and run train-hash again",
            dataset.where(), i / 2, ranges[i], ranges[i + 1]);
  }
  return visible;
}

HeadQueryKeys QueryKeyFile::read(int layer, int kv_head) const {
  const std::vector<int64_t> q = file_.dataset(query_name(layer)).shape();
  const std::vector<int64_t> k = file_.dataset(key_name(layer)).shape();
  require(
      q.size() == 3 && k.size() == 3 && k[0] > 0 && q[0] % k[0] == 0 && q[2] == k[2],
      "{}: the queries and keys of layer {} have other shapes than the program writes; remove the "
      "file and run train-hash again",
      file_.path().string(), layer);
  const int64_t group = q[0] / k[0];
  HeadQueryKeys head{.q = read_heads(query_name(layer), kv_head * group, group),
                     .k = read_heads(key_name(layer), kv_head, 1),
                     .visible = visible()};
  require(std::ssize(head.visible) == head.queries() &&
              std::ranges::all_of(head.visible,
                                  [&](const KeyRange& r) { return r.end <= head.k.shape()[1]; }),
          "{}: the rows that the queries see are not those of layer {}; remove the file and run "
          "train-hash again",
          file_.path().string(), layer);
  return head;
}

bool has_query_keys(const fs::path& path, const std::string& key) {
  if (!fs::exists(path)) return false;
  require_replaceable({"train-hash", path}, "a block of queries and keys",
                      [](const fs::path& old) { return is_hdf5(old, says_key); });
  try {
    if (QueryKeyFile(path).key() == key) return true;
  } catch (const Error&) {
    // The file is damaged, so it is made anew.
  }
  fs::remove(path);
  return false;
}

}  // namespace switchyard
