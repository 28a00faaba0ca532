#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/decode/hash_encode.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

enum class BenchClock {
  wall,
  processor  // time that the process's threads ran, divided by their number: for machines that
             // other processes use, too; CPU only
};

// The heads of a published model, and the width of its feed-forward layers.
struct HeadLayout {
  std::string name;
  int64_t heads, kv_heads, ffn_hidden;
};

struct DecodeBenchOptions {
  std::vector<int64_t> lengths = {4096, 8192, 16384, 32768, 65536, 131072};
  std::vector<int64_t> batches = {1, 8};
  std::vector<DType> dtypes = {DType::f32, DType::bf16};  // of the caches
  // Llama-2-7B and Llama-3.1-8B, the models of HATA's own measurements.
  std::vector<HeadLayout> layouts = {{"MHA", 32, 32, 11008}, {"GQA", 32, 8, 14336}};
  QueryCodes codes = QueryCodes::planes;
  int64_t bits = 128;  // of a key's code

  int64_t key_planes() const;
  int64_t columns() const { return bits / key_planes(); }
  double budget = 0.015625;  // share of the cached keys that HATA attends to
  int64_t repetitions = 9;
  int64_t prefill_tokens = 1024;
  double memory_gib = 12.0;  // cases that need more are skipped
  // Read before every step: more bytes than a processor's caches hold.
  int64_t read_bytes = int64_t{512} << 20;
  BenchClock clock = BenchClock::wall;
  Device device;
};

// A kind of operation: its median time and the bytes that it must read and write once.
struct BenchFigure {
  double seconds = 0.0;
  double bytes = 0.0;

  double bytes_per_second() const { return bytes / seconds; }
};

// One step of attention for one new token per sequence, dense and hash-aware in turn on the same
// caches. Before each, more memory is read than the processor's caches hold; `memory` times that.
struct DecodeBenchCase {
  DType dtype;
  HeadLayout layout;
  int64_t batch, length;
  int64_t selected = 0;       // keys that HATA attends to
  bool skipped = false;       // it needs too much memory
  double needed_bytes = 0.0;  // for the caches
  BenchFigure memory{}, dense{}, hata{};
  BenchFigure encode{}, score{}, select{}, attend{};  // the parts of hata

  double speedup() const { return dense.seconds / hata.seconds; }
};

// The prefill of a layer (projections, attention, feed-forward), and the encoding it adds.
struct PrefillBenchCase {
  DType dtype;
  HeadLayout layout;
  int64_t tokens;
  double encode_seconds = 0.0, attention_seconds = 0.0, products_seconds = 0.0;
  double signs_seconds = 0.0;  // to encode signs instead, whatever the codes

  double layer_seconds() const { return attention_seconds + products_seconds; }
};

struct DecodeBenchReport {
  DecodeBenchOptions options;
  int threads = 1;
  std::vector<DecodeBenchCase> decode;
  std::vector<PrefillBenchCase> prefill;

  // The bytes of the codes and lengths, divided by those of the keys and values.
  double code_share(DType dtype) const;
};

// Runs in one process.
DecodeBenchReport bench_decode(const DecodeBenchOptions& options);

// The report as a table for people, and as JSON.
std::string describe(const DecodeBenchReport& report);
std::string to_json(const DecodeBenchReport& report);

}  // namespace switchyard
