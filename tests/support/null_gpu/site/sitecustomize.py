"""Python imports this when it starts, in every process under the null GPU.

torch prefers cuDNN's attention, which plans with the real library and a real device. Its other kernels
need neither.

DeepSpeed's ZeRO-3 makes a string of all parameters when it starts, which it does not print. What would be
shown of a tensor is counted on the device, and any number comes of that here.
"""

import torch

torch.backends.cuda.enable_cudnn_sdp(False)
torch.nn.Parameter.__repr__ = lambda self: f"Parameter of shape {tuple(self.shape)}"
