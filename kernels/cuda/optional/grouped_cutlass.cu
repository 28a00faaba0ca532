#include "kernels/cuda/grouped_cutlass.h"

#include <cstdint>
#include <type_traits>
#include <utility>

#include <cute/tensor.hpp>

#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/sm90_visitor_tma_warpspecialized.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/dispatch_policy.hpp>
#include <cutlass/gemm/group_array_problem_shape.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "kernels/cuda/activation_math.h"
#include "kernels/cuda/quad_rows.h"
#include "kernels/cuda/support.h"
#include "kernels/runtime/check.h"

namespace switchyard::cuda {
namespace {

namespace fusion = cutlass::epilogue::fusion;
using cute::_1;
using cute::_128;
using cute::_2;
using cute::_64;
using cute::Int;
using Element = cutlass::bfloat16_t;

// Two groups of warps take turns: one computes the epilogue of its tile while the other multiplies.
// Two blocks with tiles one below the other share what they read of b.
using Tile = cute::Shape<_128, Int<kGroupedTileColumns>, _64>;
using Cluster = cute::Shape<_2, _1, _1>;
// Of a tile: what the epilogue works on at a time. A thread has kRowsAtOnce rows of it, and of each
// a quarter of 32 columns.
using EpilogueTile = cute::Shape<_64, Int<kQuadColumns>>;
constexpr int kRowsAtOnce = 2, kRowsOfThread = 4, kPairs = 4;  // of columns
constexpr int kElementsAtOnce = kRowsAtOnce * kPairs * 2;

// ---- Epilogue ----------------------------------------------------------------------------------

struct EpilogueParams {
  ActivationEpilogue tensors;
  const int64_t* row_offsets;
};

// Where element i of a thread's elements lies, relative to its first: pairs of columns, 8 apart,
// and two rows, 8 apart, as the products of warp groups leave them.
constexpr int row_of(int i) { return 8 * (i / 2 % kRowsAtOnce); }
constexpr int column_of(int i) { return i % 2 + 8 * (i / (2 * kRowsAtOnce)); }

template <class Coordinates, int... kIndex>
constexpr bool has_expected_layout(std::integer_sequence<int, kIndex...>) {
  using cute::ArithmeticTuple;
  return (... &&
          std::is_same_v<decltype(ArithmeticTuple(std::declval<Coordinates>()(Int<kIndex>{}))),
                         ArithmeticTuple<Int<row_of(kIndex)>, Int<column_of(kIndex)>>>);
}

__device__ uint32_t pack(float first, float second) {
  return uint32_t{from_float<bfloat16>(first).bits} | uint32_t{from_float<bfloat16>(second).bits}
                                                          << 16;
}
__device__ float unpack(uint32_t pair, int which) {
  bfloat16 element;
  element.bits = static_cast<uint16_t>(pair >> (16 * which));
  return static_cast<float>(element);
}

// A node of CUTLASS's epilogues: turns a tile of the product, and in the backward pass of c, into
// one of d, and reads and writes the other tensors.
template <bool kBackward, bool kGated>
struct ActivationNode {
  struct SharedStorage {};
  using Arguments = EpilogueParams;
  using Params = EpilogueParams;
  using ElementAux = Element;  // what d would be where the node stores it itself

  template <class Shape>
  static constexpr Params to_underlying_arguments(const Shape&, const Arguments& arguments, void*) {
    return arguments;
  }
  template <class Shape>
  static bool can_implement(const Shape&, const Arguments&) {
    return true;
  }
  template <class Shape>
  static size_t get_workspace_size(const Shape&, const Arguments&) {
    return 0;
  }
  template <class Shape>
  static cutlass::Status initialize_workspace(const Shape&, const Arguments&, void*, cudaStream_t,
                                              cutlass::CudaHostAdapter* = nullptr) {
    return cutlass::Status::kSuccess;
  }

  CUTLASS_HOST_DEVICE ActivationNode() {}
  CUTLASS_HOST_DEVICE ActivationNode(const Params& params, const SharedStorage&)
      : params_(&params) {}

