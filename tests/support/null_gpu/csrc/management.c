/* libnvidia-ml.so.1: torch asks it whether the device is part of a fabric before it makes an
 * expandable segment, and it is not. */

enum { OK = 0, NOT_SUPPORTED = 3 };

int nvmlInit_v2(void) { return OK; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
  *version = 13000;
  return OK;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) {
  static int only;
  *device = &only;
  return OK;
}
/* The caller has filled in "not supported" already. */
int nvmlDeviceGetGpuFabricInfoV() { return OK; }
int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *number) {
  *number = 0;
  return OK;
}
int nvmlDeviceGetNvLinkRemoteDeviceType() { return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2() { return NOT_SUPPORTED; }
