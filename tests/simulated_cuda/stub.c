// A CUDA runtime with one device on which nothing can be done, for LD_PRELOAD as libcuda.so.1.
// Autograd asks it for devices, streams and events, and then believes that a device is there.
// Calls of the driver fail with CUDA_ERROR_NO_DEVICE: they are there to be found, not to work.

#define NO_DEVICE 100

int cudaGetDeviceCount(int* count) { *count = 1; return 0; }
int cudaGetDevice(int* device) { *device = 0; return 0; }
int cudaStreamIsCapturing(void* stream, int* status) { *status = 0; return 0; }
int cudaStreamGetPriority(void* stream, int* priority) { *priority = 0; return 0; }
int cudaEventCreateWithFlags(void** event, unsigned flags) { *event = (void*)1; return 0; }

int cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = 0;
    return 0;
}

#define SUCCEEDS(name) int name() { return 0; }
SUCCEEDS(cudaSetDevice)
SUCCEEDS(cudaGetLastError)
SUCCEEDS(cudaPeekAtLastError)
SUCCEEDS(cudaStreamSynchronize)
SUCCEEDS(cudaStreamWaitEvent)
SUCCEEDS(cudaStreamQuery)
SUCCEEDS(cudaDeviceSynchronize)
SUCCEEDS(cudaEventRecord)
SUCCEEDS(cudaEventRecordWithFlags)
SUCCEEDS(cudaEventQuery)
SUCCEEDS(cudaEventDestroy)

int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
    *flags = 0;
    *active = 0;
    return 0;
}

#define FAILS(name) int name() { return NO_DEVICE; }
FAILS(cuCtxGetCurrent)
FAILS(cuCtxSetCurrent)
FAILS(cuDeviceGet)
FAILS(cuDeviceGetAttribute)
FAILS(cuDevicePrimaryCtxRetain)
FAILS(cuFuncGetAttribute)
FAILS(cuFuncSetAttribute)
FAILS(cuFuncSetCacheConfig)
FAILS(cuGetErrorString)
FAILS(cuLaunchCooperativeKernel)
FAILS(cuLaunchKernel)
FAILS(cuLinkAddData_v2)
FAILS(cuLinkComplete)
FAILS(cuLinkCreate_v2)
FAILS(cuModuleGetFunction)
FAILS(cuModuleLoad)
FAILS(cuModuleLoadData)
FAILS(cuModuleLoadDataEx)
FAILS(cuModuleUnload)
FAILS(cuOccupancyMaxActiveBlocksPerMultiprocessor)
FAILS(cuPointerGetAttribute)
FAILS(cuTensorMapEncodeTiled)
