"""Files of the field that its own tools wrote: each is read, or refused with its name and what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from classact.data.readers import declared_simulator, read_demonstrations
from classact.errors import DataError
from conftest import SHARED

FORMATS = SHARED / "formats"

READABLE = {
    "lerobot/arm_v3.0": (6, ("front", "wrist"), ""),
    "lerobot/image_v3.0": (2, ("image",), ""),
    "lerobot/multi_v2.1": (2, ("top", "wrist"), ""),
    "lerobot/multi_v3.0": (2, ("top", "wrist"), ""),
    "lerobot/nostate_v3.0": (2, ("top",), ""),
    "lerobot/video_v3.0": (2, ("image",), ""),
    "zarr/arm7.zarr": (7, ("rgb_front", "rgb_wrist"), ""),
    "zarr/dp3_metaworld.zarr": (4, ("img",), ""),
    "zarr/pusht_v2_by_zarr3.zarr": (2, ("top",), "pusht"),
    "zarr/pusht_v3.zarr": (2, ("top",), "pusht"),
    "hdf5/aloha_compressed": (14, ("cam_high", "cam_left_wrist", "cam_right_wrist"), ""),
    "hdf5/mobile_aloha": (16, ("cam_high", "cam_left_wrist", "cam_right_wrist"), ""),
    "hdf5/lift_ph_image.hdf5": (10, ("agentview", "wrist"), ""),
    "hdf5/lift_osc_position.hdf5": (4, ("agentview", "wrist"), ""),
    "hdf5/real_no_envargs.hdf5": (7, ("agentview", "wrist"), ""),
    "hdf5/trajectory.h5": (9, (), ""),
    "hdf5/transport_ph_image.hdf5": (14, ("agentview", "wrist", "robot1_eye_in_hand"), ""),
}
"""Path -> dimensions of actions, cameras, simulator."""

REFUSED = {
    "hdf5/square_ph_raw_demo.hdf5": "the recorded model has no worldbody",
    "zarr/umi_jxl.zarr.zip": "imagecodecs_jpegxl .as UMI's images are, in JPEG XL.*pip install imagecodecs",
    "zarr/real_pusht": r"videos/0/0\.mp4 \(0 bytes\) cannot be decoded .*leave its camera out in a layout",
}


def path_of(name: str) -> Path:
    path = FORMATS / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


@pytest.mark.parametrize("name", READABLE)
def test_what_is_read(name: str) -> None:
    path = path_of(name)
    dimensions, cameras, simulator = READABLE[name]
    data = read_demonstrations(path)
    assert (data.actions.shape[1], tuple(data.images), declared_simulator(path)) == (dimensions, cameras, simulator)
    for images in data.images.values():
        some = np.asarray(images[[0, len(images) // 2, len(images) - 1]])
        assert some.std() > 1


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_by_name(name: str) -> None:
    with pytest.raises(DataError, match=REFUSED[name]):
        read_demonstrations(path_of(name))
