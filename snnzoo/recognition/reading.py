"""Reading a checkpoint of a network of the zoo, whatever its key layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from snnzoo.checkpoints.layouts import Detected, translate
from snnzoo.errors import CheckpointError, first_few
from snnzoo.models.factory import anns_with
from snnzoo.recognition.biases import without_biases
from snnzoo.recognition.head import infer_head
from snnzoo.recognition.hugging_face import check_config


def read_layout(content: Any, source: str, layout: str | None = None, file: Path | None = None) -> Detected:
    """Return a loaded checkpoint in torchvision's keys, the layout that it had, and lines on what was assumed.

    Args:
        content: a state dict, or dicts around one; as `checkpoints.files.read_checkpoint` returns it.
        source: named in errors.
        layout: one of `LAYOUTS`, instead of detection; keys that it does not know are then left out.
        file: where the checkpoint is; a config.json of transformers beside it is then read, not assumed.

    Raises:
        UsageError: for an unknown `layout`.
        CheckpointError: if it holds no state dict, is in no layout known or in either of several, or is the
            checkpoint of another architecture.
    """
    found = translate(content, source, anns_with, layout)
    if file is not None and found.layout.name == "huggingface" and check_config(file):
        assumption = f"layout {found.layout.name}: assumed that {found.layout.assumes}"
        found = dataclasses.replace(found, notes=tuple(note for note in found.notes if note != assumption))
    state_dict, moved = without_biases(found.state_dict)
    notes = list(found.notes)
    if moved:
        notes.append(f"moved {first_few(moved)} into the mean of the BN behind each, which computes the same")
    try:
        assumed = infer_head(state_dict, "classifier." if "features.0.weight" in state_dict else "fc.")[1]
    except CheckpointError as error:  # the names can be told even so
        assumed = str(error)
    return dataclasses.replace(found, state_dict=state_dict, notes=(*notes, *([assumed] if assumed else [])))
