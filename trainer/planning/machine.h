#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/runtime/device.h"
#include "kernels/runtime/work_observer.h"
#include "trainer/planning/work_trace.h"

namespace switchyard {

// The time of an op or of a collective's messages by bytes. `latency` passes once per op or
// collective, because the messages of one wait for the network at the same time; measured times of
// ops contain it.
struct ByteTimes {
  double latency = 0.0;
  // Linear between the points, which ascend; beyond the last in proportion to the bytes.
  std::vector<double> bytes = {}, seconds = {};

  bool empty() const { return bytes.empty(); }
  // Without the latency.
  double of(double num_bytes) const;
  // Bytes per second of the longest ones.
  double rate() const;
  // Every message takes `per_message` and the time of its bytes.
  static ByteTimes line(double latency, double bytes_per_second, double per_message = 0.0);
};

// Measured seconds on a grid of sizes [m][n][k]. Between its points the logarithm of the time is
// linear in the logarithms of the sizes; beyond the largest the rate stays, and below the smallest
// the slope of the nearest two points goes on.
struct TimeGrid {
  std::vector<double> m, n, k;
  std::vector<double> seconds;

  bool empty() const { return seconds.empty(); }
  double of(double of_m, double of_n, double of_k) const;
};

// The matrix products of one dtype.
struct ProductTimes {
  double peak = 0.0;        // FLOP/s of the hardware, or the best that was measured
  double efficiency = 0.0;  // the share that large products reach; 0: the grids say it
  std::array<TimeGrid, kNumProductKinds> single = {};   // [m, k] [k, n]
  std::array<TimeGrid, kNumProductKinds> grouped = {};  // the same, of one expert of several
  // One head of one sequence, by [seq_len][head_dim][1]; forward and backward.
  std::array<TimeGrid, 2> attention = {};
};

// The time of one message between two ranks. Within a host every rank sends at once, each with this
// time; a host's link to others takes the messages of its ranks one after the other. Empty for
// links that have not been measured.
struct CollectiveTimes {
  ByteTimes within_host, between_hosts;
};

// What a step's time is predicted from: measured by `calibrate`, or described in a file of
// configs/machines/. Times are of one rank while all ranks of its host work.
struct Machine {
  std::string name;
  std::string source;  // where the figures are from
  DeviceKind device = DeviceKind::cpu;
  int ranks_per_host = 1;
  // Ranks of a CPU that has fewer cores than threads share them: times of compute grow by
  // ranks * threads / cores.
  double cores_per_host = 0.0;   // 0: every rank has its own device
  int threads = 1;               // of a rank
  double memory_per_rank = 0.0;  // bytes; 0: unknown
  // The share of a transfer's time that can pass while the rank computes: 0 where only MPI calls
  // move data, 1 where devices do it beside.
  double background = 0.0;
  // all_gather and reduce_scatter pass data on from rank to rank, so that a host's link carries it
  // once per group; else every rank sends its share to every other.
  bool rings = false;
  // Links within and between hosts work at the same time.
  bool links_overlap = false;

  std::map<DType, ProductTimes> products;  // f32, bf16
  std::map<std::string, ByteTimes> ops;    // by name and the bytes of their tensors
  ByteTimes other_ops;
  CollectiveTimes all_to_all, all_gather, reduce_scatter;

  // How much longer compute takes where `ranks` ranks share a host, than the figures say.
  double contention(int ranks) const;
  double seconds_of(const TracedOp& op) const;
  // Throws Error if the machine was described without the links that the traffic takes.
  double seconds_of(const Traffic& traffic) const;
  // Throws Error if the machine has no figures for the dtype.
  const ProductTimes& products_in(DType dtype) const;

 private:
  double seconds_of(const AttentionProducts& attention) const;
  double seconds_of(const TracedProducts& products) const;
  void require_links(const CollectiveTimes& times, const Traffic& traffic) const;
};

}  // namespace switchyard
