// What of CUDA has to do more than to return 0 for torch, Triton and onnxruntime to believe in a device (see build.py).
// Parameters that do not matter here are left out. Device memory is the host's; a handle is any memory at all.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver_types.h"

enum { MAJOR = 9, MINOR = 0, PROCESSORS = 132, WARP = 32, SHARED_OPT_IN = 232448, SHARED_OF_PROCESSOR = 233472 };

static int capturing;

static int nothing(void) { return 0; }

static int room(void **pointer, size_t bytes) {
  *pointer = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  return *pointer ? 0 : cudaErrorMemoryAllocation;
}

static int handle(void **made) { return room(made, 256); }

static int release(void *pointer) {
  free(pointer);
  return 0;
}

static int wait(void) {
  if (capturing) fprintf(stderr, "a wait inside a capture\n");
  return 0;
}

static int copy(void *to, const void *from, size_t bytes, int kind) {
  if (capturing && kind != cudaMemcpyDeviceToDevice) fprintf(stderr, "a copy from or to the host inside a capture\n");
  memmove(to, from, bytes);
  return 0;
}

static int attribute(int *value, int which) {
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor: *value = MAJOR; break;
    case cudaDevAttrComputeCapabilityMinor: *value = MINOR; break;
    case cudaDevAttrMultiProcessorCount: *value = PROCESSORS; break;
    case cudaDevAttrWarpSize: *value = WARP; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = SHARED_OPT_IN; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = SHARED_OF_PROCESSOR; break;
    default: *value = 1024;
  }
  return 0;
}

// The runtime

int cudaGetDeviceCount(int *count) { return (*count = 1, 0); }
int cudaGetDevice(int *device) { return (*device = 0, 0); }
int cudaDeviceGetAttribute(int *value, int which) { return attribute(value, which); }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { return (*least = 0, *greatest = -5, 0); }
int cudaDeviceGetPCIBusId(char *id) { return (strcpy(id, "0000:00:00.0"), 0); }
int cudaRuntimeGetVersion(int *version) { return (*version = 13000, 0); }
int cudaDriverGetVersion(int *version) { return (*version = 13000, 0); }
int cudaMemGetInfo(size_t *unused, size_t *total) { return (*unused = *total = 12ull << 30, 0); }

int cudaGetDeviceProperties(struct cudaDeviceProp *p) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "no GPU at all");
  p->major = MAJOR;
  p->minor = MINOR;
  p->multiProcessorCount = PROCESSORS;
  p->warpSize = WARP;
  p->totalGlobalMem = 12ull << 30;
  p->l2CacheSize = 50 << 20;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = SHARED_OPT_IN;
  p->sharedMemPerMultiprocessor = SHARED_OF_PROCESSOR;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  return 0;
}

int cudaPointerGetAttributes(struct cudaPointerAttributes *a, void *pointer) {
  memset(a, 0, sizeof *a);
  a->type = cudaMemoryTypeDevice;
  a->devicePointer = pointer;
  return 0;
}

int cudaFuncGetAttributes(struct cudaFuncAttributes *a) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  return 0;
}

int cudaMalloc(void **pointer, size_t bytes) { return room(pointer, bytes); }
int cudaMallocAsync(void **pointer, size_t bytes) { return room(pointer, bytes); }
int cudaMallocFromPoolAsync(void **pointer, size_t bytes) { return room(pointer, bytes); }
int cudaMallocHost(void **pointer, size_t bytes) { return room(pointer, bytes); }
int cudaHostAlloc(void **pointer, size_t bytes) { return room(pointer, bytes); }
int cudaFree(void *pointer) { return release(pointer); }
int cudaFreeAsync(void *pointer) { return release(pointer); }
int cudaFreeHost(void *pointer) { return release(pointer); }
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) { return copy(to, from, bytes, kind); }
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind) { return copy(to, from, bytes, kind); }
int cudaMemset(void *to, int value, size_t bytes) { return (memset(to, value, bytes), 0); }
int cudaMemsetAsync(void *to, int value, size_t bytes) { return (memset(to, value, bytes), 0); }

