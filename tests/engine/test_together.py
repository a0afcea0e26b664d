"""Texts that wait for the model at the same time go through it together, and each read gets its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from pixelmemory.engine.together import TEXTS_MAX, EmbeddedTogether

pytestmark = pytest.mark.anyio


class Model:
    """Gives each text its length; refuses those that begin with "bad"."""

    def __init__(self) -> None:
        self.passes: list[list[str]] = []
        self.may_go = anyio.Event()

    def embed(self, texts: list[str]) -> Any:
        self.passes.append(texts)
        if any(text.startswith("bad") for text in texts):
            raise ValueError("refused")
        return np.array([[len(text)] for text in texts], dtype=np.float32)

    async def on_thread(self, run: Callable[[], Any]) -> Any:
        await self.may_go.wait()
        await anyio.lowlevel.checkpoint()
        return run()

    def together(self) -> EmbeddedTogether:
        return EmbeddedTogether(self.embed, self.on_thread)


async def test_what_waits_is_embedded_in_one_pass() -> None:
    model = Model()
    together = model.together()
    found: dict[str, list[float]] = {}

    async def want(*texts: str) -> None:
        found[texts[0]] = [float(vector[0]) for vector in await together.vectors(texts)]

    async with anyio.create_task_group() as tasks:
        for n in range(10):
            tasks.start_soon(want, "x" * (n + 1), "same", "y" * n)
        await anyio.wait_all_tasks_blocked()
        model.may_go.set()
    assert found == {"x" * (n + 1): [n + 1, 4, n] for n in range(10)}
    assert len(model.passes) <= 2
    assert all(len(texts) == len(set(texts)) for texts in model.passes)


async def test_a_pass_is_bounded() -> None:
    model = Model()
    together = model.together()
    async with anyio.create_task_group() as tasks:
        for n in range(2 * TEXTS_MAX):
            tasks.start_soon(together.vectors, [f"{n}"])
        await anyio.wait_all_tasks_blocked()
        model.may_go.set()
    assert max(map(len, model.passes)) <= TEXTS_MAX
    assert sum(map(len, model.passes)) == 2 * TEXTS_MAX


async def test_a_text_that_fails_is_nobody_elses_error() -> None:
    model = Model()
    together = model.together()
    outcomes: dict[str, str] = {}

    async def want(text: str) -> None:
        try:
            outcomes[text] = str(float((await together.vectors([text]))[0][0]))
        except ValueError as error:
            outcomes[text] = str(error)

    async with anyio.create_task_group() as tasks:
        for text in ("good", "bad one", "better", "bad two"):
            tasks.start_soon(want, text)
        await anyio.wait_all_tasks_blocked()
        model.may_go.set()
    assert outcomes == {"good": "4.0", "bad one": "refused", "better": "6.0", "bad two": "refused"}


async def test_a_cancelled_read_takes_nobody_with_it() -> None:
    model = Model()
    together = model.together()
    found: list[float] = []

    async def want(text: str) -> None:
        found.append(float((await together.vectors([text]))[0][0]))

    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def cancelled() -> None:
            with scope:
                await together.vectors(["first"])

        tasks.start_soon(cancelled)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(want, "second")
        tasks.start_soon(want, "third one")
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        model.may_go.set()
    assert sorted(found) == [6, 9]
    assert "first" not in [text for texts in model.passes for text in texts]
