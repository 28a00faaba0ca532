#include "trainer/planning/machine_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <sstream>

#include "kernels/runtime/check.h"
#include "kernels/runtime/enum_names.h"

namespace switchyard {
namespace {

constexpr std::array<const char*, kNumProductKinds> kProductKinds = {"forward", "input_gradient",
                                                                     "weight_gradient"};
constexpr std::array<const char*, 2> kPasses = {"forward", "backward"};
constexpr double kMost = 1e30;
constexpr const char* kNotMeasured = "not measured";

// ---- Reading -----------------------------------------------------------------------------------

// A map of the file. Every key that it holds must be asked for.
class Map {
 public:
  Map(const YAML::Node& node, std::string file, std::string path)
      : node_(node), file_(std::move(file)), path_(std::move(path)) {
    require(node.IsMap(), "{}: {} must be a map", file_, path_.empty() ? "the file" : path_);
    const std::vector<std::string> all = keys();
    for (auto key = all.begin(); key != all.end(); ++key) {
      require(std::find(std::next(key), all.end(), *key) == all.end(), "{}: {} is given twice",
              file_, of(*key));
    }
  }

  bool has(const std::string& key) { return known_.insert(key).second, node_[key].IsDefined(); }
  Map map(const std::string& key) {
    require(has(key), "{}: {} is missing", file_, of(key));
    return {node_[key], file_, of(key)};
  }
  std::string text(const std::string& key) {
    require(has(key), "{}: {} is missing", file_, of(key));
    require(node_[key].IsScalar(), "{}: {} must be a text", file_, of(key));
    return node_[key].Scalar();
  }
  bool says(const std::string& key, const char* text) {
    return has(key) && node_[key].IsScalar() && node_[key].Scalar() == text;
  }
  double number(const std::string& key, double lowest, double highest = kMost) {
    require(has(key), "{}: {} is missing", file_, of(key));
    return number(node_[key], of(key), lowest, highest);
  }
  int whole(const std::string& key, int lowest, int highest) {
    const double value = number(key, lowest, highest);
    require(value == std::floor(value), "{}: {} must be a whole number", file_, of(key));
    return static_cast<int>(value);
  }
  double number_or(double otherwise, const std::string& key, double lowest,
                   double highest = kMost) {
    return has(key) ? number(key, lowest, highest) : otherwise;
  }
  bool flag(const std::string& key) {
    if (!has(key)) return false;
    const std::string value = text(key);
    require(value == "true" || value == "false", "{}: {} is '{}', expected true or false", file_,
            of(key), value);
    return value == "true";
  }
  // Numbers of at least `lowest`.
  std::vector<double> numbers(const std::string& key, double lowest) {
    require(has(key) && node_[key].IsSequence() && node_[key].size() > 0,
            "{}: {} must be a list of numbers", file_, of(key));
    std::vector<double> values;
    for (const YAML::Node& item : node_[key]) {
      values.push_back(number(item, of(key), lowest, kMost));
    }
    return values;
  }
  std::vector<double> ascending(const std::string& key, double lowest) {
    std::vector<double> values = numbers(key, lowest);
    require(std::ranges::adjacent_find(values, std::greater_equal<>()) == values.end(),
            "{}: the numbers of {} must ascend", file_, of(key));
    return values;
  }
  std::vector<std::string> keys() const {
    std::vector<std::string> keys;
    for (const auto& pair : node_) keys.push_back(pair.first.Scalar());
    return keys;
  }
  void refuse_others() const {
    for (const std::string& key : keys()) {
      require(known_.contains(key), "{}: unknown key {}; the keys here are {}", file_, of(key),
              fmt::join(known_, ", "));
    }
  }
  const std::string& file() const { return file_; }
  std::string of(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }

 private:
  double number(const YAML::Node& node, const std::string& key, double lowest,
                double highest) const {
    double value = NAN;
    const bool read = node.IsScalar() && YAML::convert<double>::decode(node, value);
    require(read && value >= lowest && value <= highest, "{}: {} must be a number from {} to {}",
            file_, key, lowest, highest);
    return value;
  }

