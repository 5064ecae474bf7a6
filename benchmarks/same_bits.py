"""Same bits: digests of what short runs of the command line compute, against the committed ones.

A change that moves code computes the same weights, losses, retrieval and rollouts, bit for bit, on one machine:

    uv run python benchmarks/same_bits.py --check                    compare with the committed file
    uv run python benchmarks/same_bits.py --check --only class mlp   some cases, and the ones that they start from
    uv run python benchmarks/same_bits.py                            write the file, as before a change

Another CPU or another PyTorch gives other bits: the check says so first, and only a file that was written on the
same machine before the change decides then (``--json FILE``).

All flags of the command line are in :data:`FLAGS` and :data:`CASES`, all names of files and fields in :data:`FILES` and
what follows it. Where a change renames them, rename them here; the digests stay, for they are of values alone: tensors
with their names, dtypes and shapes, and numbers without the names of their fields.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from classact.utils.machine import hardware, versions
from classact.utils.storage import read_json, write_json

FILE = Path(__file__).parent / "results" / "same_bits.json"

# -- what is run -------------------------------------------------------------------------------------------------------

FLAGS = {
    "pretrain": "--preset debug --epochs 2 --device cpu --workers 1 --quiet",
    "finetune": "--preset head-debug --evaluations 0 --test-episodes 1 --device cpu --workers 1 --quiet",
    "evaluate": "--episodes 2 --max-steps 40 --device cpu --workers 1 --quiet",
    "probe": "--heldout-sample 60 --pairs 500 --device cpu --quiet",
    "similarity": "--device cpu --no-html --quiet",
    "data generate": "--workers 1",
}
"""Of every call of a command; a case's own flags come behind them and win."""

FOUR = "--data pusht-expert --episodes 4"


@dataclass(frozen=True)
class Case:
    """Commands that are run one after the other.

    Attributes:
        commands: of classact; ``{run}`` is the case's own folder, ``{data}`` that of the made data. In front of a
            command, ``ranks`` shares it between two processes, ``interrupted`` stops it (Ctrl-C) in the middle.
        copy_of: case whose folder this one starts with.
        equals: case that must have the same digests.
    """

    commands: tuple[str, ...]
    copy_of: str = ""
    equals: str = ""


def _pretrain(flags: str, data: str = FOUR, prefix: str = "") -> str:
    return f"{prefix} pretrain {data} --out {{run}} {flags}".strip()


LONG = "--epochs 12"
OBJECTIVE = "--objective class --options"

