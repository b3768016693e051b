"""A network in its fast form, and its ANN if it has one, on the same images, in batches that fit the memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from snnzoo.codings import Rate
from snnzoo.conversion.inputs import ann_input, has_frames, network_input
from snnzoo.early_exit import ExitRule
from snnzoo.errors import SnnzooError
from snnzoo.evaluation.activity import Activity, ActivityMeter
from snnzoo.graph.network import SpikingNetwork
from snnzoo.inference import prepare_for_inference
from snnzoo.inference.memory import is_out_of_memory

Result = TypeVar("Result")


class BatchLimit:
    """Runs functions on a batch, in parts when memory runs out: the parts are halved for good, with a notice.

    Args:
        size: images at a time, at first.
        notify: gets one line when parts become smaller.
        free: gives up memory that functions keep, before smaller parts are run.
    """

    def __init__(
        self, size: int, notify: Callable[[str], None], free: Callable[[], None] = torch.cuda.empty_cache
    ) -> None:
        self.size, self.notify, self.free = size, notify, free

    def run(self, function: Callable[[Tensor], Result], images: Tensor) -> list[Result]:
        """Return what `function` gives for each part of `images [N, ...]`, in order.

        Raises:
            SnnzooError: if not even one image fits.
        """
        results: list[Result] = []
        done = 0
        while done < len(images):
            part = images[done : done + self.size]
            try:
                results.append(function(part))
                done += len(part)
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise SnnzooError(
                        f"one image of {part.shape[-1]}x{part.shape[-2]} pixels does not fit the GPU's memory: "
                        "use --dtype float16, fewer time steps or --device cpu"
                    ) from None
            # out of the handler, which keeps the tensors of the failed call alive
            self.size = len(part) // 2
            self.notify(f"a batch of {len(part)} images does not fit the GPU's memory: going on with {self.size}")
            self.free()
        return results


class Runner:
    """Runs a network, counting its activity, and its ANN.

    Args:
        net: converted or trained. Not changed: it is run in its fast form.
        ann: its ANN, moved to `device` and `dtype` (float32 if that is of integers); None if there is none.
        time_steps: T to run.
        batch_size: the largest number of images at a time.
        notify: gets a line when that number turned out too large.
    """

    def __init__(
        self,
        net: SpikingNetwork,
        ann: nn.Module | None,
        time_steps: int,
        *,
        batch_size: int,
        device: str | torch.device,
        dtype: torch.dtype,
        notify: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.fast = prepare_for_inference(net, dtype=dtype, device=device)
        self.dtype = self.fast.dtype  # of images: float32 where weights are integers
        self.ann = ann and ann.to(device, self.dtype).eval()
        self.time_steps, self.device = time_steps, torch.device(device)
        self.reads_each_step = net.coding is None
        self.coding = net.coding or Rate()  # a trained network is given frames as one whose rates decode
        self.meter = ActivityMeter(self.fast.network)
        self.limit = BatchLimit(batch_size, notify, self._free_memory)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """For `images [N, C, H, W]`, the ANN's logits `[N, classes]` and the network's `[T, N, classes]`.

        Or for frames `[N, T, C, H, W]`. A trained network's logits are the mean of those of all steps until then.
        """
        expected, logits = zip(*self.limit.run(self._run, images), strict=True)
        return None if self.ann is None else torch.cat(expected), torch.cat(logits, dim=1)

    def _free_memory(self) -> None:
        self.fast.forget_graphs()
        torch.cuda.empty_cache()

    def _run(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        images = images.to(self.device, self.dtype, non_blocking=True)
        expected = None if self.ann is None else self.ann(ann_input(images))
        self.meter.input_events = has_frames(images)
        with self.meter:
            logits = self.fast(network_input(images, self.coding, self.time_steps), self.meter.watch)
        if self.reads_each_step:
            steps = torch.arange(1, 1 + len(logits), device=logits.device)
            logits = logits.cumsum(0) / steps.view(-1, 1, 1)
        return expected, logits

    @torch.inference_mode()
    def until_sure(self, images: Tensor, rule: ExitRule, activity: Activity) -> tuple[Tensor, Tensor]:
        """Return what images leave early with, `[N, classes]`, and after how many steps, `[N]`; count in `activity`."""
        meter = ActivityMeter(self.fast.network, input_events=has_frames(images))
        meter.activity = activity

        def run(part: Tensor) -> tuple[Tensor, Tensor]:
            x_seq = network_input(part.to(self.device, self.dtype), self.coding, rule.time_steps)
            with meter:
                return self.fast.until_sure(x_seq, rule, meter.watch)

        answers, steps = zip(*self.limit.run(run, images), strict=True)
        return torch.cat(answers), torch.cat(steps)

    def images_per_second(self, images: Tensor, time_steps: int) -> float:
        """Return the speed of the readout after `time_steps`, on one batch, after one run that warms up."""
        return self._speed(images, time_steps, self.fast.final)

    def exits_per_second(self, images: Tensor, rule: ExitRule) -> float:
        """Return the speed of early exit, likewise."""
        return self._speed(images, rule.time_steps, lambda x_seq: self.fast.until_sure(x_seq, rule))

    @torch.inference_mode()
    def _speed(self, images: Tensor, time_steps: int, run: Callable[[Tensor], object]) -> float:
        def seconds(part: Tensor) -> float:
            part = part.to(self.device, self.dtype)
            warm = part if part.is_cuda else part[:1]  # a GPU's kernels and graphs are of one shape
            for x in (warm, part):
                start = time.perf_counter()
                run(network_input(x, self.coding, time_steps))
                if part.is_cuda:
                    torch.cuda.synchronize(part.device)
            return time.perf_counter() - start

        return len(images) / sum(self.limit.run(seconds, images))
