#pragma once

#include <mpi.h>

#include <functional>
#include <string>
#include <vector>

#include "kernels/runtime/tensor.h"

namespace switchyard {

struct MpiGroup {
  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0;
  int size = 1;
  std::string name;
};

// Throws Error with the names of the call and the group unless `code` is MPI_SUCCESS.
void check_mpi(int code, const char* call, const MpiGroup& group);

// MPI counts in int. Throws Error if n does not fit.
int mpi_count(int64_t n);
MPI_Datatype mpi_type(DType dtype);

// Describes n elements as count() elements of type(). Where n does not fit into int, one element of
// the type holds all n.
class LongMessage {
 public:
  LongMessage(DType dtype, int64_t n);
  ~LongMessage() {
    if (derived_) MPI_Type_free(&type_);
  }
  LongMessage(const LongMessage&) = delete;
  LongMessage& operator=(const LongMessage&) = delete;
  int count() const { return count_; }
  MPI_Datatype type() const { return type_; }

 private:
  int count_ = 1;
  MPI_Datatype type_;
  bool derived_ = false;
};

// Messages that are under way together. They are point to point: MPI_Alltoallv would copy the
// rank's own part, too, and its counts and displacements are ints.
class MpiMessages {
 public:
  // Messages of one tag arrive in the order in which they were sent. `group` must outlive them.
  MpiMessages(const MpiGroup& group, int tag) : group_(&group), tag_(tag) {}
  // If an error ends the program before they have arrived, requests are still open; they are left
  // to MPI.
  ~MpiMessages();
  MpiMessages(const MpiMessages&) = delete;
  MpiMessages& operator=(const MpiMessages&) = delete;
  MpiMessages(MpiMessages&&) = default;
  MpiMessages& operator=(MpiMessages&&) = default;

  // Sends sent(r) to each other rank r, and receives received(r) from it. Empty views are not sent.
  void exchange(const std::function<ConstTensorView(size_t)>& sent,
                const std::function<TensorView(size_t)>& received);

  // Whether all have arrived, and what was sent may be overwritten.
  bool have_arrived(bool may_wait);

 private:
  void receive(TensorView view, int from);
  void send(ConstTensorView view, int to);

  const MpiGroup* group_;
  int tag_;
  std::vector<MPI_Request> requests_;
};

}  // namespace switchyard
