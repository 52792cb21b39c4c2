/* NCCL: each call is written down, with its size and its communicator; nothing is sent.
 *
 * What this rank says, all ranks are taken to say: results up to LARGEST_RESULT are copies of its own
 * part, so that what ranks compare at the start agrees. Errors and hangs are told by files, whose
 * names NULL_GPU_NCCL_ERROR and NULL_GPU_HANG give.
 */
#include "null_gpu.h"

/* nccl.h includes the headers of two number types, which it does not use. One of them needs a header
 * that pip's CUDA lacks. */
#define __CUDA_FP16_H__
#define __CUDA_BF16_H__
#include <nccl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LARGEST_PART ((size_t)1 << 20)
#define LARGEST_RESULT ((size_t)64 << 20)
enum { MOST_CALLS = 1 << 16, NO_PEER = -1 };

struct ncclComm {
  int rank, ranks;
  /* torch reads the beginning of the real structure. */
  char padding[4088];
};

/* As `_Call` in counters.py. */
struct nccl_call {
  char kind[24];
  long count;
  int type, ranks, peer;
};
static struct nccl_call calls[MOST_CALLS];
static int num_calls;

struct nccl_call *null_gpu_nccl_calls(int *number) {
  *number = num_calls < MOST_CALLS ? num_calls : MOST_CALLS;
  return calls;
}
void null_gpu_forget_nccl_calls(void) { num_calls = 0; }

static ncclResult_t note(const char *kind, size_t elements, int type, ncclComm_t comm, int peer) {
  count(nccl_calls);
  begin_collective();
  int number = __sync_fetch_and_add(&num_calls, 1);
  if (number >= MOST_CALLS) return ncclSuccess;
  struct nccl_call *call = &calls[number];
  strncpy(call->kind, kind, sizeof call->kind - 1);
  call->count = elements;
  call->type = type;
  call->ranks = comm ? comm->ranks : 0;
  call->peer = peer;
  return ncclSuccess;
}

static size_t bytes(size_t elements, ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
    case ncclFloat8e4m3:
    case ncclFloat8e5m2: return elements;
    case ncclFloat16:
    case ncclBfloat16: return 2 * elements;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64: return 8 * elements;
    default: return 4 * elements;
  }
}

/* `part`, which each of `ranks` is taken to have given, as the result. */
static void echo(void *result, const void *part, size_t size, int ranks) {
  if (size > LARGEST_PART || size * ranks > LARGEST_RESULT) return;
  for (int i = 0; i < ranks; i++) memmove((char *)result + i * size, part, size);
}

/* ---- communicators ---- */

static ncclResult_t new_comm(ncclComm_t *out, int ranks, int rank) {
  *out = calloc(1, sizeof **out);
  (*out)->rank = rank;
  (*out)->ranks = ranks;
  return note("init", 0, 0, *out, NO_PEER);
}

ncclResult_t ncclGetVersion(int *version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
  memset(id, 1, sizeof *id);
  return ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t *out, int ranks, ncclUniqueId id, int rank) {
  return new_comm(out, ranks, rank);
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config) {
  return new_comm(out, ranks, rank);
}
ncclResult_t ncclCommInitRankScalable(ncclComm_t *out, int ranks, int rank, int num_ids,
                                      ncclUniqueId *ids, ncclConfig_t *config) {
  return new_comm(out, ranks, rank);
}
ncclResult_t ncclCommInitAll(ncclComm_t *out, int ranks, const int *devices) {
  for (int rank = 0; rank < ranks; rank++) new_comm(&out[rank], ranks, rank);
  return ncclSuccess;
}
ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t *out,
                           ncclConfig_t *config) {
  bool is_member = color != NCCL_SPLIT_NOCOLOR;
  note(is_member ? "split" : "split, not a member", 0, 0, comm, NO_PEER);
  *out = NULL;
  /* How many ranks have the same color is not known here. */
  return is_member ? new_comm(out, comm->ranks, key) : ncclSuccess;
}
ncclResult_t ncclCommShrink(ncclComm_t comm, int *excluded, int number, ncclComm_t *out,
                            ncclConfig_t *config, int flags) {
  *out = comm;
  return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) { return ncclSuccess; }
