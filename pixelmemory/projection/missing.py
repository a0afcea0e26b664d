"""What stands in the place of a projection that cannot be opened, where the user asked to go on without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import MappingProxyType
from typing import Any, NoReturn

from pixelmemory.errors import ProjectionUnavailableError, UnavailableCause
from pixelmemory.memory.erasure import Erasure
from pixelmemory.projection.stats import ProjectorStats

__all__ = ["MissingProjection"]


class _MissingProjector:
    """A projector that has failed before it began."""

    #: nothing is visible
    watermark = readable_lsn = 0
    dead_letters: Mapping[int, Any] = MappingProxyType({})

    def __init__(self, cause: Exception) -> None:
        self.failure: BaseException = cause
        self.blocked = f"the store was opened without its tables: {cause}. Mend the cause and open it again"

    def start(self) -> None:
        """Nothing to start."""

    def notify(self, *, urgent: bool = False) -> None:
        """Nothing to notify."""

    def request(self, run: Callable[[], Any]) -> Future[Any]:  # noqa: ARG002
        """Refuse it."""
        future: Future[Any] = Future()
        future.set_exception(ProjectionUnavailableError(self.blocked, UnavailableCause.WITHOUT_TABLES))
        return future

    def retry_dead_letters(self) -> int:
        """There are none."""
        return 0

    def exists_after_dead_letters(self, _namespace: str, _memory_id: str) -> bool | None:
        """Nothing is known."""
        return None

    def stats(self) -> ProjectorStats:
        """Nothing was done."""
        return ProjectorStats(0, 0, 0, 0, 0, 0, 0.0, 0.0, 0, self.blocked)


class _MissingHost:
    """Every question about the tables is answered with the cause."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        def refuse(*_args: object, **_kwargs: object) -> NoReturn:
            raise ProjectionUnavailableError(self._reason, UnavailableCause.WITHOUT_TABLES)

        return refuse


class MissingProjection:
    """As :class:`pixelmemory.projection.projection.Projection`, of a store that takes adds and answers no read."""

    is_missing = True
    rebuilding = False

    def __init__(self, cause: Exception) -> None:
        self.projector = _MissingProjector(cause)
        self.host = self.query = _MissingHost(self.projector.blocked)

    def check_erasable(self) -> NoReturn:
        """Raise ProjectionUnavailableError."""
        raise ProjectionUnavailableError(self.projector.blocked, UnavailableCause.WITHOUT_TABLES)

    def erase(self, _erasure: Erasure) -> NoReturn:
        """Raise ProjectionUnavailableError."""
        raise ProjectionUnavailableError(self.projector.blocked, UnavailableCause.WITHOUT_TABLES)

    def namespace_table(self, _namespace: str) -> NoReturn:
        """Raise ProjectionUnavailableError."""
        raise ProjectionUnavailableError(self.projector.blocked, UnavailableCause.WITHOUT_TABLES)

    def close(self) -> None:
        """Nothing is held."""
