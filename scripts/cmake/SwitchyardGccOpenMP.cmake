include_guard()

# OpenMP::OpenMP_CXX for clang without its OpenMP library, of which a machine can have one version
# only: GCC's header and library. Pragmas are ignored, so every team has one thread.
find_program(SWITCHYARD_GCC gcc REQUIRED)
foreach(file include/omp.h libgomp.so)
  execute_process(COMMAND ${SWITCHYARD_GCC} -print-file-name=${file}
                  OUTPUT_VARIABLE path OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT IS_ABSOLUTE "${path}")
    message(FATAL_ERROR "GCC has no ${file}")
  endif()
  cmake_path(GET path EXTENSION LAST_ONLY kind)
  set(gcc_openmp${kind} ${path})
endforeach()
cmake_path(GET gcc_openmp.h PARENT_PATH folder)
add_library(OpenMP::OpenMP_CXX INTERFACE IMPORTED)
# After all other folders, because GCC's also has its own versions of clang's headers.
target_compile_options(OpenMP::OpenMP_CXX INTERFACE
  "SHELL:-idirafter ${CMAKE_CURRENT_LIST_DIR}/gcc_openmp" "SHELL:-idirafter ${folder}")
target_link_libraries(OpenMP::OpenMP_CXX INTERFACE ${gcc_openmp.so})