CASES: dict[str, Case] = {
    # objectives
    "class": Case((_pretrain(""), "evaluate {run} --name first")),
    "class-queue": Case((_pretrain(f"{OBJECTIVE} queue=96"),)),
    "class-hard": Case((_pretrain(f"--metric l2 --horizon 8 {OBJECTIVE} pairs=cross-episode weighting=hard"),)),
    "class-views": Case((_pretrain(f"--cost euclidean --band 4 --crop batch {OBJECTIVE} views=2 reduction=batch"),)),
    "class-learned-temperature": Case((_pretrain(f"--estimate sampled {OBJECTIVE} learned_temperature=true"),)),
    "class-bfloat16": Case((_pretrain("--precision bfloat16"),)),
    "tcn": Case((_pretrain("--objective tcn"),)),
    "byol": Case((_pretrain("--objective byol"),)),
    "dynamo": Case((_pretrain("--objective dynamo"),)),
    "inverse-dynamics": Case((_pretrain("--objective inverse-dynamics"),)),
    "time-contrastive": Case((_pretrain("--objective time-contrastive"),)),
    "sum": Case((_pretrain("--objective class+0.1*byol"),)),
    "none": Case((_pretrain("--objective none"),)),
    # how training is computed
    "ranks": Case((_pretrain("", prefix="ranks"),)),
    "accumulate": Case((_pretrain("--accumulate 2"),)),
    "straight": Case((_pretrain(LONG),)),
    "resumed": Case((_pretrain(LONG, prefix="interrupted"), _pretrain(LONG)), equals="straight"),
    # colours
    "rand-color": Case(
        (
            _pretrain("--shift rand-color --color whiten --color-augmentation rotate --options queue=96"),
            "evaluate {run} --name first",
        )
    ),
    # acting
    "retrieval-settings": Case(
        ("evaluate {run} --name other --k 16 --temperature 0.05 --proprioception-weight 3 --first-seed 300000",),
        copy_of="class",
    ),
    "ensemble": Case(("evaluate {run} --name other --chunk-length 8 --execute 4 --ensemble 0.1",), copy_of="class"),
    "other-shift": Case(("evaluate {run} --name shifted --shift rand-color",), copy_of="class"),
    "heldout": Case((_pretrain("--heldout 1 --min-actions 8"), "evaluate {run} --name first")),
    # heads
    "mlp": Case(("finetune {run} --head mlp --history 2 --color-augmentation hsv",), copy_of="class"),
    "mlp-frozen": Case(("finetune {run} --head mlp --frozen --epochs 1",), copy_of="class"),
    "diffusion": Case(("finetune {run} --head diffusion --epochs 1",), copy_of="class"),
    "diffusion-ddpm": Case(
        ("finetune {run} --head diffusion --scheduler ddpm --accumulate 2 --execute 4",), copy_of="class"
    ),
    "scratch": Case(("finetune {run} --head diffusion --scratch",), copy_of="class"),
    # data
    "zarr": Case((_pretrain("", "--data {data}/tiny.zarr"), "evaluate {run} --name first")),
    "hdf5-act": Case((_pretrain("--simulator aloha-transfer --cameras top", "--data {data}/act"),)),
    "hdf5-robomimic": Case((_pretrain("--simulator square --cameras agentview wrist", "--data {data}/square.hdf5"),)),
    "generate-pusht": Case(("data generate pusht --episodes 4 --out {run}/data.npz",)),
    "aloha-transfer": Case(
        (
            "data generate aloha-transfer --episodes 2 --out {run}/data.npz",
            _pretrain("--cameras top", "--data {run}/data.npz"),
            "evaluate {run} --name first --max-steps 30",
        )
    ),
    "square": Case(
        (
            "data generate square --episodes 2 --out {run}/data.npz",
            _pretrain("--cameras agentview", "--data {run}/data.npz"),
            "evaluate {run} --name first --max-steps 30",
        )
    ),
    # measuring
    "similarity": Case(("similarity pusht-expert --episodes 8 --out {run}/similarity",)),
    "similarity-ranks": Case(("ranks similarity pusht-expert --episodes 8 --out {run}/similarity",)),
    "probe": Case(("probe {run}",), copy_of="rand-color"),
}

# -- what is compared --------------------------------------------------------------------------------------------------

FILES: dict[str, tuple[str, Callable[[Path], Iterable[bytes]]]] = {}
"""Item -> files in a case's folder, and what is hashed of each. Several files count without their names."""


def item(name: str, pattern: str) -> Callable[[Callable[[Path], Iterable[bytes]]], Callable[[Path], Iterable[bytes]]]:
    """Register what is hashed of files."""

    def register(content: Callable[[Path], Iterable[bytes]]) -> Callable[[Path], Iterable[bytes]]:
        FILES[name] = (pattern, content)
        return content

    return register


def _arrays(named: Iterable[tuple[str, Any]]) -> Iterator[bytes]:
    for name, array in sorted(named, key=lambda pair: pair[0]):
        yield f"{name} {array.dtype} {list(array.shape)}".encode()
        yield np.ascontiguousarray(array).view(np.uint8).tobytes() if array.size else b""


@item("encoder", "encoder/model.safetensors")
@item("bank", "policy/bank.safetensors")
@item("head", "heads/*/policy/head.safetensors")
@item("head's encoder", "heads/*/policy/encoder/model.safetensors")
@item("rollouts", "evaluations/*/rollouts.safetensors")
@item("distribution", "similarity/distribution/distribution.safetensors")
@item("positives per anchor", "similarity/positives.safetensors")
def tensors(path: Path) -> Iterator[bytes]:
    """Names, dtypes, shapes and bytes, by name; the backbone has the name that it had when the file was written."""
    from safetensors.numpy import load_file

    return _arrays({name.replace("backbone", "trunk"): array for name, array in load_file(path).items()}.items())


