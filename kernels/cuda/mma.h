#pragma once

// For .cu files: products of small bf16 matrices by the warp's tensor cores (mma.sync, sm_80), and
// how their operands are read from shared memory. Layouts of fragments: PTX ISA, "Matrix fragments
// for mma.m16n8k16". With group = lane / 4 and pair = lane % 4, a lane holds of
//   A [16, 16]  rows group and group + 8, columns 2 pair, 2 pair + 1, and both plus 8
//   B [16, 8]   column group, rows 2 pair, 2 pair + 1, and both plus 8
//   C [16, 8]   rows group and group + 8, columns 2 pair, 2 pair + 1

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "kernels/cuda/fragments.h"
#include "kernels/runtime/bfloat16.h"

namespace switchyard::cuda {

// Two floats, rounded to bf16, as neighbours in a fragment; `first` is in the lower half.
__device__ inline uint32_t pack_bf16(float first, float second) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
  uint32_t bits;
  memcpy(&bits, &both, sizeof(bits));
  return bits;
}

// c += a b
__device__ inline void multiply_add(const FragmentA& a, const FragmentB& b, FragmentC& c) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c.value[0]), "+f"(c.value[1]), "+f"(c.value[2]), "+f"(c.value[3])
      : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "r"(b.pair[0]),
        "r"(b.pair[1]));
}

// out[i] = this lane's pair of the i-th of four 8 x 8 matrices, or of its transpose if kTransposed.
// Lanes 8 i to 8 i + 7 pass the addresses of that matrix's rows.
template <bool kTransposed>
__device__ void load_matrices(const bfloat16* row, uint32_t (&out)[4]) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  }
}

}  // namespace switchyard::cuda
