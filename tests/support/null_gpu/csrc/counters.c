/* Counters, and the listener to waits. */
#include "null_gpu.h"

static long counters[NUM_COUNTERS];
static void (*listener)(const char *kind);
static __thread bool has_just_waited;

/* ---- read by counters.py and waits.py ---- */

#define NAMED(name) #name " "
const char *null_gpu_counter_names(void) { return COUNTERS(NAMED); }
#undef NAMED

long *null_gpu_counters(void) { return counters; }

void null_gpu_on_wait(void (*callback)(const char *kind)) { listener = callback; }

/* Used by the driver, a library of its own. */
void null_gpu_count_triton_launch(void) { count_operation(triton_launches); }
void null_gpu_count_module(void) { count(modules); }

/* ---- */

/* Atomic: autograd and NCCL's watchdog have threads of their own. */
void add(enum counter counter, long amount) { __sync_fetch_and_add(&counters[counter], amount); }

void count(enum counter counter) { add(counter, 1); }

void count_operation(enum counter counter) {
  has_just_waited = false;
  count(is_capturing() ? captured : counter);
}

void count_wait(enum counter counter, const char *kind) {
  /* Nothing was given to the device since the last wait: this one waits for nothing. So it is when
   * torch copies to pageable memory, and then waits for the copy's stream. */
  if (has_just_waited) return;
  has_just_waited = true;
  count(counter);
  if (listener) listener(kind);
}

void *new_handle(void) {
  static long next = 0x1000;
  return (void *)__sync_fetch_and_add(&next, 16);
}
