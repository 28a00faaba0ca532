#pragma once

#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// Orthogonalises x approximately: x = U S V^T becomes U S' V^T with S' near the identity. This is
// the quintic iteration of Jordan et al. 2024 (Liu et al. 2025, equation 2), from x / ||x||_F:
//   x = a x + b (x x^T) x + c (x x^T)^2 x,   a = 3.4445, b = -4.7750, c = 2.0315
// Its slope at zero is a, so it raises small singular values fast. It does not converge to 1: after
// 5 steps, singular values that began between 0.0015 and 1 times ||x||_F lie in [0.67, 1.21]. A
// matrix of zeros stays zero.
//   x      [rows, columns] f32, replaced
//   steps  5 as published; each takes 4 k k l + 2 k k k operations with k the shorter side and
//          l the longer
// Takes the memory of one x and of two [k, k] matrices from the workspace. The bits of the result
// do not depend on the number of threads.
void newton_schulz(Stream&, Workspace&, int steps, TensorView x);

// x /= sqrt(sum_of_squares) + eps; the sum stays on the device.
//   sum_of_squares  [1] f64
//   x               f32
using DivideByNorm = void(Stream&, ConstTensorView sum_of_squares, double eps, TensorView x);

DivideByNorm divide_by_norm;

namespace cpu {
DivideByNorm divide_by_norm;
}  // namespace cpu
namespace cuda {
DivideByNorm divide_by_norm;
}  // namespace cuda

}  // namespace switchyard
