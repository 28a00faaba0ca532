#include "trainer/hashing/collect.h"

#include <fmt/format.h>

#include <algorithm>
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

// The keys [first, query] of one sequence, and its query.
struct Visible {
  int64_t first = 0;
  int64_t query = 0;
  int64_t num_keys() const { return query - first + 1; }
};

std::vector<Visible> visible_keys(const QueryKeySet& set, int64_t block, const MicroBatch& batch) {
  const int64_t begin = block * set.sequences_per_block;
  const int64_t kept = std::min(set.sequences_per_block, set.num_sequences - begin);
  std::vector<Visible> result;
  for (int64_t s = 0; s < kept; ++s) {
    Visible v{.first = 0, .query = query_position(set, begin + s, batch.seq_len)};
    if (batch.document_start) {
      v.first = batch.document_start.data<int32_t>()[s * batch.seq_len + v.query];
    }
    result.push_back(v);
  }
  return result;
}

// Takes the kept rows of a block out of each layer, gathers the heads of a tp group, and lets one
// rank of the group write them.
class Collector final : public AttentionObserver {
 public:
  // With a null writer it only takes part in the group's all-gather.
  Collector(std::vector<Visible> visible, int first_layer, QueryKeyWriter* writer)
      : visible_(std::move(visible)), first_layer_(first_layer), writer_(writer) {}

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
  //   result  [heads, rows, head_dim]: per sequence its visible keys, or its query alone
  Tensor take(ConstTensorView x, bool keys) const {
    const int64_t heads = x.dim(1), seq_len = x.dim(2), head_dim = x.dim(3);
    int64_t rows = 0;
    for (const Visible& v : visible_) rows += keys ? v.num_keys() : 1;
    Tensor taken({heads, rows, head_dim}, DType::f32);
    float* out = taken.data<float>();
    for (int64_t h = 0; h < heads; ++h) {
      for (size_t s = 0; s < visible_.size(); ++s) {
        const Visible& v = visible_[s];
        const int64_t first = keys ? v.first : v.query;
        const int64_t row = (static_cast<int64_t>(s) * heads + h) * seq_len + first;
        const int64_t count = (v.query - first + 1) * head_dim;
        out = std::copy_n(x.data<float>() + row * head_dim, count, out);
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

  std::vector<Visible> visible_;
  int first_layer_;
  QueryKeyWriter* writer_;
  std::exception_ptr error_;  // of the first layer that could not be written
};

std::vector<int64_t> row_offsets(const std::vector<Visible>& visible) {
  std::vector<int64_t> offsets = {0};
  for (const Visible& v : visible) offsets.push_back(offsets.back() + v.num_keys());
  return offsets;
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
               std::vector<Visible> visible, bool keep) {
  std::optional<QueryKeyWriter> writer;
  run_collectively(ctx.dist.world(), [&] {
    if (!keep) return;
    writer.emplace(set.path_of(block), set.key, block * set.sequences_per_block,
                   row_offsets(visible));
  });
  Collector collector(std::move(visible), set.first_layer, writer ? &*writer : nullptr);
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

int64_t query_position(const QueryKeySet& set, int64_t sequence, int64_t seq_len) {
  const RandomKey key{set.seed, stream_id("hash.query_position." + set.name)};
  const int64_t half = seq_len / 2;
  const double u = random_uniform(key, static_cast<uint64_t>(sequence));
  return half + static_cast<int64_t>(u * static_cast<double>(seq_len - half));
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
    run_block(ctx, model, set, block, visible_keys(set, block, batch),
              begin + own < count && is_missing(block) && dist.tp().rank() == 0);
    computed += kept;
    saved.reset();
    scratch.reset();
  }
  return computed;
}

}  // namespace switchyard
