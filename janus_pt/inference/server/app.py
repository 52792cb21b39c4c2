"""The server's routes: `/generate`, `/unfold`, `/health`, `/metrics`, and the page at `/`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from janus_pt.generate.modes import check_options
from janus_pt.inference.janus_model import JanusModel
from janus_pt.inference.server.batcher import Batcher, QueueFull, Way
from janus_pt.inference.trace import trace_mask_predict
from janus_pt.utils.errors import UserError

MAX_BODY_BYTES = 1 << 20
MAX_TEXTS = 64
MAX_WORK = 32
"""Largest number of beams, lengths, passes or outputs that a request may ask for."""
EXPENSIVE = ("num_beams", "length_beam", "iterations", "draft_iterations", "num_return_sequences")
"""Options that `MAX_WORK` limits: decoding takes time or memory in proportion to them."""
PAGE = Path(__file__).with_name("page.html")
REQUESTS = Counter("janus_requests", "Requests", ["path", "status"])
SECONDS = Histogram("janus_request_seconds", "Seconds from request to answer", ["path"])


class GenerateRequest(BaseModel):
    """The body of `/generate`."""

    model_config = ConfigDict(extra="forbid")
    texts: Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
    mode: str = "ar"
    options: dict[str, Any] = {}


class UnfoldRequest(BaseModel):
    """The body of `/unfold`."""

    model_config = ConfigDict(extra="forbid")
    text: str
    iterations: Annotated[int, Field(ge=1, le=MAX_WORK)] = 4


def create_app(
    model: JanusModel, batch_size: int, max_delay: float, max_waiting: int, time_limit: float
) -> FastAPI:
    """The application around a model.

    Args:
        batch_size: inputs decoded together at most.
        max_delay: seconds that an input waits for others.
        max_waiting: inputs that wait at most; more are turned away with 429.
        time_limit: seconds after which a request is given up with 503.
    """
    batcher = Batcher(model, batch_size, max_delay, max_waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # The event loop keeps only a weak reference to a task: the name keeps it alive.
        serving = asyncio.create_task(batcher.serve())
        yield
        serving.cancel()

    app = FastAPI(title="janus_pt", lifespan=lifespan)
    app.middleware("http")(partial(_guard, time_limit=time_limit))

    @app.post("/generate")
    async def generate(request: GenerateRequest) -> dict[str, Any]:
        """Generations of the request's texts, each with its pieces."""
        # Checked here, not in the batch: a mistake must fail its own request alone.
        inputs = [model.encode(text, f"texts.{index}") for index, text in enumerate(request.texts)]
        way = check_way(request.mode, request.options)
        generations = await batcher.generate(inputs, way)
        outputs = []
        for generation in generations:
            pieces = [model.tokenizer.piece(token) for token in generation.tokens]
            outputs.append({**asdict(generation), "pieces": pieces})
        return {"mode": request.mode, "outputs": outputs}

    @app.post("/unfold")
    async def unfold(request: UnfoldRequest) -> dict[str, Any]:
        tokens = model.encode(request.text, "text")
        # The model does not read empty sources; their output is empty.
        if not tokens:
            return {"text": "", "passes": []}
        passes = await batcher.run(partial(trace_mask_predict, model, tokens, request.iterations))
        text = model.tokenizer.decode(traced.token for traced in passes[-1])
        return {"text": text, "passes": [[asdict(traced) for traced in one] for one in passes]}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "vocab_size": model.config.vocab_size, "device": str(model.device)}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text("utf-8"))

    return app


def check_way(mode: str, values: dict[str, Any]) -> Way:
    """The way of decoding that a request asks for.

    Raises:
        UserError: the options are wrong, or ask for too much work.
    """
    options = check_options(mode, **values)
    for name in EXPENSIVE:
        if getattr(options, name, 0) > MAX_WORK:
            raise UserError(f"{name}: this server allows at most {MAX_WORK}")
    return Way(mode, options)


async def _guard(
    request: Request, answer: Callable[[Request], Awaitable[Response]], *, time_limit: float
) -> Response:
    """Answer a request within the limits of size and time, errors as JSON, and count it."""
    start = time.monotonic()
    response = await _limited(request, answer, time_limit)
    # Any other path is one label: clients must not be able to add metrics without bound.
    path = request.url.path if request.url.path in ("/generate", "/unfold") else "other"
    REQUESTS.labels(path, str(response.status_code)).inc()
    SECONDS.labels(path).observe(time.monotonic() - start)
    return response


async def _limited(
    request: Request, answer: Callable[[Request], Awaitable[Response]], time_limit: float
) -> Response:
    if request.method == "POST":
        # Without a length the body would have to be read to know its size.
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            return _error(411, "send the length of the body")
        if int(length) > MAX_BODY_BYTES:
            return _error(413, f"a body has at most {MAX_BODY_BYTES} bytes")
    try:
        return await asyncio.wait_for(answer(request), time_limit)
    except QueueFull:
        return JSONResponse({"error": "too many inputs wait; try again"}, 429, {"Retry-After": "1"})
    except UserError as error:
        return _error(400, str(error))
    except TimeoutError:
        return _error(503, f"not done in {time_limit:g} s; try again with less")


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)
