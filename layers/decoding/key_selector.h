#pragma once

#include <cstdint>

#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// Of one layer: what has been cached, and how much of it there is. Every sequence of the batch is
// as long.
struct CachedKeys {
  ConstTensorView k, v;     // [batch, kv_heads, max_len, head_dim]
  ConstTensorView lengths;  // [batch] i32, all of them `length`
  int64_t length = 0;       // positions that are filled, the newest key among them
};

// The keys that a new query attends to; all of them where it is empty. From the workspace.
struct SelectedKeys {
  TensorView indices;  // [batch, kv_heads, max_selected] i32, in any order
  TensorView counts;   // [batch] i32: how many of them are meant

  explicit operator bool() const { return static_cast<bool>(indices); }
};

// Of `length` keys: min(budget, length) if it is at least 1, else floor(budget * length) and at
// least one. Throws unless the budget is positive.
int64_t budget_tokens(double budget, int64_t length);

// A way to choose among the cached keys of one layer, with what it keeps beside them. Serves this
// rank's heads alone and communicates nothing.
class KeySelector {
 public:
  virtual ~KeySelector() = default;

  // New keys, after RoPE, at positions [first_position, first_position + seq_len). A position that
  // is written again replaces what was kept of it and of all later ones.
  //   k  [batch, kv_heads, seq_len, head_dim]
  virtual void append(Stream& stream, Workspace& workspace, ConstTensorView k,
                      int64_t first_position) = 0;

  // One new query per sequence, and its key, which is in the cache already: takes the key, as
  // `append`, and chooses. May be asked again for the same query with another budget.
  //   q       [batch, heads, head_dim]
  //   k       [batch, kv_heads, 1, head_dim] at position cache.length - 1
  //   budget  how many keys, from 1 to cache.length
  virtual SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView q,
                              ConstTensorView k, const CachedKeys& cache, int64_t budget) = 0;
};

}  // namespace switchyard
