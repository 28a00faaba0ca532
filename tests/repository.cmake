# Tests of the source tree itself.
add_test(NAME layering COMMAND ${SYSTEM_PYTHON} ${CMAKE_SOURCE_DIR}/scripts/check_layering.py)
add_test(NAME format COMMAND ${SYSTEM_PYTHON} ${CMAKE_SOURCE_DIR}/scripts/check_format.py)
file(GLOB script_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/scripts/*_test.py)
foreach(test ${script_tests})
  cmake_path(GET test STEM name)
  add_test(NAME scripts_${name} COMMAND ${SYSTEM_PYTHON} ${test})
endforeach()

# Compares the program with its specification, scripts/reference_model.py, for every kind of model.
add_executable(write_case ${CMAKE_CURRENT_SOURCE_DIR}/witness/write_case.cpp)
target_link_libraries(write_case PRIVATE switchyard_trainer switchyard_test_support)
add_test(NAME reference_model
         COMMAND ${SYSTEM_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/witness/reference_model_test.py
                 $<TARGET_FILE:write_case>)
# Compares exported folders with an independent reader of theirs.
add_test(NAME export
         COMMAND ${SYSTEM_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/witness/export_test.py
                 $<TARGET_FILE:write_case> $<TARGET_FILE:switchyard>)
# What scripts/smollm2_check.py compares with transformers.
add_executable(write_logits ${CMAKE_CURRENT_SOURCE_DIR}/witness/write_logits.cpp)
target_link_libraries(write_logits PRIVATE switchyard_trainer)
set_tests_properties(reference_model export PROPERTIES TIMEOUT 300 ENVIRONMENT OMP_NUM_THREADS=1)

# Every header must compile on its own. A .cpp file's own header is its first include
# (check_layering.py), so only headers without one need a translation unit of their own, unoptimised
# and never linked.
file(GLOB_RECURSE headers RELATIVE ${CMAKE_SOURCE_DIR} CONFIGURE_DEPENDS
  ${CMAKE_SOURCE_DIR}/kernels/*.h ${CMAKE_SOURCE_DIR}/parallel/*.h ${CMAKE_SOURCE_DIR}/layers/*.h
  ${CMAKE_SOURCE_DIR}/optim/*.h ${CMAKE_SOURCE_DIR}/trainer/*.h)
# Only .cu files include these headers, which are compiled with them.
list(FILTER headers EXCLUDE REGEX "^kernels/cuda/")
set(header_sources)
foreach(header ${headers})
  string(REGEX REPLACE "h$" "cpp" own_source ${CMAKE_SOURCE_DIR}/${header})
  if(EXISTS ${own_source})
    continue()
  endif()
  set(source ${CMAKE_CURRENT_BINARY_DIR}/headers/${header}.cpp)
  file(CONFIGURE OUTPUT ${source} CONTENT "#include \"${header}\"\n")
  list(APPEND header_sources ${source})
endforeach()
add_library(standalone_headers OBJECT ${header_sources})
target_compile_options(standalone_headers PRIVATE -O0)
target_include_directories(standalone_headers
                           PRIVATE $<TARGET_PROPERTY:switchyard_kernels,INCLUDE_DIRECTORIES>)
target_link_libraries(standalone_headers PRIVATE
  switchyard_trainer MPI::MPI_C OneDNN::OneDNN Random123::Random123 HDF5::HDF5 yaml-cpp CLI11::CLI11
  SentencePiece::train)

# Tests of the program from the command line: switchyard_add_program_test(NAME SCRIPT arguments).
function(switchyard_add_program_test name script)
  add_test(NAME ${name}
           COMMAND ${SYSTEM_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/end_to_end/${script}_test.py
                   $<TARGET_FILE:switchyard> ${MPIEXEC_EXECUTABLE} ${ARGN})
  set_tests_properties(${name} PROPERTIES TIMEOUT 900)
endfunction()
switchyard_add_program_test(end_to_end cli)
switchyard_add_program_test(end_to_end_data data)
switchyard_add_program_test(end_to_end_hash hash)
switchyard_add_program_test(end_to_end_tasks tasks)
switchyard_add_program_test(end_to_end_team team)
switchyard_add_program_test(end_to_end_settings settings)
switchyard_add_program_test(end_to_end_signals signal)
switchyard_add_program_test(end_to_end_owner owner)
switchyard_add_program_test(end_to_end_run_folder run_folder)
switchyard_add_program_test(end_to_end_interop interop)
switchyard_add_program_test(end_to_end_plan plan)
switchyard_add_program_test(end_to_end_tokenizers tokenizers)
switchyard_add_program_test(end_to_end_study study)
switchyard_add_program_test(failures failure cpu)
switchyard_add_program_test(end_to_end_links links
  $<TARGET_FILE:communicator_test>,$<TARGET_FILE:expert_exchange_test>)
# It is skipped where it may not make network namespaces.
set_tests_properties(end_to_end_links PROPERTIES SKIP_RETURN_CODE 77)
# Programs spend most of their time in starting and ending; two or three of them share two cores
# well. These two measure moments, and these two need the cores for themselves.
set_tests_properties(end_to_end_signals end_to_end_owner PROPERTIES PROCESSORS 2)
set_tests_properties(end_to_end_team end_to_end_links PROPERTIES RUN_SERIAL ON)
