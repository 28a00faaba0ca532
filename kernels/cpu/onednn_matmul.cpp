#include "kernels/cpu/onednn_matmul.h"

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <dnnl.hpp>
#include <unordered_map>
#include <utility>

#include "kernels/cpu/transpose.h"
#include "kernels/linear/bf16_method.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/integers.h"
#include "kernels/runtime/team_size.h"

namespace switchyard {
namespace {

// A block's operands at kMaxDepth fit into a 2 MiB L2 cache. Columns are cut at whole vectors.
constexpr int64_t kMaxRows = 256;
constexpr int64_t kMaxCols = 512;
constexpr int64_t kMaxDepth = 256;
constexpr int64_t kVectorFloats = 16;
// From so many rows of c on a transposed b is worth transposing back first.
constexpr int64_t kRowsPerTranspose = 64;
// What is transposed at once: as deep as a call of oneDNN, unless the whole b fits into 8 MiB.
constexpr int64_t kTransposedDepth = 512;
constexpr int64_t kMostTransposed = int64_t{1} << 21;

MatrixOperand at(const MatrixOperand& x, DType dtype, int64_t op_row, int64_t op_col) {
  if (x.transpose == Transpose::yes) std::swap(op_row, op_col);
  const auto offset = static_cast<size_t>(op_row * x.stride + op_col) * size_of(dtype);
  return {static_cast<const std::byte*>(x.data) + offset, x.stride, x.transpose};
}

void* at(const MatrixProduct& p, int64_t row, int64_t col) {
  return static_cast<std::byte*>(p.c) +
         static_cast<size_t>(row * p.c_stride + col) * size_of(p.c_dtype);
}

void zero(const MatrixProduct& p) {
  for (int64_t i = 0; i < p.m; ++i) {
    std::fill_n(static_cast<std::byte*>(at(p, i, 0)), static_cast<size_t>(p.n) * size_of(p.c_dtype),
                std::byte{0});
  }
}

// The team size around every call of oneDNN, which cuts its work for omp_get_max_threads() threads.
// A team that is granted fewer leaves parts out: the product is wrong, without an error. Being
// inside a parallel region does not help: one that got a single thread does not count as parallel
// (omp_in_parallel). With one thread the cut, and so the bits, are the same everywhere.
constexpr int kLibraryTeam = 1;

// All operands are f32. Unlike a primitive, this BLAS call has no set-up cost for a new shape.
void call_sgemm(const MatrixProduct& p) {
  const auto letter = [](const MatrixOperand& x) {
    return x.transpose == Transpose::yes ? 'T' : 'N';
  };
  const float beta = p.accumulate == Accumulate::yes ? 1.0f : 0.0f;
  const TeamSize one_thread(kLibraryTeam);
  const dnnl_status_t status =
      dnnl_sgemm(letter(p.a), letter(p.b), p.m, p.n, p.k, 1.0f, static_cast<const float*>(p.a.data),
                 p.a.stride, static_cast<const float*>(p.b.data), p.b.stride, beta,
                 static_cast<float*>(p.c), p.c_stride);
  require(status == dnnl_success, "oneDNN sgemm of [{}, {}] x [{}, {}] failed with status {}", p.m,
          p.k, p.k, p.n, static_cast<int>(status));
}

bool is_worth_transposing(const MatrixProduct& p) {
  return p.b.transpose == Transpose::yes && p.m >= kRowsPerTranspose && p.n <= kMaxCols;
}

// c (+)= op(a) op(b). oneDNN is a sixth slower where b is transposed, as weights are in forward
// passes, than where it is not.
void sgemm(const MatrixProduct& p, TransposedOperand& kept) {
  if (!is_worth_transposing(p)) return call_sgemm(p);
  const int64_t depth = p.k * p.n <= kMostTransposed ? p.k : kTransposedDepth;
  MatrixProduct part = p;
  for (int64_t k = 0; k < p.k; k += kTransposedDepth) {
    const int64_t begin = k / depth * depth;
    const float* b = kept.of(at(p.b, DType::f32, begin, 0), std::min(depth, p.k - begin), p.n);
    part.k = std::min(kTransposedDepth, p.k - k);
    part.a = at(p.a, DType::f32, 0, k);
    part.b = {b + (k - begin) * p.n, p.n, Transpose::no};
    call_sgemm(part);
    part.accumulate = Accumulate::yes;
  }
}

// op(x) [op_rows, op_cols] as f32, stored densely, and transposed if x is.
MatrixOperand widen(const MatrixOperand& x, int64_t op_rows, int64_t op_cols, float* out) {
  const bool transposed = x.transpose == Transpose::yes;
  const int64_t rows = transposed ? op_cols : op_rows, cols = transposed ? op_rows : op_cols;
  for (int64_t i = 0; i < rows; ++i) {
    const bfloat16* in = static_cast<const bfloat16*>(x.data) + i * x.stride;
    float* row = out + i * cols;
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) row[j] = in[j];
  }
  return {out, cols, x.transpose};
}

// The same of a transposed x, stored as op(x).
MatrixOperand widen_transposed(const MatrixOperand& x, int64_t op_rows, int64_t op_cols,
                               float* out) {
  cpu::transpose(static_cast<const bfloat16*>(x.data), op_cols, op_rows, x.stride, out);
  return {out, op_cols, Transpose::no};
}

// p.c (+)= sums [m, n], rounded to bf16.
void round_into(const MatrixProduct& p, const float* sums) {
  for (int64_t i = 0; i < p.m; ++i) {
    const float* in = sums + i * p.n;
    auto* out = static_cast<bfloat16*>(at(p, i, 0));
    if (p.accumulate == Accumulate::yes) {
#pragma omp simd
      for (int64_t j = 0; j < p.n; ++j) out[j] = out[j] + in[j];
    } else {
#pragma omp simd
      for (int64_t j = 0; j < p.n; ++j) out[j] = in[j];
    }
  }
}

struct WideningScratch {
  Buffer a{kMaxRows * kMaxDepth * sizeof(float)};
  Buffer b{kMaxDepth * kMaxCols * sizeof(float)};
  Buffer c{kMaxRows * kMaxCols * sizeof(float)};
};

// The parameters for which oneDNN compiles a primitive.
struct PrimitiveKey {
  int64_t m, n, k, a_stride, b_stride, c_stride;
  Transpose transpose_a, transpose_b;
  DType c_dtype;
  Accumulate accumulate;

