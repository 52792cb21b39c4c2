/* Kernels: counted, by name if NULL_GPU_KERNEL_NAMES is set, and not run. */
#include "null_gpu.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_KERNELS = 200000, MOST_NESTED = 16 };

struct kernel {
  const void *function; /* the host's stand-in for it, by which it is launched */
  const char *name;
  long launches;
};
static struct kernel kernels[MOST_KERNELS];
static int num_kernels;

static cudaError_t launch(const void *function) {
  count_operation(launches);
  if (!getenv("NULL_GPU_KERNEL_NAMES")) return cudaSuccess;
  for (int i = 0; i < num_kernels; i++)
    if (kernels[i].function == function) {
      __sync_fetch_and_add(&kernels[i].launches, 1);
      break;
    }
  return cudaSuccess;
}

/* Names and launches of at most `most` kernels since the last call; how many. For counters.py. */
int null_gpu_kernels(const char **names, long *launches, int most) {
  int found = 0;
  for (int i = 0; i < num_kernels && found < most; i++) {
    if (!kernels[i].launches) continue;
    names[found] = kernels[i].name;
    launches[found++] = kernels[i].launches;
    kernels[i].launches = 0;
  }
  return found;
}

/* ---- what nvcc makes of `kernel<<<grid, block>>>(...)`; not in the public headers ---- */

void **__cudaRegisterFatBinary(void *code) {
  static void *handle[1];
  return handle;
}
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}
void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int external,
                       size_t size, int constant, int global) {}

void __cudaRegisterFunction(void **handle, const char *function, char *device_function,
                            const char *name, int thread_limit, void *thread, void *block,
                            void *block_size, void *grid_size, int *warp_size) {
  if (num_kernels < MOST_KERNELS) kernels[num_kernels++] = (struct kernel){function, name, 0};
}

/* A launch pushes its configuration, and the host's stand-in pops it. */
struct configuration {
  dim3 grid, block;
  size_t shared_memory;
  void *stream;
};
static __thread struct configuration pushed[MOST_NESTED];
static __thread int num_pushed;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_memory, void *stream) {
  pushed[num_pushed++ % MOST_NESTED] = (struct configuration){grid, block, shared_memory, stream};
  return OK;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_memory,
                                       void *stream) {
  struct configuration last = pushed[--num_pushed % MOST_NESTED];
  *grid = last.grid;
  *block = last.block;
  *shared_memory = last.shared_memory;
  *(void **)stream = last.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
  *kernel = (cudaKernel_t)function;
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments,
                               size_t shared_memory, cudaStream_t stream) {
  return launch(kernel);
}
cudaError_t __cudaLaunchKernel_ptsz(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments,
                                    size_t shared_memory, cudaStream_t stream) {
  return launch(kernel);
}

/* ---- the public ways to launch ---- */

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments,
                             size_t shared_memory, cudaStream_t stream) {
  return launch(function);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function,
                                void **arguments) {
  return launch(function);
}
cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block,
                                        void **arguments, size_t shared_memory,
                                        cudaStream_t stream) {
  return launch(function);
}

/* ---- what is asked about kernels ---- */

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->ptxVersion = attributes->binaryVersion = 90;
  attributes->maxDynamicSharedSizeBytes = 232448;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute,
                                 int value) {
  return cudaSuccess;
}
cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t kernel, enum cudaFuncAttribute attribute,
                                            int value, int device) {
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks,
                                                                   const void *function,
                                                                   int threads, size_t memory,
                                                                   unsigned flags) {
  *blocks = 2;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function,
                                                          int threads, size_t memory) {
  *blocks = 2;
  return cudaSuccess;
}

/* ---- code that is loaded while the program runs ---- */

cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code,
                                enum cudaJitOption *options, void **values, unsigned number,
                                enum cudaLibraryOption *library_options, void **library_values,
                                unsigned number_of_library) {
  *library = new_handle();
  return cudaSuccess;
}
cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t library, const char *name) {
  *kernel = new_handle();
  return cudaSuccess;
}
cudaError_t cudaLibraryUnload(cudaLibrary_t library) { return cudaSuccess; }

/* A function of the driver by its name. */
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
  static void *driver;
  if (!driver) driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_GLOBAL);
  *function = driver ? dlsym(driver, name) : NULL;
  if (result)
    *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  if (!*function) fprintf(stderr, "null GPU: the driver has no %s\n", name);
  return cudaSuccess;
}
