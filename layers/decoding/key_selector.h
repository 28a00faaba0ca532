#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "kernels/runtime/first_position.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// The attention that the keys of a prompt received, for methods that choose by it.
struct PromptAttention {
  int64_t queries = 0;  // the last ones of the prompt, or as many as there are
  Tensor received;      // [batch, kv_heads, max_len] f32, summed over the group; 0 after the prompt
};
constexpr int64_t kAllQueries = std::numeric_limits<int64_t>::max();

// The cached keys and values of one layer. Every sequence of the batch has the same length.
struct CachedKeys {
  ConstTensorView k, v;     // [batch, kv_heads, max_len, head_dim]
  ConstTensorView lengths;  // [batch] i32, all of them `length`
  int64_t length = 0;       // positions that are filled, the newest key among them
  // [1 or more] i32, all of them length - 1; empty: only the host knows it
  ConstTensorView newest = {};
  std::span<const PromptAttention> prompt = {};  // what the prefill kept

  // The entry of `prompt` for that many queries. Throws where the prefill did not keep it.
  ConstTensorView received(int64_t queries) const;
  FirstPosition newest_position() const { return {length - 1, newest}; }
};

// How many keys are to be chosen.
struct KeyBudget {
  KeyBudget(int64_t number) : keys(number), most(number) {}  // NOLINT: most callers have a number
  KeyBudget(int64_t number, ConstTensorView same_on_device, int64_t most_of_any_step)
      : keys(number), counts(same_on_device), most(most_of_any_step) {}

  int64_t keys;
  // [batch] i32, all of them what KeySelector::num_chosen makes of `keys`; empty: only the host
  // knows it.
  ConstTensorView counts = {};
  int64_t most;  // the lists of chosen keys have room for this many
};

// The keys that a new query attends to, or all keys if it is empty. It lies in the workspace.
struct SelectedKeys {
  TensorView indices;      // [batch, kv_heads, max_selected] i32, in any order
  ConstTensorView counts;  // [batch] i32: how many indices of each head are used
  // Added to the scaled products of the query heads, which leave out the keys at -infinity.
  // [batch, heads, max_selected] f32; empty: zero
  TensorView log_weights = {};

  explicit operator bool() const { return static_cast<bool>(indices); }
};

// The number of keys to choose out of `length`: min(budget, length) if the budget is at least 1,
// else floor(budget * length), but at least one. Throws unless the budget is positive.
int64_t budget_tokens(double budget, int64_t length);

// Chooses among the cached keys of one layer, with the help of data that it keeps beside them. It
// serves this rank's heads alone and does not communicate.
class KeySelector {
 public:
  virtual ~KeySelector() = default;

  // Takes new keys, after RoPE, at positions [first_position, first_position + seq_len). Writing a
  // position again replaces its data and discards those of all later positions.
  //   k  [batch, kv_heads, seq_len, head_dim]
  virtual void append(Stream& stream, Workspace& workspace, ConstTensorView k,
                      int64_t first_position) = 0;

  // Takes one new query per sequence and its key, which is in the cache already; adds the key, as
  // `append` does, and chooses. May be called again for the same query with another budget, unless
  // the method evicts (Choice in decode_methods.h).
  //   q       [batch, heads, head_dim]
  //   k       [batch, kv_heads, 1, head_dim] at position cache.length - 1
  //   budget  how many keys, from 1 to cache.length
  virtual SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView q,
                              ConstTensorView k, const CachedKeys& cache,
                              const KeyBudget& budget) = 0;

  // How many keys `select` chooses of `length` for a budget of `keys`, where that depends on
  // nothing else: as many, or what the method rounds them to, which rises with both.
  virtual int64_t num_chosen(int64_t keys, int64_t length) const;

  // Whether `select` can be recorded (CachedSteps): but for its arguments it uses no numbers of the
  // host that change from call to call.
  virtual bool is_recordable() const { return false; }

  // Chooses for a predicted query, from the keys that were added before: `cache` has their number
  // and no keys. Nothing is added. Only selectors that read no keys can do it; others throw.
  virtual SelectedKeys predict(Stream& stream, Workspace& workspace, ConstTensorView q,
                               const CachedKeys& cache, const KeyBudget& budget);
};

}  // namespace switchyard
