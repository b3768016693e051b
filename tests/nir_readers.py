"""The readers of NIR that others wrote, each behind one call."""

import numpy as np
import pytest
import torch

READERS = {
    "sinabs": "sinabs.nir",
    "snntorch": "snntorch.import_nir",
    "norse": "norse.torch",
    "spikingjelly": "spikingjelly.activation_based.nir_exchange",
    "spyx": "spyx.nir",
}


def run_elsewhere(name, graph, x_seq):
    """What a library makes of a graph: `[T, N, C, H, W] -> [T, N, features]`. Skips where it is not installed."""
    library = pytest.importorskip(READERS[name], exc_type=ImportError)
    x_seq = x_seq.float()
    if name == "sinabs":
        time_steps, batch = x_seq.shape[:2]
        network = library.from_nir(graph, num_timesteps=time_steps)
        with torch.no_grad():
            outputs, _ = network(x_seq.transpose(0, 1).flatten(0, 1))
        return outputs.unflatten(0, (batch, time_steps)).transpose(0, 1).flatten(2)
    if name == "spyx":
        channels_last = x_seq.permute(0, 1, 3, 4, 2).numpy()
        _, outputs = library.from_nir(graph, np.ascontiguousarray(channels_last), dt=1)
        return torch.from_numpy(np.array(outputs)).flatten(2)
    if name == "norse":
        network = library.from_nir(graph, dt=1e-4)
    else:
        network = library.import_from_nir(graph)
    outputs, state = [], None
    with torch.no_grad():
        for x in x_seq:
            y, state = network(x, state)
            outputs.append(y.flatten(1))
    return torch.stack(outputs)
