/* libcuda.so.1: what torch, Inductor and Triton ask of the driver.
 *
 * A library of its own, since they load it by name. The counters are in the other one, which is in
 * the process already. Without CUDA's header, whose macros give functions other names.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 801 };

/* Numbers of attributes, from cuda.h. */
enum {
  FUNCTION_MAX_THREADS = 0,
  FUNCTION_REGISTERS = 4,
  POINTER_DEVICE_ADDRESS = 3,
};

/* Call a function of the other library that has no result. */
static void call(const char *name) {
  void (*function)(void) = (void (*)(void))dlsym(RTLD_DEFAULT, name);
  if (function) function();
}

static int give_handle(void **out) {
  static long next = 0x7000000;
  *out = (void *)__sync_fetch_and_add(&next, 16);
  return OK;
}

/* ---- devices ---- */

int cuInit(unsigned flags) { return OK; }
int cuDriverGetVersion(int *version) {
  *version = 13000;
  return OK;
}
int cuDeviceGet(int *device, int ordinal) {
  *device = ordinal;
  return OK;
}
int cuDeviceGetCount(int *number) {
  int (*count)(int *) = (int (*)(int *))dlsym(RTLD_DEFAULT, "cudaGetDeviceCount");
  return count(number);
}
int cuDeviceGetName(char *name, int size, int device) {
  snprintf(name, size, "NVIDIA H100 80GB HBM3 (null)");
  return OK;
}
/* The runtime's attributes have the driver's numbers. */
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  int (*get)(int *, int, int) = (int (*)(int *, int, int))dlsym(RTLD_DEFAULT, "cudaDeviceGetAttribute");
  return get(value, attribute, device);
}

/* ---- contexts: one ---- */

static int context;
static __thread void *current = &context;

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *is_active) {
  if (flags) *flags = 0;
  /* On other devices torch would make streams and wait for them at its end. */
  *is_active = device == 0;
  return OK;
}
int cuDevicePrimaryCtxRetain(void **out, int device) {
  *out = &context;
  return OK;
}
int cuCtxGetCurrent(void **out) {
  *out = current;
  return OK;
}
int cuCtxSetCurrent(void *chosen) {
  current = chosen;
  return OK;
}
int cuCtxGetDevice(int *device) {
  *device = 0;
  return OK;
}
int cuCtxGetLimit(size_t *value, int limit) {
  *value = 0;
  return OK;
}
int cuCtxSetLimit(int limit, size_t value) { return OK; }

/* ---- modules and kernels ---- */

static int load(void **module) {
  call("null_gpu_count_module");
  return give_handle(module);
}
int cuModuleLoad(void **module) { return load(module); }
int cuModuleLoadData(void **module) { return load(module); }
int cuModuleLoadDataEx(void **module) { return load(module); }
int cuModuleUnload(void *module) { return OK; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
  return give_handle(function);
}
int cuFuncGetAttribute(int *value, int attribute, void *function) {
  *value = attribute == FUNCTION_MAX_THREADS ? 1024 : attribute == FUNCTION_REGISTERS ? 128 : 0;
  return OK;
}
int cuFuncSetAttribute(void *function, int attribute, int value) { return OK; }
int cuFuncSetCacheConfig(void *function, int config) { return OK; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *number) {
  *number = 2;
  return OK;
}
int cuOccupancyMaxActiveClusters(int *number) {
  *number = 2;
  return OK;
}

static int launch(void) {
  call("null_gpu_count_triton_launch");
  return OK;
}
int cuLaunchKernel() { return launch(); }
int cuLaunchKernelEx() { return launch(); }
int cuLaunchCooperativeKernel() { return launch(); }

/* ---- pointers and errors ---- */

int cuPointerGetAttribute(void *value, int attribute, unsigned long address) {
  if (attribute == POINTER_DEVICE_ADDRESS)
    *(unsigned long *)value = address;
  else
    memset(value, 0, sizeof(int));
  return OK;
}
int cuPointerGetAttributes(unsigned number, int *attributes, void **values, unsigned long address) {
  return OK;
}
int cuGetErrorString(int error, const char **text) {
  *text = "error of the null GPU's driver";
  return OK;
}

/* ---- virtual memory, of which torch's allocator makes expandable segments: the other library has
 * the addresses, and counts what is in use ---- */

typedef unsigned long address_t;

int cuMemGetAllocationGranularity(size_t *bytes) {
  *bytes = 2097152;
  return OK;
}
int cuMemAddressReserve(address_t *out, size_t size, size_t alignment, address_t wish,
                        unsigned long flags) {
  int (*reserve)(address_t *, size_t) =
      (int (*)(address_t *, size_t))dlsym(RTLD_DEFAULT, "null_gpu_reserve_addresses");
  return reserve(out, size);
}
int cuMemCreate(unsigned long *handle, size_t size, const void *properties, unsigned long flags) {
  int (*create)(unsigned long *, size_t) =
      (int (*)(unsigned long *, size_t))dlsym(RTLD_DEFAULT, "null_gpu_create_memory");
  return create(handle, size);
}
int cuMemRelease(unsigned long handle) {
  int (*release)(unsigned long) =
      (int (*)(unsigned long))dlsym(RTLD_DEFAULT, "null_gpu_release_memory");
  return release(handle);
}
int cuMemUnmap(address_t start, size_t size) {
  int (*unmap)(address_t, size_t) =
      (int (*)(address_t, size_t))dlsym(RTLD_DEFAULT, "null_gpu_unmap_memory");
  return unmap(start, size);
}
int cuMemMap(address_t start, size_t size, size_t offset, unsigned long handle,
             unsigned long flags) {
  return OK;
}
int cuMemSetAccess(address_t start, size_t size, const void *description, size_t number) {
  return OK;
}
/* Addresses are never given out twice. */
int cuMemAddressFree(address_t start, size_t size) { return OK; }

/* ---- asked for when torch starts, and never used ---- */

#define ACCEPTED(name) int name() { return OK; }
#define REFUSED(name) int name() { return NOT_SUPPORTED; }
ACCEPTED(cuTensorMapEncodeTiled)
ACCEPTED(cuTensorMapEncodeIm2col)
ACCEPTED(cuLinkCreate_v2)
ACCEPTED(cuLinkAddData_v2)
ACCEPTED(cuLinkComplete)
ACCEPTED(cuStreamWriteValue32)
ACCEPTED(cuStreamWaitValue32)
ACCEPTED(cuMemGetAddressRange)
REFUSED(cuMemRetainAllocationHandle)
REFUSED(cuMemGetAllocationPropertiesFromHandle)
REFUSED(cuMemsetD32Async)
REFUSED(cuGreenCtxDestroy)
REFUSED(cuGreenCtxStreamCreate)
REFUSED(cuDevSmResourceSplitByCount)
REFUSED(cuDeviceGetDevResource)
REFUSED(cuCtxPopCurrent)
REFUSED(cuCtxPushCurrent)
REFUSED(cuMemExportToShareableHandle)
REFUSED(cuMemImportFromShareableHandle)
REFUSED(cuMulticastCreate)
REFUSED(cuMulticastAddDevice)
REFUSED(cuMulticastBindMem)
REFUSED(cuMulticastUnbind)
REFUSED(cuGetProcAddress)
REFUSED(cuGreenCtxCreate)
REFUSED(cuCtxFromGreenCtx)
REFUSED(cuDevResourceGenerateDesc)