  YAML::Node node_;
  std::string file_, path_;
  std::set<std::string> known_;
};

// A rate, or a table of measured times; either may have a latency.
ByteTimes read_byte_times(Map map) {
  const double latency = map.number_or(0.0, "latency", 0.0);
  if (map.has("bytes_per_second")) {
    const ByteTimes times = ByteTimes::line(latency, map.number("bytes_per_second", 1.0),
                                            map.number_or(0.0, "per_message", 0.0));
    map.refuse_others();
    return times;
  }
  ByteTimes times{.latency = latency,
                  .bytes = map.ascending("bytes", 0.0),
                  .seconds = map.numbers("seconds", 0.0)};
  require(times.bytes.size() == times.seconds.size(), "{}: {} has {} numbers, but {} has {}",
          map.file(), map.of("bytes"), times.bytes.size(), map.of("seconds"), times.seconds.size());
  map.refuse_others();
  return times;
}

ByteTimes read_link(Map& map, const std::string& key) {
  if (map.says(key, kNotMeasured)) return {};
  return read_byte_times(map.map(key));
}

CollectiveTimes read_links(Map map) {
  CollectiveTimes times{.within_host = read_link(map, "within_host"), .between_hosts = {}};
  times.between_hosts =
      map.has("between_hosts") ? read_link(map, "between_hosts") : times.within_host;
  map.refuse_others();
  return times;
}

// The same links for every collective, or those of each.
void read_collectives(Map map, Machine& machine) {
  if (map.has("within_host")) {
    machine.all_to_all = machine.all_gather = machine.reduce_scatter = read_links(map);
    return;
  }
  machine.all_to_all = read_links(map.map("all_to_all"));
  machine.all_gather = read_links(map.map("all_gather"));
  machine.reduce_scatter = read_links(map.map("reduce_scatter"));
  map.refuse_others();
}

TimeGrid read_grid(Map map) {
  TimeGrid grid{.m = map.ascending("m", 1.0),
                .n = map.ascending("n", 1.0),
                .k = map.ascending("k", 1.0),
                .seconds = map.numbers("seconds", 1e-12)};
  const size_t points = grid.m.size() * grid.n.size() * grid.k.size();
  require(grid.seconds.size() == points, "{}: {} has {} numbers, expected {} for the sizes",
          map.file(), map.of("seconds"), grid.seconds.size(), points);
  map.refuse_others();
  return grid;
}

ProductTimes read_products(Map map) {
  ProductTimes times;
  times.peak = map.number("peak", 1.0);
  if (map.has("efficiency")) {
    times.efficiency = map.number("efficiency", 1e-6, 1.0);
    map.refuse_others();
    return times;
  }
  Map single = map.map("single"), grouped = map.map("grouped"), attention = map.map("attention");
  for (size_t kind = 0; kind < kProductKinds.size(); ++kind) {
    times.single[kind] = read_grid(single.map(kProductKinds[kind]));
    times.grouped[kind] = read_grid(grouped.map(kProductKinds[kind]));
  }
  for (size_t pass = 0; pass < kPasses.size(); ++pass) {
    times.attention[pass] = read_grid(attention.map(kPasses[pass]));
  }
  for (const Map& inner : {map, single, grouped, attention}) inner.refuse_others();
  return times;
}

void read_ops(Map map, Machine& machine) {
  for (const std::string& key : map.keys()) {
    (key == "other" ? machine.other_ops : machine.ops[key]) = read_byte_times(map.map(key));
  }
  map.map("other");
}

Machine read_machine(Map map) {
  Machine machine;
  machine.name = map.text("name");
  machine.source = map.text("source");
  const std::string device = map.text("device");
  require(device == "cpu" || device == "cuda", "{}: device is '{}', expected cpu or cuda",
          map.file(), device);
  machine.device = device == "cpu" ? DeviceKind::cpu : DeviceKind::cuda;
  constexpr int kMostRanks = 1 << 20;
  machine.ranks_per_host = map.whole("ranks_per_host", 1, kMostRanks);
  if (map.has("threads")) machine.threads = map.whole("threads", 1, kMostRanks);
  machine.cores_per_host = map.number_or(0.0, "cores_per_host", 0.0);
  machine.memory_per_rank = map.number_or(0.0, "memory_per_rank", 0.0);
  machine.background = map.number("background", 0.0, 1.0);
  machine.rings = map.flag("rings");
  machine.links_overlap = map.flag("links_overlap");
  Map products = map.map("products");
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const std::string key(to_string(dtype));
    if (products.has(key)) machine.products[dtype] = read_products(products.map(key));
  }
  products.refuse_others();
  read_ops(map.map("ops"), machine);
  read_collectives(map.map("links"), machine);
  map.refuse_others();
  return machine;
}

// ---- Writing -----------------------------------------------------------------------------------

std::string list(const std::vector<double>& values) {
  return fmt::format("[{:.4g}]", fmt::join(values, ", "));
}

std::string to_yaml(const TimeGrid& grid) {
  return fmt::format("{{m: {}, n: {}, k: {}, seconds: {}}}\n", list(grid.m), list(grid.n),
                     list(grid.k), list(grid.seconds));
}

std::string to_yaml(const ByteTimes& times) {
  if (times.empty()) return fmt::format("{}\n", kNotMeasured);
  return fmt::format("{{latency: {:.4g}, bytes: {}, seconds: {}}}\n", times.latency,
                     list(times.bytes), list(times.seconds));
}

std::string to_yaml(const char* kind, const CollectiveTimes& times) {
  return fmt::format("  {}:\n    within_host: {}    between_hosts: {}", kind,
                     to_yaml(times.within_host), to_yaml(times.between_hosts));
}

std::string to_yaml(DType dtype, const ProductTimes& times) {
  std::string text = fmt::format("  {}:\n    peak: {:.4g}\n", to_string(dtype), times.peak);
  const auto grids = [&](const char* name, const auto& kinds, const auto& of_kinds) {
    text += fmt::format("    {}:\n", name);
    for (size_t i = 0; i < kinds.size(); ++i) {
      text += fmt::format("      {}: {}", kinds[i], to_yaml(of_kinds[i]));
    }
  };
  grids("single", kProductKinds, times.single);
  grids("grouped", kProductKinds, times.grouped);
  grids("attention", kPasses, times.attention);
  return text;
}

}  // namespace

