"""Training: the run, its step and loop, reports, and watching over it."""

# Before any other import of megatron-core and DeepSpeed.
import janus_pt.parallel.light_imports  # noqa: F401
