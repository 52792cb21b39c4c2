"""Serve an exported model over HTTP, on this machine only unless --host says otherwise.

    janus-pt serve --model DIR
    curl localhost:8000/generate -H 'Content-Type: application/json' \\
        -d '{"texts": ["A man rides a horse."], "mode": "nar", "options": {"iterations": 4}}'

At / is a page that shows both ways of decoding; /health and /metrics (Prometheus) are for the
people who run it. Needs the extra: pip install 'janus_pt[serve]'
"""

from __future__ import annotations

import argparse

from janus_pt.utils.errors import UserError
from janus_pt.utils.extras import require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `serve`."""
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
        "--native",
        action="store_true",
        help="passes in C++, compiled for this CPU when they are first used",
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


def run(args: argparse.Namespace) -> None:
    """Load the model and serve until stopped."""
    for name in ("batch_size", "max_waiting", "time_limit"):
        value = getattr(args, name)
        if value <= 0:
            raise UserError(f"{name}: must be more than 0, but is {value}")
    # Before the model is loaded, which may take minutes. Imported here only: `--help` and mistakes
    # on the command line need none of it.
    for package in ("fastapi", "prometheus_client"):
        require(package, "serve")
    uvicorn = require("uvicorn", "serve")
    import torch

    from janus_pt.inference.janus_model import JanusModel
    from janus_pt.inference.server.app import create_app

    dtype = getattr(torch, args.dtype) if args.dtype else None
    model = JanusModel.from_pretrained(
        args.model, dtype, quantize=args.quantize, native=args.native
    )
    app = create_app(
        model, args.batch_size, args.max_delay_ms / 1000, args.max_waiting, args.time_limit
    )
    # Warnings alone: a line for each request would be most of the log, and /metrics counts them.
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning")
