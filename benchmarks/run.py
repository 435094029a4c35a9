"""Run the benchmarks and write RESULTS.md: every number is a ratio measured in one run on the same clips.

python benchmarks/run.py [--model MODEL.pt] [--data FOLDER] [--only attacks,certify] [--repeats 5]
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks import (  # noqa: E402
    attacks,
    audio_attacks,
    black_box,
    certify,
    data_path,
    decisions,
    default_evaluation,
    front_end,
    grid,
    inversion,
    minimum_norm,
    scale,
    strength,
    transfer,
    transformations,
)
from src.datasets import store  # noqa: E402
from src.datasets.prepare import DataSettings, prepare  # noqa: E402
from src.output import results  # noqa: E402
from src.victims import checkpoint  # noqa: E402
from src.victims.victim import Victim  # noqa: E402

NAMES = (
    "data_path",
    "front_end",
    "inversion",
    "attacks",
    "grid",
    "default_evaluation",
    "minimum_norm",
    "strength",
    "transfer",
    "audio_attacks",
    "black_box",
    "decisions",
    "certify",
    "transformations",
    "scale",
)


def processor() -> str:
    """Names of the processor and the GPU."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{name}, {os.cpu_count()} CPUs, {gpu}"


def keyword_clips(data: Path, folder: Path) -> tuple[store.Clips, store.Clips]:
    """The test split of the keywords, and 500 clips of the training split, the default of `fit_clips`."""
    files = str(ROOT / "experiments/subsets/speech_commands.txt")
    prepare(DataSettings(source="speech_commands", data_dir=folder), {"source_dir": data, "files": files})
    train = store.load(folder, "train")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    return store.load(folder, "test"), train.select(order[:500])


def measure(
    name: str,
    victim: Victim,
    others: dict[str, Victim],
    clips: store.Clips,
    train: store.Clips,
    data: Path,
    repeats: int,
) -> list[dict[str, Any]]:
    """The rows of one benchmark; `others` are all models in the folder of the victim, itself included."""
    x = clips.waveforms(torch.arange(0, len(clips), max(1, len(clips) // 64))[:64])
    if name == "data_path":
        return data_path.run(data, repeats)
    if name == "front_end":
        return front_end.run(x, clips.sample_rate, repeats)
    if name == "inversion":
        return inversion.run(x[:16], clips.sample_rate, repeats)
    if name == "attacks":
        return attacks.run(victim, x[:32], repeats)
    if name == "grid":
        return grid.run(victim, x, 1)
    if name == "default_evaluation":
        chosen = torch.arange(0, len(clips), max(1, len(clips) // 64))[:64]
        return default_evaluation.run(others, clips.waveforms(chosen), clips.labels[chosen])
    if name == "minimum_norm":
        return minimum_norm.run(victim, x, 1)
    if name == "strength":
        chosen = torch.arange(0, len(clips), max(1, len(clips) // 32))[:32]
        return strength.run(others, clips.waveforms(chosen), clips.labels[chosen])
    if name == "transfer":
        return transfer.run(victim, x)
    if name == "audio_attacks":
        chosen = torch.arange(0, len(clips), max(1, len(clips) // 16))[:16]
        return audio_attacks.run(others, clips.waveforms(chosen), clips.labels[chosen])
    if name in ("black_box", "decisions"):
        chosen = torch.arange(0, len(clips), max(1, len(clips) // 48))[:48]
        x, y = clips.waveforms(chosen), clips.labels[chosen]
        if name == "black_box":
            return black_box.run(others, x, y)
        return decisions.run(others, x, y, (train.waveforms(), train.labels))
    if name == "transformations":
        return transformations.run(victim, x, repeats)
    if name == "scale":
        return scale.run(ROOT / "experiments/keywords.ini")
    return certify.run(victim, x[0], repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "data/keywords_study/models/resnet.pt")
    parser.add_argument("--data", type=Path, default=ROOT / "data/raw/speech_commands")
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/RESULTS.md")
    args = parser.parse_args()
    chosen = args.only.split(",")
    if not args.data.is_dir() or not set(chosen) <= set(NAMES):
        print(f"error: need the folder {args.data} and names out of {', '.join(NAMES)}", file=sys.stderr)
        print("make study CONFIG=experiments/keywords.ini downloads the clips and trains the models", file=sys.stderr)
        sys.exit(2)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        clips, train = keyword_clips(args.data, Path(folder) / "store")
        try:
            victim, _ = checkpoint.load(args.model)
            others = {path.stem: checkpoint.load(path)[0] for path in sorted(args.model.parent.glob("*.pt"))}
        except (OSError, ValueError) as error:
            print(f"error: {error}; train it: make study CONFIG=experiments/keywords.ini", file=sys.stderr)
            sys.exit(2)
        rows = []
        for name in chosen:
            measured = measure(name, victim, others, clips, train, args.data, args.repeats)
            print(results.markdown([{"note": "", **row} for row in measured]))
            rows += [{"note": "", **row} for row in measured]
    fields = ("benchmark", "what", "ours", "peer", "unit", "ratio", "note")
    table = results.markdown([{field: row[field] for field in fields} for row in rows])
    head = (
        f"# Benchmarks\n\n`make bench` on {processor()}; one thread, median of {args.repeats} repetitions; "
        "ratio = how many times better than the peer ours is, measured in the same run on the same clips.\n\n"
    )
    results.write_text(args.out, head + table)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