  bool operator==(const PrimitiveKey&) const = default;
};

struct PrimitiveKeyHash {
  size_t operator()(const PrimitiveKey& key) const {
    uint64_t hash = 0;
    for (const int64_t part :
         {key.m, key.n, key.k, key.a_stride, key.b_stride, key.c_stride,
          static_cast<int64_t>(key.transpose_a), static_cast<int64_t>(key.transpose_b),
          static_cast<int64_t>(key.c_dtype), static_cast<int64_t>(key.accumulate)}) {
      // Multiplication by an odd constant near 2^64 over the golden ratio spreads the low bits.
      hash = (hash ^ static_cast<uint64_t>(part)) * 0x9e3779b97f4a7c15u;
      hash ^= hash >> 32;
    }
    return static_cast<size_t>(hash);
  }
};

dnnl::memory::desc describe(int64_t rows, int64_t cols, int64_t stride, Transpose transpose,
                            dnnl::memory::data_type type) {
  const bool transposed = transpose == Transpose::yes;
  return {{rows, cols}, type, dnnl::memory::dims{transposed ? 1 : stride, transposed ? stride : 1}};
}

struct Bf16Primitive {
  dnnl::memory::desc a, b, c;
  dnnl::matmul matmul;
};

Bf16Primitive make_primitive(const PrimitiveKey& key, const dnnl::engine& engine) {
  using Type = dnnl::memory::data_type;
  const Type c_type = key.c_dtype == DType::f32 ? Type::f32 : Type::bf16;
  Bf16Primitive made{describe(key.m, key.k, key.a_stride, key.transpose_a, Type::bf16),
                     describe(key.k, key.n, key.b_stride, key.transpose_b, Type::bf16),
                     describe(key.m, key.n, key.c_stride, Transpose::no, c_type),
                     {}};
  dnnl::primitive_attr attributes;
  if (key.accumulate == Accumulate::yes) {
    dnnl::post_ops add;
    add.append_sum();
    attributes.set_post_ops(add);
  }
#if DNNL_VERSION_MAJOR >= 3
  made.matmul = dnnl::matmul({engine, made.a, made.b, made.c, attributes});
#else
  made.matmul = dnnl::matmul({{made.a, made.b, made.c}, attributes, engine});
#endif
  return made;
}

const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// Every thread has its own map, so that look-ups need no lock. A full map is cleared, because
// ragged row counts keep bringing new shapes.
const Bf16Primitive& find_primitive(const PrimitiveKey& key) {
  constexpr size_t kCapacity = 4096;
  thread_local std::unordered_map<PrimitiveKey, Bf16Primitive, PrimitiveKeyHash> primitives;
  if (const auto found = primitives.find(key); found != primitives.end()) return found->second;
  if (primitives.size() == kCapacity) primitives.clear();
  return primitives.emplace(key, make_primitive(key, cpu_engine())).first->second;
}

}  // namespace

