"""Training: the run, its step and loop, reports, and watching over it."""

import janus_pt.parallel  # noqa: F401  before megatron-core and DeepSpeed, whose warnings it filters
