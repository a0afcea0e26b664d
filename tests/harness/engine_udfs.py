"""An embedding function that fails on some texts; Pixeltable finds it by this module's path."""

from __future__ import annotations

import random
import threading

import numpy as np
import pixeltable as pxt

__all__ = ["embed_or_refuse", "embed_through_gates", "mended", "model_gate", "text_gate"]

#: while it is False, texts that begin with "refused" cannot be embedded
mended = False
#: set: the function, as it is looked at when a store is opened, and as it embeds texts, answers
model_gate, text_gate = threading.Event(), threading.Event()
model_gate.set()
text_gate.set()


@pxt.udf  # type: ignore[untyped-decorator]
def embed_or_refuse(text: str) -> pxt.Array[(8,), pxt.Float]:
    """A vector of its own for each text."""
    if text.startswith("refused") and not mended:
        raise ValueError("this text cannot be embedded")
    source = random.Random(text)
    return np.array([source.gauss(0, 1) for _ in range(8)], dtype=np.float32)


@pxt.udf  # type: ignore[untyped-decorator]
def embed_through_gates(text: str) -> pxt.Array[(8,), pxt.Float]:
    """A vector of its own for each text, once the gate is open."""
    (model_gate if text == "probe" else text_gate).wait()
    source = random.Random(text)
    return np.array([source.gauss(0, 1) for _ in range(8)], dtype=np.float32)
