#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "trainer/bench/decode_bench.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kGibibyte = 1073741824.0;

std::string title(const DecodeBenchCase& c) {
  return fmt::format("{} {}/{}, {}, batch {}", c.layout.name, c.layout.heads, c.layout.kv_heads,
                     to_string(c.dtype), c.batch);
}

// "1.234 ms  5.6 GB/s"
std::string figure(const BenchFigure& f) {
  return fmt::format("{:9.3f} {:6.1f}", 1e3 * f.seconds, 1e-9 * f.bytes_per_second());
}

std::string line(const DecodeBenchCase& c) {
  if (c.skipped) {
    return fmt::format("{:>7}  skipped: caches of {:.1f} GiB, more than --memory allows\n",
                       c.length, c.needed_bytes / kGibibyte);
  }
  return fmt::format("{:>7}{:7.1f}{} {:4.0f} %{}{}{}{}{}{:8.2f}\n", c.length,
                     1e-9 * c.memory.bytes_per_second(), figure(c.dense),
                     100.0 * c.dense.bytes_per_second() / c.memory.bytes_per_second(),
                     figure(c.hata), figure(c.encode), figure(c.score), figure(c.select),
                     figure(c.attend), c.speedup());
}

std::string describe(const PrefillBenchCase& c) {
  return fmt::format(
      "{} {}/{}, {}, {} tokens: encoding {:.2f} ms ({:.2f} times signs), attention {:.1f} "
      "ms, products {:.1f} ms; encoding adds {:.2f} % to the layer\n",
      c.layout.name, c.layout.heads, c.layout.kv_heads, to_string(c.dtype), c.tokens,
      1e3 * c.encode_seconds, c.encode_seconds / c.signs_seconds, 1e3 * c.attention_seconds,
      1e3 * c.products_seconds, 100.0 * c.encode_seconds / c.layer_seconds());
}

Json json_of(const BenchFigure& f) {
  return {{"ms", 1e3 * f.seconds}, {"bytes", f.bytes}, {"gb_per_s", 1e-9 * f.bytes_per_second()}};
}

Json json_of(const DecodeBenchCase& c) {
  Json json = {{"dtype", to_string(c.dtype)},
               {"heads", c.layout.heads},
               {"kv_heads", c.layout.kv_heads},
               {"batch", c.batch},
               {"tokens", c.length},
               {"selected", c.selected}};
  if (c.skipped) {
    json["skipped"] = fmt::format("needs {:.1f} GiB", c.needed_bytes / kGibibyte);
    return json;
  }
  json["memory"] = json_of(c.memory);
  json["dense"] = json_of(c.dense);
  json["hata"] = json_of(c.hata);
  json["encode"] = json_of(c.encode);
  json["score"] = json_of(c.score);
  json["select"] = json_of(c.select);
  json["attend"] = json_of(c.attend);
  json["speedup"] = c.speedup();
  return json;
}

Json json_of(const PrefillBenchCase& c) {
  return {{"dtype", to_string(c.dtype)},
          {"heads", c.layout.heads},
          {"kv_heads", c.layout.kv_heads},
          {"tokens", c.tokens},
          {"encode_ms", 1e3 * c.encode_seconds},
          {"signs_ms", 1e3 * c.signs_seconds},
          {"attention_ms", 1e3 * c.attention_seconds},
          {"products_ms", 1e3 * c.products_seconds},
          {"encode_share", c.encode_seconds / c.layer_seconds()}};
}

}  // namespace

std::string describe(const DecodeBenchReport& report) {
  const DecodeBenchOptions& o = report.options;
  std::string text = fmt::format(
      "{}, {} threads, {} time, median of {}; {}, {} bits, budget {:.2f} %\n"
      "Every figure: ms, GB/s of the bytes that must move; dense: share of the memory's GB/s, "
      "too\n",
      to_string(o.device), report.threads, o.clock == BenchClock::wall ? "wall-clock" : "processor",
      o.repetitions, to_string(o.codes), o.bits, 100.0 * o.budget);
  std::string before;
  for (const DecodeBenchCase& c : report.decode) {
    if (title(c) != before) {
      before = title(c);
      text += fmt::format("\n{}\n{:>7}{:>7}{:>16}       {:>16}{:>16}{:>16}{:>16}{:>16}{:>8}\n",
                          before, "tokens", "memory", "dense", "HATA", "encode", "score", "select",
                          "attend", "ratio");
    }
    text += line(c);
  }
  text += "\n";
  for (const PrefillBenchCase& c : report.prefill) text += describe(c);
  for (const DType dtype : o.dtypes) {
    text += fmt::format("codes add {:.2f} % to a cache in {}\n", 100.0 * report.code_share(dtype),
                        to_string(dtype));
  }
  return text;
}

std::string to_json(const DecodeBenchReport& report) {
  const DecodeBenchOptions& o = report.options;
  Json json = {{"format", "switchyard.bench_decode"},
               {"device", to_string(o.device)},
               {"threads", report.threads},
               {"clock", o.clock == BenchClock::wall ? "wall" : "processor"},
               {"repetitions", o.repetitions},
               {"codes", to_string(o.codes)},
               {"bits", o.bits},
               {"budget", o.budget},
               {"decode", Json::array()},
               {"prefill", Json::array()},
               {"code_share", Json::object()}};
  for (const DecodeBenchCase& c : report.decode) json["decode"].push_back(json_of(c));
  for (const PrefillBenchCase& c : report.prefill) json["prefill"].push_back(json_of(c));
  for (const DType dtype : o.dtypes) {
    json["code_share"][std::string(to_string(dtype))] = report.code_share(dtype);
  }
  return json.dump(2) + "\n";
}

}  // namespace switchyard