Machine read_machine(const std::filesystem::path& path) {
  std::ifstream file(path);
  require(file.is_open(),
          "cannot read the machine's description {}: no such file, or no permission",
          path.string());
  std::stringstream text;
  text << file.rdbuf();
  try {
    return read_machine(Map(YAML::Load(text.str()), path.string(), ""));
  } catch (const YAML::Exception& error) {
    fail("{}:{}:{}: {}", path.string(), error.mark.line + 1, error.mark.column + 1, error.msg);
  } catch (const Error& error) {
    throw Error(fmt::format("{}; configs/machines/ holds descriptions of machines", error.what()));
  }
}

std::string to_yaml(const Machine& machine) {
  std::string text = kMachineFileTitle;
  text += fmt::format("name: \"{}\"\nsource: \"{}\"\n", machine.name, machine.source);
  text += fmt::format("device: {}\n", machine.device == DeviceKind::cpu ? "cpu" : "cuda");
  text += fmt::format("ranks_per_host: {}\nthreads: {}\ncores_per_host: {:.4g}\n",
                      machine.ranks_per_host, machine.threads, machine.cores_per_host);
  text += fmt::format("memory_per_rank: {:.6g}\nbackground: {:.3g}\n", machine.memory_per_rank,
                      machine.background);
  text += fmt::format("rings: {}\nlinks_overlap: {}\n", machine.rings, machine.links_overlap);
  text += "products:\n";
  for (const auto& [dtype, times] : machine.products) text += to_yaml(dtype, times);
  text += "ops:\n  other: " + to_yaml(machine.other_ops);
  for (const auto& [name, time] : machine.ops) text += fmt::format("  {}: {}", name, to_yaml(time));
  text += "links:\n" + to_yaml("all_to_all", machine.all_to_all) +
          to_yaml("all_gather", machine.all_gather) +
          to_yaml("reduce_scatter", machine.reduce_scatter);
  return text;
}

}  // namespace switchyard
