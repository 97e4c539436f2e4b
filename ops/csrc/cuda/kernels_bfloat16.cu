// The kernels for values in bfloat16.
#include <c10/util/BFloat16.h>

#include "launch.cuh"

namespace salience_detr {
namespace gpu {

SALIENCE_DETR_KERNELS(c10::BFloat16, c10::BFloat16)
SALIENCE_DETR_KERNELS(c10::BFloat16, float)

}  // namespace gpu
}  // namespace salience_detr
