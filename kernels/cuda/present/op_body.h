#pragma once

// For dispatch.h: the bodies of an op. CMake chooses this file or the one in absent/.

// cpu::name or cuda::name, by the kind of `device`.
#define SWITCHYARD_OP_BODY(device, name) \
  ((device).kind == ::switchyard::DeviceKind::cuda ? &cuda::name : &cpu::name)
