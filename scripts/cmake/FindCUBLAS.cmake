# cuBLAS and cuBLASLt. Imported target: CUBLAS::cublas, which links both. CUBLAS_ROOT is searched
# first, such as the folder nvidia/cu13 of Python's package nvidia-cublas, else the CUDA Toolkit.
# CUBLAS_HAS_GROUPED: the header has products of groups whose sizes are on the device.
find_path(CUBLAS_INCLUDE_DIR cublasLt.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
foreach(library cublas cublasLt)
  # Python's packages have no name without the version.
  find_library(CUBLAS_${library}_LIBRARY
               NAMES ${library} lib${library}.so.${CUDAToolkit_VERSION_MAJOR} NAMES_PER_DIR
               HINTS ${CUDAToolkit_LIBRARY_DIR})
endforeach()
if(CUBLAS_INCLUDE_DIR)
  set(version)
  foreach(part MAJOR MINOR PATCH)
    file(STRINGS ${CUBLAS_INCLUDE_DIR}/cublas_api.h line REGEX "^#define CUBLAS_VER_${part} ")
    string(REGEX MATCH "[0-9]+" number "${line}")
    list(APPEND version ${number})
  endforeach()
  list(JOIN version . CUBLAS_VERSION)
  file(STRINGS ${CUBLAS_INCLUDE_DIR}/cublasLt.h CUBLAS_HAS_GROUPED
       REGEX "CUBLASLT_BATCH_MODE_GROUPED")
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(CUBLAS
  REQUIRED_VARS CUBLAS_cublas_LIBRARY CUBLAS_cublasLt_LIBRARY CUBLAS_INCLUDE_DIR
  VERSION_VAR CUBLAS_VERSION)
if(CUBLAS_FOUND AND NOT TARGET CUBLAS::cublas)
  add_library(CUBLAS::cublas UNKNOWN IMPORTED)
  # Before the headers of the Toolkit, among which nvcc looks before all system folders.
  set_target_properties(CUBLAS::cublas PROPERTIES
    IMPORTED_LOCATION ${CUBLAS_cublas_LIBRARY} INTERFACE_LINK_LIBRARIES ${CUBLAS_cublasLt_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${CUBLAS_INCLUDE_DIR} IMPORTED_NO_SYSTEM ON)
endif()
