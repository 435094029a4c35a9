"""Enrollment as a person runs it, from recordings to recognizers that are evaluated, attacked and certified; then every
mistake: one clear line, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from src.commands import enrollment_clips
from src.datasets import store
from src.evaluation.accuracy import logits_of
from src.speaker import error_rates, trials
from src.victims import checkpoint
from src.victims.embedder import NOBODY
from src.victims.recognizer import recognizer_of
from tests.conftest import call, rows

RATE, SECONDS, TAKES = 8000, 0.6, 10
ROLES = {"background": "1 2 3 4", "enrolled": "5 6 7", "calibration": "8", "test": "9"}
SPLIT_OF = {"enrolled": ["enrollment"] * 4 + ["calibration"] * 3 + ["testing"] * 3,
            "background": ["training"] * 8 + ["validation"] * 2,
            "calibration": ["calibration"] * TAKES, "test": ["testing"] * TAKES}  # fmt: skip
CONFIG = f"""[DATA]
source = librispeech
data_dir = clips
sample_rate = {RATE}
seconds = {SECONDS}
n_test = 8
[DATA.librispeech]
source_dir = raw
splits_dir = lists
[MODEL]
names = resnet
[MODEL.resnet]
widths = 8, 16
[FRONTEND.log_mel]
n_mels = 32
[TRAINING]
epochs = 6
batch_size = 8
learning_rate = 0.01
[SPEAKER]
tasks = csi, sv, osi
back_ends = cosine, plda
score_norms = none, as_norm
cohort_top = 10
speakers = 5, 7
[ATTACK]
names = fgsm
eps = 0.002
wavs = 0
checks = 0
[CERTIFY]
sigma = 0.01
n0 = 10
n = 60
radii = 0, 0.005
attack_clips = 0
attack_n = 100
attack_steps = 1
"""


def voice(speaker: int, take: int) -> np.ndarray:
    """A chord whose pitch and timbre are the speaker's, with noise."""
    rng = np.random.default_rng(100 * speaker + take)
    t = np.arange(int(RATE * SECONDS)) / RATE
    pitch = 120 * 1.2**speaker * (1 + 0.01 * rng.standard_normal())
    tone = sum(np.sin(2 * np.pi * k * pitch * t + rng.uniform(0, 6)) / k for k in range(1, 3 + speaker % 3))
    return 0.1 * tone + 0.02 * rng.standard_normal(len(t))


