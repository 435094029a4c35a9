"""The store of adversarial clips: it grows clip by clip, survives a kill at any byte, and reads as any other clips."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from src.datasets.crafted import CraftedStore, read_clips, read_facts
from src.datasets.store import Clips

N = 40


def originals(count: int = 6) -> Clips:
    samples = np.arange(count * N, dtype=np.int16).reshape(count, N)
    ids = tuple(f"yes/{i}.wav" for i in range(count))
    return Clips(
        samples, torch.arange(count) % 2, torch.full((count,), N - 3), ids, ("yes", "no"), 8000, True, "made up",
        {"speaker": tuple("abcdef"[:count])},
    )  # fmt: skip


def facts_of(clips: Clips, i: int) -> dict[str, object]:
    tags = {"speaker": clips.speakers[i]}
    return {
        "id": clips.ids[i],
        "label": int(clips.labels[i]),
        "length": int(clips.lengths[i]),
        "tags": tags,
        "snr": math.inf,
    }


def fill(store: CraftedStore, clips: Clips, index: list[int]) -> None:
    for i in index:
        store.append(-clips.samples[i], facts_of(clips, i))


def test_what_was_appended_is_read_in_any_order(tmp_path: Path) -> None:
    clips = originals()
    store = CraftedStore(tmp_path / "s", clips, {"attack": "pgd"})
    fill(store, clips, [3, 0, 5])
    assert clips.ids[3] in store
    assert clips.ids[1] not in store
    made, facts = store.read([clips.ids[5], clips.ids[3]])
    assert (made.samples == -clips.samples[[5, 3]]).all()
    assert made.labels.tolist() == clips.labels[[5, 3]].tolist()
    assert made.lengths.tolist() == [N - 3, N - 3]
    assert made.speakers == ("f", "d")
    assert (made.classes, made.sample_rate, made.synthetic, made.source) == (("yes", "no"), 8000, True, "made up")
    assert facts[0]["snr"] == math.inf
    assert read_facts(tmp_path / "s")["attack"] == "pgd"
    assert made.speech
    sounds = CraftedStore(tmp_path / "sounds", replace(clips, speech=False), {"attack": "pgd"})
    fill(sounds, clips, [2])
    assert not read_clips(tmp_path / "sounds")[0].speech
    everything, _ = read_clips(tmp_path / "s")
    assert everything.ids == (clips.ids[0], clips.ids[3], clips.ids[5])


def test_parts_of_several_processes_are_one_store(tmp_path: Path) -> None:
    clips = originals()
    fill(CraftedStore(tmp_path / "s", clips, {}, part=0), clips, [0, 2])
    second = CraftedStore(tmp_path / "s", clips, {}, part=1)
    assert clips.ids[0] in second
    fill(second, clips, [1])
    made, _ = read_clips(tmp_path / "s", clips.ids[:3])
    assert (made.samples == -clips.samples[:3]).all()


@pytest.mark.parametrize("cut_lines", [0, 1, 30])
@pytest.mark.parametrize("cut_samples", [0, 1, 2 * N, 3 * N])
def test_a_kill_at_any_byte_loses_unfinished_clips_only(tmp_path: Path, cut_lines: int, cut_samples: int) -> None:
    clips = originals()
    fill(CraftedStore(tmp_path / "s", clips, {}), clips, [0, 1, 2])
    for name, cut in (("part0.jsonl", cut_lines), ("part0.i16", cut_samples)):
        path = tmp_path / "s" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
    store = CraftedStore(tmp_path / "s", clips, {})
    kept = min(3 - (cut_lines > 0), 3 - math.ceil(cut_samples / (2 * N)))
    assert [example in store for example in clips.ids[:3]] == [i < kept for i in range(3)]
    fill(store, clips, list(range(kept, 5)))
    made, facts = read_clips(tmp_path / "s", clips.ids[:5])
    assert (made.samples == -clips.samples[:5]).all()
    assert [fact["id"] for fact in facts] == list(clips.ids[:5])
    assert len((tmp_path / "s/part0.jsonl").read_text().splitlines()) == 5


def test_samples_without_a_line_are_dropped(tmp_path: Path) -> None:
    clips = originals()
    CraftedStore(tmp_path / "s", clips, {})
    (tmp_path / "s/part0.i16").write_bytes(b"\1" * (2 * N))
    store = CraftedStore(tmp_path / "s", clips, {})
    fill(store, clips, [4])
    assert (store.read([clips.ids[4]])[0].samples == -clips.samples[4]).all()


def test_mistakes_are_said(tmp_path: Path) -> None:
    clips = originals()
    with pytest.raises(FileNotFoundError, match=r"run attack\.py first"):
        read_clips(tmp_path / "nowhere")
    store = CraftedStore(tmp_path / "s", clips, {})
    fill(store, clips, [0, 1])
    with pytest.raises(ValueError, match=r"holds no clip yes/3\.wav \(1 of 2"):
        store.read([clips.ids[0], clips.ids[3]])
    with pytest.raises(ValueError, match="another length, sample rate or list of classes"):
        CraftedStore(tmp_path / "s", replace(clips, sample_rate=16000), {})
    lines = tmp_path / "s/part0.jsonl"
    lines.write_text("{broken\n" + lines.read_text().split("\n", 1)[1])
    with pytest.raises(ValueError, match="line 1 is damaged"):
        read_clips(tmp_path / "s")
    (tmp_path / "s/store.json").write_text(json.dumps({"n_samples": 0}))
    with pytest.raises(ValueError, match="damaged"):
        read_facts(tmp_path / "s")
