#pragma once

// Stands in for the CUDA toolkit's header, of which kernels use nothing when they run on the host.
