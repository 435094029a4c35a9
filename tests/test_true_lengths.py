"""True lengths reach the model: frames of padding do not count where a classifier uses a mask, in every command."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from torch.nn import functional as F

from src.attacks.model import PerExample
from src.datasets import store
from src.evaluation import AttackSettings, Crafter
from src.models.resnet import ResNet
from src.random_streams import RandomStreams
from src.registry import DEFENSES, FRONTENDS, INVERSIONS
from src.smoothing import Certifier, CertifySettings
from src.stages.level import Level
from src.stages.log_mel import Log
from src.stages.pad import Pad
from src.stages.pre_emphasis import PreEmphasis
from src.training import TrainingSettings
from src.training.batches import Augmentation
from src.victims import checkpoint
from src.victims.adaptive import Bpda, Eot, adaptive, once
from src.victims.chain import Chain, WithLengths, represent, with_lengths
from src.victims.victim import Victim
from tests.conftest import call

RATE = 16000
WORDS = ("hiss", "hum")
CONFIG = f"""[DATA]
source = folder
data_dir = clips
include_dirs = {", ".join(WORDS)}
n_test = 4
[DATA.folder]
source_dir = wavs
validation = 0.25
test = 0.5
[MODEL]
names = resnet
[MODEL.resnet]
widths = 4, 8
masked_pooling = yes
[FRONTEND.log_mel]
win_length = 320
hop_length = 320
[TRAINING]
epochs = 1
batch_size = 4
[ATTACK]
names = pgd, random_signs
eps = 0.001
wavs = 0
checks = 2
speech = no
[ATTACK.pgd]
steps = 3
[CERTIFY]
sigma = 0.001
n0 = 16
n = 32
batch_size = 16
attack_clips = 1
attack_steps = 1
attack_n = 100
baselines = quantize
"""


def build(**options: object) -> Victim:
    torch.manual_seed(0)
    return checkpoint.build(
        model="resnet",
        model_options={"widths": (4, 8, 8), **options},
        front_end_options={"win_length": 320},
        classes=WORDS,
        sample_rate=RATE,
        n_samples=RATE,
    ).eval()


def noise(count: int, samples: int) -> Tensor:
    return 0.1 * torch.randn(count, samples, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("stage", ["waveform", "magnitude", "log_mel"])
@pytest.mark.parametrize("frozen", [False, True])
def test_padding_does_not_change_the_logits(stage: str, frozen: bool) -> None:
    """The same at any representation, for a copy that attacks run, and for several lengths in one batch."""
    whole = build(masked_pooling=True)
    for module in whole.modules():  # batch norm of a trained model
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -1, 1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    victim = whole.frozen() if frozen else whole
    x = noise(3, 8000)
    lengths = torch.tensor([8000, 8000, 4800])
    x[2, 4800:] = 0
    expected = torch.cat([whole(x[:2]), whole(x[2:, :4800])])
    padded = torch.nn.functional.pad(x, (0, 8000))
    valid = torch.arange(16000) < lengths[:, None]
    head, tail = victim.split(stage)
    logits = with_lengths(tail, valid, head)(head(padded))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(victim(padded, valid), expected, atol=1e-4, rtol=1e-4)
    # Without lengths the padding does change them; and one row of lengths serves several copies of a clip.
    assert (victim(padded) - expected).abs().max() > 1e-2
    copies = with_lengths(tail, valid[2:], head)(head(padded[2:].expand(4, -1)))
    torch.testing.assert_close(copies, expected[2:].expand(4, -1), atol=1e-4, rtol=1e-4)


def test_a_classifier_without_a_mask_is_called_as_ever() -> None:
    victim, x = build(), noise(2, RATE)
    valid = torch.arange(RATE) < torch.tensor([[8000], [RATE]])
    assert with_lengths(victim, valid) is victim
    assert torch.equal(victim(x, valid), victim(x))
    # Where nothing is padding, the masked average is the average.
    masked = build(masked_pooling=True)
    masked.load_state_dict(victim.state_dict())
    torch.testing.assert_close(masked(x, torch.ones(2, RATE, dtype=torch.bool)), victim(x))


def test_lengths_follow_the_examples_of_an_attack() -> None:
    victim, x = build(masked_pooling=True), noise(3, RATE)
    valid = torch.arange(RATE) < torch.tensor([[4000], [8000], [12000]])
    x = x * valid
    model, index = with_lengths(victim, valid), torch.tensor([2, 0])
    assert isinstance(model, PerExample)
    assert isinstance(model, WithLengths)
    torch.testing.assert_close(model.select(index)(x[index]), model(x)[index])
    defended = victim.defended([DEFENSES[name](sample_rate=RATE) for name in ("quantize", "noise_at_snr")])
    streams = RandomStreams(0, "abc", "eot")
    attacked = adaptive(with_lengths(defended, valid), rng=streams, draws=1)
    drawn = attacked.select(index)(x[index])  # type: ignore[operator]
    same = once(with_lengths(defended, valid), x, RandomStreams(0, "abc", "eot"))
    torch.testing.assert_close(drawn, same[index].log_softmax(1), atol=1e-5, rtol=1e-5)


def test_lengths_follow_augmentation() -> None:
    valid = torch.arange(RATE) < torch.tensor([[4000], [8000], [12000]])
    x = torch.where(valid, 1.0, 0.0)
    for changes in ({"time_shift": 300.0}, {"time_shift": 100.0, "speed": 0.2}):
        augmentation = Augmentation(TrainingSettings(**changes), 0, RATE, None, "cpu")  # type: ignore[arg-type]
        state = augmentation.generator.get_state()
        moved = augmentation.waveform(x)
        assert not torch.equal(moved, x)
        assert torch.equal(augmentation.moved(valid, state), moved > 0)
    augmentation = Augmentation(TrainingSettings(mixup=1.0), 0, RATE, None, "cpu")
    mixed, _, both = augmentation.mix(x, torch.eye(3), valid)
    assert torch.equal(both, mixed > 0)
    assert not torch.equal(both, valid)


def recorded(strict: bool, counts: list[int]) -> Callable[..., Tensor]:
    """ResNet.forward that demands a mask, notes its frame counts and, if `strict`, compares it with the frames that
    are not silent."""
    forward = ResNet.forward

    def demanding(self: ResNet, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if len(x) > 1 or x.abs().max() > 0:  # building a model tries it on zeros
            assert mask is not None, "the lengths were left out"
            assert len(mask) in (1, len(x))
            counts.extend(mask.sum(1).tolist())
            if strict:
                assert torch.equal(mask.expand(len(x), -1), (x > math.log(1e-6) + 1e-2).any(1))
        return forward(self, x, mask)

    return demanding


def test_every_command_passes_the_lengths_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for word in WORDS:
        for i in range(8):
            path = tmp_path / "wavs" / word / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            x = rng.normal(0, 0.1, RATE // 10 * (2 + i))
            soundfile.write(path, np.cumsum(x) / 5 if word == "hum" else x, RATE)
    (tmp_path / "config.ini").write_text(CONFIG)
    assert call(tmp_path, monkeypatch, "prepare_dataset.py") == 0
    frames = {split: (store.load(tmp_path / "clips", split).lengths // 320 + 1).tolist() for split in store.SPLITS}
    at_mel = ("--set", "ATTACK.stage=mel", "--set", "ATTACK.names=pgd")
    for script, strict, splits, *args in (
        ("train_model.py", True, ("train", "validation")),
        ("evaluate_model.py", True, ("test",)),
        ("attack.py", True, ("test",)),
        ("attack.py", True, ("test",), "--self-test"),
        ("attack.py", False, ("test",), *at_mel),
        ("attack.py", False, ("test",), "--set", "DEFENSE.names=quantize"),
        ("certify.py", False, ("test",)),
    ):
        counts: list[int] = []
        with monkeypatch.context() as patched:
            patched.setattr(ResNet, "forward", recorded(strict, counts))
            assert call(tmp_path, patched, script, *args) == 0, script
        assert set(counts) <= {n for split in splits for n in frames[split]}, script
        assert len(set(counts)) > 1, script


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_one_row_of_lengths_serves_every_choice_of_examples(rows: int) -> None:
    """Several rows are chosen from like the examples; a single one belongs to all of them."""
    victim, x = build(masked_pooling=True), noise(3, RATE)
    valid = torch.arange(RATE) < torch.tensor([[4000], [8000], [12000]])[:rows]
    model, index = with_lengths(victim, valid), torch.tensor([1, 0] if rows > 1 else [2, 1])
    assert isinstance(model, WithLengths)
    whole = with_lengths(victim, valid.expand(3, -1) if rows == 1 else valid)(x if rows != 2 else x[:2])
    torch.testing.assert_close(model.select(index)(x[index]), whole[index])
    torch.testing.assert_close(model.select(index).select(torch.tensor([1]))(x[index[1:]]), whole[index[1:]])


FRONT_ENDS = [
    ("log_mel", {"pre_emphasis": 0.97, "win_length": 480, "normalize": "band"}),
    ("log_mel", {"win_length": 512, "hop_length": 100, "normalize": "clip"}),
    ("log_mel", {"log": "db_max", "normalize": "clip_mean"}),
    ("log_mel", {"log": "db"}),
    ("linear_mel", {"rms": 0.1, "n_fft": 512, "pad_seconds": 1.3, "normalize": "band"}),
    ("mfcc", {"normalize": "band_mean"}),
    ("filterbank", {}),
    ("audionet", {}),
    ("audionet", {"normalize": "band_mean"}),
    ("xvector", {"cmvn": 30}),
    ("xvector", {"cmvn": 0, "voiced": 0.6}),
    ("ivector", {"cmvn": 40}),
    ("ivector", {}),
    ("tagging_mel", {}),
    ("tagging_mel", {"hop_length": 300, "n_fft": 512, "top_db": 60.0}),
    ("dense_mel", {}),
    ("dense_mel", {"normalize": "band_mean"}),
]


@pytest.mark.parametrize("lengths", [(8000, 4801, 7999), (399, 401, 561), (16000, 8159, 8161)])
@pytest.mark.parametrize(("front_end", "options"), FRONT_ENDS)
def test_padding_changes_nothing_whatever_the_front_end(
    front_end: str, options: dict[str, object], lengths: tuple[int, ...]
) -> None:
    """Any window, pre-emphasis, level or normalization: the frames of the clip alone, and their values."""
    stages = FRONTENDS[front_end](sample_rate=RATE, n_samples=RATE, **options)
    chain = Chain([stage.frozen() for stage in stages])
    whole = noise(3, RATE)
    valid = torch.arange(RATE) < torch.tensor(lengths)[:, None]
    frames, padded = chain.frame_mask(valid), represent(chain, whole * valid, valid)
    for i, length in enumerate(lengths):
        # The padding of the model itself is a part of its input.
        alone = Chain([stage for stage in chain.stages if not isinstance(stage, Pad)])(whole[i : i + 1, :length])
        assert int(frames[i].sum()) == alone.shape[-1], length
        assert not frames[i, alone.shape[-1] :].any()
        torch.testing.assert_close(padded[i, :, : alone.shape[-1]], alone[0], atol=2e-5, rtol=1e-4)
    assert bool((frames <= chain.mask(valid).flatten(1, -2).any(1)).all()), "what is valid was reached"


def test_a_stage_that_needs_no_lengths_is_shared() -> None:
    log, pre = Log(), PreEmphasis(0.9)
    valid = torch.ones(1, 4, dtype=torch.bool)
    assert log.with_valid(valid) is log
    informed = pre.with_valid(valid)
    assert informed is not pre
    assert pre.valid is None
    wrapped = Bpda(pre).with_valid(valid)
    assert isinstance(wrapped, Bpda)
    assert wrapped.stage.valid is valid


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("model", "options", "front_end"),
    [
        ("audionet", {}, {}),
        ("xvector", {"width": 8}, {"cmvn": 50}),
        ("xvector", {"width": 8}, {"cmvn": 50, "voiced": 0.7}),
        ("vgg13", {"width": 0.01, "chunk": 32}, {}),
        ("gcnn", {"width": 0.01, "chunk": 40}, {"hop_length": 256}),
        ("crnn", {"width": 0.01, "chunk": 32}, {}),
        ("dense_mel", {"width": 0.01, "chunk": 90}, {}),
        ("dense_wav", {"width": 0.01, "chunk": 7000}, {}),
    ],
)
def test_whole_utterances_in_a_padded_batch_have_the_logits_of_each_alone(
    model: str, options: dict[str, object], front_end: dict[str, object], frozen: bool
) -> None:
    torch.manual_seed(0)
    built = checkpoint.build(
        model=model, model_options=options, front_end_options=front_end, classes="abcde", sample_rate=RATE,
        n_samples=RATE,
    ).eval()  # fmt: skip
    t = torch.arange(2 * RATE) / RATE
    x = noise(4, 2 * RATE) + 0.3 * torch.sin(2 * torch.pi * torch.tensor([[300.0], [900], [2500], [5000]]) * t**2)
    for module in built.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            torch.nn.init.uniform_(module.running_mean, -1, 1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    if "chunk" in options:  # through so many layers only the statistics of clips let something pass
        with torch.no_grad():
            built.train()(x)
        built.eval()
    with torch.no_grad():
        last = [module for module in built.modules() if isinstance(module, torch.nn.Linear)][-1]
        last.weight.mul_(100)  # untrained logits hardly depend on the clip
    victim = built.frozen() if frozen else built
    lengths = torch.tensor([2 * RATE, 17777, 8001, 2345])
    valid = torch.arange(2 * RATE) < lengths[:, None]
    alone = torch.cat([built(x[i : i + 1, :n]) for i, n in enumerate(lengths.tolist())]).detach()
    spread = float((alone - alone.mean(0)).abs().max())
    plain = victim(x * valid).detach()
    assert float((plain - alone).abs().max()) > 0.03 * spread, "padding that counts does change them"
    for stage in victim.representations:
        head, tail = victim.split(stage)
        chain = with_lengths(tail, valid, head)
        logits = chain(represent(head, x * valid, valid)).detach()
        assert float((logits - alone).abs().max()) < 1e-3 * spread, stage
    # The other clips of the batch are of no importance.
    chain, index = with_lengths(victim, valid), torch.tensor([2, 1])
    assert isinstance(chain, WithLengths)
    part = chain.select(index)(x[index] * valid[index]).detach()
    assert float((part - alone[index]).abs().max()) < 1e-3 * spread


def test_a_model_that_uses_a_mask_takes_clips_of_any_length() -> None:
    checkpoint.check_fits(build(masked_pooling=True), None, sample_rate=RATE, n_samples=123)
    with pytest.raises(ValueError, match="another clip length"):
        checkpoint.check_fits(build(), None, sample_rate=RATE, n_samples=123)
    with pytest.raises(ValueError, match="another sample rate"):
        checkpoint.check_fits(build(masked_pooling=True), None, sample_rate=8000, n_samples=123)


@pytest.mark.parametrize("front_end", ["audionet", "xvector", "ivector"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_batch_from_which_every_clip_has_gone_is_empty(front_end: str, compressed: bool) -> None:
    """An attack hands on only the examples that it still works on, and these may be none."""
    place = FRONTENDS[front_end](sample_rate=16000, n_samples=16000)[-1].name
    victim = checkpoint.build(
        model="audionet", front_end=front_end, classes="abc", sample_rate=16000, n_samples=16000,
        defenses=[{"name": "feco", "options": {"ratio": 0.5}, "at": place}] if compressed else [],
    ).eval()  # fmt: skip
    valid = torch.arange(16000) < torch.tensor([[16000], [9000]])
    chain = with_lengths(victim.frozen(), valid)
    none = torch.empty(0, dtype=torch.long)
    assert isinstance(chain, WithLengths)
    part = chain.select(none)
    assert part.valid.shape == (0, 16000)
    assert part.select(torch.empty(0, dtype=torch.long)).frame_mask(part.valid).shape[0] == 0


@pytest.mark.parametrize("stage", ["raw", "delta", "cmvn", "final"])
def test_attacks_and_certificates_start_from_the_representation_of_the_clip_alone(stage: str) -> None:
    torch.manual_seed(0)
    victim = checkpoint.build(
        model="xvector", model_options={"width": 4}, front_end="ivector", classes=WORDS, sample_rate=RATE,
        n_samples=RATE, front_end_options={"n_mfcc": 6, "cmvn": 20},
    ).eval()  # fmt: skip
    lengths = torch.tensor([16000, 9003])
    x = noise(2, RATE) * (torch.arange(RATE) < lengths[:, None])
    samples = store.to_int16(x.numpy())
    clips = store.Clips(samples, torch.tensor([0, 1]), lengths, ("a", "b"), WORDS, RATE)
    crafter = Crafter(victim, AttackSettings(stage=stage), INVERSIONS["gain_mask"], torch.device("cpu"))
    waveforms, valid, _, z = crafter.load(clips)
    head, _ = victim.split(stage)
    alone = head(waveforms[1:, :9003])
    torch.testing.assert_close(z[1:, ..., : alone.shape[-1]], alone, atol=1e-4, rtol=1e-4)
    logits = crafter.true_tail(valid)(z)
    torch.testing.assert_close(logits[1:], victim(waveforms[1:, :9003]), atol=1e-4, rtol=1e-3)
    assert (logits - crafter.tail(head(waveforms))).abs().max() > 1e-6
    settings = CertifySettings(stage=stage, sigma=(0.1,), n0=8, n=8)
    certifier = Certifier(*victim.frozen().split(stage), settings, RATE)
    _, start = certifier.smoothed(waveforms[1], 0.1, valid=valid[1])
    torch.testing.assert_close(start[..., : alone.shape[-1]], alone[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("front_end", "stage"), [("audionet", "magnitude"), ("audionet", "log_mel"), ("ivector", "final")]
)
@pytest.mark.parametrize("inversion", ["gain_mask", "griffin_lim"])
def test_each_clip_of_a_batch_is_inverted_with_its_own_length(front_end: str, stage: str, inversion: str) -> None:
    chain = checkpoint.build(
        model="audionet", front_end=front_end, classes="ab", sample_rate=RATE, n_samples=RATE
    ).split(stage)[0]  # fmt: skip
    x, valid, ids = noise(3, RATE), torch.arange(RATE) < torch.tensor([[RATE], [9000], [12000]]), ("a", "b", "c")
    x = x * valid

    def back(part: slice) -> Tensor:
        head = Chain(chain.informed(valid[part]))
        return INVERSIONS[inversion](head, 0.9 * head(x[part]), x[part], rng=RandomStreams(0, ids[part], "inversion"))

    together = back(slice(3))
    assert together.shape == x.shape
    torch.testing.assert_close(together, torch.cat([back(slice(i, i + 1)) for i in range(3)]), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["noise_at_snr", "gaussian_noise", "bandpass", "average", "mp3"])
def test_padding_changes_nothing_behind_a_defense(name: str) -> None:
    """Noise at the SNR of the clip, not of the clip with its padding; neither noise nor the tail of a filter behind the
    end of a clip reaches its last frames."""
    defended = build(masked_pooling=True).defended([DEFENSES[name](sample_rate=RATE)])
    short = 5120  # whole groups of 16, for which the random numbers do not depend on the length
    x = noise(3, short)
    padded, valid = F.pad(x, (0, RATE - short)), torch.arange(RATE) < torch.full((3, 1), short)
    every = torch.ones(3, short, dtype=torch.bool)
    alone = once(with_lengths(defended, every), x, RandomStreams(0, "abc", "eot"))
    for chain in (defended, defended.frozen(), adaptive(defended, rng=RandomStreams(0, "abc", "eot"), draws=1)):
        chain = chain.chain if isinstance(chain, Eot) else chain
        among_zeros = once(with_lengths(chain, valid), padded, RandomStreams(0, "abc", "eot"))
        torch.testing.assert_close(among_zeros, alone, atol=2e-4, rtol=1e-3)


def test_noise_at_the_snr_of_the_utterance() -> None:
    x, valid = F.pad(noise(2, 4000), (0, 12000)), torch.arange(16000) < torch.tensor([[4000], [4000]])
    defense = DEFENSES["noise_at_snr"](sample_rate=RATE, snr_db=16.0).with_valid(valid)
    added = (defense.draw(x, RandomStreams(0, "ab", "eot")) - x)[:, :4000]
    snr = 10 * (x[:, :4000].square().mean(1) / added.square().mean(1)).log10()
    assert snr.tolist() == pytest.approx([16.0, 16.0], abs=0.3)


def test_bpda_with_the_identity_stays_one_when_the_lengths_are_known() -> None:
    stage = Level(0.1)
    assert Bpda(stage, identity=True).with_valid(torch.ones(1, 8, dtype=torch.bool)).identity
