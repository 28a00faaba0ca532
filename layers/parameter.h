#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/linear/matmul.h"
#include "kernels/runtime/tensor.h"
#include "parallel/communicator.h"

namespace switchyard {

// The ranks over which the gradient of a parameter is summed, and over which its optimizer state is
// split.
enum class ParameterGroup {
  sharded,     // dp, for parameters that are split over tp
  replicated,  // dp and tp, for parameters that are the same on every rank
  expert,      // edp, for parameters that are split over ep
};
inline constexpr ParameterGroup kParameterGroups[] = {
    ParameterGroup::sharded, ParameterGroup::replicated, ParameterGroup::expert};

// Initial values.
struct Init {
  enum class Kind { normal, ones, zeros };
  Kind kind = Kind::zeros;
  float std = 0.0f;  // normal

  static Init normal(float std) { return {Kind::normal, std}; }
  static Init ones() { return {Kind::ones, 0.0f}; }
  static Init zeros() { return {Kind::zeros, 0.0f}; }
};

struct ParameterSpec {
  std::string name;
  Shape global_shape;
  Shape offset;  // where this rank's box begins in global_shape
  Shape extent;  // this rank's box
  ParameterGroup group = ParameterGroup::replicated;
  DType dtype = DType::f32;  // of the values; gradients are f32
  bool decay = true;         // whether weight decay applies
  // The number of hidden matrices that the last two dimensions hold, one above the other with
  // equally many rows: two where a gate stands above up. A third dimension in front counts such
  // stacks (experts). An update rule of whole matrices (Muon) takes them one by one. Zero in
  // vectors, and in embeddings and the head, which Jordan et al. 2024 and Moonlight (section 2.2)
  // leave to AdamW.
  int hidden_matrices = 0;
  // Rows of zeros behind this rank's box: memory that is no part of the tensor, for products whose
  // dimensions must be multiples of something.
  int64_t spare_rows = 0;
  Init init;
};

struct Parameter {
  ParameterSpec spec;
  int64_t flat_begin = 0;                // index of its first element in its flat buffer
  TensorView value;                      // extent, spec.dtype
  TensorView grad;                       // extent, f32
  TensorView padded_value, padded_grad;  // the same and the spare rows

  // Layers set it where a matrix product is the first that goes into the gradient in every pass.
  bool gradient_is_product = false;
  // Whether `grad` has values that the next product overwrites (ParameterStore::forget_grads).
  bool gradient_is_stale = false;

  // For that product: whether it adds to the gradient, or overwrites it.
  Accumulate begin_gradient() {
    return std::exchange(gradient_is_stale, false) ? Accumulate::no : Accumulate::yes;
  }
};

// Some parameters of one (group, dtype) in the order in which they were added: a bucket, whose
// gradients are reduced in one collective. Each parameter begins at a multiple of 16 bytes, except
// behind one with rows of the same width: there it begins where that one ends, so that the two can
// be fused.
struct FlatBuffer {
  ParameterGroup group;
  DType dtype;
  int first_stage;  // of its parameters: once this stage's gradients are final, all are
  int last_stage;
  std::vector<Parameter*> parameters;
  int64_t num_elements = 0;  // up to the last spare row; gaps, spare rows and padding stay zero
  Tensor values;             // [padded] dtype
  Tensor grads;              // [padded] f32
  // Of the values from the ranks that updated them, while they are under way; the owner of the
  // parameters waits for it (ParameterStore::await_values).
  std::unique_ptr<PendingCollective> arrival = nullptr;
};

// The names of its parameters, for messages.
std::string describe(const FlatBuffer& buffer);

// Owns values and gradients of one rank's parameters, in flat buffers per (group, dtype), so that
// gradients are reduced and optimizer state is split without copies.
class ParameterStore {
 public:
  // 64 MiB of gradients: enough for a link to run at its full rate, and few enough that most of a
  // model's gradients are reduced during the backward pass.
  static constexpr int64_t kBucketElements = int64_t{16} << 20;
  // Rings of N ranks send N-th parts of a bucket. 1 MiB takes a link of 400 Gb/s 21 us, several
  // times the latency of a message; a part of 64 KiB, as 1,024 ranks make of 64 MiB, takes 1.3 us.
  // Buckets are parts of the gradients, so large ones cost no memory. They cost overlap: the last
  // bucket is reduced after the backward pass. Megatron-LM takes four times as much per rank.
  static constexpr int64_t kBucketElementsPerRank = int64_t{256} << 10;
  // 4 MiB, for networks that take long for 64 MiB: 0.3 s at 100 Mb/s, 1.3 ms at 25 Gb/s.
  static constexpr int64_t kBucketElementsOverMpi = int64_t{1} << 20;

  // By the group over which their gradients are summed.
  struct BucketElements {
    int64_t sharded, replicated, expert;
  };
  // What buckets have at least whose gradients are summed over this many ranks.
  static int64_t bucket_elements_of(int ranks);

  // A new stage begins another flat buffer if the newest one has `bucket_elements` or more.
  explicit ParameterStore(int64_t bucket_elements = kBucketElements)
      : ParameterStore(BucketElements{bucket_elements, bucket_elements, bucket_elements}) {}
  explicit ParameterStore(BucketElements bucket_elements) : bucket_elements_(bucket_elements) {}
  ParameterStore(const ParameterStore&) = delete;
  ParameterStore& operator=(const ParameterStore&) = delete;

  // Parameters that are added from now on are used after those of earlier stages: in the backward
  // pass their gradients are final first. Stages are numbered from 0.
  void begin_stage() { ++stage_; }

  // Declares a parameter; its views are empty until `materialize`. The reference stays valid.
  Parameter& add(ParameterSpec spec);

  // Allocates all tensors and draws the initial values, which depend on seed, name and global index
  // alone, and so are the same on every layout. Flat buffers are padded to a multiple of
  // 16 * world_size elements, so that any group of ranks can split them evenly.
  void materialize(Stream& stream, uint64_t seed, int world_size);

  void zero_grads(Stream& stream);
  // Makes all gradients zero, where those that begin with a product become so by its overwriting
  // them, which saves writing and reading the zeros. Sums are the same; a zero may be -0.
  void forget_grads(Stream& stream);
  // Zeroes the gradients of `buffer` that no product has overwritten since.
  static void settle_grads(Stream& stream, FlatBuffer& buffer);

  // Waits for the values of all stages up to `stage`. Collective over the groups of their buffers.
  void await_values(Stream& stream, int stage);
  void await_values(Stream& stream) { await_values(stream, stage_); }

  // In the order of `add`.
  std::deque<Parameter>& parameters() { return parameters_; }
  const std::deque<Parameter>& parameters() const { return parameters_; }
  std::vector<FlatBuffer>& buffers() { return buffers_; }
  const std::vector<FlatBuffer>& buffers() const { return buffers_; }
  int64_t num_elements() const;  // of this rank

  // One view [sum of rows, ...] of the parameters `first` to `last`, added one after the other.
  TensorView fused_value(const Parameter& first, const Parameter& last) const;
  TensorView fused_grad(const Parameter& first, const Parameter& last) const;

 private:
  FlatBuffer& buffer_for(ParameterGroup group, DType dtype);

  BucketElements bucket_elements_;
  int stage_ = 0;
  std::deque<Parameter> parameters_;
  std::vector<FlatBuffer> buffers_;
};

}  // namespace switchyard
