#pragma once

#include "kernels/runtime/first_position.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// Quest (arXiv 2406.10774) keeps the smallest and the greatest value per channel for every page of
// consecutive keys. No key of the page can have a greater product with a query than
//   bound(q, page) = sum over channels i of max(q[i] lower[page, i], q[i] upper[page, i])

// Updates the bounds of pages with the new keys at positions [first_position, first_position +
// seq_len). The first key of a page resets the page's bounds.
//   k             [batch, kv_heads, seq_len, head_dim]
//   lower, upper  [batch, kv_heads, pages, head_dim]   dtype of k; page = position / page_size
using UpdatePageBounds = void(Stream&, ConstTensorView k, const FirstPosition& first_position,
                              int64_t page_size, TensorView lower, TensorView upper);

// The score of a key is the bound of its page, summed over the query heads that share the
// key/value head:
//   scores[b, h, p] = sum over g of bound(q[b, g], p / page_size)
// for p < lengths[b]; later positions are not changed.
//   q        [batch, heads, head_dim]   dtype of the bounds
//   lengths  [batch] i32: cached positions, at least 1
//   scores   [batch, kv_heads, max_len] f32, max_len <= pages * page_size
using PageScores = void(Stream&, ConstTensorView q, ConstTensorView lower, ConstTensorView upper,
                        ConstTensorView lengths, int64_t page_size, TensorView scores);

UpdatePageBounds update_page_bounds;
PageScores page_scores;

namespace cpu {
UpdatePageBounds update_page_bounds;
PageScores page_scores;
}  // namespace cpu
namespace cuda {
UpdatePageBounds update_page_bounds;
PageScores page_scores;
}  // namespace cuda

}  // namespace switchyard
