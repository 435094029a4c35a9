"""Variants of a defense: the same defense under a name of its own, with options and a place of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from src import config
from src.commands import selection
from src.victims import checkpoint
from tests.test_attack_variants import load

TWO = (
    "[DEFENSE]\nnames = coarse, quantize\n[DEFENSE.coarse]\ndefense = quantize\nstep = 1024\nat = waveform\n"
    "[DEFENSE.quantize]\nstep = 128\n"
)


def test_each_variant_stands_with_its_own_options(tmp_path: Path) -> None:
    loaded = load(tmp_path, TWO)
    entries = selection.configured_defenses(loaded)
    assert [entry["name"] for entry in entries] == ["quantize", "quantize"]
    assert [entry["options"]["step"] for entry in entries] == [1024, 128]
    victim = checkpoint.build(model="cnn", classes="ab", sample_rate=16000, n_samples=4000, defenses=entries)
    kept = checkpoint.defenses_of(checkpoint.defend(victim.undefended(), entries))
    assert [(entry["name"], entry["options"]["step"]) for entry in kept] == [("quantize", 1024), ("quantize", 128)]
    assert selection.configured_defenses(loaded, ["coarse"])[0]["options"]["step"] == 1024, "for --judge NAME+coarse"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[DEFENSE]\nnames = fine\n", "config.ini:1: [DEFENSE] unknown defense 'fine'"),
        ("[DEFENSE]\nnames = fime\n[DEFENSE.fine]\ndefense = quantize\n", "did you mean 'fine'?"),
        ("[DEFENSE.fine]\nstep = 2\n", "a variant says which defense it is: defense = ..."),
        ("[DEFENSE.fine]\ndefense = quantise\n", "config.ini:2: unknown defense 'quantise'; did you mean 'quantize'?"),
        ("[DEFENSE.median]\ndefense = quantize\n", "median is itself a defense; give its variant a name of its own"),
        ("[DEFENSE.fine]\ndefense = quantize\nstepp = 2\n", "unknown key in [DEFENSE.fine] 'stepp'"),
        ("[DEFENSE.fine]\nattack = pgd\n", "a variant says which defense it is"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"config\.ini") as error:
        load(tmp_path, text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_judge_lists_the_variants(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'coarse'"):
        selection.configured_defenses(load(tmp_path, TWO), ["coarze"])


def test_without_variants_the_key_of_names_is_the_registry(tmp_path: Path) -> None:
    assert load(tmp_path, "").defense == config.DefenseSettings()
