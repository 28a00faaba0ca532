#pragma once

#include <cstdint>

#include "kernels/runtime/tensor.h"

namespace switchyard {

// Above this many tokens products on tensor cores win, which need rows that are sorted by expert.
constexpr int64_t kMostSlotTokens = 64;

// The products of a few tokens with the weights of their experts. Rows stay in the order of slots
// (token, choice), and experts are read where the op runs: unlike grouped_linear_forward it needs
// no counts on the host. Each weight is read once for about as many rows as fit into registers.
//   x             [tokens, in]: all slots of a token read its row; or [tokens * top_k, in]
//   dispatch_idx  [tokens, top_k] i32: the expert of each slot; -1: none
//   weight        [experts, out, in]   dtype of x
//   y             [tokens * top_k, out]: y[slot] = x weight[expert]^T; zero without an expert
using SlotProducts = void(Stream&, ConstTensorView x, ConstTensorView dispatch_idx,
                          ConstTensorView weight, TensorView y);

SlotProducts slot_products;

namespace cpu {
SlotProducts slot_products;
}  // namespace cpu
namespace cuda {
SlotProducts slot_products;
}  // namespace cuda

}  // namespace switchyard
