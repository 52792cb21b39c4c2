/* Device memory, pinned memory, and copies.
 *
 * Device memory is address space, which the host backs with pages of zeros as they are touched. Small
 * copies are done, so that values that the host gave come back to it. Large ones are counted only:
 * done, the weights of a large model would take host memory.
 */
#define _GNU_SOURCE
#include "null_gpu.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define LARGEST_COPY ((size_t)1 << 20)
#define GIB ((size_t)1 << 30)
#define PAGE ((size_t)2 << 20)
/* Addresses are never given out twice, so that a use after a free is not hidden. */
#define ADDRESS_SPACE ((size_t)8 << 40)
#define MOST_BLOCKS (1 << 16)

struct block {
  char *start;
  size_t size;
  bool is_pinned; /* else on the device */
};

static struct block blocks[MOST_BLOCKS];
static int num_blocks;
static char *device_start, *next_address;
static size_t used, capacity = 80 * GIB;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *reserve(size_t size) {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void *start = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (start == MAP_FAILED) {
    perror("null GPU: mmap");
    abort();
  }
  return start;
}

static void set_up(void) {
  if (device_start) return;
  const char *gib = getenv("NULL_GPU_GIB");
  if (gib) capacity = (size_t)atol(gib) * GIB;
  next_address = device_start = reserve(ADDRESS_SPACE);
}

static void remember(char *start, size_t size, bool is_pinned) {
  int place = 0;
  while (place < num_blocks && blocks[place].start) place++;
  if (place == MOST_BLOCKS) {
    fprintf(stderr, "null GPU: more than %d blocks of memory\n", MOST_BLOCKS);
    abort();
  }
  blocks[place] = (struct block){start, size, is_pinned};
  if (place == num_blocks) num_blocks++;
}

/* The block that begins at an address, or NULL. */
static struct block *find_block(const void *start) {
  for (int i = 0; i < num_blocks; i++)
    if (blocks[i].start == start) return &blocks[i];
  return NULL;
}

bool is_on_device(const void *address) {
  const char *a = address;
  return device_start && a >= device_start && a < device_start + ADDRESS_SPACE;
}

static bool is_pinned(const void *address) {
  const char *a = address;
  for (int i = 0; i < num_blocks; i++) {
    struct block *block = &blocks[i];
    if (block->is_pinned && a >= block->start && a < block->start + block->size) return true;
  }
  return false;
}

