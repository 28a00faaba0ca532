#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace switchyard {

// What this machine does at best with the OpenMP threads of the caller, measured in a fraction of a
// second. Clocks and neighbours change: a figure of a benchmark stands beside the ceiling of the
// same run.

// FLOP/s of oneDNN's best product of square matrices of `dtype` (f32 or bf16) with f32 sums. CPUs
// without AMX multiply bf16 more slowly than f32.
double measure_product_ceiling(DType dtype);

// Bytes per second, read and written, of copying 256 MiB.
double measure_copy_ceiling();

// Reads every byte of `memory`, on the host, with all threads, and does next to nothing with them:
// for callers who time it in turn with their own work.
uint32_t read_through(ConstTensorView memory);

}  // namespace switchyard
