"""A model that runs: texts in, vectors out."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pixelmemory.embedding.config import EmbeddingConfig, is_host_function
from pixelmemory.embedding.fair_lock import FairLock
from pixelmemory.embedding.fingerprint import model_digest
from pixelmemory.embedding.function import PythonFunctionEmbedder
from pixelmemory.embedding.source import REMEDY, ModelSource, find_model, first_line, is_e5
from pixelmemory.embedding.window import Window, window_of
from pixelmemory.errors import EmbeddingError, InvalidArgumentError, ModelLoadError, UnembeddableTextError, shortened
from pixelmemory.quiet import ignore_warnings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Embedder", "SentenceTransformerEmbedder", "open_embedder"]

_log = logging.getLogger("pixelmemory.embedding")

#: texts in one pass where the user says nothing
_BATCH_SIZE_CPU = 32
_BATCH_SIZE_ACCELERATOR = 128
#: names of a model's own prompts, the first that is there
_QUERY_PROMPT_NAMES = ("query",)
_DOCUMENT_PROMPT_NAMES = ("document", "passage", "corpus")
_E5_PROMPTS = ("query: ", "passage: ")
_NOISY_LOGGERS = ("transformers", "sentence_transformers", "huggingface_hub", "torch")


class Embedder(Protocol):
    """What turns texts into vectors. Every method may be called from any thread."""

    @property
    def dimensions(self) -> int:
        """Length of its vectors."""

    @property
    def fingerprint(self) -> str:
        """Stable text for everything that decides its vectors; the same on every machine."""

    @property
    def label(self) -> str:
        """What a person knows it by; nothing of this machine in it."""

    @property
    def window(self) -> Window | None:
        """How much of a content it reads; None where it reads all of it, as far as is known."""

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of memories' contents.

        Args:
            texts: contents, without a prompt. Equal ones are embedded once.

        Returns:
            Shape ``(len(texts), dimensions)``, in the order of ``texts``.

        Raises:
            UnembeddableTextError: one text has no usable vector, whenever it is tried; the error says which.
            EmbeddingError: the model failed otherwise.
        """

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of queries, shape ``(len(texts), dimensions)``. Raises as :meth:`embed_documents`."""

    @property
    def batch_size(self) -> int:
        """How many texts it embeds in one pass."""

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Which of ``texts``, contents without a prompt, are longer than it reads; in their order."""


def open_embedder(
    config: EmbeddingConfig, function_embedder: Callable[[EmbeddingConfig], Embedder] | None = None
) -> Embedder | None:
    """Load what ``config`` names.

    Args:
        config: checked by :func:`pixelmemory.embedding.parse_embedding_config`.
        function_embedder: makes an embedder of ``config.function`` where that is a function of the host's.

    Returns:
        The embedder, or None where vectors are always given.

    Raises:
        ModelLoadError: the model cannot be loaded; within seconds where there is no network.
        InvalidArgumentError: the model cannot do what the configuration asks.
    """
    if config.function is not None and not is_host_function(config.function):
        return PythonFunctionEmbedder(config)
    if config.function is not None:
        if function_embedder is None:
            raise InvalidArgumentError("embedding_config['function']", "cannot be used here")
        return function_embedder(config)
    if config.model_id is None:
        return None
    return SentenceTransformerEmbedder(config)


