#pragma once

// GCC's header names the function that frees what another allocated, `__malloc__ (omp_free)`, since
// GCC 11. Clang's attribute takes no argument and refuses it; the attribute without one stays.
#define __malloc__(deallocator)
#include_next <omp.h>
#undef __malloc__
