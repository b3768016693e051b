"""`snnzoo download`: weights into the cache, ahead of their use."""

from __future__ import annotations

from typing import Annotated

import typer

from snnzoo.checkpoints import manifest
from snnzoo.checkpoints.download import fetch
from snnzoo.checkpoints.output import check_outputs
from snnzoo.cli import common
from snnzoo.models.registry import list_weights, split_tag


def download(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="MODEL for its default weights, or MODEL.WEIGHTS; one or several."),
    ],
    manifest_file: common.ManifestOption = None,
    json: common.JsonOption = None,
    force: common.ForceOption = False,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Download weights into the cache, which is torch.hub's, and print where each file is.

    A download that was interrupted goes on where it ended. What is there already is only checked.

    \b
    Examples:
      snnzoo download resnet18 resnet50.IMAGENET1K_V1
      SNNZOO_OFFLINE=1 snnzoo download resnet18    # is it here?
    """
    check_outputs({"--json": json}, filter(None, [manifest_file]), force=force)
    entries = list_weights(manifest_file)
    chosen = [manifest.find(model, weights or "DEFAULT", entries) for model, weights in map(split_tag, names)]
    files = []
    for entry in {entry.tag: entry for entry in chosen}.values():
        with common.progress_bars(quiet) as progress:
            path = fetch(entry, progress)
        files.append({"tag": entry.tag, "path": str(path), "size": path.stat().st_size})
        if json != "-":
            print(f"{entry.tag}  {path}", flush=True)
    common.write_json(json, {"files": files}, force)
