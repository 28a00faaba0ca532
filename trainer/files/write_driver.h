#pragma once

#include <cstdint>

namespace switchyard::hdf5 {

// HDF5 1.10 cannot give up a file whose writes fail: the file stays half open, and the library
// crashes when the process or MPI ends. A training run must survive a full disk, so new files go
// through a driver of ours that never tells HDF5 of a failed write: it remembers the first error,
// drops what follows, and leaves it to the caller to look.
//   access          a file access property list
//   reserved_bytes  room that is claimed on the disk when the file is made, so that a full disk is
//                   met before the work; what is not needed is given back
//   write_error     errno of the first failed write, untouched until then; outlives the file
// Negative on failure, as HDF5's own functions.
int use_write_driver(int64_t access, int64_t reserved_bytes, int* write_error);

}  // namespace switchyard::hdf5