class SentenceTransformerEmbedder:
    """A model of sentence-transformers, loaded when constructed.

    Args:
        config: with a ``model_id``.

    Raises:
        ModelLoadError: it cannot be loaded.
        InvalidArgumentError: ``dimensions`` beyond the model's.
    """

    def __init__(self, config: EmbeddingConfig) -> None:
        self._model, source = _find_and_load(config)
        self._turn = FairLock()
        self._normalize = config.normalize
        on_cpu = self._model.device.type == "cpu"
        self.batch_size = config.batch_size or (_BATCH_SIZE_CPU if on_cpu else _BATCH_SIZE_ACCELERATOR)
        self.query_prompt, self.document_prompt = _prompts(self._model, source, config)
        self.dimensions = self._measure(source, config)
        self.window = _window(self._model, self.document_prompt)
        self.fingerprint = _fingerprint(source, config, self)
        self.label = _label(source, self.dimensions)
        _log.info("loaded %s on %s, %d dimensions", source.name, self._model.device, self.dimensions)

    def __repr__(self) -> str:
        return f"<SentenceTransformerEmbedder {self.fingerprint} on {self._model.device}>"

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See :meth:`Embedder.embed_documents`."""
        first_rows: dict[str, int] = {}
        for row, text in enumerate(texts):
            first_rows.setdefault(text, row)
        # one length beside the next, so that little is padded; the longest first, so that memory runs out at once
        distinct = sorted(first_rows, key=len, reverse=True)
        vectors = np.empty((len(distinct), self.dimensions), dtype=np.float32)
        for start in range(0, len(distinct), self.batch_size):
            batch = distinct[start : start + self.batch_size]
            with self._turn:  # for one batch only: a query need not wait for them all
                made = self._encode(self._model.encode_document, batch, self.document_prompt)
            vectors[start : start + len(batch)] = made
        self._finish(vectors, [first_rows[text] for text in distinct])
        places = {text: place for place, text in enumerate(distinct)}
        return vectors[[places[text] for text in texts]]

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See :meth:`Embedder.embed_queries`."""
        with self._turn:
            vectors = self._encode(self._model.encode_query, list(texts), self.query_prompt)
        self._finish(vectors, list(range(len(texts))))
        return vectors

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """See :meth:`Embedder.truncated`. Tokenizes what may be too long: about 2 us a token, on one core."""
        cut = [False] * len(texts)
        window = self.window
        if window is None:
            return cut
        asked = [place for place, text in enumerate(texts) if window.may_cut(text)]
        for start in range(0, len(asked), self.batch_size):
            places = asked[start : start + self.batch_size]
            with self._turn:  # a tokenizer keeps how it truncates, and a pass through the model sets it
                tokens = self._model.tokenizer(
                    [self.document_prompt + texts[place] for place in places],
                    truncation=False,
                    padding=False,
                    return_attention_mask=False,
                    return_token_type_ids=False,
                    verbose=False,  # that a text is longer than the model reads
                )["input_ids"]
            for place, ids in zip(places, tokens, strict=True):
                cut[place] = len(ids) > window.tokens_max
        return cut

    def _encode(self, encode: Callable[..., Any], texts: list[str], prompt: str) -> NDArray[np.float32]:
        """One pass. The prompt goes as an argument, never into the texts: a pooling may leave it out; and always, even
        if empty, else a default of the model's would come in."""
        try:
            vectors = encode(
                texts,
                prompt=prompt,
                batch_size=self.batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=False,
            )
        except Exception as error:
            raise EmbeddingError(f"the embedding model failed on {len(texts)} texts: {first_line(error)}") from error
        return np.asarray(vectors, dtype=np.float32)

    def _finish(self, vectors: NDArray[np.float32], rows: list[int]) -> None:
        """Check every vector and scale it, in place. ``rows`` are the texts' places in the caller's list."""
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        for place in np.flatnonzero(~np.isfinite(norms) | (norms == 0.0)):
            kind = "a zero vector" if norms[place] == 0.0 else "a vector that is not finite"
            raise UnembeddableTextError(rows[place], f"the model gives it {kind}")
        if self._normalize:
            np.divide(vectors, norms[:, None], out=vectors, casting="same_kind")  # in double: a norm may exceed float32

    def _measure(self, source: ModelSource, config: EmbeddingConfig) -> int:
        """The length of the model's vectors, from one that it makes: a model that cannot embed shows it here."""
        try:
            vectors = self._encode(self._model.encode_document, ["dimensions"], self.document_prompt)
        except EmbeddingError as error:
            raise ModelLoadError(source.model_id, f"it does not embed text ({error})", REMEDY) from error
        if vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise ModelLoadError(source.model_id, "what it gives for a text is not a finite vector", REMEDY)
        dimensions = int(vectors.shape[1])
        if config.dimensions is not None and config.dimensions != dimensions:
            reason = f"is {config.dimensions}, but the model's vectors have {dimensions}"
            raise InvalidArgumentError("embedding_config['dimensions']", reason)
        return dimensions


def _find_and_load(config: EmbeddingConfig) -> tuple[SentenceTransformer, ModelSource]:
    source = find_model(config.model_id or "")
    try:
        return _load(source, config), source
    except ModelLoadError as error:
        if not source.from_hub:
            raise
        _log.warning("%s; trying to complete it from the hub", error.reason)
        try:
            source = find_model(source.model_id, refresh=True)
        except ModelLoadError:
            raise error from None
        return _load(source, config), source


def _load(source: ModelSource, config: EmbeddingConfig) -> SentenceTransformer:
    """Load the files, from this machine alone unless code is to be fetched."""
    with _quiet() as messages:
        try:
            import torch
            from sentence_transformers import SentenceTransformer
        except Exception as error:
            reason = f"sentence-transformers cannot be imported ({first_line(error)})"
            remedy = "Install sentence-transformers and torch, or pass embedding_config=None for no semantic search"
            raise ModelLoadError(source.model_id, reason, remedy) from error
        if config.device is not None:
            _check_device(config.device)
        load = functools.partial(
            SentenceTransformer,
            source.target,
            device=config.device,
            trust_remote_code=config.trust_remote_code,
            truncate_dim=config.dimensions,
            model_kwargs={"dtype": getattr(torch, config.dtype or "float32")},
        )
        try:
            try:
                model = load(local_files_only=True)
            except Exception:
                if not config.trust_remote_code:
                    raise
                model = load(local_files_only=False)  # its code may lie in another repository
        except Exception as error:
            raise ModelLoadError(source.model_id, first_line(error), _repair(source)) from error
    _check_complete(model, messages, source)
    return model


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except Exception as error:
        reason = f"is {device!r}, which cannot be used here ({first_line(error)})"
        raise InvalidArgumentError("embedding_config['device']", reason) from error


