"""Keeping a device busy with an encoder pass: compiled blocks, copies beside the computing, and how fast it went."""

import copy
import dataclasses
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import torch
from torch import nn

from pez.encoder.flops import matmul_rate
from pez.encoder.protocol import Encoder

Moment = float | torch.cuda.Event
BACKEND = "inductor"
GPU_WRITERS = 3  # threads that write shards; each holds one in memory
RATE_SECONDS = 15.0  # between measurements of what matrix products reach, beside the passes
STEADY = 0.7  # the lowest of these rates as a share of the highest, if one of them is to stand for all
MOST_OFF = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}  # of a state's root mean square
# A wrong state is off by about one; fused operators round lower precisions less often, which the depth adds up.


def compiled(
    encoder: Encoder, run: Callable[[Encoder], dict[str, torch.Tensor]], dtype: torch.dtype
) -> tuple[Encoder, str]:
    """`encoder` with its blocks compiled and "", or `encoder` itself and why not.

    `run` computes the named states of a batch of the size to come. Blocks are compiled one by one, so that forward
    hooks on them stay outside the graphs; all share one compilation. States of the compiled encoder are compared with
    those of the other (`MOST_OFF`): states that differ, or are missing, are a reason too.
    """
    expected = run(encoder)
    # a shallow copy of the modules around the blocks, of the same weights
    blocks = {block: cast(nn.Module, torch.compile(block, backend=BACKEND)) for block in encoder.blocks}
    fast = dataclasses.replace(encoder, module=_with_modules(encoder.module, blocks))
    try:
        states = run(fast)
    except RuntimeError as error:  # of torch._dynamo and its backends: no compiler, no Triton, a graph it cannot make
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return encoder, lines[0] if lines else type(error).__name__
    off = {name: _share(states[name], expected[name]) for name in expected if name in states}
    wrong = max(off, key=lambda name: off[name], default=None)
    if wrong is not None and off[wrong] > MOST_OFF[dtype]:
        return encoder, f"compiled, state {wrong} is off by {off[wrong]:.2g} of its size"
    if set(states) != set(expected):
        return encoder, "compiled, the encoder does not call its hooks"
    return fast, ""


