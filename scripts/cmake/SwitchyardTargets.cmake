include_guard()

# Flags that every target of the project shares.
add_library(switchyard_flags INTERFACE)
target_include_directories(switchyard_flags INTERFACE ${CMAKE_SOURCE_DIR})
target_link_libraries(switchyard_flags INTERFACE OpenMP::OpenMP_CXX)
target_compile_options(switchyard_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor
  # GCC 12 warns of overlapping copies inside std::string where there are none (GCC bug 105329).
  -Wno-restrict
  # Nothing here reads errno or traps after arithmetic; both keep loops from being vectorised.
  # Sums keep their order: results must be repeatable, so no -ffast-math.
  -fno-math-errno -fno-trapping-math -ffp-contract=fast)
if(SWITCHYARD_NATIVE)
  # GCC prefers 256-bit vectors where 512 are there; the loops here are long enough for the latter.
  target_compile_options(switchyard_flags INTERFACE -march=native -mprefer-vector-width=512)
endif()
if(SWITCHYARD_WERROR)
  target_compile_options(switchyard_flags INTERFACE -Werror)
endif()
if(SWITCHYARD_SANITIZE)
  target_compile_options(switchyard_flags INTERFACE -fsanitize=address,undefined -fno-omit-frame-pointer)
  target_link_options(switchyard_flags INTERFACE -fsanitize=address,undefined)
endif()
if(SWITCHYARD_DEBUG_MEMORY)
  target_compile_definitions(switchyard_flags INTERFACE SWITCHYARD_DEBUG_MEMORY)
endif()

# switchyard_add_library(FOLDER PUBLIC targets PRIVATE targets): one static library per top-level folder, made of
# all its .cpp files but main.cpp.
function(switchyard_add_library folder)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${folder}/*.cpp)
  list(FILTER sources EXCLUDE REGEX "/main\\.cpp$")
  add_library(switchyard_${folder} STATIC ${sources})
  target_link_libraries(switchyard_${folder} PUBLIC switchyard_flags)
  target_link_libraries(switchyard_${folder} ${ARGN})
endfunction()
