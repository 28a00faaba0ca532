#pragma once

// For dispatch.h: the bodies of an op. CMake chooses this file or the one in present/.

// Always the CPU's body: a build without CUDA cannot create a stream of a CUDA device.
#define SWITCHYARD_OP_BODY(device, name) (&cpu::name)
