"""Dynamic batching: requests that ask for the same way of decoding and arrive together are decoded together."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from janus_pt.inference.janus_model import Generation, JanusModel

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
WAITING = Gauge("janus_waiting_inputs", "Inputs that wait to be decoded")
BATCHES = Histogram("janus_batch_inputs", "Inputs decoded together", ["mode"], buckets=BATCH_SIZES)
TOKENS = Counter("janus_tokens", "Tokens written", ["mode"])
PASSES = Counter("janus_decoder_passes", "Decoder passes, summed over outputs", ["mode"])

Options = tuple[tuple[str, Any], ...]
"""Name and value of each option, sorted: requests with equal ones may share a batch."""


class Full(Exception):
    """As many inputs wait as may."""


@dataclass
class _Waiting:
    tokens: list[int]
    way: tuple[str, Options]
    done: asyncio.Future[list[Generation]]
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Decodes in one thread of its own, one batch at a time, oldest input first."""

    def __init__(
        self, model: JanusModel, batch_size: int, max_delay: float, max_waiting: int
    ) -> None:
        """`max_delay`: seconds that an input waits at most for others to join it, if the thread is idle."""
        self._model, self._batch_size, self._max_delay, self._max_waiting = (
            model,
            batch_size,
            max_delay,
            max_waiting,
        )
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "decoding")

    async def generate(
        self, inputs: list[list[int]], mode: str, options: Options
    ) -> list[Generation]:
        """What `JanusModel.generate` gives for these inputs. Raises `Full` if there is no room to wait."""
        if len(self._waiting) + len(inputs) > self._max_waiting:
            raise Full
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(tokens, (mode, options), loop.create_future()) for tokens in inputs]
        self._waiting.extend(waiting)
        WAITING.set(len(self._waiting))
        self._arrived.set()
        try:
            outputs = await asyncio.gather(*(one.done for one in waiting))
        finally:  # nobody waits for what is left of a request that failed or ran out of time
            for one in waiting:
                one.done.cancel()
        return [generation for output in outputs for generation in output]

    async def run(self, work: Callable[[], Any]) -> Any:
        """Run something else that needs the model in the decoding thread. Raises `Full` like `generate`."""
        if len(self._waiting) >= self._max_waiting:
            raise Full
        return await self._in_thread(work)

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def serve(self) -> None:
        """Decode what arrives, until cancelled."""
        while True:
            await self._arrived.wait()
            batch = await self._gather()
            if not batch:
                self._arrived.clear()
                continue
            mode, options = batch[0].way
            BATCHES.labels(mode).observe(len(batch))
            try:
                outputs = await self._in_thread(partial(self._decode, batch, mode, options))
            except Exception as error:  # goes to those who asked; the server goes on
                for one in batch:
                    if not one.done.done():
                        one.done.set_exception(error)
                continue
            for one, output in zip(batch, outputs, strict=True):
                if not one.done.done():
                    one.done.set_result(output)

    def _decode(self, batch: list[_Waiting], mode: str, options: Options) -> list[list[Generation]]:
        found = self._model.generate(
            [one.tokens for one in batch], mode, batch_size=self._batch_size, **dict(options)
        )
        TOKENS.labels(mode).inc(sum(len(generation.tokens) for generation in found))
        PASSES.labels(mode).inc(sum(generation.decoder_passes for generation in found))
        each = len(found) // len(batch)
        return [found[i * each : (i + 1) * each] for i in range(len(batch))]

    async def _gather(self) -> list[_Waiting]:
        """The oldest input and others like it; waits for more until the batch is full or the oldest has waited long
        enough."""
        while True:
            alive = [one for one in self._waiting if not one.done.done()]
            self._waiting = deque(alive)
            if not alive:
                WAITING.set(0)
                return []
            batch = [one for one in alive if one.way == alive[0].way][: self._batch_size]
            left = alive[0].since + self._max_delay - time.monotonic()
            if len(batch) == self._batch_size or left <= 0:
                break
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                continue
        taken = {id(one) for one in batch}
        self._waiting = deque(one for one in alive if id(one) not in taken)
        WAITING.set(len(self._waiting))
        self._arrived.set()
        return batch
