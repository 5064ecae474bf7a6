import shutil

import numpy as np
import pytest
from PIL import Image

from classact.errors import DataError
from classact.utils.storage import read_json, write_json
from hero import hero_image


def test_picture_is_wide_opaque_light_and_the_same_every_time(whole_run, tmp_path):
    first, second = hero_image(whole_run.root, tmp_path / "a.png"), hero_image(whole_run.root, tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert (image.format, image.mode, image.width) == ("PNG", "RGB", 1600)
        assert 900 < image.height < 1600
        assert min(image.getpixel((2, 2))) > 240
        violet = np.abs(np.asarray(image).astype(int) - (0x7B, 0x4F, 0xC9)).sum(axis=-1) < 12
        assert violet.sum() > 1000  # weight bars and neighbours' paths


def test_each_part_may_be_absent_but_not_all(run_copy, tmp_path):
    heights = []
    for path in ("none", "analysis/neighbors.safetensors", "analysis/videos/videos.json"):
        (run_copy.root / path).unlink(missing_ok=True)
        with Image.open(hero_image(run_copy.root, tmp_path / "hero.png")) as image:
            heights.append(image.height)
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 3
    run_copy.summary.unlink()
    with pytest.raises(DataError, match=r"no picture to draw.*summary\.json"):
        hero_image(run_copy.root, tmp_path / "hero.png")


def test_with_an_unevaluated_run(run_copy, tmp_path):
    run_copy.summary.unlink()
    shutil.rmtree(run_copy.root / "evaluations")
    videos = run_copy.analysis / "videos" / "videos.json"
    write_json(videos, [row | {"coverage": None} for row in read_json(videos)[:1]])
    assert hero_image(run_copy.root, tmp_path / "hero.png").stat().st_size > 1000


def test_long_labels_of_heads_stay_inside_and_maxima_are_left_out(whole_run, old_run, tmp_path):
    with (
        Image.open(hero_image(whole_run.root, tmp_path / "a.png")) as image,
        Image.open(hero_image(old_run.root, tmp_path / "b.png")) as old,
    ):
        assert image.height - old.height == 4 * 38  # four heads, one criterion; no row for any maximum
        bottom = np.asarray(image.convert("L"))[-(10 * 38 + 22) :]
    assert (bottom[:, :60] > 240).all()  # nothing is written into the edge
    assert (bottom[:, 64:300] < 100).any()
