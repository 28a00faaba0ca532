#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "kernels/runtime/work_observer.h"
#include "parallel/counting_communicator.h"
#include "parallel/parallel_layout.h"
#include "parallel/phase.h"

namespace switchyard {

struct TracedProducts {
  Products products;          // without row_offsets
  std::vector<int64_t> rows;  // of each expert; empty: one product
};

struct TracedOp {
  const char* name;
  int64_t bytes;
  std::optional<TracedProducts> products;
  std::optional<AttentionProducts> attention;
};

// What a collective moves for one rank; every rank of a host does the same at the same time.
struct Traffic {
  CollectiveKind kind;
  int64_t ranks;           // of the group
  int64_t peers_within;    // other ranks of the group on this rank's host
  int64_t peers_between;   // and on other hosts
  int64_t ranks_per_host;  // of all groups
  double bytes;            // of the whole tensor
  double bytes_within;     // to or from those peers, whichever is more
  double bytes_between;
};

// What a transfer is for.
enum class Purpose { exchange, tensor_parallel, gradients, parameters, figures };
inline constexpr int kNumPurposes = static_cast<int>(Purpose::figures) + 1;

struct TracedStart {
  int64_t number;
  Traffic traffic;
};
struct TracedWait {
  int64_t number;
};

struct TraceItem {
  Phase phase;
  std::optional<Part> part;  // of the model
  Purpose purpose;           // of a transfer that starts
  std::variant<TracedOp, TracedStart, TracedWait> what;
};

// The work of one rank in the order of its program, as it happens on a device that only counts.
class WorkTrace final : public WorkObserver, public CollectiveObserver {
 public:
  // Hosts have `ranks_per_host` ranks each, in the order of the ranks.
  WorkTrace(const ParallelLayout& layout, int rank, int ranks_per_host);

  void set_phase(Phase phase) { phase_ = phase; }
  // Returns the items since the last call.
  std::vector<TraceItem> take() { return std::exchange(items_, {}); }

  void products(const Products& products) override;
  void attention(const AttentionProducts& attention) override { attention_ = attention; }
  void begin_op(const char* op, int64_t bytes) override;
  void set_part(std::optional<Part> part) override { part_ = part; }
  int64_t start(const Collective& collective) override;
  void wait(int64_t number) override;

 private:
  // The ranks of a group: first, first + stride, ...
  struct Members {
    int64_t first, stride, size;
  };
  Members members_of(const std::string& group) const;
  // How many other ranks of this rank's group share its host.
  int64_t peers_within_host(const Members& group) const;
  bool same_host(int64_t a, int64_t b) const { return a / ranks_per_host_ == b / ranks_per_host_; }
  Traffic traffic_of(const Collective& collective) const;
  Purpose purpose_of(const Collective& collective) const;
  void add(Purpose purpose, std::variant<TracedOp, TracedStart, TracedWait> what);

  ParallelLayout layout_;
  int64_t rank_, ranks_per_host_;
  Phase phase_ = Phase::forward;
  std::optional<Part> part_;
  std::optional<TracedProducts> products_;
  std::optional<AttentionProducts> attention_;
  int64_t next_number_ = 0;
  std::set<int64_t> under_way_;
  std::vector<TraceItem> items_;
};

}  // namespace switchyard
