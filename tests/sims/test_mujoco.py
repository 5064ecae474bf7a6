from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from classact.data.types import Criterion, FloatArray, ImageArray, StateArray
from classact.errors import ConfigError, SimulatorError
from classact.sims.base import SimulatorSpec
from classact.sims.shifts import CameraPath, RotationPath, rotate

try:  # not importorskip: it would import mujoco before MUJOCO_GL is set
    from classact.sims import renderer as drawing
    from classact.sims.mujoco import MujocoSimulator
    from classact.sims.renderer import Pose, Quality, Renderer, mujoco
except ModuleNotFoundError:
    pytest.skip("needs an extra with MuJoCo, e.g. classact[aloha]", allow_module_level=True)

SCENE = """
<mujoco>
  <visual><headlight ambient=".4 .4 .4"/></visual>
  <asset><texture name="sky" type="skybox" builtin="flat" rgb1=".2 .3 .4" width="32" height="32"/></asset>
  <worldbody>
    <light pos="0 0 3" dir="0 0 -1"/>
    <geom type="plane" size="2 2 .1" rgba=".5 .5 .5 1"/>
    <camera name="front" pos="1.2 0 1" xyaxes="0 1 0 -.6 0 1.2" fovy="45"/>
    <camera name="sky" pos="0 0 3" xyaxes="1 0 0 0 -1 0"/>
    <body name="arm" pos="0 0 .3">
      <joint name="turn" axis="0 0 1"/>
      <geom type="box" size=".3 .05 .05" rgba=".8 .2 .2 1"/>
    </body>
  </worldbody>
</mujoco>
"""
SIZE = 48


class Turntable(MujocoSimulator):
    """One hinge that goes where it is told."""

    views: Mapping[str, str] = {"front": "front", "sky": "sky"}
    target = (0.0, 0.0, 0.3)

    def __init__(self, shift: str = "fixed", cameras: Sequence[str] | None = None, image_size: int = SIZE) -> None:
        spec = SimulatorSpec(
            name="turntable",
            cameras=("front", "sky"),
            image_size=image_size,
            action_dim=1,
            proprioception_dim=1,
            state_dim=3,
            max_steps=10,
            control_hz=10.0,
            criteria=(Criterion("turned", "angle", 1.0),),
            shifts=("fixed", "dynamic", "dynamic-paper", "random-static", "rotation"),
            action_limits=((-3.0,), (3.0,)),
        )
        super().__init__(spec, shift, cameras)
        self._model = mujoco.MjModel.from_xml_string(SCENE)
        self._data = mujoco.MjData(self._model)

    @property
    def model(self) -> Any:
        return self._model

    @property
    def data(self) -> Any:
        return self._data

    def _start(self, seed: int) -> None:
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[0] = np.random.default_rng(seed).uniform(-1, 1)
        mujoco.mj_forward(self._model, self._data)

    def _advance(self, action: StateArray) -> dict[str, float]:
        self._data.qpos[0] = action[0]
        self._data.time += 0.1
        mujoco.mj_forward(self._model, self._data)
        return {"angle": float(action[0])}

    def _proprioception(self) -> FloatArray:
        return self._data.qpos.astype(np.float32)


@pytest.fixture
def scene() -> Iterator[tuple[Renderer, Any]]:
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = Renderer(model, SIZE, Quality())
    yield renderer, data
    renderer.close()


def turn(renderer: Renderer, data: Any, angle: float) -> None:
    data.qpos[0] = angle
    mujoco.mj_forward(renderer.model, data)


class Broken:
    """A renderer whose pictures go through a function; each new context has its own."""

    def __init__(self, renderer: Any, spoil: Callable[[ImageArray], ImageArray]) -> None:
        self.renderer, self.spoil, self.scene = renderer, spoil, renderer.scene
        self.update_scene, self.close = renderer.update_scene, renderer.close

    def render(self) -> ImageArray:
        return self.spoil(self.renderer.render())


def black(image: ImageArray) -> ImageArray:
    return np.zeros_like(image)


def noise(seed: int) -> Callable[[ImageArray], ImageArray]:
    rng = np.random.default_rng(seed)
    return lambda image: rng.integers(0, 256, image.shape, dtype=np.uint8)


def frozen(at: ImageArray) -> Callable[[ImageArray], ImageArray]:
    return lambda _: at.copy()


