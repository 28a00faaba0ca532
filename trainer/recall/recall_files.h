#pragma once

#include <cstdint>
#include <iosfwd>

#include "trainer/config/run_config.h"
#include "trainer/data/tokenize.h"

namespace switchyard {

// The command `tokenize` for the recall tasks: makes the token files `train` and, if it is named,
// `validation`, of config.recall.train_sequences and validation_sequences whole sequences. Those to
// train on hold samples of one of the lengths of recall_lengths, each length as often; the held-out
// ones are each one sample. A function of the configuration alone; what is there and up to date is
// kept.
//   log  one line for each thing done
// Throws Error: options that cannot work, a full disk.
TokenizeReport make_recall_files(const DataSection& config, int64_t seq_len, std::ostream& log);

}  // namespace switchyard
