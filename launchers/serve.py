"""Serve an exported model over HTTP, on this machine only unless --host says otherwise.

    python launchers/serve.py --model DIR
    curl localhost:8000/generate -H 'Content-Type: application/json' \\
        -d '{"texts": ["A man rides a horse."], "mode": "nar", "options": {"iterations": 4}}'

At / is a page that shows both ways of decoding; /health and /metrics (Prometheus) are for whoever looks after it.
"""

from __future__ import annotations

import argparse

import torch

from janus_pt.inference.janus_model import JanusModel
from janus_pt.utils.errors import UserError, entry_point


def main() -> None:
    """Load the model and serve until stopped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of an exported model")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; default: this machine only"
    )
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="default: as the weights are stored"
    )
    parser.add_argument(
        "--quantize", choices=["int8"], help="int8: quantised linear layers, on a CPU"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, help="inputs decoded together at most"
    )
    parser.add_argument(
        "--max-delay-ms", type=float, default=5.0, help="how long an input waits for others"
    )
    parser.add_argument(
        "--max-waiting", type=int, default=256, help="inputs that wait at most; more get a 429"
    )
    parser.add_argument("--time-limit", type=float, default=30.0, help="seconds for a request")
    arguments = parser.parse_args()
    for name in ("batch_size", "max_waiting", "time_limit"):
        if getattr(arguments, name) <= 0:
            raise UserError(f"{name}: must be more than 0, but is {getattr(arguments, name)}")
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    model = JanusModel.from_pretrained(arguments.model, dtype, quantize=arguments.quantize)

    import uvicorn  # after the mistakes that can be told without it

    from janus_pt.inference.server.app import create_app

    app = create_app(
        model,
        arguments.batch_size,
        arguments.max_delay_ms / 1000,
        arguments.max_waiting,
        arguments.time_limit,
    )
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    entry_point(main)