  CUTLASS_DEVICE bool is_producer_load_needed() const { return kBackward; }
  CUTLASS_DEVICE bool is_C_load_needed() const { return kBackward; }

  template <class... Args>
  CUTLASS_DEVICE auto get_producer_load_callbacks(const fusion::ProducerLoadArgs<Args...>&) {
    return fusion::EmptyProducerLoadCallbacks{};
  }

  // A thread's part of a tile.
  template <class Source>
  struct Part : fusion::EmptyConsumerStoreCallbacks {
    const ActivationEpilogue& tensors;
    const Source& source;
    int64_t row;               // of all rows, the thread's first
    int rows_left;             // of the expert, from that one on
    int columns;               // of act
    int column, columns_left;  // the quad's first, and how many there are from that one on
    int tile;                  // along the columns
    float scale[kRowsOfThread], dot[kRowsOfThread];
    uint32_t gates[kRowsOfThread][kGatedTileColumns / kQuadColumns][kPairs];  // bf16

    CUTLASS_DEVICE Part(const ActivationEpilogue& tensors_, const Source& source_)
        : tensors(tensors_), source(source_) {}

    static CUTLASS_DEVICE constexpr int row_at(int which) {
      return which / kRowsAtOnce * 64 + which % kRowsAtOnce * 8;
    }
    static CUTLASS_DEVICE int lane_of_quad() { return static_cast<int>(threadIdx.x % 4); }

    CUTLASS_DEVICE void begin() {
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < kRowsOfThread; ++r) {
        const bool has_scale = tensors.row_scale != nullptr && row_at(r) < rows_left;
        scale[r] = has_scale ? tensors.row_scale[row + row_at(r)] : 1.0f;
        dot[r] = 0.0f;
      }
    }

    // The address of this lane's 16 bytes of 32 columns of a row, or null outside the tensor.
    //   columns_at  the group of 32 columns
    template <class Pointer>
    CUTLASS_DEVICE Pointer address(Pointer first, int64_t width, int which_row,
                                   int columns_at) const {
      const int offset = columns_at * kQuadColumns + 8 * lane_of_quad();
      const bool inside = row_at(which_row) < rows_left && offset < columns_left;
      return inside ? first + (row + row_at(which_row)) * width + column + offset : nullptr;
    }
    CUTLASS_DEVICE void load(const bfloat16* first, int64_t width, int which_row, int columns_at,
                             uint32_t (&words)[kPairs]) const {
      const bfloat16* at = address(first, width, which_row, columns_at);
      const uint4 piece = at ? *reinterpret_cast<const uint4*>(at) : uint4{0, 0, 0, 0};
      words[0] = piece.x, words[1] = piece.y, words[2] = piece.z, words[3] = piece.w;
      exchange_in_quad(words);
    }
    CUTLASS_DEVICE void store(uint32_t (&words)[kPairs], int64_t width, int which_row,
                              int columns_at, bfloat16* first) const {
      exchange_in_quad(words);
      bfloat16* at = address(first, width, which_row, columns_at);
      if (at) *reinterpret_cast<uint4*>(at) = uint4{words[0], words[1], words[2], words[3]};
    }

    using Products = cutlass::Array<float, kElementsAtOnce>;
    using Results = cutlass::Array<Element, kElementsAtOnce>;

    template <class F>
    CUTLASS_DEVICE Results forward(const Products& products, int first_row, int epi_n) {
      Results up;
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < kRowsAtOnce; ++r) {
        uint32_t words[kPairs];
        CUTLASS_PRAGMA_UNROLL
        for (int p = 0; p < kPairs; ++p) {
          float out[2];
          CUTLASS_PRAGMA_UNROLL
          for (int j = 0; j < 2; ++j) {
            const int i = (p * kRowsAtOnce + r) * 2 + j;
            up[i] = Element(products[i]);  // as activation_forward reads it
            out[j] = activated<F, false>(static_cast<float>(up[i]), 0.0f, scale[first_row + r]);
          }
          words[p] = pack(out[0], out[1]);
        }
        store(words, columns, first_row + r, epi_n, tensors.act);
      }
      return up;
    }

