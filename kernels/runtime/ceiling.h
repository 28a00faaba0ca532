#pragma once

#include <cstdint>

#include "kernels/runtime/tensor.h"

namespace switchyard {

// The best rates of a device, measured in a fraction of a second; of the CPU, with the caller's
// OpenMP threads. Clocks and the load by others change, so a benchmark compares its figures with
// the ceiling of the same run.

// FLOP/s of the best product of square matrices of `dtype` (f32 or bf16): oneDNN's with f32 sums,
// or cuBLAS's. Some CPUs with avx512_bf16 but without AMX multiply bf16 more slowly than f32. On a
// CPU that cannot multiply bf16 it is that of f32, to which the operands are widened.
double measure_product_ceiling(Stream& stream, DType dtype);

// Bytes per second, read and written, of copying 256 MiB (1 GiB on a CUDA device).
double measure_copy_ceiling(Stream& stream);

// Reads every byte of `memory` on the host with all threads and returns their checksum. Callers
// time it in turn with their own work.
uint32_t read_through(ConstTensorView memory);

}  // namespace switchyard
