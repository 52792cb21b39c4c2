"""Training on several ranks: process groups, sharded layers, pipeline stages, the engine."""

import warnings

# A user can do nothing about these: they concern parts of megatron-core that we do not use, and
# calls inside DeepSpeed.
warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
warnings.filterwarnings(
    "ignore", message="`torch.distributed.*is deprecated", category=FutureWarning
)
