"""What a stopped run goes on from: writing, verifying, reading on another layout."""

# Before any other import of megatron-core and DeepSpeed.
import janus_pt.parallel.light_imports  # noqa: F401
