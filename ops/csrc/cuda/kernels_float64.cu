// The kernels for values in float64.
#include "launch.cuh"

namespace salience_detr {
namespace gpu {

SALIENCE_DETR_KERNELS(double, double)

}  // namespace gpu
}  // namespace salience_detr
