#include "parallel/communicator_checks.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

int64_t sum_of(std::span<const int64_t> rows) {
  return std::accumulate(rows.begin(), rows.end(), int64_t{0});
}

void check_same_dtype(ConstTensorView in, ConstTensorView out, const char* collective) {
  require(in.dtype() == out.dtype(), "{} from {} to {}: the dtypes must be equal", collective,
          to_string(in.dtype()), to_string(out.dtype()));
}

int64_t row_elements(ConstTensorView view) {
  const auto dims = view.shape().dims();
  return std::accumulate(dims.begin() + 1, dims.end(), int64_t{1}, std::multiplies<>());
}

}  // namespace

void check_broadcast(int root, int group_size) {
  require(root >= 0 && root < group_size, "broadcast from rank {} of {}", root, group_size);
}

void check_all_reduce(ConstTensorView data) {
  require(data.dtype() != DType::u16 && data.dtype() != DType::u8, "{} is not reduced",
          to_string(data.dtype()));
}

void check_all_gather(ConstTensorView in, ConstTensorView out, int group_size) {
  check_same_dtype(in, out, "all_gather");
  require(out.num_elements() == in.num_elements() * group_size,
          "all_gather of {} over {} ranks does not fit {}", in.shape(), group_size, out.shape());
}

void check_reduce_scatter(ConstTensorView in, ConstTensorView out, int group_size) {
  check_all_reduce(in);
  check_same_dtype(in, out, "reduce_scatter");
  require(in.num_elements() == out.num_elements() * group_size,
          "reduce_scatter of {} over {} ranks does not fit {}", in.shape(), group_size,
          out.shape());
}

void check_all_to_all_v(ConstTensorView in, std::span<const int64_t> send_rows, ConstTensorView out,
                        std::span<const int64_t> recv_rows, int group_size) {
  check_same_dtype(in, out, "all_to_all_v");
  const auto size = static_cast<size_t>(group_size);
  require(send_rows.size() == size && recv_rows.size() == size,
          "all_to_all_v over {} ranks has {} counts to send and {} to receive", size,
          send_rows.size(), recv_rows.size());
  require(std::min(std::ranges::min(send_rows), std::ranges::min(recv_rows)) >= 0,
          "all_to_all_v has a negative count");
  require(in.dim(0) == sum_of(send_rows) && out.dim(0) == sum_of(recv_rows),
          "all_to_all_v: {} rows to send but {} counted, {} to receive but {} counted", in.dim(0),
          sum_of(send_rows), out.dim(0), sum_of(recv_rows));
  require(row_elements(in) == row_elements(out), "all_to_all_v of rows of {} to rows of {}",
          in.shape(), out.shape());
}

}  // namespace switchyard