int cudaStreamCreate(void **made) { return handle(made); }
int cudaStreamCreateWithFlags(void **made) { return handle(made); }
int cudaStreamCreateWithPriority(void **made) { return handle(made); }
int cudaMemPoolCreate(void **made) { return handle(made); }
int cudaEventCreate(void **made) { return handle(made); }
int cudaEventCreateWithFlags(void **made) { return handle(made); }
int cudaEventElapsedTime(float *ms) { return (*ms = 1, 0); }
int cudaStreamGetPriority(void *stream, int *priority) { return (*priority = 0, 0); }
int cudaStreamSynchronize(void) { return wait(); }
int cudaEventSynchronize(void) { return wait(); }
int cudaDeviceSynchronize(void) { return wait(); }

int cudaStreamBeginCapture(void) { return (capturing = 1, 0); }
int cudaStreamIsCapturing(void *stream, int *is) { return (*is = capturing, 0); }
int cudaStreamEndCapture(void *stream, void **graph) { return (capturing = 0, handle(graph)); }
int cudaGraphInstantiate(void **made) { return handle(made); }
int cudaGraphInstantiateWithFlags(void **made) { return handle(made); }
int cudaGraphGetNodes(void *graph, void *nodes, size_t *count) { return (*count = 1, 0); }

int cudaStreamGetCaptureInfo(void *stream, int *is, unsigned long long *id, void **graph, void **dependencies,
                             void **edges, size_t *count) {
  *is = capturing;
  if (id) *id = 1;
  if (graph) *graph = &capturing;
  if (dependencies) *dependencies = NULL;
  if (edges) *edges = NULL;
  if (count) *count = 0;
  return 0;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *count) { return (*count = 2, 0); }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count) { return (*count = 2, 0); }
int cudaGetDriverEntryPointByVersion(const char *name, void **entry) { return (*entry = (void *)nothing, 0); }
const char *cudaGetErrorString(void) { return "none"; }
const char *cudaGetErrorName(void) { return "none"; }
void *__cudaRegisterFatBinary(void) { return malloc(256); }

// The driver, as Triton and torch call it

int cuDeviceGet(int *device) { return (*device = 0, 0); }
int cuDeviceGetCount(int *count) { return (*count = 1, 0); }
int cuDeviceGetAttribute(int *value, int which) { return attribute(value, which); }  // numbered as the runtime's
int cuDevicePrimaryCtxRetain(void **made) { return handle(made); }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { return (*flags = 0, *active = 1, 0); }
int cuCtxGetCurrent(void **made) { return handle(made); }
int cuModuleLoadData(void **made) { return handle(made); }
int cuModuleGetFunction(void **made) { return handle(made); }
int cuFuncGetAttribute(int *value, int which) { return (*value = which ? 0 : 1024, 0); }  // 0 is the most threads
int cuPointerGetAttribute(void **value, int which, void *pointer) { return (*value = pointer, 0); }
int cuOccupancyMaxActiveClusters(int *count) { return (*count = 1, 0); }
int cuGetErrorString(int error, const char **text) { return (*text = "none", 0); }

// cuBLAS and cuDNN

int cublasCreate_v2(void **made) { return handle(made); }
int cublasGetVersion_v2(void *library, int *version) { return (*version = 130000, 0); }
int cublasLtCreate(void **made) { return handle(made); }
int cublasLtMatmulDescCreate(void **made) { return handle(made); }
int cublasLtMatrixLayoutCreate(void **made) { return handle(made); }
int cublasLtMatmulPreferenceCreate(void **made) { return handle(made); }
size_t cublasLtGetVersion(void) { return 130000; }

int cublasLtMatmulAlgoGetHeuristic(void *library, void *product, void *a, void *b, void *c, void *d, void *preference,
                                   int asked, void *found, int *count) {
  memset(found, 0, 96);  // sizeof(cublasLtMatmulHeuristicResult_t)
  *count = 1;
  return 0;
}

int cudnnCreate(void **made) { return handle(made); }
size_t cudnnGetVersion(void) { return 91000; }  // with newer ones onnxruntime has attention planned by it
const char *cudnnGetErrorString(void) { return "none"; }
