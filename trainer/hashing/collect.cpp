#include "trainer/hashing/collect.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <optional>
#include <span>
#include <vector>

#include "kernels/runtime/check.h"
#include "kernels/runtime/host_f32.h"
#include "layers/attention_observer.h"
#include "trainer/hashing/query_keys.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

// The queries of one sequence, and the keys from the first one that any of them sees to the last
// query's own.
struct Kept {
  std::vector<int64_t> queries;  // positions, rising
  std::vector<int64_t> firsts;   // of each query: the position of the first key that it sees

  int64_t first_key() const { return firsts.front(); }
  int64_t num_keys() const { return queries.back() - first_key() + 1; }
};

std::vector<Kept> kept_of(const QueryKeySet& set, int64_t block, const MicroBatch& batch) {
  const int64_t begin = block * set.sequences_per_block;
  const int64_t count = std::min(set.sequences_per_block, set.num_sequences - begin);
  std::vector<Kept> result;
  for (int64_t s = 0; s < count; ++s) {
    Kept kept{.queries = query_positions(set, begin + s, batch.seq_len), .firsts = {}};
    for (const int64_t query : kept.queries) {
      const int32_t* starts = batch.document_start ? batch.document_start.data<int32_t>() : nullptr;
      kept.firsts.push_back(starts ? starts[s * batch.seq_len + query] : 0);
    }
    result.push_back(std::move(kept));
  }
  return result;
}

// Takes the kept rows of a block out of each layer, gathers the heads of a tp group, and lets one
// rank of the group write them.
class Collector final : public AttentionObserver {
 public:
  // With a null writer it only takes part in the group's all-gather.
  Collector(std::vector<Kept> kept, int first_layer, QueryKeyWriter* writer)
      : kept_(std::move(kept)), first_layer_(first_layer), writer_(writer) {}

  void observe(StepContext& ctx, int layer, ConstTensorView q, ConstTensorView k) override {
    if (layer < first_layer_) return;
    const Tensor queries = gather_heads(ctx, take(host_f32(ctx.stream, q).view, /*keys=*/false));
    const Tensor keys = gather_heads(ctx, take(host_f32(ctx.stream, k).view, /*keys=*/true));
    if (!writer_ || error_) return;
    // The pass goes on, because the other ranks wait in its collectives.
    try {
      writer_->write_layer(layer, queries, keys);
    } catch (const Error&) {
      error_ = std::current_exception();
    }
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  //   x       [batch, heads, seq_len, head_dim]
  //   result  [heads, rows, head_dim]: of each sequence its keys, or its queries
  Tensor take(ConstTensorView x, bool keys) const {
    const int64_t heads = x.dim(1), seq_len = x.dim(2), head_dim = x.dim(3);
    int64_t rows = 0;
    for (const Kept& kept : kept_) rows += keys ? kept.num_keys() : std::ssize(kept.queries);
    Tensor taken({heads, rows, head_dim}, DType::f32);
    float* out = taken.data<float>();
    for (int64_t h = 0; h < heads; ++h) {
      for (size_t s = 0; s < kept_.size(); ++s) {
        const Kept& kept = kept_[s];
        const float* sequence =
            x.data<float>() + (static_cast<int64_t>(s) * heads + h) * seq_len * head_dim;
        if (keys) {
          out =
              std::copy_n(sequence + kept.first_key() * head_dim, kept.num_keys() * head_dim, out);
          continue;
        }
        for (const int64_t query : kept.queries) {
          out = std::copy_n(sequence + query * head_dim, head_dim, out);
        }
      }
    }
    return taken;
  }

  static Tensor gather_heads(StepContext& ctx, Tensor local) {
    Communicator& tp = ctx.dist.tp();
    if (tp.size() == 1) return local;
    const Shape& shape = local.shape();
    Tensor all({tp.size() * shape[0], shape[1], shape[2]}, DType::f32);
    tp.all_gather(ctx.stream, local, all);
    return all;
  }

  std::vector<Kept> kept_;
  int first_layer_;
  QueryKeyWriter* writer_;
  std::exception_ptr error_;  // of the first layer that could not be written
};

std::vector<KeyRange> visible_rows(const std::vector<Kept>& all) {
  std::vector<KeyRange> visible;
  int64_t row = 0;  // of the sequence's first key
  for (const Kept& kept : all) {
    const int64_t offset = row - kept.first_key();
    for (size_t i = 0; i < kept.queries.size(); ++i) {
      visible.push_back({offset + kept.firsts[i], offset + kept.queries[i] + 1});
    }
    row += kept.num_keys();
  }
  return visible;
}

// For each block whether rank 0 does not find it on the disk.
std::vector<uint8_t> missing_blocks(const DistributedContext& dist, const QueryKeySet& set) {
  std::vector<uint8_t> missing(static_cast<size_t>(set.num_blocks()));
  run_collectively(dist.world(), [&] {
    if (dist.rank() != 0) return;
    fs::create_directories(set.folder);
    for (int64_t block = 0; block < set.num_blocks(); ++block) {
      missing[static_cast<size_t>(block)] = !has_query_keys(set.path_of(block), set.key);
    }
  });
  Stream stream;
  if (!missing.empty()) dist.world().broadcast(stream, view_of(std::span(missing)), 0);
  return missing;
}

// Runs one block through the model, and writes its queries and keys if `keep`.
void run_block(StepContext& ctx, Transformer& model, const QueryKeySet& set, int64_t block,
               std::vector<Kept> kept, bool keep) {
  std::optional<QueryKeyWriter> writer;
  run_collectively(ctx.dist.world(), [&] {
    if (!keep) return;
    writer.emplace(set.path_of(block), set.key, block * set.sequences_per_block,
                   std::ssize(kept.front().queries), visible_rows(kept));
  });
  Collector collector(std::move(kept), set.first_layer, writer ? &*writer : nullptr);
  ctx.observer = &collector;
  ctx.dist.set_phase(Phase::collecting_keys);
  model.forward_blocks(ctx);
  // All ranks wait until all blocks are written, because every rank reads the blocks of others.
  run_collectively(ctx.dist.world(), [&] {
    collector.rethrow();
    if (writer) writer->finish();
  });
}

}  // namespace

