"""Scaling of attack.py: peak memory against the number of clips, and throughput of two processes against one.

Times are differences between a larger and a smaller run, which leaves the start-up out."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def attack(config: Path, out: Path, clips: int, processes: int, *overrides: str) -> tuple[float, float]:
    """Seconds and peak resident MiB (of the largest process) of one run of attack.py."""
    script = [str(ROOT / "attack.py"), "--config", str(config)]
    settings = [f"DATA.n_test={clips}", f"RESULTS.results_dir={out}", f"RESULTS.plot_dir={out}", *overrides]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, *script]
    command += [part for override in settings for part in ("--set", override)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "EARSHOT_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"attack.py ended with {process.returncode}: {' '.join(command)}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def run(config: Path, *, few: int = 40, many: int = 200, overrides: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The rows: memory of `many` clips against `few`, and clips per second of two processes against one."""
    fixed = ("ATTACK.names=pgd", "ATTACK.eps=0.0002", "ATTACK.pgd.early_exit=no", "ATTACK.checks=0", "ATTACK.wavs=0",
             "ATTACK.speech=no", *overrides)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        single = [attack(config, out / f"one{n}", n, 1, *fixed) for n in (few, many)]
        double = [attack(config, out / f"two{n}", n, 2, *fixed) for n in (few, many)]
    speeds = [(many - few) / max(large[0] - small[0], 1e-6) for small, large in (single, double)]
    return [
        {
            "benchmark": "scale", "what": f"peak memory of attacking {many} clips against {few}", "ours": single[1][1],
            "peer": single[0][1], "unit": "MiB", "ratio": single[0][1] / single[1][1], "note": "1 means no growth",
        },
        {
            "benchmark": "scale", "what": "attack.py (PGD-40) under torchrun, 2 processes against 1", "ours": speeds[1],
            "peer": speeds[0], "unit": "clips/s", "ratio": speeds[1] / speeds[0], "note": "",
        },
    ]  # fmt: skip
