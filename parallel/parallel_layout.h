#pragma once

#include <span>
#include <string>
#include <vector>

namespace switchyard {

// The arrangement of `world_size` ranks in two meshes over the same processes:
//   attention and dense layers:  rank = (dp, tp), tp fastest
//   experts:                     rank = (edp, ep), ep fastest;  ep * edp = dp * tp
// It is pure arithmetic.
class ParallelLayout {
 public:
  // Throws Error with the remedy unless tp divides world_size and ep divides dp * tp.
  ParallelLayout(int world_size, int tp, int ep);

  int world_size() const { return world_size_; }
  int tp() const { return tp_; }
  int dp() const { return world_size_ / tp_; }
  int ep() const { return ep_; }
  int edp() const { return world_size_ / ep_; }

  int tp_rank(int rank) const { return rank % tp_; }
  int dp_rank(int rank) const { return rank / tp_; }
  int ep_rank(int rank) const { return rank % ep_; }
  int edp_rank(int rank) const { return rank / ep_; }

  // The ranks of the group that `rank` belongs to, in order of their coordinate.
  std::vector<int> tp_group(int rank) const;
  std::vector<int> dp_group(int rank) const;
  std::vector<int> ep_group(int rank) const;
  std::vector<int> edp_group(int rank) const;

  bool operator==(const ParallelLayout&) const = default;

 private:
  int world_size_;
  int tp_;
  int ep_;
};

// The number of ranks of an ep group on each of its hosts.
//   hosts  the host of each rank
// Throws Error with the remedy unless the ranks of every ep group lie host by host, and on every
// host the same number of them.
int ep_ranks_per_host(const ParallelLayout& layout, std::span<const int> hosts);

std::string to_string(const ParallelLayout& layout);  // "tp 2, dp 4, ep 8, edp 1"

}  // namespace switchyard