fs::path QueryKeySet::path_of(int64_t block) const {
  return folder / fmt::format("{}_{:06d}.h5", name, block);
}

std::vector<int64_t> query_positions(const QueryKeySet& set, int64_t sequence, int64_t seq_len) {
  const RandomKey key{set.seed, stream_id("hash.query_position." + set.name)};
  const auto begin = static_cast<int64_t>(set.spread.from * static_cast<double>(seq_len));
  const int64_t count = std::min(set.queries_per_sequence, seq_len - begin);
  const auto end = static_cast<double>(seq_len);
  // Octaves begin at position 1.
  const auto first =
      static_cast<double>(set.spread.by_octave ? std::max<int64_t>(begin, 1) : begin);
  std::vector<int64_t> positions;
  for (int64_t i = 0; i < count; ++i) {
    const double u = random_uniform(key, static_cast<uint64_t>(sequence * count + i));
    const double part = (static_cast<double>(i) + u) / static_cast<double>(count);
    const double drawn =
        set.spread.by_octave ? first * std::pow(end / first, part) : first + (end - first) * part;
    // The first octaves may have less positions than parts.
    const int64_t lowest = positions.empty() ? begin : positions.back() + 1;
    positions.push_back(std::clamp(static_cast<int64_t>(drawn), lowest, seq_len - count + i));
  }
  return positions;
}

int64_t collect_query_keys(Stream& stream, Transformer& model, const DistributedContext& dist,
                           DataLoader& loader, const QueryKeySet& set,
                           const std::function<bool()>& stops) {
  const std::vector<uint8_t> missing = missing_blocks(dist, set);
  const auto is_missing = [&](int64_t block) { return missing[static_cast<size_t>(block)] != 0; };
  const int64_t count = set.num_blocks();
  const int64_t dp = dist.dp().size(), own = dist.dp().rank();
  Workspace saved(stream.device()), scratch(stream.device());
  int64_t computed = 0;
  for (int64_t begin = 0; begin < count; begin += dp) {
    const auto first = missing.begin() + begin;
    const int64_t kept = std::count(first, first + std::min(dp, count - begin), uint8_t{1});
    if (kept == 0) continue;
    if (stops()) break;
    // Experts are spread over dp ranks, so a rank without a block of its own runs the last one.
    const int64_t block = std::min(begin + own, count - 1);
    GlobalBatch loaded;
    run_collectively(dist.world(), [&] { loaded = loader.load(block * set.sequences_per_block); });
    const MicroBatch& batch = loaded.micro_batches.front();
    MicroBatch copied;
    copy_to_device(stream, batch, copied);
    StepContext ctx{.stream = stream,
                    .saved = saved,
                    .scratch = scratch,
                    .dist = dist,
                    .batch = copied,
                    .scales = {},
                    .dropless = true};
    run_block(ctx, model, set, block, kept_of(set, block, batch),
              begin + own < count && is_missing(block) && dist.tp().rank() == 0);
    computed += kept;
    saved.reset();
    scratch.reset();
  }
  return computed;
}

}  // namespace switchyard