@pytest.fixture(scope="module")
def speakers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared clips of nine speakers and a network trained on four of them."""
    folder = tmp_path_factory.mktemp("speakers")
    lists: dict[str, list[str]] = {name: [] for names in SPLIT_OF.values() for name in names}
    for role, numbers in ROLES.items():
        for speaker in map(int, numbers.split()):
            for take, split in enumerate(SPLIT_OF[role]):
                path = folder / f"raw/LibriSpeech/train/{speaker}/1/{speaker}-1-{take:04d}.flac"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, voice(speaker, take), RATE, subtype="PCM_16")
                lists[split].append(path.name)
    (folder / "lists").mkdir()
    for name, files in lists.items():
        (folder / f"lists/{name}.txt").write_text("\n".join(files) + "\n")
    (folder / "config.ini").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for script in ("prepare_dataset.py", "train_model.py", "enroll_speakers.py"):
            assert call(folder, monkeypatch, script) == 0
    return folder


NAMES = {
    f"resnet_{task}_{back_end}{norm}{who}"
    for task, speakers in (("csi", [""]), ("osi", [""]), ("sv", ["_5", "_7"]))
    for back_end in ("cosine", "plda")
    for norm in ("", "_as_norm")
    for who in speakers
}


def test_a_recognizer_for_every_task_back_end_and_normalization(speakers: Path) -> None:
    assert {path.stem for path in (speakers / "data/models").glob("*.pt")} - {"resnet"} == NAMES
    for name in NAMES:
        victim, facts = checkpoint.load(speakers / f"data/models/{name}.pt")
        made = recognizer_of(victim)
        assert made is not None
        task = name.split("_")[1]
        assert made.enrollment.task == task
        who = (name[-1],) if task == "sv" else ("5", "7")
        assert victim.classes == (who if task == "csi" else (*who, NOBODY))
        assert facts["enrollment"]["utterances"] == dict.fromkeys(who, 4)
        assert facts["enrollment"]["network"] == "resnet"
        assert facts["history"], "how the network was trained stays known"
        assert made.enrollment.n_background == 4
        assert made.enrollment.cohort == (32 if "as_norm" in name else 0)


def test_theta_is_the_one_of_the_calibration_clips(speakers: Path) -> None:
    clips = store.load(speakers / "clips", "calibration")
    for name in ("resnet_osi_plda", "resnet_osi_cosine_as_norm", "resnet_sv_cosine_5"):
        victim, facts = checkpoint.load(speakers / f"data/models/{name}.pt")
        known = clips.relabeled(victim.classes)
        logits = logits_of(victim, known)
        made = trials.of_clips(logits, known.labels)
        eer, theta = error_rates.equal_error_rate(made)
        assert logits[0, -1].item() == pytest.approx(theta, rel=1e-4, abs=1e-4)
        said = facts["enrollment"]["calibration"]
        assert said["EER"] == pytest.approx(eer)
        # Clips of the third speaker, who has clips to enroll but was not asked for, are trials of an imposter.
        n_target = 3 if "sv" in name else 6
        assert said["false_rejects"].endswith(f" of {n_target}")
        assert said["false_accepts"].endswith(f" of {19 - n_target}")
        assert said["imposter_speakers"] == (3 if "sv" in name else 2)


def test_the_table_says_how_many_trials_stand_behind_theta(speakers: Path) -> None:
    table = rows(speakers / "data/results/enroll/enrollment.csv")
    assert {row["model"] for row in table} == NAMES
    text = (speakers / "data/results/enroll/enrollment.md").read_text()
    assert "resnet_osi_cosine: theta = " in text
    assert "for equal error rates, on 6 trials of the enrolled" in text
    assert "13 of 2 imposter(s)" in text


def test_a_second_run_writes_the_same_bytes(speakers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {path: path.read_bytes() for path in (speakers / "data/models").glob("*_*.pt")}
    assert call(speakers, monkeypatch, "enroll_speakers.py", "--model", "resnet") == 0
    assert {path: path.read_bytes() for path in (speakers / "data/models").glob("*_*.pt")} == models


def test_evaluation_reports_error_rates(
    speakers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("resnet_osi_plda", "resnet_sv_cosine_5", "resnet_csi_plda")
    models = [part for name in names for part in ("--model", name)]
    found = []
    for _ in range(2):
        assert call(speakers, monkeypatch, "evaluate_model.py", *models) == 0
        found.append((speakers / "data/results/evaluate/error_rates.test.csv").read_bytes())
    assert found[0] == found[1], "two runs give the same EER"
    table = rows(speakers / "data/results/evaluate/error_rates.test.csv")
    assert [row["model"] for row in table] == list(names[:2]), "a closed set has no error rates"
    clips = store.load(speakers / "clips", "test")
    for row in table:
        victim = checkpoint.load(speakers / f"data/models/{row['model']}.pt")[0]
        known = clips.relabeled(victim.classes)
        labels, predicted = known.labels, logits_of(victim, known).argmax(1)
        nobody = len(victim.classes) - 1
        imposters = labels == nobody
        assert row["false_accepts"] == f"{int((predicted[imposters] != nobody).sum())} of {int(imposters.sum())}"
        assert row["false_rejects"] == f"{int((predicted[~imposters] == nobody).sum())} of {int((~imposters).sum())}"
        mistaken = ~imposters & (predicted != nobody) & (predicted != labels)
        assert row["mistaken"] == f"{int(mistaken.sum())} of {int((~imposters).sum())}"
        assert int(row["target_trials"]) == int((~imposters).sum())
        assert 0 <= float(row["EER_low_95"]) <= float(row["EER"]) <= float(row["EER_high_95"]) <= 1
        assert int(row["pairs"]) == len(clips) * nobody
    accuracy = {row["model"]: row for row in rows(speakers / "data/results/evaluate/accuracy.test.csv")}
    assert accuracy["resnet_osi_plda"]["n"] == "19"
    assert accuracy["resnet_csi_plda"]["n"] == "6", "imposters are no trials of a closed set"
    assert float(accuracy["resnet_csi_plda"]["accuracy"]) > 0.8
    assert (speakers / "data/plots/det.test.png").is_file()
    capsys.readouterr()
    arguments = ("--model", "resnet_osi_plda", "--split", "enrollment")
    assert call(speakers, monkeypatch, "evaluate_model.py", *arguments) == 0
    assert "mistaken" in capsys.readouterr().out, "the third speaker is an imposter to this recognizer"
    assert call(speakers, monkeypatch, "evaluate_model.py", "--model", "resnet_sv_cosine_5", "--split", "train") == 0
    assert "resnet_sv_cosine_5: no error rates: there are no target trials" in capsys.readouterr().out


def test_attack_and_certificate_know_no_task(speakers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [part for name in ("resnet_osi_plda", "resnet_sv_cosine_5") for part in ("--model", name)]
    for targeted in ("no", "yes"):
        arguments = ("--set", f"ATTACK.targeted={targeted}", "--set", f"RESULTS.results_dir=results_{targeted}")
        assert call(speakers, monkeypatch, "attack.py", *models, *arguments) == 0
        table = rows(speakers / f"results_{targeted}/attack/rows.csv")
        assert {row["model"] for row in table} == {"resnet_osi_plda", "resnet_sv_cosine_5"}
    assert call(speakers, monkeypatch, "certify.py", "--model", "resnet_osi_plda", "--set", "DATA.n_test=19") == 0
    certified = rows(speakers / "data/results/certify/resnet_osi_plda.waveform.0.01.rows.csv")
    split = rows(speakers / "data/results/certify/resnet_osi_plda.waveform.certified_speakers.csv")
    assert [(line["speakers"], line["clips"]) for line in split] == [
        ("enrolled, accepted as themselves", "6"), ("imposters, rejected", "13"),
    ]  # fmt: skip
    for line, imposter in zip(split, (False, True), strict=True):
        mine = [row for row in certified if (row["label"] == "2") == imposter]
        for r in (0, 0.005):
            share = np.mean([row["correct"] == "1" and float(row["radius"]) >= r for row in mine])
            assert line[f"r = {r:g}"] == f"{share:.2f}"


def test_recognizers_judge_clips_that_were_crafted_on_others(
    speakers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has the clean accuracy that evaluate_model.py gives it, whatever model the clips were crafted on."""
    names = ("resnet_osi_plda", "resnet_sv_plda_7", "resnet_csi_plda")
    judging = [part for name in names for part in ("--judge", name)]
    arguments = ("--set", "DATA.n_test=19", "--set", "RESULTS.results_dir=crossed")
    crafted = ("--model", "resnet_osi_plda", "--model", "resnet_sv_plda_5")
    assert call(speakers, monkeypatch, "attack.py", *crafted, *judging, *arguments) == 0
    assert "of speakers that resnet_csi_plda does not know" in capsys.readouterr().out
    models = [part for name in names for part in ("--model", name)]
    assert call(speakers, monkeypatch, "evaluate_model.py", *models, *arguments) == 0
    expected = {row["model"]: row for row in rows(speakers / "crossed/evaluate/accuracy.test.csv")}
    table = rows(speakers / "crossed/attack/judged.summary.csv")
    assert len(table) == 12
    for row in table:
        assert row["clips"] == expected[row["judge"]]["n"]
        assert float(row["clean accuracy"]) == pytest.approx(float(expected[row["judge"]]["accuracy"]))