def _check_complete(model: SentenceTransformer, messages: list[str], source: ModelSource) -> None:
    """Refuse what the libraries only warn of: they fill missing weights with random numbers (others in every process),
    and a missing vocabulary with nothing, so that all words are the same."""
    missing = re.findall(r"^(\S+)\s*\|\s*MISSING", "\n".join(messages), re.MULTILINE)
    missing = [name for name in missing if "pooler" not in name]  # a pooling of sentence-transformers stands for it
    if missing:
        reason = f"weights are missing ({len(missing)} in all), such as {missing[0]}"
        raise ModelLoadError(source.model_id, reason, _repair(source))
    tokenizer: Any = getattr(model, "tokenizer", None)
    special_ids = getattr(tokenizer, "all_special_ids", None)
    if special_ids is not None and len(tokenizer) <= len(special_ids):
        raise ModelLoadError(source.model_id, "its tokenizer's vocabulary is missing", _repair(source))


def _repair(source: ModelSource) -> str:
    return f"Its files are in {source.folder}: download them again, or pass another model"


def _prompts(model: SentenceTransformer, source: ModelSource, config: EmbeddingConfig) -> tuple[str, str]:
    """The prompts of queries and of documents: the user's, else the model's own, else E5's for an E5, else none."""
    own = {name: prompt for name, prompt in model.prompts.items() if prompt}
    default = own.get(model.default_prompt_name or "", "")
    query = next((own[name] for name in _QUERY_PROMPT_NAMES if name in own), default)
    document = next((own[name] for name in _DOCUMENT_PROMPT_NAMES if name in own), default)
    if not query and not document and (is_e5(source.name) or is_e5(_trained_as(source))):
        query, document = _E5_PROMPTS
    return (
        query if config.query_prompt is None else config.query_prompt,
        document if config.document_prompt is None else config.document_prompt,
    )


def _window(model: SentenceTransformer, prompt: str) -> Window | None:
    """How much ``model`` reads of a text. Known of those with a tokenizer of transformers; static models read all."""
    from transformers import PreTrainedTokenizerBase

    tokenizer: Any = getattr(model[0], "tokenizer", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    tokens_max = getattr(model[0], "document_length", None) or model.max_seq_length
    return window_of(tokens_max, tokenizer.num_special_tokens_to_add(pair=False), prompt)


def _trained_as(source: ModelSource) -> str:
    """The name that the configuration carries of what the model was trained from, if any."""
    try:
        value = json.loads((source.folder / "config.json").read_bytes())["_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):  # a model of other modules; what matters was read at load
        return ""
    return str(value).rsplit("/", 1)[-1]


def _fingerprint(source: ModelSource, config: EmbeddingConfig, embedder: SentenceTransformerEmbedder) -> str:
    try:
        digest = model_digest(source.folder, with_code=config.trust_remote_code)
    except OSError as error:
        raise ModelLoadError(source.model_id, f"its files cannot be read ({first_line(error)})", REMEDY) from error
    # the two half types differ less from each other than a GPU does from a CPU
    precision = "full" if config.dtype in (None, "float32") else "half"
    return (
        f"model={digest} dimensions={embedder.dimensions} precision={precision} "
        f"normalize={'yes' if config.normalize else 'no'} "
        f"query={json.dumps(embedder.query_prompt)} document={json.dumps(embedder.document_prompt)}"
    )


def _label(source: ModelSource, dimensions: int) -> str:
    """The id on the hub, or the last part of the folder's path. A folder in the hub's cache bears its model's id."""
    cached = source.name.startswith("models--")
    name = source.name.removeprefix("models--").replace("--", "/") if cached else source.name
    kind = "" if source.from_hub or cached else "a folder, "
    return f"{shortened(name, 200)} ({kind}{dimensions} dimensions)"


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        _log.debug("%s: %s", record.name, self.messages[-1])


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep progress bars, warnings and log lines of the libraries from stderr while a model is loaded from this
    machine. Gives their log lines as a list that grows."""
    collector = _Collector()
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    bars: Any = None
    with ignore_warnings():  # of torch and sentence-transformers
        with contextlib.suppress(ImportError):
            from transformers.utils import logging as bars  # it sets up its logger when imported
        had_bars = bars is not None and bars.is_progress_bar_enabled()
        kept = [(logger.handlers, logger.propagate) for logger in loggers]
        try:
            for logger in loggers:
                logger.handlers, logger.propagate = [collector], False
            if had_bars:
                bars.disable_progress_bar()
            yield collector.messages
        finally:
            for logger, (handlers, propagate) in zip(loggers, kept, strict=True):
                logger.handlers, logger.propagate = handlers, propagate
            if had_bars:
                bars.enable_progress_bar()
