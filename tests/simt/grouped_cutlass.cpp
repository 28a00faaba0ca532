// The emulated CUTLASS: products in double, by the lists in device memory, and the epilogues'
// arithmetic. It is there if SWITCHYARD_EMULATED_CUTLASS is set; "wrong" makes its results wrong.
#include "kernels/cuda/grouped_cutlass.h"

#include <cstdlib>
#include <string_view>

#include "kernels/cuda/activation_math.h"
#include "kernels/cuda/sizes.h"
#include "kernels/cuda/support.h"
#include "kernels/runtime/check.h"
#include "tests/simt/emulated_cutlass.h"
#include "tests/simt/simt.h"

namespace switchyard::cuda {
namespace {

int64_t calls = 0;

const char* setting() { return std::getenv("SWITCHYARD_EMULATED_CUTLASS"); }

// The product of one expert, and its part of the other tensors.
class EmulatedProduct {
 public:
  EmulatedProduct(const ExpertProblems& problems, const ActivationEpilogue& epilogue, int expert,
                  bool backward)
      : o_(epilogue),
        size_(problems.sizes[expert]),
        a_(static_cast<const bfloat16*>(problems.a[expert])),
        b_(static_cast<const bfloat16*>(problems.b[expert])),
        c_(static_cast<const bfloat16*>(problems.c[expert])),
        d_(static_cast<bfloat16*>(problems.d[expert])),
        a_stride_(problems.a_stride[expert]),
        b_stride_(problems.b_stride[expert]),
        c_stride_(problems.c_stride[expert]),
        d_stride_(problems.d_stride[expert]),
        first_row_(problems.row_offsets[expert]) {
    const bool gated = is_gated(o_.activation);
    require(size_.m == problems.row_offsets[expert + 1] - first_row_ &&
                first_row_ + size_.m <= o_.rows && (c_ != nullptr) == backward &&
                d_stride_ == size_.n * (gated && backward ? 2 : 1) &&
                (!backward || c_stride_ == d_stride_) &&
                (o_.gate_up != nullptr) == (gated && !backward),
            "product {} of the emulated CUTLASS has wrong sizes", expert);
    require(!o_.gate_up ||
                (size_.n % kGroupedTileColumns == 0 && d_ == o_.gate_up + first_row_ * d_stride_),
            "product {} of the emulated CUTLASS has gates elsewhere", expert);
    require(size_.n % 8 == 0 && size_.k % 8 == 0 && a_stride_ % 8 == 0 && b_stride_ % 8 == 0 &&
                d_stride_ % 8 == 0 && allow_vectors(a_, b_, c_, d_, o_.act, o_.up, o_.dup),
            "product {} of the emulated CUTLASS is not aligned", expert);
  }

  template <class F, bool kGated>
  void forward() const {
    const int64_t ffn = size_.n / (kGated ? 2 : 1);
    for (int64_t i = 0; i < size_.m; ++i) {
      bfloat16* row = d_ + i * d_stride_;
      for (int64_t j = 0; j < size_.n; ++j) row[j] = bfloat16(product(i, j, b_stride_, 1));
      for (int64_t j = 0; j < ffn; ++j) {
        const float up = kGated ? static_cast<float>(row[ffn + j]) : 0.0f;
        o_.act[(first_row_ + i) * ffn + j] =
            bfloat16(activated<F, kGated>(static_cast<float>(row[j]), up, scale(i)));
      }
    }
  }

  template <class F, bool kGated>
  void backward() const {
    for (int64_t i = 0; i < size_.m; ++i) {
      for (int64_t j = 0; j < size_.n; ++j) {
        const int64_t behind = (first_row_ + i) * d_stride_ + j;
        const auto g = activation_gradient<F, kGated>(
            product(i, j, 1, b_stride_), static_cast<float>(c_[i * c_stride_ + j]),
            kGated ? static_cast<float>(o_.up[behind]) : 0.0f, scale(i));
        d_[i * d_stride_ + j] = bfloat16(g.dx);
        if (kGated) o_.dup[behind] = bfloat16(g.dup);
        o_.act[(first_row_ + i) * size_.n + j] = bfloat16(g.out);
        if (o_.dots == nullptr) continue;
        float& dot = o_.dots[j / kGroupedTileColumns * o_.rows + first_row_ + i];
        dot = (j % kGroupedTileColumns == 0 ? 0.0f : dot) + g.dot;
      }
    }
  }

 private:
  float scale(int64_t i) const { return o_.row_scale ? o_.row_scale[first_row_ + i] : 1.0f; }
  float product(int64_t i, int64_t j, int64_t b_column, int64_t b_inner) const {
    double sum = 0.0;
    if (is_wrong_ && i == 0) return 0.0f;
    for (int64_t p = 0; p < size_.k; ++p) {
      sum += double{static_cast<float>(a_[i * a_stride_ + p])} *
             double{static_cast<float>(b_[j * b_column + p * b_inner])};
    }
    return static_cast<float>(sum);
  }

  const ActivationEpilogue& o_;
  ExpertProblems::Sizes size_;
  const bfloat16 *a_, *b_, *c_;
  bfloat16* d_;
  int64_t a_stride_, b_stride_, c_stride_, d_stride_, first_row_;
  bool is_wrong_ = std::string_view(setting()) == "wrong";
};

// Calls body.operator()<F>(product) for every expert when the stream's work runs.
template <class Body>
void for_each_expert(Stream& stream, const ExpertProblems& problems,
                     const ActivationEpilogue& epilogue, bool backward, const Body& body) {
  ++calls;
  simt::enqueue(native_stream(stream), [=] {
    const simt::DeviceMemoryAccess access;
    dispatch_function(epilogue.activation, [&]<class F>() {
      for (int e = 0; e < problems.experts; ++e) {
        body.template operator()<typename Precise<F, bfloat16>::type>(
            EmulatedProduct(problems, epilogue, e, backward));
      }
    });
  });
}

}  // namespace

bool has_grouped_cutlass_in_build() { return setting() != nullptr; }
bool has_grouped_cutlass(Device) { return setting() != nullptr; }

void grouped_cutlass_forward(Stream& stream, const ExpertProblems& problems,
                             const ActivationEpilogue& epilogue) {
  const bool gated = is_gated(epilogue.activation);
  for_each_expert(stream, problems, epilogue, /*backward=*/false,
                  [gated]<class F>(const EmulatedProduct& product) {
                    gated ? product.forward<F, true>() : product.forward<F, false>();
                  });
}

void grouped_cutlass_backward(Stream& stream, const ExpertProblems& problems,
                              const ActivationEpilogue& epilogue) {
  const bool gated = is_gated(epilogue.activation);
  for_each_expert(stream, problems, epilogue, /*backward=*/true,
                  [gated]<class F>(const EmulatedProduct& product) {
                    gated ? product.backward<F, true>() : product.backward<F, false>();
                  });
}

}  // namespace switchyard::cuda

int64_t simt::cutlass_calls() { return switchyard::cuda::calls; }
