// The kernels for values in float32.
#include "launch.cuh"

namespace salience_detr {
namespace gpu {

SALIENCE_DETR_KERNELS(float, float)

}  // namespace gpu
}  // namespace salience_detr
