from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gallery
from classact.errors import ConfigError
from classact.sims import Simulator, make_simulator

TILES = 6


def test_a_strip_has_its_tiles_labels_and_title(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str | None] = []

    def count(name: str, **settings: object) -> Simulator:
        made.append(settings.get("shift"))  # type: ignore[arg-type]
        return make_simulator(name, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(gallery, "make_simulator", count)
    strip = gallery.draw_strip("pusht", 40)
    assert made == [None, "fixed-color", *["rand-color"] * 5]  # one to ask for cameras, one per tile
    wide, high = 40 + 2 * gallery.MARGIN, 40 + gallery.MARGIN + gallery.LABEL
    assert strip.shape == (24 + high, TILES * wide, 3)
    tiles = [strip[24:, i * wide : (i + 1) * wide] for i in range(TILES)]
    inside = [tile[gallery.MARGIN : gallery.MARGIN + 40, gallery.MARGIN : gallery.MARGIN + 40] for tile in tiles]
    assert len({picture.tobytes() for picture in inside}) == TILES
    # Words are dark on white: above, and under every tile.
    assert strip[:24].min() == 0
    assert all((tile[-gallery.LABEL + 2 :] < 100).any() for tile in tiles)


def test_labels_leave_the_picture_as_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    one, other = gallery.labelled(picture, "one"), gallery.labelled(picture, "other")
    margin = gallery.MARGIN
    for canvas in (one, other):
        assert canvas.shape == (32 + margin + gallery.LABEL, 48 + 2 * margin, 3)
        assert np.array_equal(canvas[margin : margin + 32, margin : margin + 48], picture)
    assert not np.array_equal(one, other)
    assert np.array_equal(gallery.titled(picture, "title")[24:], picture)


def test_the_gallery_shows_every_strip_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(gallery.ORDER) >= {"pusht", "square", "three-stack-d1", "aloha-transfer", "libero-object"}
    seen: list[tuple[int, int, str]] = []
    out, missing = gallery.make_gallery(tmp_path, ["pusht"], lambda *now: seen.append(now))
    assert (out, missing, seen) == (tmp_path / "gallery.png", {}, [(0, 1, "Push-T"), (1, 1, "")])
    alone = np.asarray(Image.open(out))
    assert np.array_equal(alone, np.asarray(Image.open(tmp_path / "pusht.png")))
    # A strip of another environment is kept, and stands where it belongs; what cannot be drawn is named.
    narrow = np.full((10, 30, 3), 7, np.uint8)
    gallery.save_picture(tmp_path / "square.png", narrow)
    monkeypatch.setattr(gallery, "draw_strip", lambda _: (_ for _ in ()).throw(ConfigError("not here")))
    out, missing = gallery.make_gallery(tmp_path, ["square"])
    both = np.asarray(Image.open(out))
    assert missing == {"square": "not here"}
    assert np.array_equal(both[: len(alone)], alone)
    assert np.array_equal(both[len(alone) :, :30], narrow)
    assert (both[len(alone) :, 30:] == 255).all()
    with pytest.raises(ConfigError, match="no task could be drawn: not here"):
        gallery.make_gallery(tmp_path / "empty", ["square"])


def test_unknown_tasks_are_refused_before_anything_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "draw_strip", lambda name: pytest.fail(f"{name} was drawn"))
    with pytest.raises(ConfigError, match="unknown simulator 'pong': available are 'aloha-transfer', "):
        gallery.make_gallery(tmp_path, ["pusht", "pong"])


def test_the_command_says_where_the_picture_is_and_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def some(name: str) -> np.ndarray:
        if name != "pusht":
            raise ConfigError("its extra is not installed")
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(gallery, "draw_strip", some)
    gallery.main(gallery.Flags(tmp_path, ("pusht", "square")))
    said = capsys.readouterr()
    assert said.out == f"Picture: {tmp_path / 'gallery.png'}\n"
    assert "square: not drawn now: its extra is not installed\n" in said.err
    assert (tmp_path / "gallery.png").exists()
