"""Dynamic batching: inputs that ask for the same way of decoding and arrive together share a batch.

Not LitServe: it fills a batch with the requests that come next, whatever they ask for. Here only
inputs of one mode with equal options may share a batch, an input may bring several texts, and their
number in the queue is bounded; on top of it the grouping would have to be written all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from prometheus_client import Counter, Gauge, Histogram

from janus_pt.generate.hypotheses import DecodingOptions
from janus_pt.inference.batching import Batching
from janus_pt.inference.generation import Generation
from janus_pt.inference.janus_model import JanusModel

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
WAITING = Gauge("janus_waiting_inputs", "Inputs that wait to be decoded")
BATCHES = Histogram("janus_batch_inputs", "Inputs decoded together", ["mode"], buckets=BATCH_SIZES)
TOKENS = Counter("janus_tokens", "Tokens written", ["mode"])
PASSES = Counter("janus_decoder_passes", "Decoder passes, summed over outputs", ["mode"])

Result = TypeVar("Result")


class QueueFull(Exception):
    """As many inputs wait as may."""


@dataclass(frozen=True)
class Way:
    """A way of decoding: inputs with equal ones may share a batch."""

    mode: str
    options: DecodingOptions


@dataclass
class _WaitingInput:
    """An input in the queue; `outputs` is set when it is decoded, and cancelled if nobody waits."""

    tokens: list[int]
    way: Way
    outputs: asyncio.Future[list[Generation]]
    arrival: float = field(default_factory=time.monotonic)


class Batcher:
    """Decodes in one thread of its own, one batch at a time, oldest input first."""

    def __init__(
        self, model: JanusModel, batch_size: int, max_delay: float, max_waiting: int
    ) -> None:
        """Make an empty queue.

        Args:
            batch_size: inputs decoded together at most.
            max_delay: seconds that an input waits at most for others to join it, while the thread
                is idle.
            max_waiting: inputs in the queue at most.
        """
        self._model = model
        self._batching = Batching(batch_size)
        self._max_delay = max_delay
        self._max_waiting = max_waiting
        self._queue: deque[_WaitingInput] = deque()
        self._arrived = asyncio.Event()
        # One thread: the model is used by one batch at a time, and the event loop stays free.
        self._thread = ThreadPoolExecutor(1, "decoding")

    async def generate(self, inputs: list[list[int]], way: Way) -> list[Generation]:
        """The output of `JanusModel.generate` for these inputs.

        Raises:
            QueueFull: there is no room to wait.
        """
        if len(self._queue) + len(inputs) > self._max_waiting:
            raise QueueFull
        loop = asyncio.get_running_loop()
        waiting = [_WaitingInput(tokens, way, loop.create_future()) for tokens in inputs]
        self._queue.extend(waiting)
        WAITING.set(len(self._queue))
        self._arrived.set()
        try:
            outputs = await asyncio.gather(*(one.outputs for one in waiting))
        finally:
            # Nobody waits for the rest of a request that failed or ran out of time.
            for one in waiting:
                one.outputs.cancel()
        return [generation for of_input in outputs for generation in of_input]

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run something else that needs the model in the decoding thread.

        Raises:
            QueueFull: as in `generate`.
        """
        if len(self._queue) >= self._max_waiting:
            raise QueueFull
        return await self._in_thread(work)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def serve(self) -> None:
        """Decode the inputs that arrive, until cancelled."""
        while True:
            await self._arrived.wait()
            batch = await self._next_batch()
            if not batch:
                self._arrived.clear()
                continue
            way = batch[0].way
            BATCHES.labels(way.mode).observe(len(batch))
            try:
                outputs = await self._in_thread(partial(self._decode, batch, way))
            except Exception as error:
                # The clients of this batch get the error; the server goes on with the next one.
                for one in batch:
                    if not one.outputs.done():
                        one.outputs.set_exception(error)
                continue
            for one, of_input in zip(batch, outputs, strict=True):
                # A request may have been given up meanwhile.
                if not one.outputs.done():
                    one.outputs.set_result(of_input)

    def _decode(self, batch: list[_WaitingInput], way: Way) -> list[list[Generation]]:
        """The outputs for each input of a batch."""
        sources = [one.tokens for one in batch]
        generations = self._model.generate_from_ids(sources, way.options, self._batching)
        TOKENS.labels(way.mode).inc(sum(len(one.tokens) for one in generations))
        PASSES.labels(way.mode).inc(sum(one.decoder_passes for one in generations))
        n = way.options.num_outputs
        return [generations[i * n : (i + 1) * n] for i in range(len(batch))]

    async def _next_batch(self) -> list[_WaitingInput]:
        """Take the oldest input and others of its way from the queue; empty if nobody waits.

        Waits for more until the batch is full, or the oldest has waited long enough.
        """
        while True:
            waiting = [one for one in self._queue if not one.outputs.done()]
            self._queue = deque(waiting)
            if not waiting:
                WAITING.set(0)
                return []
            oldest = waiting[0]
            same_way = [one for one in waiting if one.way == oldest.way]
            batch = same_way[: self._batching.batch_size]
            seconds_left = oldest.arrival + self._max_delay - time.monotonic()
            if len(batch) == self._batching.batch_size or seconds_left <= 0:
                break
            # Look again after each arrival: it may fill the batch.
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), seconds_left)
            except TimeoutError:
                continue
        # By identity: two clients may send equal inputs.
        taken = {id(one) for one in batch}
        self._queue = deque(one for one in waiting if id(one) not in taken)
        WAITING.set(len(self._queue))
        # Inputs of other ways may be left: the next round looks at the queue at once.
        self._arrived.set()
        return batch
