#pragma once

// For dispatch.h: the bodies of an op. CMake chooses this file or the one in present/.

// No stream of a CUDA device can be made in this build.
#define SWITCHYARD_OP_BODY(device, name) (&cpu::name)
