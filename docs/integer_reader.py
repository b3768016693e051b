"""Reads a bundle of `snnzoo export --format integer` with NumPy alone, and runs it: its golden traces, bit for bit."""

import json
import sys

import numpy as np

ONE = 1 << 16  # a threshold


def windows(x, kernel, stride, padding, dilation=(1, 1), fill=0):
    """[N, C, H, W] -> [N, C, H', W', kh, kw]."""
    (ph, pw), (sh, sw), (dh, dw) = padding, stride, dilation
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=fill)
    spans = ((kernel[0] - 1) * dh + 1, (kernel[1] - 1) * dw + 1)
    return np.lib.stride_tricks.sliding_window_view(x, spans, (2, 3))[:, :, ::sh, ::sw, ::dh, ::dw]


def rounded(a, bits):
    """A number over 2^bits, halves up."""
    return (a + (1 << bits >> 1)) >> bits


def weighted(w, x):
    """w [O, K] times x [..., K], over K: exact in float64, since sums stay below 2^53."""
    return (x.astype(np.float64) @ w.astype(np.float64).T).astype(np.int64)


def conv(node, w, x):
    """A convolution of w [O, C / groups, kh, kw], as products of matrices."""
    parts = []
    for own, given in zip(np.split(w, node["groups"]), np.split(x, node["groups"], axis=1), strict=True):
        seen = windows(given, w.shape[2:], *(node[key] for key in ("stride", "padding", "dilation")))
        seen = seen.transpose(0, 2, 3, 1, 4, 5).reshape(len(x), *seen.shape[2:4], -1)
        parts.append(weighted(own.reshape(len(own), -1), seen))
    return np.concatenate(parts, -1).transpose(0, 3, 1, 2)


class Bundle:
    """A network of whole numbers, with the states of its neurons."""

    def __init__(self, path):
        self.arrays, self.state = dict(np.load(path)), {}
        self.about = json.loads(str(self.arrays["graph"]))
        self.grown = lambda a: rounded(a * self.about["growth"], 16)

    def fire(self, node, inputs, t):
        name, coding, shape = node["name"], self.about["coding"], (-1, *[1] * (inputs[0].ndim - 2))
        drive = self.arrays[f"{name}.bias"].reshape(shape) * (t == 0 or not self.about["bias_once"])
        for i, x in enumerate(inputs):
            drive = drive + rounded(self.arrays[f"{name}.multiplier.{i}"].reshape(shape) * x, node["shifts"][i])
        v, c = self.state.get(name, (np.full_like(drive, self.about["start"]), np.zeros_like(drive)))
        h = v if coding.get("late") else v + drive
        if coding["name"] == "delta":
            v, c = self.grown(v) + drive, self.grown(c)
            s = np.clip(rounded(np.maximum(v, 0) - c, 16), -coding["levels"], coding["levels"])
            self.state[name] = v, c + s * ONE
            return s
        s = np.clip(h >> 16, 0, coding.get("most", 1)) - ((h < 0) & (c > 0) & (coding["name"] == "signed"))
        v = (h * (s == 0) if coding.get("to_zero") else h - s * ONE) + drive * coding.get("late", 0)
        self.state[name] = np.maximum(v, -ONE) if coding.get("clipped") else v, c + s
        return s

    def node(self, node, inputs, t):
        x, kind, weight = inputs[0], node["operation"], self.arrays.get(node["name"] + ".weight")
        if kind in ("conv", "linear"):
            return conv(node, weight, x) if kind == "conv" else weighted(weight, x)
        if kind in ("sum_pool", "max_pool"):
            pool, fill = (np.sum, 0) if kind == "sum_pool" else (np.max, -(1 << 62))
            y = pool(windows(x, node["kernel"], node["stride"], node["padding"], fill=fill), (4, 5))
            return y.reshape(len(y), -1) if node.get("flat") else y
        if kind == "slice":
            return x[(slice(None),) * node["dim"] + (slice(node["start"], node["end"], node["step"]),)]
        if kind == "pad":
            pad = np.reshape(node["pad"], (3, 2))[::-1]  # from the last dimension on
            return np.pad(x, ((0, 0), *map(tuple, pad)))
        return np.concatenate(inputs, 1) if kind == "cat" else x.reshape(len(x), -1)

    def step(self, pixels, t):
        """Values of all nodes at step t, and the logits after it."""
        about, own, goes_in = self.about, self.arrays, t == 0 or not self.about["bias_once"]
        values = {"input": pixels.astype(np.int64) * goes_in}
        for node in about["nodes"]:
            run = self.fire if node["operation"] == "neuron" else self.node
            values[node["name"]] = run(node, [values[i] for i in node["inputs"]], t)
        x, bias, weight = values[about["readout"]], own["output.bias"], own["output.weight"]
        total, sent = self.state.get("output", (0 * x, 0 * bias))
        total, sent = self.grown(total) + x * 1024, self.grown(sent) + bias * goes_in
        self.state["output"] = total, sent
        logits = weighted(weight, total) + weighted(weight, x) * about["extrapolation"]
        return values, own["output.multiplier"] * logits + sent


if __name__ == "__main__":
    bundle = Bundle(sys.argv[1])
    traces = {key[6:]: value for key, value in bundle.arrays.items() if key.startswith("trace.")}
    for t in range(bundle.about["time_steps"]):
        values, values["logits"] = bundle.step(traces["input"], t)
        assert all(np.array_equal(values[name], traces[name][t]) for name in traces.keys() - {"input"}), t
    print(f"{len(traces) - 2} layers, {t + 1} steps: all traces reproduced; classes {values['logits'].argmax(1)}")
