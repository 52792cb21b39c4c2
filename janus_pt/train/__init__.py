"""Training: step, loop, checkpoints, and what is told of them."""

import janus_pt.parallel  # noqa: F401  before megatron-core and DeepSpeed, whose warnings it sorts out
