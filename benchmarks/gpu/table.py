"""The results as files: JSON with everything, and Markdown to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COLUMNS = (
    "shape",
    "dtype, format",
    "implementation",
    "µs",
    "x eager",
    "GB/s",
    "of copy",
    "TFLOP/s",
    "of matrix",
    "error",
)


def write(results: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Writes <device>-<torch>.json and .md to `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    device = "-".join(results["machine"]["device"].lower().split())
    stem = f"{device}-{results['machine']['torch']}"
    paths = folder / f"{stem}.json", folder / f"{stem}.md"
    paths[0].write_text(json.dumps(results, indent=1) + "\n")
    paths[1].write_text(markdown(results))
    return paths


def markdown(results: dict[str, Any]) -> str:
    machine, measured = results["machine"], results["measured"]
    rates = ", ".join(f"{dtype} {rate / 1e12:.3g}" for dtype, rate in measured["matrix_flops_per_second"].items())
    lines = [
        f"# {machine['device']}, torch {machine['torch']}",
        "",
        *(f"- {name}: {value}" for name, value in machine.items()),
        f"- measured copy bandwidth (read + written): {measured['copy_bytes_per_second'] / 1e9:.4g} GB/s",
        f"- measured matrix rate, TFLOP/s: {rates}",
        *(f"- {outcome}" for outcome in results["outcomes"]),
        "",
        "Times are medians on the device, over inputs that are rotated past its cache, in one run. A row has a time",
        "only if its results equal the reference's within the error shown (relative, by the norm; the largest of all",
        "results). Bytes are the least that must move. `x eager` is the eager composition's time over the row's.",
    ]
    for op in dict.fromkeys(row["op"] for row in results["rows"]):
        for direction in dict.fromkeys(row["direction"] for row in results["rows"] if row["op"] == op):
            rows = [row for row in results["rows"] if (row["op"], row["direction"]) == (op, direction)]
            lines += ["", f"## {op}, {direction}", "", _line(COLUMNS), _line(["---"] * len(COLUMNS))]
            lines += [_line(_cells(row, rows, measured)) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: dict[str, Any], rows: list[dict[str, Any]], measured: dict[str, Any]) -> list[str]:
    cells = [row["shape"], f"{row['dtype']}, {row['memory_format']}", row["implementation"]]
    if row["seconds"] is None:
        return [*cells, row["problem"], *[""] * (len(COLUMNS) - 4)]
    seconds = row["seconds"]
    same = ("shape", "dtype", "memory_format")
    eager = [r["seconds"] for r in rows if r["implementation"] == "eager" and all(r[k] == row[k] for k in same)]
    cells += [f"{seconds * 1e6:.1f}", f"{eager[0] / seconds:.2f}" if eager and eager[0] else ""]
    bandwidth = row["bytes"] / seconds
    cells += [f"{bandwidth / 1e9:.0f}", f"{bandwidth / measured['copy_bytes_per_second']:.0%}"]
    peak = measured["matrix_flops_per_second"].get(row["dtype"])
    if row["flops"] and peak:
        cells += [f"{row['flops'] / seconds / 1e12:.1f}", f"{row['flops'] / seconds / peak:.0%}"]
    else:
        cells += ["", ""]
    return [*cells, f"{row['error']:.1e}"]