def _with_modules(module: nn.Module, others: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in others:
        return others[module]
    inside = {name: None if child is None else _with_modules(child, others) for name, child in module._modules.items()}
    if all(inside[name] is child for name, child in module._modules.items()):
        return module
    module = copy.copy(module)
    module._modules = inside
    return module


def _share(state: torch.Tensor, expected: torch.Tensor) -> float:
    """The root mean square difference as a share of what is expected."""
    off = (state.double() - expected.double()).square().mean() / expected.double().square().mean()
    return float(off.sqrt().nan_to_num(nan=float("inf")))


def filled(frames: torch.Tensor, size: int) -> torch.Tensor:
    """`frames` [B, ...], the last repeated until there are `size`: another size would be another compilation."""
    missing = size - len(frames)
    return frames if missing <= 0 else torch.cat([frames, frames[-1:].expand(missing, *frames.shape[1:])])


def on_device(batches: Iterable[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    """`batches` on `device`; a GPU copies one from pinned memory while it computes on the one before.

    The next batch is asked for only when the consumer comes back, having queued its work on this one: whatever
    decoding still takes then, the device has something to do.
    """
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # PyTorch gives it no types
    main = torch.cuda.current_stream(device)
    for batch in batches:
        with torch.cuda.stream(beside):
            moved = batch.to(device, non_blocking=True)
        main.wait_stream(beside)
        moved.record_stream(main)  # else its memory could be given away while it is read
        yield moved


class Writer:
    """Runs pieces of work in threads of its own, each once the device has done what it was given before.

    The device goes on computing while shards are written: one at a time beside a CPU's computing, GPU_WRITERS beside a
    GPU, which fills them faster than one thread checks and writes them. An error of the work is raised by a later call.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._at_once = GPU_WRITERS if device.type == "cuda" else 1
        self._pending: deque[Future[None]] = deque()
        self._threads = ThreadPoolExecutor(self._at_once)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        self._threads.shutdown()
        if kind is None:
            self._wait_for(0)

    def submit(self, work: Callable[..., object], *arguments: object) -> None:
        """Have `work(*arguments)` done; waits until fewer pieces than there are threads are left to do."""
        self._wait_for(self._at_once - 1)
        # a blocking event: the thread that waits for it sleeps
        event = None
        if self._device.type == "cuda":
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # PyTorch gives it no types
            event.record(torch.cuda.current_stream(self._device))

        def after() -> None:
            if event is not None:
                event.synchronize()
            work(*arguments)

        self._pending.append(self._threads.submit(after))

    def _wait_for(self, left: int) -> None:
        while len(self._pending) > left:
            self._pending.popleft().result()


class Speed:
    """How fast passes go: `start` and `stop` each batch's, `finish` each clip set, then ask `text`.

    Seconds of the passes alone are taken on the device (CUDA events: nothing waits for them), seconds of everything
    from the first `start` to `finish`: with decoding, copies and writing.

    The rate of large matrix products in `dtype` is measured between the passes (on a GPU, which would have to wait,
    before and after them). On a machine that others use as well, a rate of another moment says nothing. Without
    `dtype` there is no `text`.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype | None = None):
        self.device, self.dtype = device, dtype
        self.clips, self.seconds = 0, 0.0
        self._spans: list[list[Moment]] = []
        self._begun: Moment | None = None
        self._rates: list[float] = []
        self._measured = -math.inf  # when last, on the clock

    def start(self) -> None:
        """Before a batch's pass."""
        pause = math.inf if self.device.type == "cuda" else RATE_SECONDS
        if self.dtype is not None and (not self._rates or time.monotonic() - self._measured > pause):
            self._rates.append(matmul_rate(self.device, self.dtype))
            self._measured = time.monotonic()
        now = self._now()
        self._begun = now if self._begun is None else self._begun
        self._spans.append([now, now])

    def stop(self, n_clips: int) -> None:
        """After it; `n_clips` in the batch."""
        self._spans[-1][1] = self._now()
        self.clips += n_clips

    def finish(self) -> None:
        """After everything is written; nothing happens if there was nothing to do."""
        if self._begun is not None:
            self.seconds += _elapsed(self._begun, self._now(), self.device)
            self._begun = None

    @property
    def pass_seconds(self) -> float:
        """Seconds of the passes alone."""
        return sum(_elapsed(start, end, self.device) for start, end in self._spans)

    def text(self, flops_per_clip: int) -> str:
        """One line: clips a second, and operations a second as a share of what large matrix products reach here.

        Without operations (the pixels control has no encoder) clips a second only. Without the share where the device's
        speed changed too much meanwhile for one to mean anything.
        """
        if not flops_per_clip:
            return f"{self.clips / self.seconds:.3g} clips/s"
        assert self.dtype is not None
        rates = [*self._rates, matmul_rate(self.device, self.dtype)]
        rate, done = statistics.median(rates), flops_per_clip * self.clips
        alone, all_in = done / self.pass_seconds, done / self.seconds
        speed = f"{self.clips / self.seconds:.3g} clips/s; the encoder {alone / 1e12:.3g} TFLOP/s"
        beside = f"with decoding and writing {all_in / 1e12:.3g} TFLOP/s"
        if min(rates) < STEADY * max(rates) or alone > max(rates):
            return f"{speed}; {beside} (no share of the device's speed: it changed meanwhile)"
        precision = str(self.dtype).removeprefix("torch.")
        return (
            f"{speed}, {alone / rate:.0%} of the {rate / 1e12:.3g} that large {precision} matrix products reach on "
            f"this {self.device.type}; {beside}, {all_in / rate:.0%}"
        )

    def _now(self) -> Moment:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # PyTorch gives it no types
        event.record(torch.cuda.current_stream(self.device))
        return event


def _elapsed(start: Moment, end: Moment, device: torch.device) -> float:
    if device.type != "cuda":
        return cast(float, end) - cast(float, start)
    begun, done = cast(torch.cuda.Event, start), cast(torch.cuda.Event, end)
    done.synchronize()
    return float(begun.elapsed_time(done)) / 1000
