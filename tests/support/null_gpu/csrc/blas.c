/* cuBLAS: products are counted. The functions here answer something; all others of cuBLAS, cuSPARSE
 * and cuSOLVER that torch calls are listed by build.py in blas_stubs.h. Types of arguments do not
 * matter: none is read. */
#include "null_gpu.h"

#include <string.h>

enum { CUBLASLT_VERSION_13 = 130101, ALGORITHM_BYTES = 64 };

static int give_handle(void **out) {
  *out = new_handle();
  return OK;
}

int cublasCreate_v2(void **handle) { return give_handle(handle); }
int cublasLtCreate(void **handle) { return give_handle(handle); }
int cublasLtMatmulDescCreate(void **descriptor) { return give_handle(descriptor); }
int cublasLtMatmulPreferenceCreate(void **preference) { return give_handle(preference); }
int cublasLtMatrixLayoutCreate(void **layout) { return give_handle(layout); }

int cublasGetMathMode(void *handle, int *mode) {
  *mode = 0;
  return OK;
}
int cublasGetPointerMode_v2(void *handle, int *mode) {
  *mode = 0;
  return OK;
}
size_t cublasLtGetVersion(void) { return CUBLASLT_VERSION_13; }

/* One algorithm, always. */
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *descriptor, void *a, void *b, void *c,
                                   void *d, void *preference, int wanted, void *results,
                                   int *found) {
  memset(results, 0, ALGORITHM_BYTES);
  *found = 1;
  return OK;
}

#define PRODUCT(name)                                                                              \
  int name() {                                                                                     \
    count_operation(products);                                                                     \
    return OK;                                                                                     \
  }
#define NOTHING(name)                                                                              \
  int name() { return OK; }
#include "blas_stubs.h"