const float* TransposedOperand::of(const MatrixOperand& b, int64_t k, int64_t n) {
  // Buffers are aligned to cache lines, which rows of whole vectors need.
  thread_local Buffer memory;
  thread_local size_t size = 0;
  auto* values = static_cast<float*>(memory.data());
  if (b.data == data_ && b.stride == stride_ && k == k_ && n == n_) return values;
  if (const size_t bytes = static_cast<size_t>(k * n) * sizeof(float); bytes > size) {
    memory = Buffer(bytes);
    size = bytes;
    values = static_cast<float*>(memory.data());
  }
  cpu::transpose(static_cast<const float*>(b.data), n, k, b.stride, values);
  data_ = b.data, stride_ = b.stride, k_ = k, n_ = n;
  return values;
}

ProductBlocks::ProductBlocks(int64_t m, int64_t n)
    : row_blocks_(ceil_div(m, kMaxRows)), col_blocks_(ceil_div(n, kMaxCols)) {
  // The parts have nearly equal size: 257 rows are cut into 129 and 128, not into 256 and 1.
  rows_ = ceil_div(m, std::max<int64_t>(row_blocks_, 1));
  cols_ = round_up(ceil_div(n, std::max<int64_t>(col_blocks_, 1)), kVectorFloats);
}

MatrixProduct ProductBlocks::block(const MatrixProduct& product, int64_t index) const {
  const int64_t row = index % row_blocks_ * rows_, col = index / row_blocks_ * cols_;
  MatrixProduct part = product;
  part.m = std::clamp<int64_t>(product.m - row, 0, rows_);
  part.n = std::clamp<int64_t>(product.n - col, 0, cols_);
  part.a = at(product.a, product.dtype, row, 0);
  part.b = at(product.b, product.dtype, 0, col);
  part.c = at(product, row, col);
  return part;
}

void compute(const MatrixProduct& product) {
  const ProductBlocks blocks(product.m, product.n);
#pragma omp parallel
  {
    TransposedOperand kept;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < blocks.count(); ++i) compute_block(blocks.block(product, i), kept);
  }
}

void compute_block(const MatrixProduct& product) {
  TransposedOperand kept;
  compute_block(product, kept);
}

void compute_block(const MatrixProduct& product, TransposedOperand& kept) {
  if (product.m == 0 || product.n == 0) return;
  if (product.k == 0) {
    if (product.accumulate == Accumulate::no) zero(product);
  } else if (product.dtype == DType::f32) {
    sgemm(product, kept);
  } else if (bf16_method() == Bf16Method::native) {
    compute_block_native_bf16(product);
  } else {
    compute_block_widened_bf16(product);
  }
}

bool has_native_bf16() {
  static const bool has = [] {
    const TeamSize one_thread(kLibraryTeam);
    try {
      make_primitive(
          {16, 16, 16, 16, 16, 16, Transpose::no, Transpose::no, DType::f32, Accumulate::no},
          cpu_engine());
      return true;
    } catch (const dnnl::error&) {
      return false;
    }
  }();
  return has;
}

void compute_block_native_bf16(const MatrixProduct& p) {
  const TeamSize one_thread(kLibraryTeam);  // before the primitive is made, for that cuts the work
  const Bf16Primitive& primitive =
      find_primitive({p.m, p.n, p.k, p.a.stride, p.b.stride, p.c_stride, p.a.transpose,
                      p.b.transpose, p.c_dtype, p.accumulate});
  thread_local dnnl::stream stream(cpu_engine());
  const auto memory = [](const dnnl::memory::desc& desc, const void* data) {
    return dnnl::memory(desc, cpu_engine(), const_cast<void*>(data));
  };
  primitive.matmul.execute(stream, {{DNNL_ARG_SRC, memory(primitive.a, p.a.data)},
                                    {DNNL_ARG_WEIGHTS, memory(primitive.b, p.b.data)},
                                    {DNNL_ARG_DST, memory(primitive.c, p.c)}});
  stream.wait();
}

void compute_block_widened_bf16(const MatrixProduct& p) {
  assert(p.m <= kMaxRows && p.n <= kMaxCols);
  thread_local const WideningScratch scratch;
  const bool is_f32 = p.c_dtype == DType::f32;
  MatrixProduct part = p;
  part.dtype = part.c_dtype = DType::f32;
  if (!is_f32) {
    part.c = scratch.c.data();
    part.c_stride = p.n;
    part.accumulate = Accumulate::no;
  }
  for (int64_t k = 0; k < p.k; k += kMaxDepth) {
    part.k = std::min(kMaxDepth, p.k - k);
    part.a = widen(at(p.a, p.dtype, 0, k), p.m, part.k, static_cast<float*>(scratch.a.data()));
    auto* b = static_cast<float*>(scratch.b.data());
    part.b = is_worth_transposing(p) ? widen_transposed(at(p.b, p.dtype, k, 0), part.k, p.n, b)
                                     : widen(at(p.b, p.dtype, k, 0), part.k, p.n, b);
    call_sgemm(part);
    part.accumulate = Accumulate::yes;
  }
  if (!is_f32) round_into(p, static_cast<const float*>(scratch.c.data()));
}

}  // namespace switchyard
