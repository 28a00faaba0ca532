include_guard()

# SWITCHYARD_CUDA: AUTO compiles the CUDA kernels if there is a CUDA compiler (a GPU is needed to
# run them, never to build them), ON fails without one, OFF builds without CUDA.
set(SWITCHYARD_CUDA AUTO CACHE STRING "CUDA kernels: AUTO, ON or OFF")
set_property(CACHE SWITCHYARD_CUDA PROPERTY STRINGS AUTO ON OFF)

set(SWITCHYARD_WITH_CUDA OFF)
if(NOT SWITCHYARD_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  # NVIDIA's packages install nvcc in a folder that is not in PATH by default.
  find_program(SWITCHYARD_NVCC nvcc HINTS ENV CUDACXX PATHS /usr/local/cuda/bin)
  if(SWITCHYARD_NVCC AND NOT CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_COMPILER ${SWITCHYARD_NVCC})
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT CMAKE_CUDA_ARCHITECTURES)
      # A100 and Hopper; newer devices compile the PTX of the last architecture.
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
    endif()
    # CMake 3.25 does not know that nvcc 12 and later speak C++20.
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    # The first that keeps the order of several groups' collectives.
    find_package(NCCL 2.26)
    if(NOT NCCL_FOUND)
      message(STATUS "Without NCCL, ranks exchange device memory through the host: install "
                     "libnccl-dev 2.26 or later, or set NCCL_ROOT")
    endif()
    # Faster ways for some ops; kernels/cuda/absent/ stands in for those that are not there.
    find_package(CUBLAS REQUIRED)
    if(NOT CUBLAS_HAS_GROUPED)
      message(STATUS "cuBLAS ${CUBLAS_VERSION} has no grouped products whose sizes are on the "
                     "device, so experts do without: set CUBLAS_ROOT to 13.8.1 or later")
    endif()
    find_package(CUDNN 9)
    if(NOT CUDNN_FOUND)
      message(STATUS "Without the headers of cuDNN 9 and its C++ frontend, attention uses the "
                     "kernels of this project: set CUDNN_ROOT and CUDNN_FRONTEND_ROOT")
    endif()
    find_package(CUTLASS 4.2)
    set(SWITCHYARD_WITH_CUTLASS OFF)
    if(NOT CUTLASS_FOUND)
      message(STATUS "Without the headers of CUTLASS 4.2, experts compute products and activations "
                     "one after the other: set CUTLASS_ROOT")
    elseif(NOT CMAKE_CUDA_ARCHITECTURES MATCHES "90|all|native")
      message(STATUS "CUTLASS is left out, because CMAKE_CUDA_ARCHITECTURES has no Hopper (90)")
    else()
      set(SWITCHYARD_WITH_CUTLASS ON)
    endif()
    set(SWITCHYARD_WITH_CUDA ON)
  elseif(SWITCHYARD_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SWITCHYARD_CUDA=ON, but there is no CUDA compiler: install the CUDA "
                        "Toolkit, set CUDACXX to its nvcc, or configure with SWITCHYARD_CUDA=OFF")
  endif()
endif()
