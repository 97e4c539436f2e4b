// The kernels for values in float16.
#include <c10/util/Half.h>

#include "launch.cuh"

namespace salience_detr {
namespace gpu {

SALIENCE_DETR_KERNELS(c10::Half, c10::Half)
SALIENCE_DETR_KERNELS(c10::Half, float)

}  // namespace gpu
}  // namespace salience_detr
