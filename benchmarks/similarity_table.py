"""The measured parts of docs/similarity.md and of the README, from benchmarks/results/similarity.json."""

from __future__ import annotations

import json
import math
from typing import Any

from common import RESULTS

H200 = {"sm_count": 132, "clock_hz": 1.98e9}
GPU_AIM = 5e9  # pairs per second


def peak_pairs_per_second(
    sm_count: int, clock_hz: float, T: int, lanes_add: int = 128, lanes_min: int = 64, *, minima: int = 1
) -> float:
    """Window pairs per second that no kernel with this recurrence can exceed: the time of its additions and minima.

    A pair has T^2 cells, each with one addition, except the first, and each with the minimum of three, except the
    2 T - 1 of the first row and column. Additions and minima are issued to different units but by the same scheduler,
    of ``lanes_add`` lanes per multiprocessor and cycle; minima run at half rate. A multiprocessor so needs at least

        max((T^2 - 1 + minima (T - 1)^2) / lanes_add, minima (T - 1)^2 / lanes_min) cycles per pair.

    Loads of costs, their computation and the selection of pairs are not in it.

    Args:
        sm_count: multiprocessors (an H200 has 132).
        clock_hz: cycles per second.
        T: steps of both windows.
        lanes_add, lanes_min: additions and minima per multiprocessor and cycle (CUDA C++ programming guide,
            throughput of native arithmetic instructions, compute capability 9.0; it lists no rate for the minimum of
            three, which is taken to be that of two).
        minima: instructions for the minimum of three: 1 from compute capability 9.0 on, over integer bit patterns,
            2 before.
    """
    smallest = minima * (T - 1) ** 2
    cycles = max((T * T - 1 + smallest) / lanes_add, smallest / lanes_min)
    return sm_count * clock_hz / cycles if cycles else math.inf


def results() -> dict[str, Any]:
    return json.loads((RESULTS / "similarity.json").read_text(encoding="utf-8"))


