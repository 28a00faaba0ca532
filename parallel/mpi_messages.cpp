#include "parallel/mpi_messages.h"

#include <climits>

#include "kernels/runtime/check.h"

namespace switchyard {

void check_mpi(int code, const char* call, const MpiGroup& group) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail("{} failed in group {}: {}", call, group.name,
       std::string(text, static_cast<size_t>(length)));
}

int mpi_count(int64_t n) {
  require(n >= 0 && n <= INT_MAX, "MPI counts up to {} elements per message, not {}", INT_MAX, n);
  return static_cast<int>(n);
}

MPI_Datatype mpi_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return MPI_FLOAT;
    case DType::f64:
      return MPI_DOUBLE;
    case DType::i32:
      return MPI_INT32_T;
    case DType::i64:
      return MPI_INT64_T;
    case DType::bf16:  // MPI moves it and never sums it
    case DType::u16:
      return MPI_UINT16_T;
    case DType::u8:
      return MPI_UINT8_T;
  }
  return MPI_BYTE;
}

// A long message is one element: runs of kRun elements and a remainder.
LongMessage::LongMessage(DType dtype, int64_t n) : type_(mpi_type(dtype)) {
  if (n <= INT_MAX) {
    count_ = mpi_count(n);
    return;
  }
  constexpr int64_t kRun = int64_t{1} << 24;
  MPI_Datatype run = MPI_DATATYPE_NULL;
  MPI_Type_contiguous(static_cast<int>(kRun), type_, &run);
  const int64_t num_runs = n / kRun;
  const int counts[] = {mpi_count(num_runs), static_cast<int>(n % kRun)};
  const MPI_Aint begins[] = {0, num_runs * kRun * static_cast<int64_t>(size_of(dtype))};
  const MPI_Datatype types[] = {run, type_};
  MPI_Type_create_struct(2, counts, begins, types, &type_);
  MPI_Type_commit(&type_);
  MPI_Type_free(&run);
  derived_ = true;
}

MpiMessages::~MpiMessages() {
  for (MPI_Request& request : requests_) {
    if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
  }
}

// Each rank begins with its neighbour, so that no rank gets messages from all others at once.
void MpiMessages::exchange(const std::function<ConstTensorView(size_t)>& sent,
                           const std::function<TensorView(size_t)>& received) {
  const auto size = static_cast<size_t>(group_->size), me = static_cast<size_t>(group_->rank);
  for (size_t i = 1; i < size; ++i) {
    const size_t from = (me + size - i) % size;
    receive(received(from), static_cast<int>(from));
  }
  for (size_t i = 1; i < size; ++i) {
    const size_t to = (me + i) % size;
    send(sent(to), static_cast<int>(to));
  }
}

bool MpiMessages::have_arrived(bool may_wait) {
  const int count = static_cast<int>(requests_.size());
  int all = 1;
  if (may_wait) {
    check_mpi(MPI_Waitall(count, requests_.data(), MPI_STATUSES_IGNORE), "MPI_Waitall", *group_);
  } else {
    check_mpi(MPI_Testall(count, requests_.data(), &all, MPI_STATUSES_IGNORE), "MPI_Testall",
              *group_);
  }
  if (all != 0) requests_.clear();
  return all != 0;
}

void MpiMessages::receive(TensorView view, int from) {
  if (view.num_elements() == 0) return;
  const LongMessage message(view.dtype(), view.num_elements());
  check_mpi(MPI_Irecv(view.raw(), message.count(), message.type(), from, tag_, group_->comm,
                      &requests_.emplace_back(MPI_REQUEST_NULL)),
            "MPI_Irecv", *group_);
}

void MpiMessages::send(ConstTensorView view, int to) {
  if (view.num_elements() == 0) return;
  const LongMessage message(view.dtype(), view.num_elements());
  check_mpi(MPI_Isend(view.raw(), message.count(), message.type(), to, tag_, group_->comm,
                      &requests_.emplace_back(MPI_REQUEST_NULL)),
            "MPI_Isend", *group_);
}

}  // namespace switchyard
