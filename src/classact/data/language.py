"""Embeddings of instructions: a pre-trained BERT's where its weights are installed, else a declared stand-in.

The paper encodes LIBERO's instructions with a pre-trained BERT (5.1). Its weights are never downloaded here: in the
middle of an evaluation that would fail or hang. Without them an instruction gets a fixed vector that only tells it from
others. A policy trained with one understands nothing of the other, so :func:`embed_instruction` says which it was, and
data, runs and policies record it; :func:`classact.sims.versions.check_language` compares it with the simulator's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
from huggingface_hub import try_to_load_from_cache

from classact.data.images import cache_folder
from classact.data.types import FloatArray
from classact.errors import ConfigError, StorageError, UnknownNameError, choose
from classact.utils.storage import atomic_path

SIZE = 768  # dimensions of an embedding
BERT = "bert-base-uncased"
STAND_IN = "stand-in"
SOURCES = (BERT, STAND_IN)
UNKNOWN = "unknown"  # what data say where their simulator does not

_REPOSITORIES = (BERT, f"google-bert/{BERT}")  # the hub has it under both names
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_WORDS = ("vocab.txt", "tokenizer.json")


def normalize(text: str) -> str:
    """Lower case, words one space apart."""
    return " ".join(text.lower().replace("_", " ").split())


def embed_instruction(text: str, source: str | None = None) -> tuple[FloatArray, str]:
    """The embedding of an instruction, (768,) float32, and what made it.

    ``source`` is one of :data:`SOURCES`; None: BERT where its weights are installed, else the stand-in.

    Raises:
        ConfigError: unknown source, no words, or BERT without its weights.
    """
    words = normalize(text)
    if not words:
        raise ConfigError(f"expected an instruction, got {text!r} without words.")
    source = source_at_hand() if source is None else source
    if source not in SOURCES:
        raise UnknownNameError(choose("source of language embeddings", source, SOURCES))
    return (_bert_embedding(words) if source == BERT else stand_in(words)), source


def stand_in(words: str) -> FloatArray:
    """(768,) float32 of length 1, a pure function of the words: nearly orthogonal for any two instructions."""
    seed = int.from_bytes(hashlib.sha256(normalize(words).encode()).digest(), "big")
    values = np.random.default_rng(seed).normal(size=SIZE)
    return (values / np.linalg.norm(values)).astype(np.float32)


@cache
def bert_folder() -> Path | None:
    """BERT's folder in the hub's cache; None where files or transformers are missing.

    Loads nothing, not even transformers: simulator processes ask, too.
    """
    if importlib.util.find_spec("transformers") is None:
        return None
    for name in _REPOSITORIES:
        found = {file: try_to_load_from_cache(name, file) for file in ("config.json", *_WEIGHTS, *_WORDS)}
        here = {file for file, path in found.items() if isinstance(path, str)}
        if "config.json" in here and here & set(_WEIGHTS) and here & set(_WORDS):
            return Path(str(found["config.json"])).parent
    return None


def source_at_hand() -> str:
    """The default source of embeddings on this machine; loads no weights."""
    return STAND_IN if bert_folder() is None else BERT


def recorded_source(versions: Mapping[str, str]) -> str:
    """What embedded the instructions of data with these ``versions``; empty: it is not known."""
    source = versions.get("language", UNKNOWN)
    return "" if source == UNKNOWN else source


@cache
def _bert_embedding(words: str) -> FloatArray:
    """Mean of BERT's last layer over an instruction's tokens, including both end marks.

    Cached on disk, so that only the first of many processes loads BERT for an instruction.
    """
    folder = bert_folder()
    if folder is None:
        raise ConfigError(
            f"{BERT} needs transformers and its weights on this machine: pip install 'classact[libero]', then hf "
            f"download {BERT}. Or use the stand-in, for training and evaluation alike."
        )
    # The last part of the folder's name is the version of the weights.
    name = hashlib.sha256(f"{BERT} {folder.resolve().name} {words}".encode()).hexdigest()
    file = cache_folder() / "language" / f"{name[:32]}.npy"
    with suppress(OSError, ValueError):  # not there yet, or damaged
        kept = np.load(file)
        if kept.shape == (SIZE,) and kept.dtype == np.float32 and np.isfinite(kept).all():
            return np.asarray(kept, np.float32)
    values = _run_bert(folder, words)
    with suppress(StorageError), atomic_path(file) as temporary, temporary.open("wb") as stream:
        np.save(stream, values)
    return values


def _run_bert(folder: Path, words: str) -> FloatArray:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        model = AutoModel.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32).eval()
    with torch.inference_mode():
        hidden = model(**tokenizer(words, return_tensors="pt")).last_hidden_state  # (1, T, 768)
    return np.asarray(hidden[0].mean(0).numpy(), np.float32)