ncclResult_t ncclCommFinalize(ncclComm_t comm) { return ncclSuccess; }
ncclResult_t ncclCommAbort(ncclComm_t comm) { return ncclSuccess; }
ncclResult_t ncclCommCount(const ncclComm_t comm, int *ranks) {
  *ranks = comm->ranks;
  return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *rank) {
  *rank = comm->rank;
  return ncclSuccess;
}
ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int *device) {
  *device = 0;
  return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error) {
  const char *file = getenv("NULL_GPU_NCCL_ERROR");
  *error = file && access(file, F_OK) == 0 ? ncclRemoteError : ncclSuccess;
  return ncclSuccess;
}
ncclResult_t ncclCommRegister(const ncclComm_t comm, void *buffer, size_t size, void **handle) {
  *handle = new_handle();
  return ncclSuccess;
}
ncclResult_t ncclCommDeregister(const ncclComm_t comm, void *handle) { return ncclSuccess; }
const char *ncclGetErrorString(ncclResult_t error) { return "null NCCL"; }
const char *ncclGetLastError(ncclComm_t comm) { return "null NCCL"; }
ncclResult_t ncclGroupStart(void) { return ncclSuccess; }
ncclResult_t ncclGroupEnd(void) {
  count(nccl_groups);
  return ncclSuccess;
}

/* ---- transfers ---- */

ncclResult_t ncclAllReduce(const void *send, void *receive, size_t elements, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  echo(receive, send, bytes(elements, type), 1);
  return note("all_reduce", elements, type, comm, NO_PEER);
}
ncclResult_t ncclReduce(const void *send, void *receive, size_t elements, ncclDataType_t type,
                        ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
  return note("reduce", elements, type, comm, NO_PEER);
}
ncclResult_t ncclBroadcast(const void *send, void *receive, size_t elements, ncclDataType_t type,
                           int root, ncclComm_t comm, cudaStream_t stream) {
  echo(receive, send, bytes(elements, type), 1);
  return note("broadcast", elements, type, comm, NO_PEER);
}
ncclResult_t ncclBcast(void *buffer, size_t elements, ncclDataType_t type, int root,
                       ncclComm_t comm, cudaStream_t stream) {
  return note("broadcast", elements, type, comm, NO_PEER);
}
ncclResult_t ncclAllGather(const void *send, void *receive, size_t elements, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  echo(receive, send, bytes(elements, type), comm->ranks);
  return note("all_gather", elements, type, comm, NO_PEER);
}
ncclResult_t ncclReduceScatter(const void *send, void *receive, size_t elements,
                               ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,
                               cudaStream_t stream) {
  size_t size = bytes(elements, type);
  echo(receive, (const char *)send + comm->rank * size, size, 1);
  return note("reduce_scatter", elements, type, comm, NO_PEER);
}
ncclResult_t ncclAlltoAll(const void *send, void *receive, size_t elements, ncclDataType_t type,
                          ncclComm_t comm, cudaStream_t stream) {
  return note("all_to_all", elements, type, comm, NO_PEER);
}
ncclResult_t ncclSend(const void *send, size_t elements, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return note("send", elements, type, comm, peer);
}
ncclResult_t ncclRecv(void *receive, size_t elements, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return note("receive", elements, type, comm, peer);
}

ncclResult_t ncclMemAlloc(void **out, size_t size) {
  return cudaMalloc(out, size) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}
ncclResult_t ncclMemFree(void *start) {
  cudaFree(start);
  return ncclSuccess;
}
ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t *op, void *scalar, ncclDataType_t type,
                                      ncclScalarResidence_t residence, ncclComm_t comm) {
  *op = ncclNumOps;
  return ncclSuccess;
}
ncclResult_t ncclRedOpDestroy(ncclRedOp_t op, ncclComm_t comm) { return ncclSuccess; }
