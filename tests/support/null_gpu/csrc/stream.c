/* Streams, events and graphs. Work is done as soon as it is given, unless the device hangs or is slow. */
#include "null_gpu.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- a device that hangs, as when another rank of a collective is lost ---- */

enum { POLL_US = 20000 };
static bool is_in_lost_collective;

/* NULL_GPU_HANG names a file: while it exists, collectives that begin do not end. */
static bool are_ranks_lost(void) {
  const char *file = getenv("NULL_GPU_HANG");
  return file && access(file, F_OK) == 0;
}

void begin_collective(void) {
  if (are_ranks_lost()) is_in_lost_collective = true;
}

static bool hangs(void) { return is_in_lost_collective && are_ranks_lost(); }

static void wait_for_device(void) {
  while (hangs()) usleep(POLL_US);
}

/* ---- a slow device ----
 *
 * With NULL_GPU_SLOW an event is not done before the host waits for it, or for something later. So all
 * waits show, those as well that a fast device would spare the host.
 */

static long num_recorded, num_done;

/* ---- capture of a graph ----
 *
 * A stream is captured from its begin, another one from when it waits for an event of a captured one.
 */

enum { MOST_CAPTURED = 4096 };
struct handles {
  void *items[MOST_CAPTURED];
  int number;
};
static struct handles captured_streams, captured_events;
static bool is_graph_captured;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

bool is_capturing(void) { return is_graph_captured; }

static bool holds(struct handles *handles, void *item) {
  for (int i = 0; i < handles->number; i++)
    if (handles->items[i] == item) return true;
  return false;
}

static void put(struct handles *handles, void *item) {
  pthread_mutex_lock(&lock);
  if (!holds(handles, item) && handles->number < MOST_CAPTURED)
    handles->items[handles->number++] = item;
  pthread_mutex_unlock(&lock);
}

static bool is_captured(cudaStream_t stream) {
  return is_graph_captured && holds(&captured_streams, stream);
}

static cudaError_t begin_capture(cudaStream_t stream) {
  captured_streams.number = captured_events.number = 0;
  put(&captured_streams, stream);
  is_graph_captured = true;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  return begin_capture(stream);
}

cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t stream, cudaGraph_t graph,
                                          const cudaGraphNode_t *dependencies,
                                          const cudaGraphEdgeData *edges, size_t number,
                                          enum cudaStreamCaptureMode mode) {
  return begin_capture(stream);
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  is_graph_captured = false;
  *graph = new_handle();
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  bool is = is_captured(stream);
  *status = is ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph,
                                     const cudaGraphNode_t **dependencies,
                                     const cudaGraphEdgeData **edges, size_t *number) {
  static void *captured_graph;
  if (!captured_graph) captured_graph = new_handle();
  if (status) cudaStreamIsCapturing(stream, status);
  if (id) *id = 1;
  if (graph) *graph = captured_graph;
  if (number) *number = 0;
  return cudaSuccess;
}

cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t stream, cudaGraphNode_t *dependencies,
                                                const cudaGraphEdgeData *edges, size_t number,
                                                unsigned flags) {
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
  return cudaSuccess;
}

/* ---- graphs ---- */

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph,
                                          unsigned long long flags) {
  *executable = new_handle();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph,
                                 unsigned long long flags) {
  return cudaGraphInstantiateWithFlags(executable, graph, flags);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  count_operation(graph_launches);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return cudaSuccess; }
/* torch warns of a graph without nodes. */
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *number) {
  *number = 1;
  return cudaSuccess;
}
cudaError_t cudaGraphDebugDotPrint(cudaGraph_t graph, const char *path, unsigned flags) {
  return cudaSuccess;
}

/* ---- streams ---- */

static cudaError_t new_stream(cudaStream_t *stream) {
  *stream = new_handle();
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return new_stream(stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
  return new_stream(stream);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  return new_stream(stream);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
  *priority = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return hangs() ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  count_wait(stream_waits, "stream");
  wait_for_device();
  num_done = num_recorded;
  return is_captured(stream) ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
  count_wait(device_waits, "device");
  wait_for_device();
  num_done = num_recorded;
  return is_capturing() ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  count(streams_ordered);
  if (is_capturing() && holds(&captured_events, event)) put(&captured_streams, stream);
  return cudaSuccess;
}

cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t callback, void *data,
                                  unsigned flags) {
  callback(stream, cudaSuccess, data);
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
  function(data);
  return cudaSuccess;
}

/* ---- events ---- */

struct CUevent_st {
  long number; /* of its record, among all records */
};

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  *event = calloc(1, sizeof **event);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  free(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  count(events);
  event->number = __sync_add_and_fetch(&num_recorded, 1);
  if (is_captured(stream)) put(&captured_events, event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  bool is_done = !hangs() && (!getenv("NULL_GPU_SLOW") || event->number <= num_done);
  return is_done ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  /* Code that asks first does not wait for what is done. */
  if (event->number > num_done) {
    count_wait(event_waits, "event");
    wait_for_device();
    num_done = event->number;
  }
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = 1e-3f;
  return cudaSuccess;
}
