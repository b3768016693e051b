"""What codings and activations have in common: frozen dataclasses, known by name, whose settings a file keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Self, TypeVar

from snnzoo.errors import CheckpointError, suggestion

__all__ = ["Registered", "from_dict", "registrar"]


@dataclass(frozen=True)
class Registered:
    """Base class: a frozen dataclass whose fields are its settings, each with a default."""

    name: ClassVar[str]

    def settings(self) -> dict[str, Any]:
        """Return what a file keeps, as JSON has it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Return the inverse of `settings`.

        Raises:
            ValueError: for a setting that there is not, or a value that it cannot have.
        """
        known = {field.name: field for field in fields(cls)}
        for key, value in settings.items():
            if key not in known:
                raise ValueError(f"no setting {key!r}, only {', '.join(known) or 'none'}")
            _check_type(known[key], value)
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the settings, as JSON has them."""
        return {"name": self.name, **self.settings()}

    def numbers(self) -> list[float] | None:
        """Return the settings as an operator's schema has them; None where numbers do not tell all."""
        values = [getattr(self, field.name) for field in fields(self)]
        return [float(value) for value in values] if all(isinstance(value, (int, float)) for value in values) else None

    @classmethod
    def from_numbers(cls, numbers: list[float]) -> Self:
        """Return the inverse of `numbers`."""
        kinds: list[Any] = [type(field.default) for field in fields(cls)]
        return cls(*(kind(number) for kind, number in zip(kinds, numbers, strict=True)))

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # it never changes

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={_short(value)}" for key, value in self.settings().items())
        return f"{self.name}({settings})" if settings else self.name


T = TypeVar("T", bound=Registered)


def registrar(table: dict[str, type[T]]) -> Callable[[type[T]], type[T]]:
    """Return a class decorator that makes a class known, by its `name`, in `table`."""

    def register(kind: type[T]) -> type[T]:
        table[kind.name] = kind
        return kind

    return register


def from_dict(table: Mapping[str, type[T]], what: str, fields: Mapping[str, Any], source: str) -> T:
    """Return the inverse of `to_dict`, for what `table` knows.

    Raises:
        CheckpointError: for an unknown name or setting, or a value out of range; `source` is what was read.
    """
    settings = dict(fields)
    name = str(settings.pop("name", None))
    if name not in table:
        raise CheckpointError(f"{source}: unknown {what} {name!r}: {suggestion(name, table, 'update snnzoo')}")
    try:
        return table[name].from_settings(settings)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: {what} {name}: {error}") from None


def _check_type(field: Field[Any], value: Any) -> None:
    """Raise a ValueError unless `value` is of the kind of the field's default; numbers must be finite."""
    kind = type(field.default)
    fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{field.name} must be a {kind.__name__}, got {value!r}")


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)
