include_guard()

# The flags of every target of the project.
add_library(switchyard_flags INTERFACE)
target_include_directories(switchyard_flags INTERFACE ${CMAKE_SOURCE_DIR})
target_link_libraries(switchyard_flags INTERFACE OpenMP::OpenMP_CXX)
set(cxx_options
  -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor
  # GCC 12 warns of overlapping copies inside std::string where there are none (GCC bug 105329).
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>
  # No code reads errno or traps after arithmetic; either would prevent vectorised loops.
  # Sums must keep their order so that results are repeatable; hence no -ffast-math.
  -fno-math-errno -fno-trapping-math -ffp-contract=fast)
# {fmt} 9 takes nvcc for a compiler that cannot check format strings.
set(cuda_options --expt-relaxed-constexpr -DFMT_USE_CONSTEXPR=1 -Xcompiler=-Wall,-Wextra)
if(SWITCHYARD_NATIVE)
  # GCC prefers 256-bit vectors on machines with 512; the loops here are long enough for 512.
  list(APPEND cxx_options -march=native -mprefer-vector-width=512)
elseif(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
  list(APPEND cxx_options -march=x86-64-v3)
endif()
if(SWITCHYARD_WERROR)
  list(APPEND cxx_options -Werror)
  list(APPEND cuda_options -Werror=all-warnings)
endif()
target_compile_options(switchyard_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:${cxx_options}>" "$<$<COMPILE_LANGUAGE:CUDA>:${cuda_options}>")
if(SWITCHYARD_SANITIZE)
  set(sanitizers address,undefined)
  if(SWITCHYARD_SANITIZE STREQUAL thread)
    set(sanitizers thread)
  elseif(NOT SWITCHYARD_SANITIZE STREQUAL address)
    message(FATAL_ERROR "SWITCHYARD_SANITIZE is ${SWITCHYARD_SANITIZE}: use address, thread or OFF")
  endif()
  target_compile_options(switchyard_flags INTERFACE
    "$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${sanitizers};-fno-omit-frame-pointer>")
  target_link_options(switchyard_flags INTERFACE -fsanitize=${sanitizers})
endif()
if(SWITCHYARD_DEBUG_MEMORY)
  target_compile_definitions(switchyard_flags INTERFACE SWITCHYARD_DEBUG_MEMORY)
endif()

# switchyard_add_library(FOLDER PUBLIC targets PRIVATE targets): one static library per top-level
# folder from all its .cpp files except main.cpp and those of a backend or library, or of its
# stand-in (kernels/cuda/optional/, kernels/cuda/absent/, nccl_communicator*.cpp); CMakeLists.txt
# adds one of the two.
function(switchyard_add_library folder)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${folder}/*.cpp)
  list(FILTER sources EXCLUDE REGEX "/main\\.cpp$|/absent/|/optional/|/nccl_communicator")
  add_library(switchyard_${folder} STATIC ${sources})
  target_link_libraries(switchyard_${folder} PUBLIC switchyard_flags)
  target_link_libraries(switchyard_${folder} ${ARGN})
endfunction()

# switchyard_add_cuda(FOLDER PUBLIC targets PRIVATE targets): adds the folder's .cu files, but those
# of optional libraries, to its library and links the targets that they need.
function(switchyard_add_cuda folder)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${folder}/*.cu)
  list(FILTER sources EXCLUDE REGEX "/optional/")
  target_sources(switchyard_${folder} PRIVATE ${sources})
  target_link_libraries(switchyard_${folder} ${ARGN})
endfunction()
