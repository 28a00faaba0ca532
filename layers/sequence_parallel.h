#pragma once

#include "layers/step_context.h"

namespace switchyard {

// Sequence parallelism (Korthikanti et al. 2022, section 4.2.2): between blocks each tp rank holds
// a share of the tokens; column-parallel products read all of them, row-parallel ones give partial
// sums for all of them. With tp = 1 no data is sent or copied.

// x_local [local_tokens, width] -> [tokens, width], from the scratch memory.
ConstTensorView gather_tokens(StepContext& ctx, ConstTensorView x_local);

// The output of a row-parallel product: [tokens, width] from scratch memory, or y_local itself with
// tp = 1.
TensorView partial_sums_for(StepContext& ctx, TensorView y_local);
// y_local [local_tokens, width] = this rank's tokens of the sum over tp ranks.
void reduce_scatter_tokens(StepContext& ctx, ConstTensorView partial, TensorView y_local);

}  // namespace switchyard