    // The first half of a tile are gates, which wait in registers for the other half.
    template <class F>
    CUTLASS_DEVICE Results forward_gated(const Products& products, int first_row, int epi_n) {
      constexpr int kGroups = kGatedTileColumns / kQuadColumns;
      const bool is_gate = epi_n < kGroups;
      const int at = epi_n % kGroups;
      bfloat16* half = tensors.gate_up + (is_gate ? 0 : columns);
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < kRowsAtOnce; ++r) {
        uint32_t words[kPairs], out[kPairs];
        CUTLASS_PRAGMA_UNROLL
        for (int p = 0; p < kPairs; ++p) {
          const int i = (p * kRowsAtOnce + r) * 2;
          uint32_t& kept = gates[first_row + r][at][p];
          words[p] = pack(products[i], products[i + 1]);  // as activation_forward reads them
          if (is_gate) {
            kept = words[p];
          } else {
            const float weight = scale[first_row + r];
            out[p] = pack(activated<F, true>(unpack(kept, 0), unpack(words[p], 0), weight),
                          activated<F, true>(unpack(kept, 1), unpack(words[p], 1), weight));
          }
        }
        store(words, 2 * columns, first_row + r, at, half);
        if (!is_gate) store(out, columns, first_row + r, at, tensors.act);
      }
      return Results{};  // All is stored already.
    }

    template <class F>
    CUTLASS_DEVICE Results backward(const Products& dact, int first_row, int epi_n) {
      Results dx;
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < kRowsAtOnce; ++r) {
        uint32_t out[kPairs], up[kPairs] = {}, dup[kPairs];
        if constexpr (kGated) load(tensors.up, 2 * columns, first_row + r, epi_n, up);
        CUTLASS_PRAGMA_UNROLL
        for (int p = 0; p < kPairs; ++p) {
          ActivationGradient g[2];
          CUTLASS_PRAGMA_UNROLL
          for (int j = 0; j < 2; ++j) {
            const int i = (p * kRowsAtOnce + r) * 2 + j;
            g[j] = activation_gradient<F, kGated>(dact[i], static_cast<float>(source(i)),
                                                  unpack(up[p], j), scale[first_row + r]);
            // Outside the matrices all operands were read as zeros.
            dot[first_row + r] += g[j].dot;
            dx[i] = Element(g[j].dx);
          }
          out[p] = pack(g[0].out, g[1].out);
          if constexpr (kGated) dup[p] = pack(g[0].dup, g[1].dup);
        }
        store(out, columns, first_row + r, epi_n, tensors.act);
        if constexpr (kGated) store(dup, 2 * columns, first_row + r, epi_n, tensors.dup);
      }
      return dx;
    }

    template <class F>
    CUTLASS_DEVICE Results visit_by(const Products& products, int first_row, int epi_n) {
      using Function = typename Precise<F, bfloat16>::type;
      if constexpr (kBackward) {
        return backward<Function>(products, first_row, epi_n);
      } else if constexpr (kGated) {
        return forward_gated<Function>(products, first_row, epi_n);
      } else {
        return forward<Function>(products, first_row, epi_n);
      }
    }

    CUTLASS_DEVICE Results visit(const Products& products, int, int epi_m, int epi_n) {
      const int first_row = epi_m * kRowsAtOnce;
      if constexpr (kGated) {
        return visit_by<Silu>(products, first_row, epi_n);  // swiglu is the only gated function
      } else {
        Results results;
        dispatch_function(tensors.activation,
                          [&]<class F>() { results = visit_by<F>(products, first_row, epi_n); });
        return results;
      }
    }

    CUTLASS_DEVICE void end() {
      if constexpr (kBackward) {
        if (tensors.dots == nullptr) return;
        CUTLASS_PRAGMA_UNROLL
        for (int r = 0; r < kRowsOfThread; ++r) {
          float sum = dot[r];
          sum += __shfl_xor_sync(kAllLanes, sum, 1);
          sum += __shfl_xor_sync(kAllLanes, sum, 2);
          if (lane_of_quad() == 0 && row_at(r) < rows_left) {
            tensors.dots[tile * tensors.rows + row + row_at(r)] = sum;
          }
        }
      }
    }
  };

  template <bool kReferenceSource, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(const fusion::ConsumerStoreArgs<Args...>& args) {
    using cute::get;
    using Coordinates = decltype(args.tCcD(cute::_, cute::_, cute::_, Int<0>{}, Int<0>{}));
    static_assert(
        has_expected_layout<Coordinates>(std::make_integer_sequence<int, kElementsAtOnce>{}));
    const auto [m, n, k, l] = args.problem_shape_mnkl;
    const auto [m_tile, n_tile, k_tile, expert] = args.tile_coord_mnkl;
    Part<cute::remove_cvref_t<decltype(args.tCrC)>> part(params_->tensors, args.tCrC);
    part.rows_left = static_cast<int>(get<0>(args.residue_tCcD));
    part.row = params_->row_offsets[expert] + m - part.rows_left;
    constexpr bool kHalves = kGated && !kBackward;
    part.columns = static_cast<int>(n) / (kHalves ? 2 : 1);
    part.column = static_cast<int>(n_tile) *
                  static_cast<int>(kHalves ? kGatedTileColumns : kGroupedTileColumns);
    part.columns_left = part.columns - part.column;
    part.tile = static_cast<int>(n_tile);
    return part;
  }

 private:
  const Params* params_ = nullptr;
};

