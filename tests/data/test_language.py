from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from classact.data import language
from classact.data.language import (
    BERT,
    SIZE,
    STAND_IN,
    embed_instruction,
    normalize,
    source_at_hand,
    stand_in,
)
from classact.errors import ConfigError

INSTRUCTIONS = [f"pick up the {thing} and place it in the basket" for thing in ("milk", "butter", "ketchup")]


def test_stand_ins_are_the_same_always_and_tell_instructions_apart() -> None:
    first = np.stack([stand_in(text) for text in INSTRUCTIONS])  # (3, 768)
    again = np.stack([embed_instruction(text, STAND_IN)[0] for text in INSTRUCTIONS])
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-6)
    between = first @ first.T - np.eye(3)
    assert np.abs(between).max() < 0.2  # random unit vectors of 768 dimensions: 0.036 on average


def test_stand_ins_never_change() -> None:
    # Data and policies are made with these numbers.
    expected = (-0.03958923, 0.01482486, -0.00851818)
    np.testing.assert_allclose(stand_in("pick up the milk and place it in the basket")[:3], expected, atol=1e-7)


def test_spelling_does_not_matter_words_do() -> None:
    assert normalize("  Pick up_the\tMILK ") == "pick up the milk"
    np.testing.assert_array_equal(
        embed_instruction("Pick up the  milk", STAND_IN)[0], embed_instruction("pick_up_the_milk", STAND_IN)[0]
    )
    assert not np.array_equal(stand_in("pick up the milk"), stand_in("pick up the butter"))


@pytest.mark.parametrize("at_hand", [True, False])
def test_the_source_is_said(monkeypatch: pytest.MonkeyPatch, at_hand: bool) -> None:
    monkeypatch.setattr(language, "bert_folder", lambda: Path() if at_hand else None)
    monkeypatch.setattr(language, "_bert_embedding", lambda words: np.full(SIZE, len(words), np.float32))
    values, source = embed_instruction("pick up the milk")
    assert values.shape == (SIZE,)
    assert (source == BERT) == at_hand
    assert source_at_hand() == source
    assert (values == len("pick up the milk")).all() == at_hand


def test_which_source_it_is_needs_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("BERT was run")

    monkeypatch.setattr(language, "bert_folder", Path)
    monkeypatch.setattr(language, "_bert_embedding", never)
    assert source_at_hand() == BERT


def test_what_is_no_instruction_is_refused() -> None:
    with pytest.raises(ConfigError, match="without words"):
        embed_instruction("  ")
    with pytest.raises(ConfigError, match="source of language embeddings"):
        embed_instruction("pick up the milk", "t5")


def test_bert_without_its_weights_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "bert_folder", lambda: None)
    assert source_at_hand() == STAND_IN
    with pytest.raises(ConfigError, match=r"pip install 'classact\[libero\]', then hf download bert-base-uncased"):
        embed_instruction("a text that nothing was embedded for", BERT)


@pytest.fixture
def little_bert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A BERT of one layer that knows eight words, and an empty cache."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers", reason="transformers comes with the extra 'libero'")
        folder = tmp_path / "version1"
        folder.mkdir()
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "pick", "up", "the", "milk", "butter"]
        (folder / "vocab.txt").write_text("\n".join(words))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
        torch.manual_seed(0)
        config = transformers.BertConfig(vocab_size=10, num_hidden_layers=1, intermediate_size=8, hidden_size=SIZE)
        transformers.BertModel(config).save_pretrained(folder)
    monkeypatch.setattr(language, "bert_folder", lambda: folder)
    monkeypatch.setenv("CLASSACT_CACHE", str(tmp_path / "cache"))
    language._bert_embedding.cache_clear()
    yield folder
    language._bert_embedding.cache_clear()


def test_bert_is_run_once_per_instruction(little_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    milk, source = embed_instruction("Pick up the milk")
    assert (milk.shape, milk.dtype, source) == ((SIZE,), np.dtype(np.float32), BERT)
    assert np.abs(milk - embed_instruction("pick up the butter")[0]).max() > 0.01
    monkeypatch.setattr(language, "_run_bert", lambda *_: np.zeros(SIZE, np.float32))
    language._bert_embedding.cache_clear()  # as another process would
    np.testing.assert_array_equal(embed_instruction("pick up the milk")[0], milk)
    other = little_bert.rename(little_bert.with_name("version2"))
    monkeypatch.setattr(language, "bert_folder", lambda: other)
    language._bert_embedding.cache_clear()
    assert not embed_instruction("pick up the milk")[0].any()  # other weights
