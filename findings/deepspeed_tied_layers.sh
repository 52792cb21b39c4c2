#!/usr/bin/env bash
# DeepSpeed's pipelines do not save a tied layer all of whose places have a forward_fn: loading succeeds, and
# its weights are new ones. One place without forward_fn, and they are saved.
. "$(dirname "$0")/common.sh"
finding deepspeed==0.19.8 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import deepspeed
import torch
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec

import tiny_deepspeed

tiny_deepspeed.start()


def look_up(table, ids):
    return table(ids)


def logits(table, states):
    return states @ table.weight.T


def make(first):
    layers = [
        TiedLayerSpec("table", torch.nn.Embedding, 8, 4, forward_fn=first),
        LayerSpec(torch.nn.Linear, 4, 4),
        TiedLayerSpec("table", torch.nn.Embedding, 8, 4, forward_fn=logits),
    ]
    module = PipelineModule(layers, num_stages=1, loss_fn=torch.nn.functional.cross_entropy)
    return deepspeed.initialize(
        model=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        config=tiny_deepspeed.CONFIG,
    )[0]


def differing(first):
    """Parameters that a checkpoint does not bring back, and what loading returned."""
    name = f"checkpoint-{first}"
    with tiny_deepspeed.quiet():
        saved, loaded = make(first), make(first)
        with torch.no_grad():
            [p.add_(1) for p in saved.module.parameters()]
        saved.save_checkpoint(name, tag="last")
        path, _ = loaded.load_checkpoint(name, tag="last")
    pairs = zip(saved.module.named_parameters(), loaded.module.parameters(), strict=True)
    return [name for (name, p), q in pairs if not torch.equal(p, q)], bool(path)


both, one = differing(look_up), differing(None)
print("forward_fn in both places: not restored", both[0], "loaded", both[1])
print("forward_fn in one place:   not restored", one[0], "loaded", one[1])
assert both == (["tied_modules.table.weight"], True)
assert one == ([], True)
PYTHON
