# The headers of CUTLASS. Imported target: CUTLASS::headers. CUTLASS_ROOT is searched first: a folder
# that has include/cutlass, or into which Python's package nvidia-cutlass was installed.
find_path(CUTLASS_INCLUDE_DIR cutlass/version.h
          PATH_SUFFIXES include cutlass_library/source/include)
if(CUTLASS_INCLUDE_DIR)
  set(version)
  foreach(part MAJOR MINOR PATCH)
    file(STRINGS ${CUTLASS_INCLUDE_DIR}/cutlass/version.h line REGEX "^#define CUTLASS_${part} ")
    string(REGEX MATCH "[0-9]+" number "${line}")
    list(APPEND version ${number})
  endforeach()
  list(JOIN version . CUTLASS_VERSION)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(CUTLASS
  REQUIRED_VARS CUTLASS_INCLUDE_DIR VERSION_VAR CUTLASS_VERSION)
if(CUTLASS_FOUND AND NOT TARGET CUTLASS::headers)
  add_library(CUTLASS::headers INTERFACE IMPORTED)
  target_include_directories(CUTLASS::headers SYSTEM INTERFACE ${CUTLASS_INCLUDE_DIR})
endif()
