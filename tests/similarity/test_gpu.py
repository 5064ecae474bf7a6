"""The GPU backend. What its kernels must do is in gpu_cases.py, which runs in Triton's interpreter and on a GPU."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from classact.errors import ConfigError
from classact.similarity.gpu import GpuSweep, dtw_pairwise_torch, launch_options
from classact.similarity.stream import WindowStream
from similarity_table import peak_pairs_per_second

CASES = Path(__file__).with_name("gpu_cases.py")
HERE = Path(__file__).resolve().parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton comes with torch's CUDA builds for Linux alone"
)
needs_compiler = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 replaces the compiler in this process")


def run_cases(**environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, cwd=HERE, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"\d{2,} passed", done.stdout), done.stdout[-2000:]


@needs_triton
def test_kernels_in_the_interpreter() -> None:
    run_cases(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@needs_triton
@pytest.mark.gpu
def test_kernels_on_a_gpu() -> None:
    run_cases(TRITON_INTERPRET="0")


# What the compiler makes of them, for sm_90, without a GPU


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], options: dict[str, Any]) -> bytes:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: types.get(name, "constexpr" if name in constants else "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    try:
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    except (FileNotFoundError, PermissionError, RuntimeError) as error:
        if "ptxas" in str(error) and "not found" in str(error).lower():
            pytest.skip(f"no ptxas to assemble for sm_90: {error}")
        raise
    return made.asm["cubin"]


def disassembled(cubin: bytes, folder: Path) -> tuple[dict[str, int], list[tuple[int, str]]]:
    """Resources by name, and the instructions with their addresses."""
    import triton

    try:
        tool = triton.knobs.nvidia.cuobjdump.path
    except RuntimeError as error:
        pytest.skip(f"no cuobjdump to read sm_90 code: {error}")
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    texts = [
        subprocess.run([tool, option, str(path)], capture_output=True, text=True, check=True).stdout
        for option in ("-res-usage", "-sass")
    ]
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", texts[0])}
    code = [(int(m[1], 16), m[2].strip()) for m in re.finditer(r"/\*([0-9a-f]{4,5})\*/\s+([^;]+);", texts[1])]
    return used, code


def operations(code: list[tuple[int, str]]) -> Counter[str]:
    return Counter(re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0] for _, text in code)


SWEEP_TYPES = {
    **dict.fromkeys(("C", "out"), "*fp32"),
    **dict.fromkeys(("positions", "group_columns", "group_windows", "group_sizes", "table", "lows"), "*i32"),
    "zeros": "*i64",
    "limit": "fp32",
}


@needs_triton
@needs_compiler
@pytest.mark.parametrize(
    ("T", "V", "band", "count"), [(16, 4, None, True), (16, 4, None, False), (33, 2, None, True), (16, 2, 2, False)]
)
def test_recurrence_stays_in_registers(
    T: int, V: int, band: int | None, count: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is spilled, the minimum of three is one instruction, and a row is hardly copied."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from classact.similarity import gpu_kernels

    width = T if band is None else 2 * band + 1
    constants = {"T": T, "U": T, "V": V, "BAND": band, "STEP": 1, "LATER": True, "PRUNE": True}
    constants |= {"COUNT": count, "LANES": 32, "ANCHORS": 8}
    cubin = compiled(gpu_kernels.sweep, SWEEP_TYPES, constants, launch_options(width, V))
    used, code = disassembled(cubin, tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    assert used["REG"] <= 168
    names = operations(code)
    assert "FMNMX" not in names
    assert not names.keys() & {"LDL", "STL"}
    loops = [
        code[[at for at, _ in code].index(int(back[1], 16)) : k + 1]
        for k, (at, text) in enumerate(code)
        if (back := re.search(r"BRA\S* (?:\S+, )?0x([0-9a-f]+)", text)) and int(back[1], 16) < at
    ]
    inner = min((loop for loop in loops if operations(loop)["VIMNMX3"] >= 2 * V * (width - 2)), key=len)
    cells = 2 * V * width  # two rows at a time
    assert operations(inner)["FADD"] == cells
    if band is None:
        assert operations(inner)["LDG"] == 2 * (T + V - 1)
        assert len(inner) < 2.8 * cells


@needs_triton
@needs_compiler
def test_costs_are_not_fused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused multiplication and addition would round otherwise than the CPU does."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from classact.similarity import gpu_kernels

    constants = {"V": 4, "SQUARED": True, "ROWS": gpu_kernels.ROWS, "COLUMNS": gpu_kernels.COLUMNS}
    options = {"num_warps": 4, "enable_fp_fusion": False}
    cubin = compiled(gpu_kernels.point_distances, dict.fromkeys("XYC", "*fp32"), constants, options)
    used, code = disassembled(cubin, tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    names = operations(code)
    assert names["FFMA"] == 0
    assert names["FMUL"] >= gpu_kernels.ROWS * gpu_kernels.COLUMNS // 128


# Limits, messages


def test_peak() -> None:
    """T = 16: 255 additions and 225 minima, which one scheduler of 128 lanes issues in 3.75 cycles."""
    assert peak_pairs_per_second(1, 1.0, 16) == pytest.approx(128 / 480)
    assert peak_pairs_per_second(132, 1.98e9, 16) == pytest.approx(6.97e10, rel=1e-3)
    # As two instructions each, at half rate, minima take longest.
    assert peak_pairs_per_second(1, 1.0, 16, minima=2) == pytest.approx(64 / 450)
    assert peak_pairs_per_second(1, 1.0, 16, lanes_min=32) == pytest.approx(32 / 225)
    assert peak_pairs_per_second(132, 1.98e9, 1) == math.inf


def stream() -> WindowStream:
    return WindowStream.build(np.zeros((5, 2), np.float32), np.array([5]), 3)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a CUDA GPU")
def test_no_gpu() -> None:
    with pytest.raises(ConfigError, match=r"cuda needs a CUDA GPU, and torch \S+ finds none.*compute on the CPU"):
        GpuSweep(stream())


@needs_triton
@needs_compiler
def test_another_device() -> None:
    with pytest.raises(ConfigError, match=r"expected a CUDA device.*got cpu.*TRITON_INTERPRET=1"):
        GpuSweep(stream(), device="cpu")
    with pytest.raises(ConfigError, match=r"expected a CUDA device.*got cpu"):
        dtw_pairwise_torch(torch.zeros(2, 3, 1))


def test_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ConfigError, match=r"cuda needs triton, which comes with torch.*compute on the CPU"):
        GpuSweep(stream())


def test_settings() -> None:
    with pytest.raises(ConfigError, match="unknown step cost 'l1'"):
        GpuSweep(stream(), cost="l1")
    with pytest.raises(ConfigError, match="band of at least 0 whole steps"):
        GpuSweep(stream(), band=-1)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, classact.similarity.gpu; sys.exit(sorted({'torch', 'triton'} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
