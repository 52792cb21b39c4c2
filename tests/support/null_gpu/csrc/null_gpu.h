/* What the parts of the null GPU share. */
#ifndef NULL_GPU_H
#define NULL_GPU_H

#include <stdbool.h>
#include <stddef.h>

/* Functions of CUDA return 0 for success. */
enum { OK = 0 };

/* Counters, read by counters.py under the same names. */
#define COUNTERS(X)                                                                                \
  X(launches)           /* kernels of torch and other libraries */                                 \
  X(products)           /* of cuBLAS */                                                            \
  X(triton_launches)    /* kernels through the driver: Triton's and Inductor's */                  \
  X(graph_launches)     /* CUDA graphs */                                                          \
  X(captured)           /* any of these while a graph was being captured: nothing was launched */  \
  X(memsets)                                                                                       \
  X(copies_to_device)                                                                              \
  X(copies_to_host)                                                                                \
  X(copies_on_device)                                                                              \
  X(bytes_to_device)                                                                               \
  X(bytes_to_host)                                                                                 \
  X(bytes_on_device)                                                                               \
  X(pageable_copies)    /* between the device and memory that is not pinned */                     \
  X(stream_waits)       /* the host waits for a stream, */                                         \
  X(device_waits)       /* for all streams, */                                                     \
  X(event_waits)        /* for an event */                                                         \
  X(events)             /* recorded */                                                             \
  X(streams_ordered)    /* a stream waits for an event: the host does not */                       \
  X(allocations)                                                                                   \
  X(frees)                                                                                         \
  X(pinned_allocations)                                                                            \
  X(nccl_calls)                                                                                    \
  X(nccl_groups)                                                                                   \
  X(modules)            /* machine code loaded through the driver */

#define NAMED(name) name,
enum counter { COUNTERS(NAMED) NUM_COUNTERS };
#undef NAMED

void count(enum counter counter);
void add(enum counter counter, long amount);

/* Count an operation that the host gives the device, or that a graph captures. */
void count_operation(enum counter counter);

/* Count that the host waits, and tell the listener of waits.py. */
void count_wait(enum counter counter, const char *kind);

/* Whether a CUDA graph is being captured, on any stream. */
bool is_capturing(void);

/* A new handle, of whatever: no two are the same, and none is read. */
void *new_handle(void);

/* A collective begins: from now on the device hangs, if it is told to (stream.c). */
void begin_collective(void);

bool is_on_device(const void *address);

#endif
