#pragma once

#include <cstdint>
#include <iosfwd>

#include "trainer/config/run_config.h"
#include "trainer/data/tokenize.h"

namespace switchyard {

// The command `tokenize` for the recall tasks: makes the token files `train` and, if it is named,
// `validation`, of config.recall.train_sequences and validation_sequences whole sequences. A
// training sequence holds samples of one of the lengths of recall_lengths, drawn uniformly; a
// held-out sequence is one sample. The files are a function of the configuration alone; a file that
// is up to date is kept.
//   log  one line for each thing done
// Throws Error on options that cannot work and on a full disk.
TokenizeReport make_recall_files(const DataSection& config, int64_t seq_len, std::ostream& log);

}  // namespace switchyard
