#pragma once

#include <cstdint>
#include <span>

#include "kernels/runtime/tensor.h"

namespace switchyard {

// Every communicator makes these checks, groups of one rank included, so that a wrong call is
// noticed on the smallest layout, too. All throw Error.

void check_broadcast(int root, int group_size);
// Reductions take f32, bf16, f64, i32, i64.
void check_all_reduce(ConstTensorView data);
void check_all_gather(ConstTensorView in, ConstTensorView out, int group_size);
void check_reduce_scatter(ConstTensorView in, ConstTensorView out, int group_size);
void check_all_to_all_v(ConstTensorView in, std::span<const int64_t> send_rows, ConstTensorView out,
                        std::span<const int64_t> recv_rows, int group_size);

}  // namespace switchyard
