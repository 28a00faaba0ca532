#pragma once

#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "parallel/communicator.h"

namespace switchyard {

// Sums and maxima of single figures over the ranks of a group, all in one collective. Every rank
// names the same figures in the same order; `run` replaces them on all ranks. Whole numbers are
// exact up to 2^53, and sums are added in the order of the ranks.
class RankReduction {
 public:
  explicit RankReduction(Communicator& group) : group_(group) {}

  void sum(double& figure) { sums_.emplace_back(&figure); }
  void sum(int64_t& figure) { sums_.emplace_back(&figure); }
  void sum(std::vector<double>& figures) {
    for (double& figure : figures) sum(figure);
  }
  void max(double& figure) { maxima_.emplace_back(&figure); }
  void max(int64_t& figure) { maxima_.emplace_back(&figure); }

  // Every figure must still be at the address that was given. Collective.
  void run(Stream& stream);
  // The same on the stream's device; waits for the stream. The result is on the device, too:
  //   [sums] f64 from the workspace, in the order in which they were named
  TensorView run(Stream& stream, Workspace& workspace);

 private:
  using Figure = std::variant<double*, int64_t*>;

  std::vector<double> own_values() const;
  void set_all(std::span<const double> values) const;

  Communicator& group_;
  std::vector<Figure> sums_, maxima_;
};

}  // namespace switchyard
