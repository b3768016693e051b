"""The weights of a network that a library or the user's own code builds: its pretrained ones, or a checkpoint's."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnzoo.checkpoints.download import DownloadError
from snnzoo.data.preprocess import Preprocess
from snnzoo.errors import CheckpointError, SnnzooError, first_few
from snnzoo.progress import Progress
from snnzoo.recognition.libraries import Network, OwnCode

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class NamedSource:
    """A network by name (see `libraries`), and where its weights come from; used as an `AnnSource` is.

    Args:
        model: its name in files.
        network: that it stands for.
        checkpoint: a file of the user's with the keys of that network, instead of its pretrained weights.
        num_classes: of the checkpoint; read off the shape of its classifier if None. User's own code is given it.
    """

    model: str
    network: Network
    checkpoint: Path | None = None
    num_classes: int | None = None
    calibration_source = None
    by_keys = False  # its library's code or configuration tells the architecture

    @property
    def stem(self) -> str:
        """What files are named by."""
        return self.network.stem

    @property
    def preprocess(self) -> Preprocess | None:
        """How the network's images are prepared, by its library; None where that is not known."""
        with self._library():
            return self.network.preprocess

    def preprocess_of(self, ann: nn.Module) -> Preprocess | None:
        """As `preprocess`."""
        return self.preprocess

    def classes(self, num_classes: int) -> list[str] | None:
        """Return the names of the classes, where the weights are known to be of them."""
        if self.checkpoint is not None and not self.network.says_weights:
            return None
        with self._library():
            names = self.network.classes
        return names if names is not None and len(names) == num_classes else None

    def check_convertible(self, with_images: bool) -> None:
        """Nothing can be told before it is built."""

    def record(self) -> dict[str, Any]:
        """Return what a converted file says about its weights: name, or file name and SHA-256."""
        if self.checkpoint is None:
            return {"weights": self.network.weights}
        from snnzoo.checkpoints.files import sha256_of

        return {"file": self.checkpoint.name, "sha256": sha256_of(self.checkpoint)}

    def load(self, progress: Progress | None = None, notify: Callable[[str], None] | None = None) -> nn.Module:
        """Return the network with its weights, in evaluation mode.

        Args:
            progress: called with (done, total, description).
            notify: called with a line on each thing that was assumed or left out.

        Raises:
            UsageError: if it has no pretrained weights.
            DownloadError: if they cannot be fetched; the message says what to do.
            CheckpointError: if the checkpoint cannot be read, or does not fit the network.
        """
        if progress:
            progress(0, 0, f"loading {self.model}")
        if self.checkpoint is None:
            with self._library():
                return self.network.pretrained(self.num_classes).eval()
        return self._with_checkpoint(self.checkpoint, notify or (lambda line: None)).eval()

    def _with_checkpoint(self, file: Path, notify: Callable[[str], None]) -> nn.Module:
        from snnzoo.checkpoints.files import read_checkpoint
        from snnzoo.checkpoints.layouts import check_fits, compare
        from snnzoo.checkpoints.wrapping import opened_dicts, unwrap

        source = str(file)
        content = read_checkpoint(file)
        opened = opened_dicts(content, source)
        is_own_code = isinstance(self.network, OwnCode)
        with self._library():
            module = self.network.build(self.num_classes if is_own_code else None, opened.state_dict)
        own = module.state_dict()
        if compare(own, opened.state_dict)[0]:  # keys are missing: theirs do not fit as they are
            opened = unwrap(content, source)
        if not is_own_code:
            last = [key for key in own if key.endswith(".weight")][-1]
            classes = self._classes_in(opened.state_dict.get(last), source)
            if classes not in (None, own[last].shape[0]):
                with self._library():
                    module = self.network.build(classes, opened.state_dict)
                own = module.state_dict()
        check_fits(own, opened.state_dict, source)
        result = module.load_state_dict(opened.state_dict, strict=False)
        lost = [key for key in result.missing_keys if not key.endswith("num_batches_tracked")]
        if lost or result.unexpected_keys:  # those that `check_fits` takes for neurons'
            wrong = first_few([*lost, *result.unexpected_keys])
            raise CheckpointError(f"{source}: keys do not fit the network: {wrong} are missing, or unexpected")
        for line in (*opened.notes, *([f"assumed {self.network.assumes}"] if self.network.assumes else [])):
            notify(line)
        return module

    def _classes_in(self, classifier: Tensor | None, source: str) -> int | None:
        """The classes of a checkpoint, by the weight of its last layer; what the user says where it has none."""
        if classifier is None or classifier.ndim == 0:
            return self.num_classes
        classes = classifier.shape[0]
        if self.num_classes not in (None, classes):
            raise CheckpointError(f"{source}: has {classes} classes, not {self.num_classes}: leave --num-classes out")
        return classes

    @contextlib.contextmanager
    def _library(self) -> Iterator[None]:
        """Have a library's failure, mostly to reach the network, be one line, and its own lines nowhere."""
        disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        except SnnzooError:
            raise
        except Exception as error:  # libraries have many kinds
            reason = " ".join(str(error).split()) or type(error).__name__
            reason = reason if len(reason) <= 300 else reason[:300] + " ..."
            raise DownloadError(f"cannot load {self.model}: {reason}; {self.network.by_hand}") from error
        finally:
            logging.disable(disabled)
