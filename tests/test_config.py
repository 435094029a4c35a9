"""The config is strict: everything unknown or out of range is refused with its place, choices and nearest match."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src import config, config_text
from src.budget import Budget
from src.registry import Count, Key, Listed

ROOT = Path(__file__).resolve().parents[1]
SEED_FILE = """[TRAINING]
log_interval = 100
scheduler_steps = 20,40
epochs = 30
use_cuda = yes
learning_rate=0.001
weight_decay=0
gradient_penalty=0
lr_decay=0.1
batch_size=64
n_workers=2
[DATA]
data_dir = data/speech_commands_prepared
include_dirs = down,go,left,no,off,on,right,stop,up,yes
n_test=1000
[RESULTS]
model_dir=data/models
plot_dir=data/plots
"""
SEED_DEFAULTS = {
    "TRAINING": {
        "log_interval": 100, "scheduler_steps": (20, 40), "epochs": 30, "use_cuda": True, "learning_rate": 0.001,
        "weight_decay": 0.0, "gradient_penalty": (0.0,), "lr_decay": 0.0001, "batch_size": 64, "n_workers": 2,
    },
    "DATA": {
        "data_dir": Path("~/data/SPEECH"), "n_test": 1000,
        "include_dirs": ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes"),
    },
    "RESULTS": {"model_dir": Path("data/models"), "plot_dir": Path("data/plots")},
}  # fmt: skip


def write(folder: Path, text: str) -> Path:
    path = folder / "config.ini"
    path.write_text(text)
    return path


def test_seed_file_is_accepted_unchanged(tmp_path: Path) -> None:
    loaded = config.load(write(tmp_path, SEED_FILE))
    assert loaded.training.epochs == 30
    assert loaded.training.lr_decay == 0.1
    assert loaded.data.data_dir == Path("data/speech_commands_prepared")


@pytest.mark.parametrize("section", SEED_DEFAULTS)
def test_seed_keys_keep_their_defaults(section: str) -> None:
    defaults = {key.name: key.default for key in config.keys_of_section(section)}
    assert {name: defaults.get(name) for name in SEED_DEFAULTS[section]} == SEED_DEFAULTS[section]


def test_shipped_config_is_valid() -> None:
    assert config.load(ROOT / "config.ini").model.names


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.ini")), ids=lambda p: p.name)
def test_experiments_are_valid(path: Path) -> None:
    assert config.load(path).data.source


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("[DATA]\nseconds = 1\nsampl_rate = 8000\n", ":3", "did you mean 'sample_rate'"),
        ("[DATTA]\nseconds = 1\n", ":1", "did you mean 'DATA'"),
        ("[TRAINING]\nepochs = -1\n", ":2", "greater than or equal to 1"),
        ("[TRAINING]\nepochs = many\n", ":2", "epochs = many"),
        ("[ATTACK]\nnames = fgsm, pdg\n", ":2", "did you mean 'pgd'"),
        ("[MODEL]\nnames = cmn\n", ":2", "did you mean 'cnn'"),
        ("[ATTACK.pgd]\nrestart = 3\n", ":2", "did you mean 'restarts'"),
        ("[ATTACK.pdg]\nsteps = 3\n", ":1", "did you mean 'pgd'"),
        ("[TRAINING]\noptimizer = adm\n", ":2", "did you mean 'adam'"),
        ("[ATTACK]\neps = loud\n", ":2", "not a budget"),
        ("[CERTIFY]\nalpha = 2\n", ":2", "alpha"),
        ("[ATTACK.pgd]\nsteps = 3\nrestarts = 3\nrandom_start = no\n", ":1", "restarts need random_start"),
        ("[DATA]\n[ATTACK.apgd]\nrestarts = 3\nrandom_start = no\n", ":2", "restarts need random_start"),
        ("[ATTACK.genetic]\npopulation = 1\n", ":2", "greater than or equal to 2"),
        ("[ATTACK.time_shuffled]\nattack = time_shuffled\n", ":1", "name another attack"),
        ("[ATTACK.time_shuffled]\nattack = universal\n", ":1", "name another attack"),
        ("[ATTACK.band_limited]\nlow_hz = 3000\nhigh_hz = 2000\n", ":1", "low_hz = 3000 must be below high_hz = 2000"),
        ("[ATTACK.band_limited]\nlow_hz = 9000\n", ":1", "low_hz = 9000 must be below high_hz = 8000"),
        ("[ATTACK.band_limited]\nsample_rate = 8000\n", ":2", "unknown key in [ATTACK.band_limited] 'sample_rate'"),
        ("[ATTACK]\nnames = pgd, band_limited\nstage = log_mel\n", ":1", "band_limited perturbs waveforms"),
        ("[ATTACK]\nnames = pgd, square\nnorm = l1\n", ":1", "square has no norm l1 (choices: linf, l2)"),
        ("[ATTACK]\nnames = pgd, kenansville\ntargeted = yes\n", ":1", "kenansville cannot aim"),
        ("[ATTACK]\nnorm = l1\neps = 30 dB\n", ":1", "an eps in dB needs the norm"),
        ("[FRONTEND.log_mel]\nnormalize = bandmean\n", ":2", "did you mean 'band_mean'"),
        ("[FRONTEND.log_mel]\nlog = dezibel\n", ":2", "choices: natural, db, db_max"),
        ("[FRONTEND.mfcc]\nn_mfcc = 50\n", ":1", "n_mfcc (50) must not exceed n_mels (40)"),
        ("[FRONTEND.log_mel]\nhop_length = 500\n", ":1", "need hop_length <= win_length <= n_fft"),
        ("[FRONTEND.log_mel]\nf_min = 5000\nf_max = 4000\n", ":1", "need f_min < f_max"),
        ("[DEFENSE.median]\nwidth = 4\n", ":1", "must be odd, got 4"),
        ("[DEFENSE.lowpass]\npass_hz = 5000\n", ":1", "need pass_hz < stop_hz, got 5000 and 4500"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, place: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"config\.ini") as error:
        config.load(write(tmp_path, text))
    assert f"config.ini{place}: " in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "[DATA]\nseconds = 1\n")
    loaded = config.load(path, ["DATA.seconds=0.5", "ATTACK.pgd.steps = 7"])
    assert loaded.data.seconds == 0.5
    assert loaded.component("ATTACK", "pgd") == {"steps": 7}
    for wrong in ("DATA.secnds=1", "seconds=1", "DATA.seconds", "DEFENSE.median.width=4"):
        with pytest.raises(ValueError, match="--set"):
            config.load(path, [wrong])


@pytest.mark.parametrize(
    "text", ["seconds = 1\n", "[DATA]\nseconds = 1\nseconds = 2\n", "[DEFAULT]\nx = 1\n", "[DATA\n", "[DATA]\n[DATA]\n"]
)
def test_malformed_files(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"config\.ini"):
        config.load(write(tmp_path, text))


def test_missing_and_binary_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such config file"):
        config.load(tmp_path / "none.ini")
    (tmp_path / "binary.ini").write_bytes(b"\xff\xfe\x00[DATA]")
    with pytest.raises(ValueError, match=r"binary\.ini"):
        config.load(tmp_path / "binary.ini")


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=5))
def test_lists_round_trip(values: list[int]) -> None:
    key = Key("steps", Listed[Count], (1,), "")
    assert config.convert(key, config_text.value_text(tuple(values))) == tuple(values)


@given(st.floats(0, 1e6) | st.integers(-100, 100).map(lambda db: Budget(float(db), True)))
def test_budgets_round_trip(value: float | Budget) -> None:
    budget = value if isinstance(value, Budget) else Budget(float(f"{value:g}"))
    assert Budget.parse(str(budget)) == budget


def all_keys() -> list[tuple[str, Key]]:
    keys = [(section, key) for section in config.SECTIONS for key in config.keys_of_section(section)]
    for kind, registry in config.COMPONENTS.items():
        keys += [(f"{kind}.{name}", key) for name in registry.names() for key in registry.keys(name)]
    return keys


@pytest.mark.parametrize(("section", "key"), all_keys(), ids=lambda v: v if isinstance(v, str) else v.name)
def test_every_key_is_described_and_its_default_is_legal(section: str, key: Key) -> None:
    assert key.description, f"[{section}] {key.name} has no line under Args:"
    assert config_text.type_name(key.annotation)
    if key.default not in ("", ()):
        assert config.convert(key, config_text.value_text(key.default)) == key.default


@pytest.mark.parametrize("section", config.SECTIONS)
def test_sections_are_frozen(section: str) -> None:
    settings = config.SECTIONS[section]()
    name = dataclasses.fields(settings)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, name, None)


def test_help_lists_sections_and_components() -> None:
    text = config_text.help_text({"ATTACK": True, "FRONTEND": True, "DATA": False})
    assert "[ATTACK]" in text
    assert "pgd" in text
    assert "log_mel" in text
    assert "[DATA]" in text
    assert "[DATA.<name>]" not in text


def test_generated_docs_are_in_step() -> None:
    from tools.docs import reference, with_lists

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_lists(readme) == readme, "run `make docs`"
    assert reference() == (ROOT / "docs/config.md").read_text(encoding="utf-8"), "run `make docs`"
