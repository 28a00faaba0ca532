#include "kernels/cuda/cudnn_graphs.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/cuda/support.h"
#include "kernels/runtime/check.h"

// The library is opened when it is first needed, so that a program that was built with it runs on
// machines without it.
#define NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING
#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cudnn_frontend.h>

namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;
}

namespace switchyard::cuda {

namespace frontend = cudnn_frontend;
using frontend::graph::Graph;
using frontend::graph::Tensor_attributes;

// cuDNN's handle of one stream, and its plans for problems; null for those that it does not take.
struct AttentionPlans {
  cudnnHandle_t handle = nullptr;
  std::map<CudnnProblem, std::unique_ptr<Graph>> graphs;

  ~AttentionPlans() {
    graphs.clear();
    if (handle != nullptr) frontend::detail::destroy_handle(handle);
  }
};

namespace {

void check(frontend::error_t error, const char* what) {
  require(error.is_good(), "cuDNN could not {}: {}", what, error.get_message());
}
void check(cudnnStatus_t status, const char* call) {
  if (status == CUDNN_STATUS_ALLOC_FAILED) throw OutOfMemory(call, 0, Device{});
  require(status == CUDNN_STATUS_SUCCESS, "{} failed: {}", call,
          frontend::detail::get_error_string(status));
}

AttentionPlans& plans_of(Stream& stream) {
  std::shared_ptr<AttentionPlans>& plans = stream.cuda()->attention_plans;
  if (!plans) {
    plans = std::make_shared<AttentionPlans>();
    check(frontend::detail::create_handle(&plans->handle), "cudnnCreate");
    check(frontend::detail::set_stream(plans->handle, native_stream(stream)), "cudnnSetStream");
  }
  return *plans;
}

enum Id : int64_t { kQ = 1, kK, kV, kOut, kLse, kDout, kDq, kDk, kDv };

std::vector<int64_t> as_vector(const CudnnProblem::Dims& dims) {
  return {dims.begin(), dims.end()};
}

using Dims = CudnnProblem::Dims;
using Attributes = std::shared_ptr<Tensor_attributes>;

Attributes input(Graph& graph, Id id, const Dims& dims, const Dims& strides) {
  return graph.tensor(
      Tensor_attributes().set_uid(id).set_dim(as_vector(dims)).set_stride(as_vector(strides)));
}
void output(const Attributes& tensor, Id id, const Dims& dims, const Dims& strides) {
  tensor->set_output(true).set_uid(id).set_dim(as_vector(dims)).set_stride(as_vector(strides));
}

void describe_forward(Graph& graph, const CudnnProblem& p, const Attributes& q, const Attributes& k,
                      const Attributes& v) {
  const auto [out, lse] =
      graph.sdpa(q, k, v,
                 frontend::graph::SDPA_attributes()
                     .set_name("attention")
                     .set_generate_stats(true)
                     .set_diagonal_alignment(frontend::DiagonalAlignment_t::TOP_LEFT)
                     .set_diagonal_band_right_bound(0)
                     .set_attn_scale(p.scale));
  output(out, kOut, p.q_dims(), CudnnProblem::token_major(p.q_dims()));
  output(lse, kLse, p.lse_dims(), CudnnProblem::head_major(p.lse_dims()));
  lse->set_data_type(frontend::DataType_t::FLOAT);
}

void describe_backward(Graph& graph, const CudnnProblem& p, const Attributes& q,
                       const Attributes& k, const Attributes& v) {
  const Dims token_major = CudnnProblem::token_major(p.q_dims());
  const Attributes out = input(graph, kOut, p.q_dims(), token_major);
  const Attributes dout = input(graph, kDout, p.q_dims(), token_major);
  const Attributes lse = input(graph, kLse, p.lse_dims(), CudnnProblem::head_major(p.lse_dims()));
  lse->set_data_type(frontend::DataType_t::FLOAT);
  const auto [dq, dk, dv] =
      graph.sdpa_backward(q, k, v, out, dout, lse,
                          frontend::graph::SDPA_backward_attributes()
                              .set_name("attention_backward")
                              .set_deterministic_algorithm(true)
                              .set_diagonal_alignment(frontend::DiagonalAlignment_t::TOP_LEFT)
                              .set_diagonal_band_right_bound(0)
                              .set_attn_scale(p.scale));
  output(dq, kDq, p.q_dims(), CudnnProblem::head_major(p.q_dims()));
  output(dk, kDk, p.kv_dims(), CudnnProblem::head_major(p.kv_dims()));
  output(dv, kDv, p.kv_dims(), CudnnProblem::head_major(p.kv_dims()));
}

// Null if cuDNN has no plan.
std::unique_ptr<Graph> build(cudnnHandle_t handle, const CudnnProblem& p) {
  auto graph = std::make_unique<Graph>();
  graph->set_io_data_type(frontend::DataType_t::BFLOAT16)
      .set_intermediate_data_type(frontend::DataType_t::FLOAT)
      .set_compute_data_type(frontend::DataType_t::FLOAT);
  const Attributes q = input(*graph, kQ, p.q_dims(), CudnnProblem::head_major(p.q_dims()));
  const Attributes k = input(*graph, kK, p.kv_dims(), CudnnProblem::head_major(p.kv_dims()));
  const Attributes v = input(*graph, kV, p.kv_dims(), CudnnProblem::head_major(p.kv_dims()));
  p.backward ? describe_backward(*graph, p, q, k, v) : describe_forward(*graph, p, q, k, v);
  frontend::error_t error = graph->build(handle, {frontend::HeurMode_t::A});
  using enum frontend::error_code_t;
  const auto code = error.get_code();
  // The backend says of some problems only when it sees their graph that it does not take them.
  if (code == GRAPH_NOT_SUPPORTED || code == HEURISTIC_QUERY_FAILED ||
      code == GRAPH_EXECUTION_PLAN_CREATION_FAILED || code == CUDNN_BACKEND_API_FAILED) {
    return nullptr;
  }
  check(error, p.backward ? "plan the backward pass of attention" : "plan attention");
  return graph;
}

// The frontend opens the CUDA runtime by name, too, of either major version unless it is told.
bool open_libraries() {
  const std::string runtime = fmt::format("libcudart.so.{}", CUDART_VERSION / 1000);
  setenv("CUDNN_FRONTEND_CUDART_LIB_NAME", runtime.c_str(), /*overwrite=*/0);
  if (dlopen(std::getenv("CUDNN_FRONTEND_CUDART_LIB_NAME"), RTLD_NOW) == nullptr) return false;
  frontend::cudnn_dlhandle =
      dlopen(fmt::format("libcudnn.so.{}", CUDNN_MAJOR).c_str(), RTLD_NOW | RTLD_GLOBAL);
  return frontend::cudnn_dlhandle != nullptr;
}

}  // namespace

bool has_cudnn_in_build() { return true; }

bool has_cudnn() {
  static const bool opened = open_libraries();
  return opened;
}

std::optional<size_t> cudnn_scratch_bytes(Stream& stream, const CudnnProblem& problem) {
  AttentionPlans& plans = plans_of(stream);
  const auto [at, is_new] = plans.graphs.try_emplace(problem);
  if (is_new) at->second = build(plans.handle, problem);
  if (!at->second) return std::nullopt;
  int64_t num_bytes = 0;
  check(at->second->get_workspace_size(num_bytes), "say how much scratch attention needs");
  return static_cast<size_t>(num_bytes);
}

void run_cudnn(Stream& stream, const CudnnProblem& problem, const CudnnOperands& o, void* scratch) {
  const AttentionPlans& plans = plans_of(stream);
  const auto input_of = [](const bfloat16* address) { return const_cast<bfloat16*>(address); };
  std::unordered_map<int64_t, void*> operands = {
      {kQ, input_of(o.q)}, {kK, input_of(o.k)}, {kV, input_of(o.v)}, {kOut, o.out}, {kLse, o.lse}};
  if (problem.backward) {
    operands.insert({{kDout, input_of(o.dout)}, {kDq, o.dq}, {kDk, o.dk}, {kDv, o.dv}});
  }
  check(plans.graphs.at(problem)->execute(plans.handle, operands, scratch),
        problem.backward ? "compute the backward pass of attention" : "compute attention");
}

}  // namespace switchyard::cuda