def million(rate: float) -> str:
    value = rate / 1e6
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:,.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def cost_model(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Seconds that do not depend on N, and pairs per second, from the smallest and the largest measurement."""
    small, large = rows[0], rows[-1]
    rate = (large["pairs"] - small["pairs"]) / (large["seconds"] - small["seconds"])
    return small["seconds"] - small["pairs"] / rate, rate


def readme_lines() -> list[str]:
    found = results()
    rows = {row["name"]: row for row in found["contenders"]["rows"]}
    ours = rows["classact sweep, no pruning"]
    ratios = found["contenders"]["ratios"]
    data, memory, training = found["data"], found["memory"]["rows"][-1], found["training"]["rows"]
    share = max(row["share"] for row in training)
    machine = found["contenders"]["hardware"]
    return [
        f"All pairs of windows (T = {found['contenders']['horizon']}, D = {found['contenders']['dimensions']}; "
        f"{found['contenders']['threads']} threads, {machine['cpu']}): {million(ours['pairs_per_second'])} million DTW "
        f"distances a second without pruning, {ratios['aeon dtw_pairwise_distance']:.0f} times aeon's parallel "
        f"pairwise distance, {ratios['dtaidistance distance_matrix_fast']:.0f} times dtaidistance's, "
        f"{ratios['tslearn cdist_dtw']:,.0f} times tslearn's in the same run. Exact threshold and CDF of all "
        f"{data['pairs']:,} pairs of the human demonstrations: {data['seconds']['exact']:.1f} s; of "
        f"{memory['windows']:,} synthetic windows ({memory['pairs']:,} pairs, D = {memory['dimensions']}): "
        f"{memory['seconds']:.0f} s, {memory['peak_beyond_data_mib']:.0f} MiB beyond the data. A batch's weights take "
        f"at most {100 * share:.1f} % of a training step (batches of 160 and 2,048, D = 2 and 10)."
    ]


def page_lines() -> list[str]:
    found = results()
    contenders, machine = found["contenders"], found["contenders"]["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in contenders["packages"].items())
    lines = [
        f"Measured on {machine['cpu']}, {contenders['threads']} threads, all contenders in one process in turns, "
        f"median of five ({versions}). T = {contenders['horizon']}, D = {contenders['dimensions']}, no band:",
        "",
        "| | million pairs/s | classact without pruning is faster by |",
        "|---|---|---|",
    ]
    for row in contenders["rows"]:
        ratio = contenders["ratios"].get(row["name"])
        by = f"{ratio:,.0f} x" if ratio else ""
        lines.append(f"| {row['name']} | {million(row['pairs_per_second'])} | {by} |")
    lines += ["", "Without pruning, over horizons, dimensions, step costs and bands:", ""]
    lines += ["| T | D | step cost | band | million pairs/s |", "|---|---|---|---|---|"]
    for row in found["horizons"]["rows"]:
        band = "" if row["band"] is None else row["band"]
        rate = million(row["pairs_per_second"])
        lines.append(f"| {row['horizon']} | {row['dimensions']} | {row['cost']} | {band} | {rate} |")
    data = found["data"]
    lines += [
        "",
        f"Exact threshold and CDF of {data['data']} ({data['windows']:,} windows, {data['pairs']:,} pairs): "
        f"{data['seconds']['exact']:.2f} s, without pruning {data['seconds']['exact_without_pruning']:.2f} s; from "
        f"{data['sampled_pairs']:,} sampled pairs {data['seconds']['sampled']:.2f} s, threshold "
        f"{data['sampled_threshold']:.4f} for {data['threshold']:.4f}.",
        "",
        "Weights of a batch, beside a whole training step of the small encoder on 64-pixel images "
        f"({found['training']['device']}):",
        "",
        "| D | batch | training step | weights | share |",
        "|---|---|---|---|---|",
    ]
    for row in found["training"]["rows"]:
        lines.append(
            f"| {row['dimensions']} | {row['batch_size']:,} | {row['step_ms']:.0f} ms | {row['weights_ms']:.2f} ms | "
            f"{100 * row['share']:.2f} % |"
        )
    return [*lines, "", *cost_lines(found)]


def cost_lines(found: dict[str, Any]) -> list[str]:
    memory = found["memory"]["rows"]
    fixed, rate = cost_model(memory)
    middle = memory[1]
    predicted = fixed + middle["pairs"] / rate
    lines = [
        "**Cost model.** Seconds = a + N (N - 1) / (2 r) for the exact threshold and CDF: a is the sample that "
        f"brackets the threshold, r the pairs per second. From {memory[0]['windows']:,} and "
        f"{memory[-1]['windows']:,} synthetic windows (T = {middle['horizon']}, D = {middle['dimensions']}, K = "
        f"{100 * middle['quantile']:g} %, two cores): a = {fixed:.1f} s, r = {million(rate)} million. It says "
        f"{predicted:.1f} s for {middle['windows']:,} windows; measured were {middle['seconds']:.1f} s.",
        "",
        "| windows | pairs | seconds | peak memory beyond the data |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['windows']:,} | {row['pairs']:,} | {row['seconds']:.1f} | {row['peak_beyond_data_mib']:.0f} MiB |"
        for row in memory
    ]
    gpu = found.get("gpu", {})
    measured = gpu.get("available", False)
    gpu_rate = gpu["pairs_per_second"] if measured else GPU_AIM
    peak = peak_pairs_per_second(T=16, **H200)
    about = (
        f"{gpu['hardware']['gpu']} measured {million(gpu_rate)} million pairs/s, "
        f"{100 * gpu_rate / gpu['physical_limit_pairs_per_second']:.0f} % of its physical limit."
        if measured
        else "**No GPU has been measured yet.** The columns for GPUs are what the model gives for the rate that the "
        f"kernel is meant to reach, {million(GPU_AIM)} million pairs/s; additions and minima alone would allow "
        f"{million(peak)} million on an H200 at {H200['clock_hz'] / 1e9:g} GHz."
    )
    lines += [
        "",
        f"What larger sets cost. {about} Exact is one sweep over the pairs i < j. `classact similarity` makes a "
        "second one for the positives of each timestep, pruned harder, for the threshold is known then.",
        "",
        "| windows | exact, two cores | exact, one GPU | exact, eight GPUs | sensible |",
        "|---|---|---|---|---|",
    ]
    advice = {1e6: "exact, once", 1e7: "exact on GPUs, or sampled", 1e8: "sampled"}
    for n, text in advice.items():
        pairs = n * (n - 1) / 2
        lines.append(
            f"| {n:,.0f} | {duration(fixed + pairs / rate)} | {duration(pairs / gpu_rate)} | "
            f"{duration(pairs / gpu_rate / 8)} | {text} |"
        )
    sampled = found["data"]["seconds"]["sampled"]
    lines += [
        "",
        f"Sampled, and the weights of batches, cost the same at every size: the sample ({sampled:.1f} s for "
        f"{found['data']['sampled_pairs']:,} pairs, D = {found['data']['dimensions']}) and the share of a training "
        "step above.",
    ]
    return lines