def spoil(monkeypatch: pytest.MonkeyPatch, contexts: Sequence[Callable[[ImageArray], ImageArray] | None]) -> list[int]:
    """The contexts that are opened from now on are broken in these ways, those after them are good; counts them."""
    real, opened = mujoco.Renderer, [0]

    def make(*args: Any) -> Any:
        kind = contexts[opened[0]] if opened[0] < len(contexts) else None
        opened[0] += 1
        return real(*args) if kind is None else Broken(real(*args), kind)

    monkeypatch.setattr(mujoco, "Renderer", make)
    return opened


# Pictures that can be trusted


@pytest.mark.parametrize("kind", ["black", "noise", "frozen"])
def test_a_broken_picture_is_drawn_again(
    kind: str, scene: tuple[Renderer, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer, data = scene
    first = renderer.draw(data, "front")
    turn(renderer, data, 0.5)
    expected = renderer.draw(data, "front")
    assert not np.array_equal(first, expected)
    turn(renderer, data, 0.0)
    assert_array_equal(renderer.draw(data, "front"), first)
    opened = spoil(monkeypatch, [])
    renderer._renderer = Broken(renderer._renderer, {"black": black, "noise": noise(0), "frozen": frozen(first)}[kind])
    turn(renderer, data, 0.5)
    assert_array_equal(renderer.draw(data, "front"), expected)
    assert (renderer.repaired, opened) == (1, [1])
    # And the new context is kept.
    assert_array_equal(renderer.draw(data, "front"), expected)
    assert (renderer.repaired, opened) == (1, [1])


def test_a_picture_that_freezes_is_noticed_when_slow_motions_add_up(
    scene: tuple[Renderer, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer, data = scene
    first = renderer.draw(data, "front")
    spoil(monkeypatch, [])
    renderer._renderer = Broken(renderer._renderer, frozen(first))
    seen = []
    for angle in np.arange(1, 8) * 0.01:
        turn(renderer, data, angle)
        seen.append(np.array_equal(renderer.draw(data, "front"), first))
    assert seen == [True] * 5 + [False] * 2
    assert renderer.repaired == 1


def test_a_moving_camera_that_freezes_is_noticed(scene: tuple[Renderer, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    renderer, data = scene
    first = renderer.draw(data, Pose((1.0, 0.0, 1.0), (0.0, 0.0, 0.3), 45.0))
    spoil(monkeypatch, [])
    renderer._renderer = Broken(renderer._renderer, frozen(first))
    assert_array_equal(renderer.draw(data, Pose((1.0, 0.04, 1.0), (0.0, 0.0, 0.3), 45.0)), first)
    assert not np.array_equal(renderer.draw(data, Pose((1.0, 0.06, 1.0), (0.0, 0.0, 0.3), 45.0)), first)
    assert len(renderer._last) == 1  # whatever the number of poses


def test_a_second_bad_context_is_not_believed_either(
    scene: tuple[Renderer, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer, data = scene
    expected = renderer.draw(data, "front")
    opened = spoil(monkeypatch, [noise(1)])
    renderer._renderer = Broken(renderer._renderer, noise(0))
    assert_array_equal(renderer.draw(data, "front"), expected)
    assert (renderer.repaired, opened) == (2, [2])


def test_pictures_that_never_settle_are_an_error(scene: tuple[Renderer, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    renderer, data = scene
    spoil(monkeypatch, [noise(i) for i in range(9)])
    renderer._renderer = Broken(renderer._renderer, noise(9))
    with pytest.raises(SimulatorError, match=r"another implausible picture from camera 'front' in each of 4 contexts"):
        renderer.draw(data, "front")


def test_gl_that_shows_nothing_is_an_error(scene: tuple[Renderer, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    renderer, data = scene
    spoil(monkeypatch, [black] * 9)
    renderer._renderer = Broken(renderer._renderer, black)
    with pytest.raises(SimulatorError, match=r"one colour, \[0, 0, 0\], from camera 'front' .* two contexts .*libegl1"):
        renderer.draw(data, "front")


def test_what_is_plain_or_still_is_no_fault(scene: tuple[Renderer, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    renderer, data = scene
    opened = spoil(monkeypatch, [])
    # A still scene costs nothing, however long.
    pictures = [renderer.draw(data, "front") for _ in range(5)]
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
    assert opened == [0]
    # A camera that sees the sky alone is believed once two contexts agree and show the model from afar.
    sky = renderer.draw(data, "sky")
    assert drawing.uniform(sky)
    assert sky.any()
    assert opened == [1]
    # So is one that does not see what moves.
    below = Pose((0.0, 0.3, -1.0), (0.0, 0.0, -2.0), 45.0)
    dark = renderer.draw(data, below)
    turn(renderer, data, 2.0)
    assert_array_equal(renderer.draw(data, below), dark)
    assert renderer.repaired == 0


def test_roughness_tells_scenes_from_noise(scene: tuple[Renderer, Any]) -> None:
    renderer, data = scene
    assert drawing.roughness(renderer.draw(data, "front")) < drawing.MAX_ROUGHNESS / 4
    assert drawing.roughness(noise(0)(np.zeros((64, 64, 3), np.uint8))) > drawing.MAX_ROUGHNESS + 20


@pytest.mark.parametrize("share", [2, 4])
def test_noise_in_a_part_of_a_picture_is_noticed(
    share: int, scene: tuple[Renderer, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lower half, or the last quarter, was never drawn."""
    renderer, data = scene
    expected = renderer.draw(data, "front")

    def part(image: ImageArray) -> ImageArray:
        spoilt, begin = image.copy(), SIZE // 2
        columns = slice(None) if share == 2 else slice(begin, None)
        spoilt[begin:, columns] = noise(share)(spoilt[begin:, columns])
        return spoilt

    opened = spoil(monkeypatch, [])
    renderer._renderer = Broken(renderer._renderer, part)
    assert_array_equal(renderer.draw(data, "front"), expected)
    assert (renderer.repaired, opened) == (1, [1])


def test_what_decides_pictures_is_in_their_key(monkeypatch: pytest.MonkeyPatch) -> None:
    spellings = ("fixed", "dynamic", "dynamic(arc=0.1)", "dynamic-paper", "rotation")
    looks = [Turntable(shift).look for shift in spellings]
    changed = Turntable()
    changed.quality = Quality(shadows=0)
    looks.append(changed.look)
    monkeypatch.setattr(Turntable, "target", (0.0, 0.1, 0.3))
    looks.append(Turntable().look)
    assert len({json.dumps(look, sort_keys=True) for look in looks}) == len(looks)
    assert Turntable("dynamic( )").look == Turntable("dynamic").look


def test_gl_that_cannot_start_says_what_to_install() -> None:
    code = (
        "from classact.errors import SimulatorError\n"
        "try:\n    from classact.sims import renderer\nexcept SimulatorError as error:\n    print('SAID', error)\n"
    )
    environment = os.environ | {"MUJOCO_GL": "invalid"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240, check=True
    )
    assert "SAID GL cannot start with MUJOCO_GL=invalid: " in run.stdout
    assert "install libegl1" in run.stdout


def test_a_context_that_does_not_open(scene: tuple[Renderer, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    renderer, _ = scene

    def fail(*_: Any) -> None:
        raise RuntimeError("no display.\nmore")

    monkeypatch.setattr(mujoco, "Renderer", fail)
    with pytest.raises(SimulatorError, match=r"GL cannot start with MUJOCO_GL=\w+: no display\. On Debian"):
        Renderer(renderer.model, SIZE, Quality())
    monkeypatch.setattr(drawing, "_LATE", True)
    with pytest.raises(SimulatorError, match=r"mujoco was imported before and chose its GL then; set MUJOCO_GL before"):
        Renderer(renderer.model, SIZE, Quality())


def test_renderers_are_shared_and_freed() -> None:
    one, two = Turntable(), Turntable()
    one.reset(0)
    two.reset(0)
    assert_array_equal(one.observe().images["front"], two.observe().images["front"])
    assert one.renderer() is two.renderer()
    one.close()
    one.close()
    two.reset(1)
    assert two.observe().images["front"].shape == (SIZE, SIZE, 3)
    two.close()
    assert not [key for key in drawing._SHARED if key[0] == "turntable"]


# What the camera looks at


def placed(renderer: Renderer) -> tuple[np.ndarray, np.ndarray]:
    """Where the camera of the scene that was drawn last stands, and where it looks."""
    eyes = renderer._renderer.scene.camera
    return (eyes[0].pos + eyes[1].pos) / 2, np.array(eyes[0].forward)


@pytest.mark.parametrize("shift", ["dynamic", "dynamic-paper", "random-static"])
def test_the_scene_is_drawn_from_the_paths_place(shift: str) -> None:
    sim = Turntable(shift)
    for seed in (3, 4):
        sim.reset(seed)
        assert isinstance(sim._appearance, CameraPath)
        for step in (0, 1, 200):
            sim.set_state(sim.get_state(), step=step)
            sim.observe()
            place, forward = placed(sim.renderer())
            expected = sim._appearance.position(step)
            np.testing.assert_allclose(place, expected, atol=1e-5)
            direction = sim._appearance.target - expected
            np.testing.assert_allclose(forward, direction / np.linalg.norm(direction), atol=1e-5)
    sim.close()


def test_the_picture_shows_the_target_in_its_middle() -> None:
    sim = Turntable("dynamic-paper(target=(0.0, 0.0, 0.3), polar=(0.6, 0.7))")
    for seed in range(3):
        sim.reset(seed)
        picture = sim.observe().images["front"].astype(int)
        r, g, b = picture[SIZE // 2, SIZE // 2]  # the arm's middle is the target
        assert r > g + 40
        assert r > b + 40
    sim.close()


def test_rotation_turns_the_first_camera_only() -> None:
    still, turned = Turntable("fixed", ("front", "sky")), Turntable("rotation", ("front", "sky"))
    for sim in (still, turned):
        sim.reset(5)
    assert isinstance(turned._appearance, RotationPath)
    for step in (0, 3):
        for sim in (still, turned):
            sim.set_state(sim.get_state(), step=step)
        plain, seen = still.observe().images, turned.observe().images
        angle = turned._appearance.start + step * turned._appearance.rate
        assert_array_equal(seen["front"], rotate(plain["front"], angle))
        assert_array_equal(seen["sky"], plain["sky"])
    still.close()
    turned.close()


def test_rotate_is_counter_clockwise() -> None:
    image = np.zeros((5, 5, 3), np.uint8)
    image[2, 4] = 200  # right
    assert_array_equal(rotate(image, 90), np.rot90(image))
    assert rotate(image, 90)[0, 2, 0] == 200  # up
    assert_array_equal(rotate(image, 0), image)


# States and limits


def test_state_round_trip_shows_the_live_picture() -> None:
    live, again = Turntable("dynamic"), Turntable("dynamic")
    live.reset(7)
    again.reset(7)
    for step, angle in enumerate((0.3, 0.9, -0.4), 1):
        live.step(np.float32([angle]))
        state = live.get_state()
        again.set_state(state, step=step)
        assert again.get_state().tobytes() == state.tobytes()
        assert_array_equal(again.observe().images["front"], live.observe().images["front"])
    live.close()
    again.close()


def test_what_an_action_beyond_the_limits_gives() -> None:
    sim = Turntable()
    sim.reset(0)
    assert sim.step(np.float32([2.0])) == {"angle": 2.0, "excess": 0.0}
    assert sim.step(np.float32([4.5]))["excess"] == pytest.approx(0.25)
    assert sim.get_state()[1] == 4.5  # executed, not clipped
    with pytest.raises(SimulatorError, match=r"dimension 0 of the action is 200, 32\.8 times the width .* -3 to 3"):
        sim.step(np.float32([200.0]))
    with pytest.raises(SimulatorError, match=r"finite action of shape \(1,\)"):
        sim.step(np.float32([np.nan]))
    with pytest.raises(SimulatorError, match=r"finite state of shape \(3,\), got \(2,\)"):
        sim.set_state(np.zeros(2))
    sim.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Turntable("rand-color"), r"turntable: unknown shift 'rand-color': available are 'dynamic', "),
        (lambda: Turntable(cameras=("side",)), r"turntable: unknown camera 'side': available are 'front', 'sky'"),
        (lambda: Turntable(image_size=16), r"turntable: expected image_size in 32\.\.1024 pixels, got 16"),
        (lambda: Turntable().reset(-1), r"turntable: expected a seed in 0\.\.4294967295, got -1"),
    ],
)
def test_bad_settings(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_torch_can_compile_after_a_picture_was_drawn() -> None:
    """Mesa's LLVM under Triton's crashed the process when torch's compiler was imported."""
    pytest.importorskip("triton", reason="Triton is not installed: nothing to be crashed")
    code = (
        "from classact.sims.renderer import Pose, Quality, Renderer, mujoco\n"
        "xml = '<mujoco><worldbody><light/><geom size=\".3\"/></worldbody></mujoco>'\n"
        "model = mujoco.MjModel.from_xml_string(xml)\n"
        "data = mujoco.MjData(model); mujoco.mj_forward(model, data)\n"
        "Renderer(model, 64, Quality()).draw(data, Pose((1, 0, 1), (0, 0, 0), 45.0))\n"
        "import torch._dynamo; print('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-500:]}"
    assert done.stdout.strip() == "alive"
