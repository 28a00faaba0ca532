#pragma once

#include <map>
#include <span>
#include <string>

#include "parallel/distributed_context.h"
#include "trainer/planning/machine.h"

namespace switchyard {

// Measures this machine for `replay` (trainer/planning/step_time.h). Every rank measures at the
// same time, as ranks work in training. Products are means over ranks; the times of ops are rank
// 0's, because routing gives ranks other sizes. Takes about a minute. Collective over the world,
// which must have as many ranks on every host.
//   compute  if it is not null, links alone are measured, and products and ops have its times;
//            throws Error if it is of another device or number of threads
Machine calibrate(MpiRuntime& mpi, const std::string& device, const Machine* compute);

// The parts of a calibration. Times are of one rank, in seconds.

// Products of all kinds in both dtypes: single, grouped with ragged groups, and attention.
std::map<DType, ProductTimes> calibrate_products(Stream& stream, int threads);

// Every op of training steps of small models, by its name and the bytes of its tensors.
std::map<std::string, ByteTimes> calibrate_ops(MpiRuntime& mpi, const std::string& device,
                                               int threads);

// Messages of 64 bytes to 4 MiB between ranks of a host and between hosts.
void calibrate_links(Stream& stream, const DistributedContext& hosts, Machine& machine);

// The share of a transfer's time that passes while the rank computes.
double calibrate_background(Stream& stream, const DistributedContext& hosts, int threads);

// Replaces values by their means over the ranks of a group.
void average(Stream& stream, Communicator& group, std::span<double> values);

}  // namespace switchyard
