#pragma once

#include <cstdint>

namespace switchyard::hdf5 {

// HDF5 1.10 cannot close a file whose writes fail: the file stays half open, and the library
// crashes when the process or MPI ends. A training run must survive a full disk, so new files are
// written by this driver, which never reports a failed write to HDF5: it stores the first error and
// drops all later writes; the caller must check the error.
//   access          a file access property list
//   reserved_bytes  space that is reserved on the disk when the file is made, so that a full disk
//                   is detected before any work; unused space is released
//   write_error     errno of the first failed write, not written until then; must outlive the file
// Returns a negative number on failure, as HDF5's own functions do.
int use_write_driver(int64_t access, int64_t reserved_bytes, int* write_error);

}  // namespace switchyard::hdf5
