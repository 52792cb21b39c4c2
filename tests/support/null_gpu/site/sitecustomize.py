"""Python imports this when it starts, in every process under the null GPU.

torch prefers cuDNN's attention, which plans with the real library and a real device. Its other kernels
need neither.
"""

import torch

torch.backends.cuda.enable_cudnn_sdp(False)
