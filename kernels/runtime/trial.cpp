#include "kernels/runtime/trial.h"

#include <algorithm>
#include <limits>

#include "kernels/basic/elementwise.h"
#include "kernels/basic/random.h"
#include "kernels/runtime/stopwatch.h"

namespace switchyard {

Tensor random_on_device(Stream& stream, const Shape& shape, DType dtype, uint64_t seed) {
  Tensor values(shape, dtype, stream.device());
  const Shape flat{values.num_elements()};
  Tensor drawn(flat, DType::f32, stream.device());
  init_normal(stream, {seed, 0}, 1.0f, flat, {0}, drawn);
  cast(stream, drawn, values.view().reshape(flat));
  stream.synchronize();  // the values that were drawn are freed
  return values;
}

double best_seconds_of_device(Stream& stream, int tries, int runs,
                              const std::function<void()>& run) {
  Stopwatch stopwatch(stream.device());
  run();
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < tries; ++i) {
    stopwatch.start(stream);
    for (int j = 0; j < runs; ++j) run();
    stopwatch.stop(stream);
    best = std::min(best, stopwatch.take_seconds() / runs);
  }
  return best;
}

}  // namespace switchyard
