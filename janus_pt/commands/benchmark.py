"""Measure training, decoding and their parts.

  janus-pt benchmark train --shape large
  janus-pt benchmark decode --model DIR --input test.en --reference test.de

Each command has a --help of its own.
"""

from __future__ import annotations

from janus_pt.utils.commands import module_command

COMMANDS = {
    "train": module_command(
        "janus_pt.benchmark.train",
        "a training step beside a plain left-to-right one: time, memory, parts",
    ),
    "loss": module_command(
        "janus_pt.benchmark.loss", "the fused projection and losses beside unfused ones"
    ),
    "loader": module_command(
        "janus_pt.benchmark.loader", "reading shards and building batches, without training"
    ),
    "growth": module_command(
        "janus_pt.benchmark.growth",
        "the step against length, vocabulary, masked share and size, as plots",
    ),
    "layouts": module_command(
        "janus_pt.benchmark.layouts",
        "ways to spread a configuration over a cluster, the fastest first",
    ),
    "decode": module_command(
        "janus_pt.benchmark.decode", "speed and quality of every way of decoding one model"
    ),
}