@item("demonstrations", "data.npz")
def demonstrations(path: Path) -> Iterator[bytes]:
    """Arrays, without the header."""
    with np.load(path, allow_pickle=False) as content:
        yield from _arrays([(name, content[name]) for name in content if name != "header"])


@item("loss", "train.jsonl")
@item("head's loss", "heads/*/train.jsonl")
def losses(path: Path) -> Iterator[bytes]:
    """Step and loss of every row; where a resumed training wrote a step again, of the later one."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for step, loss in sorted({row["step"]: row["loss"] for row in rows}.items()):
        yield f"{step} {loss!r}".encode()


@item("episodes", "evaluations/*/episodes.jsonl")
def episodes(path: Path) -> Iterator[bytes]:
    """Seed, success by criterion and largest values of metrics of every row."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield json.dumps([row["seed"], row["success"], row["maxima"]], sort_keys=True).encode()


@item("threshold", "similarity/similarity.json")
def threshold(path: Path) -> Iterator[bytes]:
    """The threshold, and how many pairs are below it."""
    found = json.loads(path.read_text(encoding="utf-8"))
    yield f"{found['threshold']!r} {found['kept']} {found['pairs']}".encode()


@item("probe", "probe.json")
def probe(path: Path) -> Iterator[bytes]:
    """All that was measured: the numbers in ascending order, whatever their fields are called."""
    found = json.loads(path.read_text(encoding="utf-8"))
    numbers = [n for part in ("representations", "anchors", "positives", "views") for n in _numbers(found[part])]
    yield " ".join(map(repr, sorted(map(float, numbers)))).encode()


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Item -> digest of what is in a case's folder."""
    out = {}
    for name, (pattern, content) in FILES.items():
        found = sorted(_digest(content(path)) for path in folder.glob(pattern))
        if found:
            out[name] = found[0] if len(found) == 1 else _digest(one.encode() for one in found)
    return out


# -- data that are made on the way -------------------------------------------------------------------------------------


def _walk(rng: np.random.Generator, steps: int, width: int, low: float, high: float) -> Any:
    """(steps, width) float64: bounded random walks."""
    span = high - low
    return np.clip(low + span * (0.5 + np.cumsum(rng.normal(0, 0.02, (steps, width)), axis=0)), low, high)


