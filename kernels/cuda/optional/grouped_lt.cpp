#include "kernels/cuda/grouped_lt.h"

#include <algorithm>
#include <bit>
#include <climits>
#include <compare>
#include <cstddef>
#include <map>
#include <memory>
#include <vector>

#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/support.h"

namespace switchyard::cuda {

// The products of one stream: algorithms that cuBLASLt chose, and its descriptions.
struct GroupedPlans {
  // Algorithms are chosen for average sizes. How many rows an expert has differs from call to call,
  // and the algorithm seldom should, so where sizes differ the average is rounded up to a power of
  // two.
  struct Problem {
    Transpose transpose_a, transpose_b;
    DType c_dtype;
    int groups;
    uint32_t m, n, k;
    auto operator<=>(const Problem&) const = default;
  };

  LtHandle handle = make_lt_handle();
  std::map<Problem, LtPlan> plans;
};

namespace {

using Problem = GroupedPlans::Problem;

// 13.7.0 to 13.8.0 write wrong results where the matrices of c do not lie one behind the other.
// Hopper's kernels came with 13.4.
constexpr size_t kFirstSoundVersion = 130801;
constexpr int kFirstCapability = 9;

// What the library reads on the device: addresses, then sizes, then factors. All lie in the
// stream's scratch.
class GroupedArguments {
 public:
  enum Matrix { a, b, c };  // the library's

  GroupedArguments(void* scratch, size_t groups)
      : begin_(static_cast<std::byte*>(scratch)), groups_(groups) {}

  size_t num_bytes() const { return offset_of_factors() + 2 * sizeof(float); }
  void* addresses(Matrix matrix) const { return begin_ + matrix * groups_ * sizeof(void*); }
  void* rows(Matrix matrix) const { return sizes(3 * matrix); }
  void* columns(Matrix matrix) const { return sizes(3 * matrix + 1); }
  void* strides(Matrix matrix) const { return sizes(3 * matrix + 2); }
  void* alpha() const { return begin_ + offset_of_factors(); }
  void* beta() const { return begin_ + offset_of_factors() + sizeof(float); }

 private:
  size_t offset_of_sizes() const { return 3 * groups_ * sizeof(void*); }
  size_t offset_of_factors() const { return offset_of_sizes() + 9 * groups_ * sizeof(int32_t); }
  void* sizes(int list) const {
    return begin_ + offset_of_sizes() + static_cast<size_t>(list) * groups_ * sizeof(int32_t);
  }

