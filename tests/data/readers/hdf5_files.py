"""Writers of small HDF5 files as robomimic, LIBERO and ACT write them, with a small model of a Panda-like arm.

And what tests of all readers share.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from classact.data.types import Demonstrations
from classact.errors import DataError

OSC = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "control_delta": True,
}
"""robosuite's settings before 1.5."""

NQ, NV = 16, 15


def decode(demonstrations: Demonstrations) -> None:
    """Read all the images there are."""
    for images in demonstrations.images.values():
        np.asarray(images)
        images.digest()  # type: ignore[union-attr]


def refusal(read: Callable[..., Demonstrations], path: Path, **options: Any) -> str:
    """The error that reading raises, or decoding the images. It always names the file."""
    with pytest.raises(DataError) as caught:
        decode(read(path, **options))
    assert str(path) in str(caught.value)
    return str(caught.value)


def model(site: str = "gripper0_grip_site", finger: str = "gripper0_finger_joint") -> str:
    """MJCF of a cube, and behind it an arm of seven turned links with a hand, two fingers and a grip site."""
    links, ends = "", ""
    for i in range(1, 8):
        links += (
            f'<body name="robot0_link{i}" pos="0.0{i} 0 0.1" quat="0.8 {0.1 * i:.1f} -0.2 0.3">'
            f'<joint name="robot0_joint{i}" axis="{1 if i % 2 else 0} 0 1" pos="0.01 0 0.02"/><geom size="0.01"/>'
        )
        ends += "</body>"
    return f"""<mujoco><compiler angle="radian"/><worldbody>
    <body name="cube" pos="0.5 0 0"><freejoint name="cube_joint"/><geom size="0.02"/></body>
    <body name="robot0_base" pos="-0.5 0.1 0.9" quat="0.9 0 0 0.1">{links}
      <body name="robot0_right_hand" pos="0 0 0.1" quat="0.92 0 0 -0.38"><geom size="0.01"/>
        <body name="gripper0_right_gripper" quat="0.707107 0 0 -0.707107">
          <body name="gripper0_eef" pos="0 0 0.097"><site name="{site}"/></body>
          <body name="left"><joint name="{finger}1" type="slide" axis="0 1 0"/><geom size="0.01"/></body>
          <body name="right"><joint name="{finger}2" type="slide" axis="0 1 0"/><geom size="0.01"/></body>
        </body>
      </body>{ends}
    </body></worldbody></mujoco>"""


def demo(steps: int, seed: int, *, image: int = 0) -> dict[str, Any]:
    """A robomimic demonstration of random numbers: actions, states, obs/<key>; images where ``image`` pixels."""
    rng = np.random.default_rng(seed)
    content: dict[str, Any] = {
        "actions": rng.uniform(-1.2, 1.2, (steps, 7)),
        "states": rng.normal(size=(steps, 1 + NQ + NV)),
        "rewards": np.zeros(steps),
        "dones": np.zeros(steps, np.int64),
        "obs/robot0_eef_pos": rng.normal(size=(steps, 3)),
        "obs/robot0_eef_quat": Rotation.random(steps, random_state=seed).as_quat(),
        "obs/robot0_joint_pos": rng.normal(size=(steps, 7)),
        "obs/robot0_gripper_qpos": rng.normal(size=(steps, 2)),
        "obs/object": rng.normal(size=(steps, 14)),
    }
    if image:
        for key in ("agentview_image", "robot0_eye_in_hand_image"):
            content[f"obs/{key}"] = rng.integers(0, 256, (steps, image, image, 3), np.uint8)
    return content


def env_args(
    name: str = "NutAssemblySquare", version: str | None = "1.4.1", controller: Any = OSC, robots: Any = ("Panda",)
) -> dict[str, str]:
    """robomimic's attribute of group ``data``."""
    args = {"env_name": name, "type": 1, "env_kwargs": {"robots": robots, "controller_configs": controller}}
    return {"env_args": json.dumps(args if version is None else {**args, "env_version": version})}


