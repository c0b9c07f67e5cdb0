"""Where a run was made, its table, and what it comes to."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.machine import describe

__all__ = ["missed", "name_of", "setting", "table"]

RESULTS = Path(__file__).resolve().parents[1] / "results"


def name_of(folder: Path) -> Path:
    """``gpu-<date>.json``, numbered from the second run of a day on."""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    names = (folder / f"gpu-{day}{'' if k == 1 else f'-{k}'}.json" for k in range(1, 1000))
    return next(path for path in names if not path.exists())


def setting() -> dict[str, Any]:
    """Device, driver, versions, commit."""
    import torch

    found = describe()
    found["versions"] |= {
        name: _version(name) for name in ("triton", "transformers", "opt_einsum", "hypothesis", "pytest")
    }
    found["cuda"] = torch.version.cuda
    found["python"] = platform.python_version()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["device"] = {
            "name": properties.name,
            "capability": list(torch.cuda.get_device_capability(0)),
            "memory": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
        }
        found["driver"] = _driver()
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = done.stdout.split()
    return lines[0] if lines else "unknown"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def table(rows: list[dict[str, Any]], dry: bool = False) -> str:
    """One line a result: the number, its bounds, the verdict, the seconds of each variant."""
    lines = [f"{'row':62} {'value':>8} {'unit':16} {'must':8} {'aim':8} {'verdict':12} microseconds"]
    for row in rows:
        if row.get("error"):
            lines.append(f"{row['row']:62} {'-':>8} {'':16} {'':8} {'':8} {'error':12} {row['error']}")
        for v in row["results"]:
            times = ", ".join(f"{key} {1e6 * seconds:.4g}" for key, seconds in v["seconds"].items())
            said = "; ".join([times, *(f"{key}: {why}" for key, why in v["errors"].items()), v["note"]])
            bounds = f"{v['must'] or '':8} {v['aim'] or '':8}"
            verdict = "dry run" if dry else v["verdict"]
            lines.append(f"{v['name']:62} {_shown(v['value']):>8} {v['unit']:16} {bounds} {verdict:12} {said}")
    return "\n".join(lines)


def missed(rows: list[dict[str, Any]], promised: dict[str, tuple[str, ...]]) -> list[str]:
    """Every must that was missed, and every row with a must that gave no number."""
    said = []
    done = {row["row"]: row for row in rows}
    for name, musts in promised.items():
        row = done.get(name)
        if row is None:
            said.append(f"{name}: not measured, the time was over ({', '.join(musts)})")
        elif not row["results"]:
            said.append(f"{name}: not measured, {row.get('error', 'no result')} ({', '.join(musts)})")
    for row in rows:
        for v in row["results"]:
            if v["verdict"] == "must missed":
                said.append(f"{v['name']}: {_shown(v['value'])} {v['unit']}, must {v['must']}")
    return said
