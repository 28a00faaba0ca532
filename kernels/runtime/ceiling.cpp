#include "kernels/runtime/ceiling.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <dnnl.hpp>
#include <functional>
#include <limits>

#include "kernels/basic/elementwise.h"
#include "kernels/cpu/onednn_matmul.h"
#include "kernels/linear/matmul.h"
#include "kernels/runtime/ceiling_sizes.h"
#include "kernels/runtime/team_size.h"
#include "kernels/runtime/trial.h"

namespace switchyard {
namespace {

double best_seconds(int repetitions, const std::function<void()>& run) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < repetitions; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::min(best, elapsed.count());
  }
  return best;
}

double square_product_rate(int64_t n, DType dtype) {
  using Type = dnnl::memory::data_type;
  const Type type = dtype == DType::f32 ? Type::f32 : Type::bf16;
  Tensor a({n, n}, dtype), b({n, n}, dtype), c({n, n}, DType::f32);
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const dnnl::memory::dims dims = {n, n}, strides = {n, 1};
  const dnnl::memory::desc in(dims, type, strides), out(dims, Type::f32, strides);
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul product({engine, in, in, out});
#else
  const dnnl::matmul product({{in, in, out}, engine});
#endif
  const double seconds = best_seconds(/*repetitions=*/4, [&] {
    product.execute(stream, {{DNNL_ARG_SRC, {in, engine, a.view().raw()}},
                             {DNNL_ARG_WEIGHTS, {in, engine, b.view().raw()}},
                             {DNNL_ARG_DST, {out, engine, c.view().raw()}}});
    stream.wait();
  });
  return 2.0 * static_cast<double>(n * n * n) / seconds;
}

double blas_rate(int64_t n) {
  Tensor a({n, n}, DType::f32), b({n, n}, DType::f32), c({n, n}, DType::f32);
  const double seconds = best_seconds(/*repetitions=*/4, [&] {
    dnnl_sgemm('N', 'N', n, n, n, 1.0f, a.data<float>(), n, b.data<float>(), n, 0.0f,
               c.data<float>(), n);
  });
  return 2.0 * static_cast<double>(n * n * n) / seconds;
}

double product_ceiling_of_cpu(DType asked) {
  const DType dtype = has_native_bf16() ? asked : DType::f32;
  // oneDNN would leave out what it meant for threads that are not granted, and be too fast.
  const TeamSize granted(granted_team_size());
  double best = 0.0;
  for (const int64_t width : {1024, 2048}) {
    best = std::max(best, square_product_rate(width, dtype));
    if (dtype == DType::f32) best = std::max(best, blas_rate(width));
  }
  return best;
}

double copy_ceiling_of_cpu() {
  constexpr int64_t kBytes = int64_t{256} << 20, kChunk = int64_t{1} << 20;
  Tensor from({kBytes}, DType::u8), to({kBytes}, DType::u8);
  const double seconds = best_seconds(/*repetitions=*/4, [&] {
#pragma omp parallel for schedule(static)
    for (int64_t at = 0; at < kBytes; at += kChunk) {
      std::memcpy(to.data<uint8_t>() + at, from.data<uint8_t>() + at, kChunk);
    }
  });
  return 2.0 * static_cast<double>(kBytes) / seconds;
}

constexpr int kTries = 5, kRuns = 10;

double product_ceiling_of_device(Stream& stream, DType dtype) {
  double best = 0.0;
  const int64_t largest = dtype == DType::f32 ? kWidth / 2 : kWidth;
  for (const int64_t n : {largest / 2, largest}) {
    const Tensor a = random_on_device(stream, {n, n}, dtype, 1),
                 b = random_on_device(stream, {n, n}, dtype, 2);
    Tensor c({n, n}, dtype, stream.device());
    const double seconds = best_seconds_of_device(stream, kTries, kRuns, [&] {
      matmul(stream, a, Transpose::no, b, Transpose::yes, Accumulate::no, c);
    });
    best = std::max(best, 2.0 * static_cast<double>(n * n * n) / seconds);
  }
  return best;
}

double copy_ceiling_of_device(Stream& stream) {
  const Tensor from({kCopyBytes}, DType::u8, stream.device());
  Tensor to({kCopyBytes}, DType::u8, stream.device());
  return 2.0 * static_cast<double>(kCopyBytes) /
         best_seconds_of_device(stream, kTries, kRuns, [&] { copy(stream, from, to); });
}

}  // namespace

double measure_product_ceiling(Stream& stream, DType dtype) {
  return stream.device().kind == DeviceKind::cpu ? product_ceiling_of_cpu(dtype)
                                                 : product_ceiling_of_device(stream, dtype);
}

double measure_copy_ceiling(Stream& stream) {
  return stream.device().kind == DeviceKind::cpu ? copy_ceiling_of_cpu()
                                                 : copy_ceiling_of_device(stream);
}

uint32_t read_through(ConstTensorView memory) {
  constexpr int64_t kChunk = int64_t{1} << 20;  // words
  const auto* words = static_cast<const uint32_t*>(memory.raw());
  const auto count = static_cast<int64_t>(memory.num_bytes() / sizeof(uint32_t));
  uint32_t all = 0;
#pragma omp parallel for schedule(dynamic) reduction(^ : all)
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    uint32_t some = 0;
#pragma omp simd reduction(^ : some)
    for (int64_t i = begin; i < std::min(begin + kChunk, count); ++i) some ^= words[i];
    all ^= some;
  }
  return all;
}

}  // namespace switchyard
