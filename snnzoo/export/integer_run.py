"""Runs a bundle of `integer`: whole numbers alone; sums of products are exact, in float64 or not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BITS = 16
ONE = 1 << BITS  # a threshold
READOUT = 1 << 10  # an event, added up for the readout
EXACT = 1 << 24  # up to which float32 holds all whole numbers

State = dict[str, Tensor]


def rounded(value: Tensor, bits: int) -> Tensor:
    """Return whole numbers over 2^bits, rounded; halves up."""
    return value + (1 << bits >> 1) >> bits


class IntegerNetwork:
    """A network of whole numbers, from a fresh state at each call.

    Args:
        arrays: of a bundle.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.about: dict[str, Any] = json.loads(str(arrays["graph"]))
        self.values = {
            key: torch.from_numpy(value).to(torch.int64)
            for key, value in arrays.items()
            if value.dtype.kind == "i" and not key.startswith("trace.")
        }
        self.unit = float(arrays["output.scale"])

    def pixels(self, images: Tensor) -> Tensor:
        """Return preprocessed images as whole numbers of 16 bits."""
        return (images.double() / self.about["input_scale"]).round().clamp(-ONE // 2, ONE // 2 - 1).to(torch.int64)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor, time_steps: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits after each step, `[T, N, classes]`, and each neuron's events, `[T, N, ...]`, by node."""
        about, state, logits = self.about, State(), []
        events: dict[str, list[Tensor]] = {n["name"]: [] for n in about["nodes"] if n["operation"] == "neuron"}
        for t in range(time_steps):
            shown = pixels if t == 0 or not about["bias_once"] else torch.zeros_like(pixels)
            values = {"input": shown}
            for node in about["nodes"]:
                inputs = [values[name] for name in node["inputs"]]
                values[node["name"]] = self._run(node, inputs, state, t)
                if node["name"] in events:
                    events[node["name"]].append(values[node["name"]])
            logits.append(self._read_out(values[about["readout"]], state, t))
        return torch.stack(logits), {name: torch.stack(steps) for name, steps in events.items()}

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of preprocessed images after each of the bundle's steps, as real numbers."""
        time_steps = self.about["time_steps"]
        whole, _ = self(self.pixels(images), time_steps)
        steps = torch.arange(time_steps, dtype=torch.float64)
        growth = self.about["growth"] / ONE
        worth = growth**-steps if self.about["bias_once"] else 1 / (steps + 1)
        return whole.double() * self.unit * worth.view(-1, 1, 1)

    def _run(self, node: dict[str, Any], inputs: list[Tensor], state: State, t: int) -> Tensor:
        x, operation = inputs[0], node["operation"]
        if operation == "neuron":
            return self._fire(node, inputs, state, t)
        if operation in ("conv", "linear"):
            weight = self.values[f"{node['name']}.weight"]
            is_small = int(weight.abs().flatten(1).sum(1).max() * x.abs().max()) < EXACT
            dtype = torch.float32 if is_small else torch.float64
            if operation == "linear":
                return F.linear(x.to(dtype), weight.to(dtype)).to(torch.int64)
            geometry = (node["stride"], node["padding"], node["dilation"], node["groups"])
            return F.conv2d(x.to(dtype), weight.to(dtype), None, *geometry).to(torch.int64)
        if operation == "sum_pool":
            kernel = node["kernel"]
            y = F.avg_pool2d(x.double(), kernel, node["stride"], node["padding"], divisor_override=1).to(torch.int64)
            return y.flatten(1) if node["flat"] else y
        if operation == "max_pool":
            return F.max_pool2d(x.double(), node["kernel"], node["stride"], node["padding"]).to(torch.int64)
        if operation == "slice":
            chosen = slice(node["start"], min(node["end"], x.shape[node["dim"]]), node["step"])
            return x[(slice(None),) * node["dim"] + (chosen,)]
        if operation == "pad":
            return F.pad(x, node["pad"])
        return torch.cat(inputs, 1) if operation == "cat" else x.flatten(1)

    def _fire(self, node: dict[str, Any], inputs: list[Tensor], state: State, t: int) -> Tensor:
        name = node["name"]

        def of_channel(key: str) -> Tensor:
            return self.values[f"{name}.{key}"].view(-1, *[1] * (inputs[0].ndim - 2))

        drive = torch.zeros_like(inputs[0])
        for i, (x, shift) in enumerate(zip(inputs, node["shifts"], strict=True)):
            drive += rounded(of_channel(f"multiplier.{i}") * x, shift)
        if t == 0 or not self.about["bias_once"]:
            drive = drive + of_channel("bias")
        coding, v, c = self.about["coding"], state.get(name), state.get(f"{name}.c")
        v = torch.full_like(drive, self.about["start"]) if v is None else v
        c = torch.zeros_like(drive) if c is None else c
        if coding["name"] == "delta":
            m, o = self._grown(v) + drive, self._grown(c)
            s = rounded(m.clamp(min=0) - o, BITS).clamp(-coding["levels"], coding["levels"])
            state[name], state[f"{name}.c"] = m, o + s * ONE
            return s
        h = v if coding.get("late") else v + drive
        if coding["name"] == "signed":
            s = (h >= ONE).to(torch.int64) - ((h < 0) & (c > 0)).to(torch.int64)
        else:
            s = (h >> BITS).clamp(0, coding.get("most", 1))
        v = h - s * ONE
        if coding.get("to_zero"):
            v = torch.where(s > 0, 0, h)
        if coding.get("late"):
            v = v + drive
        state[name], state[f"{name}.c"] = v.clamp(min=-ONE) if coding.get("clipped") else v, c + s
        return s

    def _grown(self, value: Tensor) -> Tensor:
        """In the units of the next step, which may be smaller."""
        return rounded(value * self.about["growth"], BITS)

    def _read_out(self, x: Tensor, state: State, t: int) -> Tensor:
        values, about = self.values, self.about
        total = self._grown(state.get("readout", torch.zeros_like(x))) + x * READOUT
        bias = values["output.bias"]
        if t > 0:
            bias = self._grown(state["bias"]) if about["bias_once"] else state["bias"] + bias
        state["readout"], state["bias"] = total, bias
        weight, multiplier = values["output.weight"].double(), values["output.multiplier"]
        logits = multiplier * F.linear(total.double(), weight).to(torch.int64) + bias
        if about["extrapolation"]:
            logits = logits + multiplier * F.linear(x.double(), weight).to(torch.int64) * about["extrapolation"]
        return logits
