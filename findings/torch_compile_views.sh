#!/usr/bin/env bash
# torch.compile with dynamic=True compiles a function anew for tensors with the same values, sizes and strides, if they
# lie in memory in another way: views of a block at equal offsets, at different offsets, copies that are no views. No
# warning tells. Where nothing can be compiled, as while a CUDA graph is recorded, a copy of the inputs fails.
. "$(dirname "$0")/common.sh"
finding torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import torch
import torch.fx.experimental._config as shapes

compiled = 0


def backend(graph, inputs):
    global compiled
    compiled += 1
    return graph.forward


product = torch.compile(lambda x, y: x * y, backend=backend, dynamic=True, fullgraph=True)
first, second = torch.arange(64.0), torch.arange(64.0)


def call(name, x, y):
    product(x, y)
    print(f"{name}: compiled {compiled} times")


for duck in (True, False):
    shapes.use_duck_shape = duck
    torch._dynamo.reset()
    compiled = 0
    print("duck shaping", "on, as it is by default" if duck else "off")
    call("  views at equal offsets", first[8:24], second[8:24])
    call("  both moved", first[16:32], second[16:32])
    call("  views at different offsets", first[8:24], second[16:32])
    call("  copies of these views", first[8:24].clone(), second[16:32].clone())
    assert compiled == (3 if duck else 2)
PYTHON