def make_data(folder: Path) -> None:
    """A Push-T store (Zarr), a folder of ACT's HDF5 files, and a robomimic file, of random numbers from fixed seeds."""
    import h5py
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(0)
    state = _walk(rng, 120, 5, 60, 450)
    state[:, 4] = state[:, 4] % (2 * np.pi)
    write_zarr(
        folder / "tiny.zarr",
        {
            "data/img": rng.integers(0, 256, (120, 96, 96, 3)).astype(np.float32),
            "data/state": state.astype(np.float32),
            "data/action": _walk(rng, 120, 2, 60, 450).astype(np.float32),
            "meta/episode_ends": np.array([45, 80, 120], np.int64),
        },
    )
    (folder / "act").mkdir()
    for number in range(3):
        with h5py.File(folder / "act" / f"episode_{number}.hdf5", "w") as file:
            file.attrs["sim"] = True
            file.create_dataset("action", data=_walk(rng, 40, 14, -1.5, 1.5))
            file.create_dataset("observations/qpos", data=_walk(rng, 40, 14, -1.5, 1.5))
            file.create_dataset("observations/qvel", data=rng.normal(size=(40, 14)))
            file.create_dataset("observations/images/top", data=rng.integers(0, 256, (40, 48, 64, 3), np.uint8))
    controller = {
        "type": "OSC_POSE",
        "input_max": 1,
        "input_min": -1,
        "output_max": [0.05] * 3 + [0.5] * 3,
        "output_min": [-0.05] * 3 + [-0.5] * 3,
        "control_delta": True,
    }
    settings = {"robots": ["Panda"], "controller_configs": controller}
    environment = {"env_name": "NutAssemblySquare", "type": 1, "env_kwargs": settings, "env_version": "1.4.1"}
    with h5py.File(folder / "square.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps(environment)
        for number in range(3):
            demo = file.create_group(f"data/demo_{number}")
            demo.attrs["num_samples"] = 40
            demo.create_dataset("actions", data=_walk(rng, 40, 7, -1, 1))
            demo.create_dataset("obs/robot0_eef_pos", data=_walk(rng, 40, 3, -0.3, 0.3))
            demo.create_dataset("obs/robot0_eef_quat", data=Rotation.random(40, random_state=number).as_quat())
            demo.create_dataset("obs/robot0_joint_pos", data=_walk(rng, 40, 7, -1, 1))
            demo.create_dataset("obs/robot0_gripper_qpos", data=_walk(rng, 40, 2, -0.04, 0.04))
            for key in ("agentview_image", "robot0_eye_in_hand_image"):
                demo.create_dataset(f"obs/{key}", data=rng.integers(0, 256, (40, 48, 48, 3), np.uint8))


def write_zarr(path: Path, arrays: dict[str, Any]) -> None:
    """A Zarr v2 store without compression, each array one chunk."""
    for group in (path, path / "data", path / "meta"):
        group.mkdir(parents=True)
        (group / ".zgroup").write_text('{"zarr_format": 2}')
    for name, array in arrays.items():
        (path / name).mkdir()
        about = {"zarr_format": 2, "shape": array.shape, "chunks": array.shape, "dtype": array.dtype.str}
        about |= {"compressor": None, "fill_value": 0, "order": "C", "filters": None}
        (path / name / ".zarray").write_text(json.dumps(about))
        (path / name / ".".join("0" * array.ndim)).write_bytes(np.ascontiguousarray(array).tobytes())


class CaseError(Exception):
    """A command of a case failed, or what it left is not what it should be."""


# -- running -----------------------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """What decides bits beside the code: CPU, threads, versions of packages that compute."""
    made = versions()
    names = ("python", "torch", "torchvision", "numpy", "numba", "opencv-python", "pymunk")
    return {"cpu": cpu_model(), "threads": 1, "versions": {name: made.get(name) for name in names}}


def cpu_model() -> str:
    """Name, family and model: kernels are chosen by the instructions that a CPU has, not by its name alone."""
    name = hardware()["cpu"]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return str(name)
    about = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    numbers = [f"{key.removeprefix('cpu ')} {about[key]}" for key in ("cpu family", "model") if key in about]
    return ", ".join([str(name), *numbers])


def argv(words: list[str]) -> list[str]:
    """A command with the flags that all its calls have; a case's own come last and win."""
    name = " ".join(words[:2]) if " ".join(words[:2]) in FLAGS else words[0]
    own = words[len(name.split()) :]
    flags = shlex.split(FLAGS[name])
    if "none" in own and "--epochs" in flags:  # trains nothing, and refuses to be told how long
        del flags[flags.index("--epochs") : flags.index("--epochs") + 2]
    return [*name.split(), *_without(flags, own), *own]


def _without(flags: list[str], own: list[str]) -> list[str]:
    """Flags with their values, but for those that ``own`` gives again."""
    kept: list[str] = []
    keep = True
    for word in flags:
        keep = word not in own if word.startswith("--") else keep
        kept += [word] if keep else []
    return kept


def call(command: str, work: Path) -> None:
    """Run one command of a case.

    Raises:
        CaseError: with its output.
    """
    words = shlex.split(command)
    how = words.pop(0) if words[0] in ("ranks", "interrupted") else ""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    start = launcher if how == "ranks" else [sys.executable]
    variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    variables |= {"CLASSACT_CACHE": str(work / "cache"), "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        [*start, "-m", "classact", *argv(words)],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if how == "interrupted":
        log = Path(words[words.index("--out") + 1]) / "train.jsonl"
        while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < 20):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    if process.returncode != (130 if how == "interrupted" else 0):
        raise CaseError(f"{output}\nexit status {process.returncode} of: classact {shlex.join(argv(words))}")


def run_case(name: str, work: Path) -> dict[str, str]:
    """Run a case in ``work/name``; returns item -> digest, without what the case that it copies has."""
    case, folder = CASES[name], work / name
    before: dict[str, str] = {}
    if case.copy_of:
        shutil.copytree(work / case.copy_of, folder)
        for old in ("evaluations", "heads"):
            shutil.rmtree(folder / old, ignore_errors=True)
        before = digests(folder)
    else:
        folder.mkdir()
    for command in case.commands:
        call(command.format(run=folder, data=work / "data"), work)
    found = digests(folder)
    changed = [key for key, value in before.items() if found.get(key) != value]
    if changed:
        raise CaseError(f"{changed} of the case {case.copy_of!r} that it starts with were changed.")
    found = {key: value for key, value in found.items() if key not in before}
    if not found:
        raise CaseError(f"nothing was found to compare in {folder}; are the names in FILES right?")
    return found


def with_needed(names: Iterable[str]) -> list[str]:
    """The cases, and those that they start from or must equal, in the order of :data:`CASES`."""
    wanted = set(names)
    for name in list(wanted):
        wanted |= {CASES[name].copy_of, CASES[name].equals} - {""}
    return [name for name in CASES if name in wanted]


def run_all(
    names: Iterable[str], keep: Callable[[str, dict[str, str]], None]
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Run cases in a temporary folder, ``keep`` the digests of each; returns all of them, and why others failed."""
    out: dict[str, dict[str, str]] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="same-bits-") as temporary:
        work = Path(temporary)
        (work / "data").mkdir()
        make_data(work / "data")
        for name in with_needed(names):
            begin = time.perf_counter()
            copied, other = CASES[name].copy_of, CASES[name].equals
            try:
                if copied in failed:
                    raise CaseError(f"case {copied!r}, which it starts with, failed.")
                found = run_case(name, work)
                if other and found != out.get(other):
                    differing = [key for key in found if found[key] != out.get(other, {}).get(key)]
                    raise CaseError(f"it must equal case {other!r}, but {differing} differ.")
            except CaseError as problem:
                failed[name] = str(problem)
                print(f"{name}: failed: {problem}", flush=True)
                continue
            out[name] = found
            keep(name, found)
            print(f"{name}: {', '.join(found)} ({time.perf_counter() - begin:.0f} s)", flush=True)
    return out, failed


def differences(known: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Lines: which items of which of the cases that were run differ, are missing or are new."""
    lines = []
    for name, now in found.items():
        before = known.get(name)
        if before is None:
            lines.append(f"{name}: not in the file")
            continue
        for key in sorted(before.keys() | now.keys()):
            old, new = before.get(key, "nothing"), now.get(key, "nothing")
            if old != new:
                lines.append(f"{name}: {key}: expected {old[:16]}, got {new[:16]}")
    return lines


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true", help="compare with the file; status 1 where bits differ")
    arguments.add_argument("--only", nargs="+", choices=list(CASES), metavar="NAME", help=f"of {', '.join(CASES)}")
    arguments.add_argument("--json", type=Path, default=FILE, help="file of digests")
    options = arguments.parse_args()
    names, here = options.only or list(CASES), environment()
    known = read_json(options.json) if options.json.exists() else {"environment": here, "cases": {}}
    other = known["environment"] != here
    if options.check and other:
        print(f"Another environment: the file is of\n  {known['environment']}\nand this is\n  {here}", flush=True)
    cases = {} if other and not options.check else dict(known["cases"])

    def keep(name: str, found: dict[str, str]) -> None:
        if not options.check:
            cases[name] = found
            ordered = {name: cases[name] for name in CASES if name in cases}
            write_json(options.json, {"environment": here, "cases": ordered})

    # Started in the background, a shell has it ignored, and the commands below would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    begin = time.perf_counter()
    found, failed = run_all(names, keep)
    print(f"{len(found)} cases, {len(failed)} failed, in {time.perf_counter() - begin:.0f} s")
    lines = [f"{name}: failed: {reason.splitlines()[-1]}" for name, reason in failed.items()]
    if options.check:
        lines += differences(known["cases"], found)
        if not options.only:
            lines += [f"{name}: in the file, but no case any more" for name in known["cases"] if name not in CASES]
    print("\n".join(lines) or ("Same bits." if options.check else f"Written to {options.json}."))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
