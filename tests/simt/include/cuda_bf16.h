#pragma once

// Stands in for the CUDA toolkit's header. It is empty: kernels need none of it on the host.
