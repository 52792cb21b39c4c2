#!/usr/bin/env bash
# DeepSpeed without ZeRO and without bfloat16 reports no gradient norm, also with clipping, and a step with
# infinite gradients is taken: the weights are lost. With ZeRO or bfloat16 it is skipped and counted.
. "$(dirname "$0")/common.sh"
finding deepspeed==0.19.8 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import deepspeed
import torch

import tiny_deepspeed

tiny_deepspeed.start()


def train(**more):
    """Two steps; the gradients of the second are infinite."""
    model = torch.nn.Linear(4, 4)
    config = {**tiny_deepspeed.CONFIG, "gradient_clipping": 1.0, **more}
    with tiny_deepspeed.quiet():
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config
        )
        batch = torch.ones(1, 4, dtype=engine.module.weight.dtype)
        for factor in (1.0, float("inf")):
            engine.backward(engine(batch).sum() * factor)
            engine.step()
    norm, skipped = engine.get_global_grad_norm(), engine.skipped_steps
    finite = bool(engine.module.weight.isfinite().all())
    print(f"{more}: norm {norm}, skipped steps {skipped}, weights finite {finite}")
    return norm, skipped, finite


plain = train()
zero = train(zero_optimization={"stage": 1})
bfloat16 = train(bf16={"enabled": True})
assert plain == (None, 0, False)
assert zero[0] is not None and zero[1:] == (1, True)
assert bfloat16[0] is not None and bfloat16[1:] == (1, True)
PYTHON