cudaError_t cudaMalloc(void **out, size_t size) {
  count(allocations);
  *out = NULL;
  pthread_mutex_lock(&lock);
  set_up();
  bool fits = used + size <= capacity;
  if (fits) {
    *out = next_address;
    remember(next_address, size, false);
    used += size;
    next_address += (size + PAGE - 1) / PAGE * PAGE;
  }
  pthread_mutex_unlock(&lock);
  return fits ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFree(void *start) {
  count(frees);
  /* `cudaFree(0)` is how libraries start CUDA. */
  if (!start) return cudaSuccess;
  pthread_mutex_lock(&lock);
  struct block *block = find_block(start);
  if (block) {
    madvise(start, block->size, MADV_DONTNEED);
    used -= block->size;
    block->start = NULL;
  }
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void **out, size_t size, cudaStream_t stream) {
  return cudaMalloc(out, size);
}
cudaError_t cudaFreeAsync(void *start, cudaStream_t stream) { return cudaFree(start); }

/* ---- virtual memory, for the driver: addresses, and memory that may lie behind them ---- */

int null_gpu_reserve_addresses(unsigned long *out, size_t size) {
  pthread_mutex_lock(&lock);
  set_up();
  *out = (unsigned long)next_address;
  next_address += (size + PAGE - 1) / PAGE * PAGE;
  pthread_mutex_unlock(&lock);
  return OK;
}

/* The handle is where the size is kept. */
int null_gpu_create_memory(unsigned long *handle, size_t size) {
  count(allocations);
  pthread_mutex_lock(&lock);
  set_up();
  bool fits = used + size <= capacity;
  if (fits) used += size;
  pthread_mutex_unlock(&lock);
  if (!fits) return cudaErrorMemoryAllocation;
  size_t *kept = malloc(sizeof *kept);
  *kept = size;
  *handle = (unsigned long)kept;
  return OK;
}

int null_gpu_release_memory(unsigned long handle) {
  count(frees);
  size_t *kept = (size_t *)handle;
  pthread_mutex_lock(&lock);
  used -= *kept;
  pthread_mutex_unlock(&lock);
  free(kept);
  return OK;
}

int null_gpu_unmap_memory(unsigned long start, size_t size) {
  madvise((void *)start, size, MADV_DONTNEED);
  return OK;
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  set_up();
  *total = capacity;
  *free = capacity - used;
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **out, size_t size, unsigned flags) {
  count(pinned_allocations);
  *out = reserve(size + 1);
  return cudaHostRegister(*out, size, flags);
}

cudaError_t cudaFreeHost(void *start) {
  pthread_mutex_lock(&lock);
  struct block *block = find_block(start);
  if (block) {
    munmap(start, block->size + 1);
    block->start = NULL;
  }
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}

cudaError_t cudaHostRegister(void *start, size_t size, unsigned flags) {
  pthread_mutex_lock(&lock);
  remember(start, size, true);
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *start) {
  pthread_mutex_lock(&lock);
  struct block *block = find_block(start);
  if (block) block->start = NULL;
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *address) {
  memset(attributes, 0, sizeof *attributes);
  void *same = (void *)address;
  if (is_on_device(address)) {
    attributes->type = cudaMemoryTypeDevice;
    attributes->devicePointer = same;
  } else if (is_pinned(address)) {
    attributes->type = cudaMemoryTypeHost;
    attributes->hostPointer = attributes->devicePointer = same;
  } else {
    attributes->type = cudaMemoryTypeUnregistered;
    attributes->device = -1;
  }
  return cudaSuccess;
}

/* ---- copies ---- */

static void count_copy(enum counter copies, enum counter bytes, size_t size, const void *host) {
  count_operation(copies);
  add(bytes, size);
  /* The driver copies such memory through a pinned buffer of its own, and the host waits. */
  if (host && !is_pinned(host)) count_wait(pageable_copies, "pageable copy");
}

static cudaError_t copy(void *to, const void *from, size_t size) {
  if (is_on_device(to) && is_on_device(from))
    count_copy(copies_on_device, bytes_on_device, size, NULL);
  else if (is_on_device(to))
    count_copy(copies_to_device, bytes_to_device, size, from);
  else
    count_copy(copies_to_host, bytes_to_host, size, to);

  if (size <= LARGEST_COPY)
    memmove(to, from, size);
  else if (!is_on_device(to))
    memset(to, 0, size);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  copy(to, from, size);
  count_wait(stream_waits, "blocking copy");
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return copy(to, from, size);
}

cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device,
                                size_t size, cudaStream_t stream) {
  return copy(to, from, size);
}

cudaError_t cudaMemcpyToSymbol(const void *symbol, const void *from, size_t size, size_t offset,
                               enum cudaMemcpyKind kind) {
  return cudaSuccess;
}

cudaError_t cudaMemset(void *start, int value, size_t size) {
  count_operation(memsets);
  /* Pages are zeros until they are touched: large memory that is to be zero stays untouched. */
  if (value || size <= LARGEST_COPY) memset(start, value, size);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *start, int value, size_t size, cudaStream_t stream) {
  return cudaMemset(start, value, size);
}

cudaError_t cudaGetSymbolAddress(void **out, const void *symbol) { return cudaMalloc(out, PAGE); }

/* ---- memory of other processes: there is none ---- */

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *start) { return cudaSuccess; }
cudaError_t cudaIpcOpenMemHandle(void **out, cudaIpcMemHandle_t handle, unsigned flags) {
  return cudaErrorNotSupported;
}
cudaError_t cudaIpcCloseMemHandle(void *start) { return cudaSuccess; }
cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t *handle, cudaEvent_t event) {
  return cudaSuccess;
}
cudaError_t cudaIpcOpenEventHandle(cudaEvent_t *out, cudaIpcEventHandle_t handle) {
  return cudaErrorNotSupported;
}

/* ---- CUDA's own memory pools, which torch uses only if asked to ---- */

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) {
  *pool = new_handle();
  return cudaSuccess;
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute,
                                    void *value) {
  *(uint64_t *)value = 0;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute,
                                    void *value) {
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAccess(cudaMemPool_t pool, const struct cudaMemAccessDesc *access,
                                 size_t number) {
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t size) { return cudaSuccess; }