def test_enrollment_behind_a_defense(speakers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["DEFENSE.names=noise_at_snr", "SPEAKER.tasks=osi", "SPEAKER.back_ends=cosine",
                 "SPEAKER.score_norms=none", "RESULTS.results_dir=defended"]  # fmt: skip
    sets = [part for argument in arguments for part in ("--set", argument)]
    path = speakers / "data/models/resnet_noise_at_snr_osi_cosine.pt"
    contents = []
    for _ in range(2):
        assert call(speakers, monkeypatch, "enroll_speakers.py", "--model", "resnet", *sets) == 0
        contents.append(path.read_bytes())
        victim = checkpoint.load(path)[0]
        path.unlink()
    assert contents[0] == contents[1], "random, but from the clips' own streams"
    assert [defense.name for defense in victim.defenses] == ["noise_at_snr"]
    plain = checkpoint.load(speakers / "data/models/resnet_osi_cosine.pt")[0]
    assert (recognizer_of(victim).enrolled != recognizer_of(plain).enrolled).any()  # type: ignore[union-attr]


def test_a_wanted_false_accept_rate(
    speakers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(speakers / "data/models", speakers / "strict")
    arguments = ["SPEAKER.false_accept_rate=0", "SPEAKER.tasks=osi", "SPEAKER.utterances=2", "RESULTS.model_dir=strict",
                 "SPEAKER.back_ends=cosine"]  # fmt: skip
    sets = [part for argument in arguments for part in ("--set", argument)]
    assert call(speakers, monkeypatch, "enroll_speakers.py", "--model", "resnet", *sets) == 0
    assert "for a false accept rate of 0, on 6 trials of the enrolled" in capsys.readouterr().out
    facts = checkpoint.load(speakers / "strict/resnet_osi_cosine.pt")[1]["enrollment"]
    assert facts["calibration"]["false_accepts"] == "0 of 13"
    assert facts["utterances"] == {"5": 2, "7": 2}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SPEAKER.speakers=5, 55"], "unknown speaker '55'; did you mean '5'? (choices: 5, 6, 7)"),
        (["SPEAKER.speakers=8"], "unknown speaker '8'"),
        (["SPEAKER.speakers=5"], "csi tells speakers apart, so it needs at least two"),
        (["SPEAKER.speakers=5, 7, 5"], "speakers names 5 twice"),
        (["SPEAKER.tasks=osi, osi"], "tasks names osi twice"),
        (["SPEAKER.cohort_top=1"], "input should be greater than or equal to 2"),
        (["SPEAKER.utterances=5"], "utterances = 5: speaker 5 has only 4 usable clips to enroll"),
        (["SPEAKER.plda.lda_dimensions=4"], "an LDA of 4 background speakers has at most 3 dimensions"),
        (["SPEAKER.cohort_top=33"], "cohort_top = 33: there are only 32 background clips"),
        (["SPEAKER.false_accept_rate=2"], "input should be less than or equal to 1, or input should be 'eer'"),
        (["SPEAKER.plda.lda_dimensions=all"], "lda_dimensions = all: input should be a valid integer"),
        (["SPEAKER.back_ends=pdla"], "unknown back end 'pdla'; did you mean 'plda'?"),
        (["SPEAKER.tasks=verify"], "unknown value of 'tasks' 'verify' (choices: csi, sv, osi)"),
        (["DATA.data_dir=elsewhere"], "elsewhere: no prepared data here"),
    ],
)
def test_mistakes(
    speakers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    overrides: list[str], message: str,
) -> None:  # fmt: skip
    sets = [part for override in overrides for part in ("--set", override)]
    before = {path: path.stat().st_mtime_ns for path in (speakers / "data/models").iterdir()}
    assert call(speakers, monkeypatch, "enroll_speakers.py", "--model", "resnet", *sets) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert error[-1].startswith("error: ")
    assert {path: path.stat().st_mtime_ns for path in (speakers / "data/models").iterdir()} == before


