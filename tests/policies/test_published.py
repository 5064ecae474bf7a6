"""Policies and encoders on the hub, whose cache and uploads are folders here; nothing reaches for the network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import ModelCard
from numpy.testing import assert_array_equal

import classact
import fakes
from classact.data.lowdim import LowDim
from classact.data.types import Observation
from classact.errors import CheckpointError, ConfigError
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.policies import ImageLatents, RetrievalConfig, RetrievalPolicy, load_policy
from classact.utils.storage import CARD
from snippets import snippet

DATA = fakes.demonstrations()


@pytest.fixture(scope="module")
def policy() -> RetrievalPolicy:
    encoder = ImageEncoder(EncoderConfig(width=0.25, image_size=32, crop_size=28))
    return RetrievalPolicy.build(ImageLatents(encoder, LowDim.fit(DATA)), DATA, RetrievalConfig(k=5, chunk_length=4))


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, Path], Path]:
    """An empty cache without a connection; puts a folder there as a revision of a model."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    def put(name: str, revision: str, folder: Path) -> Path:
        place = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        commit = f"{len(list(place.glob('snapshots/*'))):040x}"
        shutil.copytree(folder, place / "snapshots" / commit)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / revision).write_text(commit)
        return place / "snapshots" / commit

    return put


def test_a_name_on_the_hub_is_as_good_as_a_folder(
    policy: RetrievalPolicy, cached: Callable[[str, str, Path], Path], tmp_path: Path
) -> None:
    policy.save_pretrained(tmp_path / "p")
    first = cached("user/push", "main", tmp_path / "p")
    (first / CARD).write_text("mine")  # which no checksum minds
    policy.config, before = RetrievalConfig(k=3, chunk_length=4), policy.config
    policy.save_pretrained(tmp_path / "p2")
    policy.config = before
    cached("user/push", "v2", tmp_path / "p2")
    loaded: Any = classact.load_policy("user/push")
    assert loaded.config.k == 5
    assert_array_equal(loaded.bank, policy.bank)
    assert load_policy("user/push@v2").config.k == 3  # type: ignore[union-attr]
    assert RetrievalPolicy.from_pretrained("user/push", revision="v2", temperature=0.5).config.k == 3
    cached("user/name", "main", tmp_path / "p")
    found: dict[str, Any] = {"frames": DATA.images["top"]}
    exec(snippet("hub"), found)  # of the page
    assert (found["policy"].config.k, found["features"].shape) == (16, (DATA.num_steps, 64))
    encoder = ImageEncoder.from_pretrained("user/push")  # of the policy
    assert policy.latents.encoder is not None
    assert fakes.equal(encoder, policy.latents.encoder)
    with pytest.raises(ConfigError, match="names revision 'v2', but revision 'main' is asked for"):
        load_policy("user/push@v2", revision="main")
    with pytest.raises(ConfigError, match=r"revision 'v2' of .*only models of the hub have revisions"):
        load_policy(tmp_path / "p", revision="v2")
    with pytest.raises(CheckpointError, match="user/none is no folder here, and can neither be downloaded as a model"):
        classact.load_policy("user/none")
    (first / "bank.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"bank.safetensors has 7 bytes, expected"):
        classact.load_policy("user/push")


class Uploads:
    """In the place of HfApi: keeps what is uploaded."""

    kept: Path

    def create_repo(self, name: str, *, private: bool | None, exist_ok: bool) -> None:
        if name.startswith("other/"):
            raise PermissionError("403 Forbidden\nsee https://...")
        assert exist_ok
        assert private

    def upload_folder(self, *, repo_id: str, folder_path: Path) -> str:
        shutil.copytree(folder_path, self.kept / repo_id)
        return f"https://hub/{repo_id}"


def test_push_uploads_what_is_saved_with_a_card_whose_code_works(
    policy: RetrievalPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Uploads, "kept", tmp_path, raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Uploads)
    assert policy.push_to_hub("user/push", private=True) == "https://hub/user/push"
    encoder = policy.latents.encoder
    assert encoder is not None
    encoder.push_to_hub("user/eyes", private=True)
    with pytest.raises(ConfigError, match=r"could not be uploaded as other/push \(403 Forbidden\)\. .* log in with"):
        policy.push_to_hub("other/push", private=True)
    with pytest.raises(ConfigError, match="'push' is no name on the hub: expected user/name"):
        policy.push_to_hub("push")
    monkeypatch.chdir(tmp_path)
    frame = DATA.images["top"][7]
    for name, given in (("user/push", frame), ("user/eyes", frame[None])):
        card = ModelCard.load(Path(name, CARD))
        assert card.data.to_dict()["library_name"] == "classact"
        assert card.data.to_dict()["pipeline_tag"] == "robotics"
        assert "license" not in card.data.to_dict()
        code = card.text.partition("```python\n")[2].partition("```")[0]
        found: dict[str, Any] = {"frame": given, "frames": given, "values": DATA.proprioception[7]}
        exec(code, found)
        if name == "user/push":
            observation = Observation({"top": frame}, DATA.proprioception[7])
            assert_array_equal(found["action"], policy.decide([observation]).chunk[0, 0])
        else:
            assert_array_equal(found["features"], encoder.encode(np.asarray(given)))


def test_what_embedded_the_instructions_goes_with_a_policy(tmp_path: Path) -> None:
    data = replace(fakes.two_views(DATA, language=3), versions={"language": "stand-in"})
    encoder = ImageEncoder(EncoderConfig(width=0.25, image_size=32, crop_size=28, cameras=tuple(data.images)))
    latents = ImageLatents(encoder, LowDim.fit(data))
    RetrievalPolicy.build(latents, data, RetrievalConfig(k=5)).save_pretrained(tmp_path / "p")
    assert load_policy(tmp_path / "p").spec.language_source == "stand-in"
    card = ModelCard.load(tmp_path / "p" / CARD).text
    assert "| Instructions | 3 numbers, embedded by stand-in |" in card
    assert "language=embedding,  # of the instruction: 3 numbers, embedded by stand-in" in card