def write_robomimic(
    path: Path,
    demos: Mapping[str, Mapping[str, Any]],
    *,
    attributes: Mapping[str, Any] | None = None,
    xml: str | None = None,
    masks: Mapping[str, Sequence[str]] | None = None,
    compressed: bool = True,
) -> Path:
    """``data/<demo>`` in the order given; images in compressed chunks of a few frames, as robomimic's scripts do."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(env_args() if attributes is None else attributes)
        data.attrs["total"] = sum(len(content["actions"]) for content in demos.values())
        for name, content in demos.items():
            group = data.create_group(name)
            group.attrs["num_samples"] = len(content["actions"])
            if xml is not None:
                group.attrs["model_file"] = xml
            for key, value in content.items():
                chunked = compressed and value.ndim == 4
                options = {"chunks": (min(3, len(value)), *value.shape[1:]), "compression": "gzip"} if chunked else {}
                group.create_dataset(key, data=value, **options)
        for mask, names in (masks or {}).items():
            file.create_dataset(f"mask/{mask}", data=np.array(names, "S"))
    return path


def libero_demo(steps: int, seed: int, *, late: bool = True, image: int = 8) -> dict[str, Any]:
    """A LIBERO demonstration; observations one row late, as its script writes them, or in time."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(steps + 1, 1 + 20 + 18))
    observed = states[1:] if late else states[:-1]
    hand = np.concatenate([rng.normal(size=(steps, 3)), Rotation.random(steps, random_state=seed).as_rotvec()], axis=1)
    return {
        "actions": rng.uniform(-1, 1, (steps, 7)),
        "states": states[:-1],
        "obs/joint_states": observed[:, 1:8],
        "obs/gripper_states": observed[:, 8:10],
        "obs/ee_states": hand,
        "obs/agentview_rgb": rng.integers(0, 256, (steps, image, image, 3), np.uint8),
        "obs/eye_in_hand_rgb": rng.integers(0, 256, (steps, image, image, 3), np.uint8),
    }


def libero_attributes(task: str, instruction: str, convention: str = "opengl") -> dict[str, str]:
    """LIBERO's attributes of group ``data``."""
    return {
        "env_name": "Libero_Floor_Manipulation",
        "problem_info": json.dumps({"problem_name": "p", "domain_name": "d", "language_instruction": instruction}),
        "bddl_file_name": f"somewhere/bddl_files/libero_object/{task}.bddl",
        "macros_image_convention": convention,
        **env_args("Libero_Floor_Manipulation", None),
    }


def episode(steps: int, seed: int, cameras: Sequence[str] = ("top",), *, smooth: bool = False) -> dict[str, Any]:
    """An ACT episode; ``smooth`` pictures survive JPEG compression."""
    rng = np.random.default_rng(seed)
    content: dict[str, Any] = {
        "action": rng.uniform(-2, 2, (steps, 14)),
        "observations/qpos": rng.uniform(-2, 2, (steps, 14)),
        "observations/qvel": rng.normal(size=(steps, 14)),
    }
    for camera in cameras:
        images = rng.integers(0, 256, (steps, 16, 24, 3), np.uint8)
        if smooth:
            images[:] = rng.integers(0, 256, (steps, 1, 1, 3), np.uint8)
        content[f"observations/images/{camera}"] = images
    return content


def write_episode(path: Path, content: Mapping[str, Any], *, compressed: bool = False) -> Path:
    """One file; compressed as ALOHA's recorder does it: RGB to OpenCV, padded to the longest, lengths beside."""
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = not compressed
        file.attrs["compress"] = compressed
        lengths = []
        for key, value in content.items():
            if compressed and "/images/" in key:
                pictures = [cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1] for image in value]
                lengths.append([len(picture) for picture in pictures])
                padded = np.zeros((len(pictures), max(lengths[-1]) + 7), np.uint8)
                for row, picture in zip(padded, pictures, strict=True):
                    row[: len(picture)] = picture
                file.create_dataset(key, data=padded, chunks=(1, padded.shape[1]))
            else:
                options = {"chunks": (1, *value.shape[1:])} if value.ndim == 4 else {}
                file.create_dataset(key, data=value, **options)
        if compressed:
            file.create_dataset("compress_len", data=np.array(lengths))
    return path
