"""LIBERO-Object. What needs the simulator runs in LIBERO's own environment (``uv sync --extra libero``)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import check_parts

from classact.errors import ConfigError, SimulatorError
from classact.sims.base import check_installed
from classact.sims.libero_assets import (
    ASSETS_VARIABLE,
    CONFIG_VARIABLE,
    NEEDED,
    ensure_config,
    find_assets,
    missing,
    package_folder,
)
from simulators import need

SIZE = 64
EVALUATION = 100_000


# -- assets and settings: without the simulator


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without settings or assets."""
    for variable in (ASSETS_VARIABLE, CONFIG_VARIABLE):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CLASSACT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def fill(folder: Path) -> Path:
    for name in NEEDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_absent_assets_say_where_they_go_and_how_to_get_them(nothing: Path) -> None:
    with pytest.raises(ConfigError, match="meshes and textures are not here") as caught:
        find_assets(nothing / "package", str(nothing / "configured"))
    message = str(caught.value)
    for words in (
        str(nothing / "configured"),
        str(nothing / "package" / "assets"),
        str(nothing / "home" / ".cache" / "libero" / "assets"),
        "hf download lerobot/libero-assets --repo-type dataset",
        ASSETS_VARIABLE,
        "config.yaml",
    ):
        assert words in message


def test_a_named_folder_that_lacks_something_is_an_error_not_passed_over(
    nothing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(nothing / "package" / "assets")
    half = fill(nothing / "half")
    (half / NEEDED[2]).unlink()
    monkeypatch.setenv(ASSETS_VARIABLE, str(half))
    with pytest.raises(ConfigError, match=r"has no stable_scanned_objects/basket/basket\.xml"):
        find_assets(nothing / "package")
    monkeypatch.setenv(ASSETS_VARIABLE, str(nothing / "nowhere"))
    with pytest.raises(ConfigError, match="has no such folder"):
        find_assets(nothing / "package")


def test_assets_are_looked_for_in_order(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = nothing / "package"
    downloaded = fill(nothing / "home" / ".cache" / "libero" / "assets")
    assert find_assets(package, str(nothing / "absent")) == downloaded.resolve()
    inside = fill(package / "assets")
    assert find_assets(package) == inside.resolve()
    configured = fill(nothing / "configured")
    assert find_assets(package, str(configured)) == configured.resolve()
    named = fill(nothing / "named")
    monkeypatch.setenv(ASSETS_VARIABLE, str(named))
    assert find_assets(package, str(configured)) == named
    assert missing(named) == ""


def test_settings_are_written_only_where_there_are_none(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = nothing / 'pack"age'
    file = ensure_config(package)
    assert file == nothing / "cache" / "libero" / "config.yaml"
    assert os.environ[CONFIG_VARIABLE] == str(file.parent)
    assert not (nothing / "home").exists()
    assert f'assets: "{nothing}/pack\\"age/assets"\n' in file.read_text()

    monkeypatch.setenv(CONFIG_VARIABLE, str(nothing / "named"))
    assert ensure_config(package) == nothing / "named" / "config.yaml"

    monkeypatch.delenv(CONFIG_VARIABLE)
    own = nothing / "home" / ".libero" / "config.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("assets: mine\n")
    assert ensure_config(package) == own
    assert own.read_text() == "assets: mine\n"
    assert CONFIG_VARIABLE not in os.environ


# -- the simulator


@pytest.fixture(scope="module")
def assets() -> Path:
    """LIBERO's assets, or the stand-ins for them."""
    need("libero-object")
    return find_assets(package_folder())


@pytest.fixture(scope="module")
def libero(assets: Path) -> Any:  # noqa: ARG001 (in place before the import)
    import classact.sims.libero

    return classact.sims.libero


@pytest.fixture(scope="module")
def world(libero: Any) -> Any:  # noqa: ARG001 (says why where LIBERO is not installed)
    import classact.sims.libero_world

    return classact.sims.libero_world


@pytest.fixture(scope="module")
def sim(libero: Any) -> Iterator[Any]:
    """One for all tests, so that models are loaded once."""
    made = libero.LiberoObject(image_size=SIZE, shift="fixed", cameras=("agentview", "wrist"))
    yield made
    made.close()


@pytest.fixture
def make(libero: Any) -> Iterator[Any]:
    made = []

    def factory(shift: str = "fixed") -> Any:
        made.append(libero.LiberoObject(image_size=SIZE, shift=shift, cameras=("agentview", "wrist")))
        return made[-1]

    yield factory
    for item in made:
        item.close()


def test_absent_assets_are_an_error_at_once(libero: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ASSETS_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match="has no scenes/libero_floor_base_style"):
        libero.LiberoObject(image_size=None, shift="fixed")


def wave(sim: Any, steps: int) -> Any:
    """(steps, 10) actions that go down and sideways with the hand closing and opening."""
    from poses import pose_action

    position, rotation = sim.ee_pose()
    phases = np.linspace(0, 3, steps)
    return np.stack(
        [
            pose_action(
                position + 0.1 * np.array([np.sin(t), np.cos(2 * t) - 1, -t / 2]), rotation, np.sign(np.sin(5 * t))
            )
            for t in phases
        ]
    )


def run(sim: Any, actions: Any) -> Any:
    """(len + 1, 111) states."""
    states = [sim.get_state()]
    for action in actions:
        sim.step(action)
        states.append(sim.get_state())
    return np.stack(states)


def test_an_episode_depends_on_its_seed_alone(sim: Any, make: Any) -> None:
    sim.reset(23)
    actions = wave(sim, 15)
    sim.step(actions[0])
    sim.reset(13)
    run(sim, wave(sim, 10))
    sim.reset(23)
    states = run(sim, actions)
    fresh = make()
    fresh.reset(23)
    np.testing.assert_array_equal(states, run(fresh, actions))
    for camera, image in fresh.observe().images.items():
        np.testing.assert_array_equal(image, sim.observe().images[camera])
    fresh.reset(33)
    assert np.abs(states[0] - fresh.get_state()).max() > 0.003


def test_the_global_generator_is_left_alone(sim: Any) -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    sim.reset(3)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_the_seed_chooses_task_and_start(sim: Any, world: Any) -> None:
    for seed in (EVALUATION + 7, EVALUATION + 17, EVALUATION + 517, 7):
        sim.reset(seed)
        assert sim.task == 7
        assert sim.instruction == "pick up the milk and place it in the basket"
        state, shipped = sim.get_state(), world.start_states(7)[seed // 10 % 50]
        assert state[:2].tolist() == [7, 0]
        target = state[2 + 9 : 2 + 9 + 3] - shipped[1 + 9 : 1 + 9 + 3]
        if seed < EVALUATION:
            assert np.abs(target[:2]).max() > 1e-3
        else:
            assert np.abs(target[:2]).max() < 2e-3  # it has only come to rest
            assert np.abs(state[2:9] - shipped[1:8]).max() < 0.02
    seen = [EVALUATION + i for i in range(200)]
    assert all([seed % 10 for seed in seen].count(task) == 20 for task in range(10))
    assert len({(seed % 10, seed // 10 % 50) for seed in seen}) == 200


def test_tasks_are_liberos_own_in_its_order(world: Any) -> None:
    from libero.libero.benchmark.libero_suite_task_map import libero_task_map

    assert list(world.TASKS) == libero_task_map["libero_object"]


@pytest.mark.parametrize("seed", [0, 6, 9])
def test_objects_stand_in_the_state_where_the_spec_says(sim: Any, seed: int) -> None:
    sim.reset(seed)
    state = sim.get_state()
    for name, index in sim.spec.objects:
        np.testing.assert_allclose(state[index : index + 3], sim.object_pose(name)[0], atol=1e-9)
    assert 0.2 < sim.object_pose("basket")[0][1] < 0.3


def test_stepping_is_liberos_own(make: Any) -> None:
    from classact.sims.panda import arm_command

    sim = make()
    sim.reset(7)
    start, actions = sim.get_state(), wave(sim, 20)
    states = run(sim, actions)
    sim.set_state(start)
    sim.env.robots[0].controller.sim = sim.env.sim  # the environment's own again
    theirs = [start[2 : 2 + 58]]
    for action in actions:
        sim.env.step(arm_command(action.astype(np.float64)))
        theirs.append(np.array(sim.env.sim.data.qpos))
    assert np.abs(states[-1] - start)[2:11].max() > 0.05
    np.testing.assert_allclose(states[:, 2 : 2 + 58], np.stack(theirs), atol=1e-7)


def test_a_state_brings_its_task_and_is_drawn_as_it_was_seen(make: Any) -> None:
    live, other = make("dynamic"), make("dynamic")
    live.reset(EVALUATION + 4)
    run(live, wave(live, 25))
    seen = live.observe()
    other.reset(2)
    other.set_appearance(EVALUATION + 4)
    other.set_state(seen.state, step=25)
    assert other.instruction == "pick up the ketchup and place it in the basket"
    np.testing.assert_array_equal(other.get_state(), seen.state)
    again = other.observe()
    for camera in ("agentview", "wrist"):
        np.testing.assert_array_equal(again.images[camera], seen.images[camera])
    np.testing.assert_array_equal(again.proprioception, seen.proprioception)
    np.testing.assert_array_equal(again.language, seen.language)
    other.set_state(seen.state, step=0)
    assert not np.array_equal(other.observe().images["agentview"], seen.images["agentview"])  # the camera moves


def test_observations_are_of_the_schema(sim: Any) -> None:
    sim.reset(1)
    seen = sim.observe()
    spec = sim.spec
    assert spec.schema is not None
    spec.schema.check(seen.images, seen.proprioception, seen.language, cameras=spec.cameras)
    assert (spec.proprioception_dim, spec.schema.language, len(seen.state)) == (18, 768, spec.state_dim)
    sim.reset(2)
    assert not np.array_equal(sim.observe(render=False).language, seen.language)
    assert sim.language_source in ("bert-base-uncased", "stand-in")


def test_released_cameras_move_with_the_scene(make: Any, libero: Any) -> None:
    shift = make("dynamic").shift
    assert (shift.target, shift.min_x) == (libero.TARGET, 0.4)
    assert shift.min_z == pytest.approx(libero.TARGET[2] + 0.1)
    mine = make("dynamic(target=(0, 0, 0.5), min_z=0.7)").shift
    assert (mine.target, mine.min_x, mine.min_z) == ((0, 0, 0.5), 0.4, 0.7)
    # Also where what is given by hand happens to be the released target.
    same = make("dynamic(target=(0, 0, 1.0))").shift
    assert same.target == (0, 0, 1.0)
    sim = make("random-static-paper")
    sim.reset(0)
    np.testing.assert_array_equal(sim._appearance.target, libero.TARGET)


def test_the_expert_succeeds_on_every_task(sim: Any) -> None:
    from classact.sims.experts.base import attempt
    from classact.sims.experts.libero import script

    tries = [attempt(sim, script, seed) for seed in range(50, 60)]
    assert sum(one.success for one in tries) >= 9, [one.reason for one in tries]
    assert all(one.language is not None and one.instruction.startswith("pick up the") for one in tries)
    done = next(one for one in tries if one.success)
    sim.reset(done.seed)
    check_parts(sim.spec, [sim.step(action) for action in done.actions])
    # A state at the end says success by itself, one at the start does not.
    still = np.concatenate([done.actions[-1, :9], [-1]])
    sim.set_state(done.states[-1])
    assert sim.step(still)["success"] == 1
    sim.set_state(done.states[0])
    assert sim.step(done.actions[0])["success"] == 0


def test_chance_does_not_succeed(sim: Any) -> None:
    rng = np.random.default_rng(0)
    low, high = (np.asarray(limit) for limit in sim.spec.action_limits)
    sim.reset(5)
    metrics = [sim.step(rng.uniform(low, high).astype(np.float32)) for _ in range(60)]
    assert max(m["success"] for m in metrics) == 0
    assert max(m["excess"] for m in metrics) == 0


def test_wrong_states_and_actions_are_refused(sim: Any, make: Any) -> None:
    sim.reset(0)
    state = sim.get_state()
    with pytest.raises(SimulatorError, match=r"shape \(111,\), got \(110,\)"):
        sim.set_state(state[1:])
    state[0] = 10
    with pytest.raises(SimulatorError, match=r"expected a task 0..9 as a state's first number, got 10"):
        sim.set_state(state)
    with pytest.raises(SimulatorError, match=r"finite action of shape \(10,\)"):
        sim.step(np.zeros(7, np.float32))
    with pytest.raises(SimulatorError, match="the action's rotation"):
        sim.step(np.zeros(10, np.float32))
    with pytest.raises(SimulatorError, match="no episode was started"):
        make().get_state()


@pytest.mark.parametrize(("package", "version"), [("robosuite", "1.5.2"), ("mujoco", "3.9.0"), ("mujoco", "4.0.0")])
def test_versions_that_break_are_refused(world: Any, package: str, version: str) -> None:
    good = {"robosuite": "1.4.0", "mujoco": "3.8.1"}
    check_installed("LIBERO-Object", "libero", world.RANGES, good)
    bad = good | {package: version}
    said = f"are robosuite {bad['robosuite']} and mujoco {bad['mujoco']}, and {package} {version} is none .*--extra lib"
    with pytest.raises(ConfigError, match=said):
        check_installed("LIBERO-Object", "libero", world.RANGES, bad)
