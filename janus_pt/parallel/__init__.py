"""What is done to the model from outside: process groups, sharded layers, the engine."""

import warnings

# Of no use to a user: parts of megatron-core that are not used here, and calls inside DeepSpeed.
warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
warnings.filterwarnings(
    "ignore", message="`torch.distributed.*is deprecated", category=FutureWarning
)
