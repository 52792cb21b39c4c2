"""A GPU that computes nothing, under the CUDA build of torch.

Stand-ins for the CUDA runtime, the driver, cuBLAS and NCCL are loaded before torch's own
(`LD_PRELOAD`). They count what is asked of them, and launch nothing. All that runs on the host is
real: the launcher, DeepSpeed, torch's CUDA code and its caching allocator, ProcessGroupNCCL,
Inductor, and Triton down to the machine code that ptxas makes.

So what follows from shapes and dtypes is real. What follows from values is not: they are zeros, or
what was copied to the device.
"""