// ---- Kernels -----------------------------------------------------------------------------------

// Reads for each tile of b 64 rows of gates and the 64 rows of up that belong to them. In each of
// the cluster's two blocks half a tile of b is read for both, so one reads the gates.
template <class Plain>
struct GatedMainloop : Plain {
  template <class Shape>
  CUTLASS_DEVICE auto load_init(const Shape& shape, const typename Plain::Params& params) const {
    using namespace cute;  // NOLINT
    const auto [m, n, k, l] = shape;
    const auto half = n / 2;
    const auto b = params.tma_load_b.get_tma_tensor(make_shape(n, k, 1));
    const auto rows = stride<0>(b.layout());
    const auto inner = stride<1>(b.layout());
    const Int<kGatedTileColumns> of_tile;
    const auto depth = get<2>(Tile{});
    // (rows of a tile, columns of a tile, tiles along the rows, tiles along the columns, 1)
    const auto tiles = make_layout(
        make_shape(make_shape(of_tile, _2{}), depth, half / of_tile, ceil_div(k, depth), 1),
        make_stride(make_stride(rows, half * rows), inner, of_tile * rows, depth * inner,
                    stride<2>(b.layout())));
    return make_tuple(get<0>(Plain::load_init(shape, params)), make_tensor(b.data(), tiles));
  }
};

// c is read and d stored where their types are not void.
template <class Node, class C, class D, class LayoutB, bool kGatedB = false>
struct Kernel {
  using ProblemShape = cutlass::gemm::GroupProblemShape<cute::Shape<int, int, int>>;
  using RowMajor = cutlass::layout::RowMajor;
  static constexpr int kAlignment = 8;  // elements: 16 bytes

  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster, EpilogueTile, float,
      float, C, RowMajor*, kAlignment, D, RowMajor*, kAlignment,
      cutlass::epilogue::PtrArrayTmaWarpSpecializedPingpong, Node>::CollectiveOp;
  using PlainMainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, RowMajor*, kAlignment, Element,
      LayoutB*, kAlignment, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename Epilogue::SharedStorage))>,
      cutlass::gemm::KernelPtrArrayTmaWarpSpecializedPingpong>::CollectiveOp;
  using Mainloop = std::conditional_t<kGatedB, GatedMainloop<PlainMainloop>, PlainMainloop>;
  using Universal = cutlass::gemm::kernel::GemmUniversal<ProblemShape, Mainloop, Epilogue>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Universal>;

  // Our lists hold what CUTLASS expects in its own.
  static_assert(sizeof(typename ProblemShape::UnderlyingProblemShape) ==
                sizeof(ExpertProblems::Sizes));
  static_assert(sizeof(typename Universal::InternalStrideA) == sizeof(int64_t) &&
                sizeof(typename Universal::InternalStrideB) == sizeof(int64_t) &&
                sizeof(typename Universal::InternalStrideC) == sizeof(int64_t) &&
                sizeof(typename Universal::InternalStrideD) == sizeof(int64_t));
};