def test_checkpoints_of_another_task(
    speakers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(speakers, monkeypatch, "enroll_speakers.py", "--model", "resnet_osi_plda") == 2
    assert "resnet_osi_plda: speakers are enrolled in it already" in capsys.readouterr().err
    no_embedding = checkpoint.build(
        model="tc_resnet8", classes=("1", "2"), sample_rate=RATE, n_samples=int(RATE * SECONDS)
    )
    (speakers / "words").mkdir()
    checkpoint.save(speakers / "words/words.pt", no_embedding.eval(), {})
    arguments = ("--set", "RESULTS.model_dir=words")
    assert call(speakers, monkeypatch, "enroll_speakers.py", *arguments) == 2
    assert "words: this model gives no embeddings" in capsys.readouterr().err
    # The network itself, and a closed set, are of another task than the trials of imposters.
    assert call(speakers, monkeypatch, "evaluate_model.py", "--model", "resnet") == 2
    assert "knows none of the speakers" in capsys.readouterr().err


def changed_store(speakers: Path, folder: Path, split: str, keep: list[int], silent: list[int]) -> None:
    """A copy of the store in which a split has the clips at `keep` alone, those at `silent` without a sound."""
    shutil.copytree(speakers / "clips", folder)
    index = json.loads((folder / f"{split}.json").read_text())
    samples = np.load(folder / f"{split}.npy")
    samples[silent] = 0
    np.save(folder / f"{split}.npy", samples[keep])
    n = len(samples)

    def kept(value: object) -> object:
        return [value[i] for i in keep] if isinstance(value, list) and len(value) == n else value

    index = {k: {t: kept(v) for t, v in value.items()} if k == "tags" else kept(value) for k, value in index.items()}
    (folder / f"{split}.json").write_text(json.dumps(index))


def test_a_speaker_without_usable_audio(
    speakers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = store.load(speakers / "clips", "enrollment")
    mine = [i for i in range(len(clips)) if clips.classes[clips.labels[i]] == "7"]
    changed_store(speakers, speakers / "silent", "enrollment", list(range(len(clips))), mine)
    arguments = ("--model", "resnet", "--set", "DATA.data_dir=silent", "--set", "RESULTS.model_dir=data/models")
    assert call(speakers, monkeypatch, "enroll_speakers.py", *arguments) == 2
    said = capsys.readouterr()
    assert "speaker 7 has no usable audio: every clip to enroll is silent or shorter than 0.5 s" in said.err
    assert f"left out: {len(mine)} of {len(clips)} clips" in said.out
    # Who is not enrolled may be silent.
    sets = ("--set", "SPEAKER.speakers=5, 6", "--set", "SPEAKER.tasks=csi", "--set", "RESULTS.results_dir=quiet")
    shutil.copytree(speakers / "data/models", speakers / "quiet_models")
    arguments = (*arguments[:-1], "RESULTS.model_dir=quiet_models", *sets)
    assert call(speakers, monkeypatch, "enroll_speakers.py", *arguments) == 0


def test_trials_without_imposters(
    speakers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = store.load(speakers / "clips", "calibration")
    keep = [i for i in range(len(clips)) if clips.classes[clips.labels[i]] in ("5", "7")]
    changed_store(speakers, speakers / "closed", "calibration", keep, [])
    arguments = ("--model", "resnet", "--set", "DATA.data_dir=closed", "--set", "SPEAKER.tasks=osi")
    assert call(speakers, monkeypatch, "enroll_speakers.py", *arguments) == 2
    expected = "resnet_osi_cosine: the split calibration has no trials of imposters; no threshold can be chosen"
    assert expected in capsys.readouterr().err
    others = [i for i in range(len(clips)) if i not in keep]
    changed_store(speakers, speakers / "others", "calibration", others, [])
    arguments = ("--model", "resnet", "--set", "DATA.data_dir=others", "--set", "SPEAKER.tasks=osi")
    assert call(speakers, monkeypatch, "enroll_speakers.py", *arguments) == 2
    assert "has no trials of the enrolled" in capsys.readouterr().err


def test_a_network_that_was_trained_anew(
    speakers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = speakers / "anew"
    folder.mkdir()
    for name in ("resnet", "resnet_osi_cosine"):
        shutil.copy(speakers / f"data/models/{name}.pt", folder)
    settings = ("RESULTS.model_dir=anew", "RESULTS.results_dir=anew_results", "RESULTS.plot_dir=anew_plots")
    arguments = ("--model", "resnet_osi_cosine", *(part for setting in settings for part in ("--set", setting)))
    warning = "warning: resnet_osi_cosine was enrolled with an earlier training of resnet"
    for expected in (False, True):
        assert call(speakers, monkeypatch, "evaluate_model.py", *arguments) == 0
        assert (warning in capsys.readouterr().out) is expected
        victim, facts = checkpoint.load(folder / "resnet.pt")
        with torch.no_grad():
            next(victim.parameters()).mul_(1.5)
        checkpoint.save(folder / "resnet.pt", victim, facts)


def test_embeddings_that_a_back_end_cannot_use_leave_nothing_half_written(
    speakers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = store.load(speakers / "clips", "train")
    labels = clips.labels.tolist()
    changed_store(speakers, speakers / "singles", "train", [labels.index(k) for k in sorted(set(labels))], [])
    (speakers / "only_network").mkdir()
    shutil.copy(speakers / "data/models/resnet.pt", speakers / "only_network")
    settings = ("DATA.data_dir=singles", "RESULTS.model_dir=only_network", "SPEAKER.cohort_top=2")
    arguments = [part for setting in settings for part in ("--set", setting)]
    for dimensions, message in (("auto", "an LDA needs several background clips"), ("0", "plda: the projected")):
        extra = ("--set", f"SPEAKER.plda.lda_dimensions={dimensions}")
        assert call(speakers, monkeypatch, "enroll_speakers.py", *arguments, *extra) == 2
        assert message in capsys.readouterr().err
        assert [path.name for path in (speakers / "only_network").iterdir()] == ["resnet.pt"]
    changed_store(speakers, speakers / "one", "train", [i for i, k in enumerate(labels) if k == labels[0]], [])
    arguments[1] = "DATA.data_dir=one"
    assert call(speakers, monkeypatch, "enroll_speakers.py", *arguments) == 2
    assert "needs at least 2 of them, there is 1" in capsys.readouterr().err


def test_a_store_without_roles(
    speakers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(speakers / "clips", speakers / "words_only")
    path = speakers / "words_only/dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "splits": list(store.SPLITS)}))
    assert call(speakers, monkeypatch, "enroll_speakers.py", "--set", "DATA.data_dir=words_only") == 2
    expected = "words_only: to enroll speakers takes a store with roles, this one has no split 'enrollment'"
    assert expected in capsys.readouterr().err


def test_usable_clips_are_long_enough_and_loud_enough() -> None:
    samples = np.zeros((4, RATE), np.int16)
    samples[0] = 100  # -50 dB
    samples[1] = 5  # -76 dB
    samples[2, :3000] = 100  # .375 s
    samples[3, :4500] = 100  # .5625 s
    lengths = torch.tensor([RATE, RATE, 3000, 4500])
    clips = store.Clips(samples, torch.tensor([0, 0, 1, 1]), lengths, ("a", "b", "c", "d"), ("x", "y"), RATE)
    assert enrollment_clips.usable(clips).ids == ("a", "d")
    with pytest.raises(ValueError, match=r"all 1 clips of a split are silent or shorter than 0\.5 s: b"):
        enrollment_clips.usable(clips.select([1]))


def test_fewer_utterances_are_the_first_of_more() -> None:
    samples = np.full((12, 8), 100, np.int16)
    labels = torch.tensor([0] * 6 + [1] * 6)
    clips = store.Clips(samples, labels, torch.full((12,), 8), tuple(map(str, range(12))), ("x", "y"), RATE)
    few, more = (enrollment_clips.drawn(clips, ("y", "x"), n, 0) for n in (2, 4))
    assert [few.classes[k] for k in few.labels] == ["y", "y", "x", "x"]
    assert few.ids[:2] == more.ids[:2]
    assert few.ids[2:] == more.ids[4:6]
    assert enrollment_clips.drawn(clips, ("y", "x"), 2, 1).ids != few.ids
    assert len(enrollment_clips.drawn(clips, ("x",), 0, 0)) == 6
