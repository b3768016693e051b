"""How long work reports what it has done."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # called with (done, total, "task: detail")