  std::byte* begin_;
  size_t groups_;
};

// Writes one product's entry of the arguments.
void fill(const GroupedArguments& arguments, size_t index, const Product& p) {
  const auto set_matrix = [&](GroupedArguments::Matrix matrix, const void* address, int64_t rows,
                              int64_t columns, int64_t stride) {
    static_cast<const void**>(arguments.addresses(matrix))[index] = address;
    static_cast<int32_t*>(arguments.rows(matrix))[index] = static_cast<int32_t>(rows);
    static_cast<int32_t*>(arguments.columns(matrix))[index] = static_cast<int32_t>(columns);
    static_cast<int32_t*>(arguments.strides(matrix))[index] = static_cast<int32_t>(stride);
  };
  // The library's columns are our rows, as they are stored.
  const bool ta = p.transpose_a == Transpose::yes, tb = p.transpose_b == Transpose::yes;
  set_matrix(GroupedArguments::a, p.b, tb ? p.k : p.n, tb ? p.n : p.k, p.b_stride);
  set_matrix(GroupedArguments::b, p.a, ta ? p.m : p.k, ta ? p.k : p.m, p.a_stride);
  set_matrix(GroupedArguments::c, p.c, p.n, p.m, p.n);
}

// One copy brings the arguments to the device.
void upload_arguments(Stream& stream, const GroupedArguments& target,
                      std::span<const Product> products, Accumulate accumulate) {
  std::vector<std::byte> values(target.num_bytes());
  const GroupedArguments host(values.data(), products.size());
  for (size_t i = 0; i < products.size(); ++i) fill(host, i, products[i]);
  *static_cast<float*>(host.alpha()) = 1.0f;
  *static_cast<float*>(host.beta()) = accumulate == Accumulate::yes ? 1.0f : 0.0f;
  upload(stream, values, target.addresses(GroupedArguments::a));
}

uint32_t rounded_average(std::span<const Product> products, int64_t Product::*size) {
  int64_t sum = 0;
  for (const Product& p : products) sum += p.*size;
  const auto average = static_cast<uint64_t>(sum / std::ssize(products));
  const bool differs =
      std::ranges::any_of(products, [&](const Product& p) { return p.*size != products[0].*size; });
  return static_cast<uint32_t>(differs ? std::bit_ceil(average) : average);
}

LtLayout make_layout(const GroupedArguments& arguments, GroupedArguments::Matrix matrix,
                     DType dtype, int groups) {
  cublasLtMatrixLayout_t made = nullptr;
  check_cublas(
      cublasLtGroupedMatrixLayoutCreate(&made, cuda_type(dtype), groups, arguments.rows(matrix),
                                        arguments.columns(matrix), arguments.strides(matrix)),
      "cublasLtGroupedMatrixLayoutCreate");
  LtLayout layout(made);
  const int32_t width = CUBLASLT_INTEGER_WIDTH_32;
  for (const auto attribute : {CUBLASLT_GROUPED_MATRIX_LAYOUT_ROWS_COLS_ARRAY_INTEGER_WIDTH,
                               CUBLASLT_GROUPED_MATRIX_LAYOUT_LD_ARRAY_INTEGER_WIDTH}) {
    check_cublas(cublasLtMatrixLayoutSetAttribute(made, attribute, &width, sizeof(width)),
                 "cublasLtMatrixLayoutSetAttribute");
  }
  return layout;
}

// The factors are single values on the device: Hopper has no others for such products.
LtPlan describe(const Problem& p, const GroupedArguments& arguments) {
  LtPlan plan{.operation = make_lt_operation(p.transpose_a, p.transpose_b),
              .a = make_layout(arguments, GroupedArguments::a, DType::bf16, p.groups),
              .b = make_layout(arguments, GroupedArguments::b, DType::bf16, p.groups),
              .c = make_layout(arguments, GroupedArguments::c, p.c_dtype, p.groups)};
  set(plan.operation, CUBLASLT_MATMUL_DESC_POINTER_MODE, CUBLASLT_POINTER_MODE_DEVICE);
  return plan;
}

LtPreference preference_for(const Problem& p, size_t workspace_bytes) {
  LtPreference preference = make_lt_preference(workspace_bytes, /*alignment=*/16);
  set(preference, CUBLASLT_MATMUL_PREF_GROUPED_DESC_D_AVERAGE_ROWS, p.n);
  set(preference, CUBLASLT_MATMUL_PREF_GROUPED_DESC_D_AVERAGE_COLS, p.m);
  set(preference, CUBLASLT_MATMUL_PREF_GROUPED_AVERAGE_REDUCTION_DIM, p.k);
  return preference;
}

const LtPlan& plan_for(Stream& stream, const Problem& problem, const GroupedArguments& arguments) {
  StreamState& state = *stream.cuda();
  if (!state.grouped_plans) state.grouped_plans = std::make_shared<GroupedPlans>();
  GroupedPlans& known = *state.grouped_plans;
  const auto [at, is_new] = known.plans.try_emplace(problem);
  if (is_new) {
    at->second = describe(problem, arguments);
    at->second.choose_algorithm(known.handle,
                                preference_for(problem, state.cublas_workspace.num_bytes()));
  }
  return at->second;
}

bool fits(const Product& p) { return std::max({p.m, p.n, p.k}) <= INT_MAX; }

}  // namespace

bool has_grouped_lt(Device device) {
  int capability = 0;
  check_cuda(cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, device.index),
             "cudaDeviceGetAttribute");
  return capability >= kFirstCapability && cublasLtGetVersion() >= kFirstSoundVersion;
}

bool multiply_grouped_lt(Stream& stream, std::span<const Product> products, DType c_dtype,
                         Accumulate accumulate) {
  cublas_handle(stream);  // makes the workspace that both libraries use
  const StreamState& state = *stream.cuda();
  const GroupedArguments arguments(state.reduction_scratch.data(), products.size());
  if (arguments.num_bytes() > kReductionScratchBytes || !std::ranges::all_of(products, fits)) {
    return false;
  }
  const Problem problem{.transpose_a = products[0].transpose_a,
                        .transpose_b = products[0].transpose_b,
                        .c_dtype = c_dtype,
                        .groups = static_cast<int>(products.size()),
                        .m = rounded_average(products, &Product::m),
                        .n = rounded_average(products, &Product::n),
                        .k = rounded_average(products, &Product::k)};
  const LtPlan& plan = plan_for(stream, problem, arguments);
  if (!plan.is_supported) return false;
  upload_arguments(stream, arguments, products, accumulate);
  void* const c = arguments.addresses(GroupedArguments::c);
  check_cublas(
      cublasLtMatmul(state.grouped_plans->handle.get(), plan.operation.get(), arguments.alpha(),
                     arguments.addresses(GroupedArguments::a), plan.a.get(),
                     arguments.addresses(GroupedArguments::b), plan.b.get(), arguments.beta(), c,
                     plan.c.get(), c, plan.c.get(), &plan.algorithm, state.cublas_workspace.data(),
                     state.cublas_workspace.num_bytes(), native_stream(stream)),
      "cublasLtMatmul, grouped");
  return true;
}

}  // namespace switchyard::cuda