void check_cutlass(cutlass::Status status) {
  require(status == cutlass::Status::kSuccess, "CUTLASS: {}",
          cutlass::cutlassGetStatusString(status));
}

template <class K>
void run(Stream& stream, const ExpertProblems& p, const ActivationEpilogue& epilogue) {
  using Universal = typename K::Universal;
  using Shape = typename K::ProblemShape::UnderlyingProblemShape;
  const Device device = stream.device();
  const typename K::Gemm::Arguments arguments{
      cutlass::gemm::GemmUniversalMode::kGrouped,
      {p.experts, reinterpret_cast<Shape*>(p.sizes), nullptr},
      {reinterpret_cast<const Element**>(p.a),
       reinterpret_cast<typename Universal::InternalStrideA*>(p.a_stride),
       reinterpret_cast<const Element**>(p.b),
       reinterpret_cast<typename Universal::InternalStrideB*>(p.b_stride)},
      {{epilogue, p.row_offsets},
       reinterpret_cast<decltype(K::Gemm::Arguments::epilogue.ptr_C)>(p.c),
       reinterpret_cast<typename Universal::InternalStrideC*>(p.c_stride),
       reinterpret_cast<decltype(K::Gemm::Arguments::epilogue.ptr_D)>(p.d),
       reinterpret_cast<typename Universal::InternalStrideD*>(p.d_stride)},
      {device.index, cuda::num_multiprocessors(device)}};
  cublas_handle(stream);  // makes the workspace of both libraries
  const Buffer& workspace = stream.cuda()->cublas_workspace;
  require(K::Gemm::get_workspace_size(arguments) <= workspace.num_bytes(),
          "CUTLASS asks for more than {} bytes", workspace.num_bytes());
  typename K::Gemm gemm;
  check_cutlass(gemm.initialize(arguments, workspace.data(), native_stream(stream)));
  check_cutlass(gemm.run(native_stream(stream)));
}

using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;

}  // namespace

bool has_grouped_cutlass_in_build() { return true; }

// The code is for compute capability 9.0 alone.
bool has_grouped_cutlass(Device device) {
  int major = 0, minor = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device.index),
             "cudaDeviceGetAttribute");
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device.index),
             "cudaDeviceGetAttribute");
  return major == 9 && minor == 0;
}

void grouped_cutlass_forward(Stream& stream, const ExpertProblems& problems,
                             const ActivationEpilogue& epilogue) {
  if (is_gated(epilogue.activation)) {
    run<Kernel<ActivationNode<false, true>, void, void, ColumnMajor, /*kGatedB=*/true>>(
        stream, problems, epilogue);
  } else {
    run<Kernel<ActivationNode<false, false>, void, Element, ColumnMajor>>(stream, problems,
                                                                          epilogue);
  }
}

void grouped_cutlass_backward(Stream& stream, const ExpertProblems& problems,
                              const ActivationEpilogue& epilogue) {
  if (is_gated(epilogue.activation)) {
    run<Kernel<ActivationNode<true, true>, Element, Element, RowMajor>>(stream, problems, epilogue);
  } else {
    run<Kernel<ActivationNode<true, false>, Element, Element, RowMajor>>(stream, problems,
                                                                         epilogue);
  }
}

}  // namespace switchyard::cuda
