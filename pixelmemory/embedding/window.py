"""How much of a text a model reads: the rest is cut off, and the text is found by its beginning alone.

A model counts tokens, which only its tokenizer can tell. Most texts are so short that they need not be asked about: a
token takes at least one byte of what the tokenizer makes of a text before it splits it.
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

__all__ = ["Window", "tokens_bound", "window_of"]

#: Many tokenizers fold case and decompose characters first. Unicode's decompositions take at most 11 times the bytes in
#: UTF-8 (UAX #15), and a character of another case at most 3 bytes where it had 2.
_DECOMPOSED_BYTES_MAX, _FOLDED_BYTES_MAX = 11, 2
#: tokenizers report a number of this size where they know of no limit
_UNLIMITED_TOKENS = 10**9


class Window(NamedTuple):
    """How much of a text a model reads, its prompt left out."""

    #: tokens, with those of the prompt and the ones that mark a text's ends
    tokens_max: int
    #: no text of ASCII alone up to this length is cut
    ascii_bytes_max: int
    #: no other text up to this length in UTF-8 is cut
    bytes_max: int

    def may_cut(self, text: str) -> bool:
        """Whether ``text`` may be longer than the model reads; False only where it is certainly not."""
        return tokens_bound(text) > self.ascii_bytes_max


def tokens_bound(text: str) -> int:
    """A number of tokens that ``text`` does not exceed, without those that mark its ends; exact to a factor."""
    if text.isascii():
        return len(text)
    as_given, decomposed = (len(each.encode()) for each in (text, unicodedata.normalize("NFKD", text)))
    return max(as_given, decomposed) * _FOLDED_BYTES_MAX


def window_of(tokens_max: float | None, tokens_added: int, prompt: str) -> Window | None:
    """The window of a model.

    Args:
        tokens_max: that it reads; None, or a number beyond all texts, where it knows of no limit.
        tokens_added: to each text, such as those that mark its ends.
        prompt: that stands before each text.

    Returns:
        The window, or None where nothing is cut as far as is known.
    """
    if tokens_max is None or not tokens_max < _UNLIMITED_TOKENS:
        return None
    # one more: some tokenizers put a space before the text
    ascii_bytes_max = max(0, int(tokens_max) - tokens_added - tokens_bound(prompt) - 1)
    return Window(int(tokens_max), ascii_bytes_max, ascii_bytes_max // (_DECOMPOSED_BYTES_MAX * _FOLDED_BYTES_MAX))
