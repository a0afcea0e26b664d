"""Which namespaces a read looks at: one, several, or all whose names begin with the same labels."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pixelmemory.errors import InvalidArgumentError, InvalidTypeError, type_name
from pixelmemory.memory.values import check_namespace
from pixelmemory.options import Options

__all__ = ["EVERYWHERE", "Under", "check_namespaces"]


class Under(msgspec.Struct, frozen=True):
    """The namespaces under a prefix of whole labels: the one of this name, and all that go on after a separator.

    ``Under("users/ann")`` holds ``users/ann`` and ``users/ann/notes``, and not ``users/anna``. ``Under("")`` holds
    every namespace. No character but the separator has a meaning.

    Args:
        prefix: the labels, with the separator between them.
        separator: what stands between labels, one character or more.
    """

    prefix: str
    separator: str = "/"

    def holds(self, namespace: str) -> bool:
        """Whether ``namespace`` is one of them."""
        return not self.prefix or namespace == self.prefix or namespace.startswith(self.prefix + self.separator)


EVERYWHERE = Under("")


def check_namespaces(value: object, options: Options) -> tuple[tuple[str, ...], Under | None]:
    """The namespaces that ``value`` names, each once, in its order; or, of none, the prefix that they are under.

    Raises:
        InvalidTypeError, InvalidArgumentError: it is neither a name, nor several, nor an :class:`Under`.
    """
    if isinstance(value, Under):
        for given in (value.prefix, value.separator):
            if not isinstance(given, str):  # msgspec checks what it decodes, and not what a caller makes
                raise InvalidTypeError("namespace", f"is an Under of texts, not of {type_name(given)}")
        if not value.separator:
            raise InvalidArgumentError("namespace", "needs a separator that is not empty, such as Under('a', '/')")
        if value.prefix.endswith(value.separator):
            raise InvalidArgumentError(
                "namespace", f"must not end with the separator: Under({value.prefix.rstrip(value.separator)!r})"
            )
        return (), value
    if isinstance(value, str):
        return (check_namespace(value, options),), None
    if isinstance(value, (bytes, dict)) or not isinstance(value, Iterable):
        raise InvalidTypeError("namespace", f"must be a str, a list of str, or Under(prefix), not {type_name(value)}")
    names = tuple(
        dict.fromkeys(check_namespace(name, options, f"namespace[{place}]") for place, name in enumerate(value))
    )
    if not names:
        raise InvalidArgumentError("namespace", "must name at least one namespace")
    return names, None
