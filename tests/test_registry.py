"""A builder's signature is its schema."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from src.registry import ATTACKS, FRONTENDS, Count, Registry, choose, keys_of


def test_schema_is_the_keyword_parameters_with_a_default() -> None:
    def builder(x: int, *, supplied: int, steps: Count = 10, scale: float = 0.5) -> None:
        """Do it.

        Args:
            steps: how many
                of them.
            scale: how large.
        """

    keys = {key.name: key for key in keys_of(builder)}
    assert list(keys) == ["steps", "scale"]
    assert keys["steps"].description == "how many of them."
    assert keys["scale"].default == 0.5


def test_schema_of_a_dataclass() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Section:
        """Things.

        Args:
            n: a number.
        """

        n: int = 3

    (key,) = keys_of(Section)
    assert (key.name, key.default, key.description) == ("n", 3, "a number.")


def test_wrong_name_lists_choices_and_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown attack 'pdg'; did you mean 'pgd'\? \(choices: .*fgsm"):
        ATTACKS["pdg"]
    assert choose("a", ["a", "b"], "letter") == "a"
    with pytest.raises(ValueError, match="unknown letter 'zzz'"):
        choose("zzz", ["a", "b"], "letter")


def test_registering_twice_is_a_bug() -> None:
    registry = Registry("thing", "src.stages")
    registry.register("one")(lambda: None)
    with pytest.raises(AssertionError, match="registered twice"):
        registry.register("one")(lambda: None)


def test_summary_is_the_first_paragraph() -> None:
    assert FRONTENDS.summary("linear_mel").startswith("Power mel spectrogram")
