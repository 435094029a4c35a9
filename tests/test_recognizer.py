"""A threshold is one more logit: the published losses of every task follow from the one margin, gradients pass through,
and checkpoints, frozen copies, defenses and attacks need no case of their own."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.datasets.store import Clips
from src.evaluation import Judge
from src.losses import cross_entropy, fooled, margin
from src.random_streams import RandomStreams
from src.registry import ATTACKS, BACK_ENDS
from src.threat import ThreatModel
from src.victims import checkpoint
from src.victims.embedder import NOBODY, Embedder
from src.victims.recognizer import Embedding, Enrollment, Recognizer, check_embeds, recognizer_of
from src.victims.victim import Victim

RATE, N_SAMPLES, KAPPA = 8000, 4000, 0.7
BACK_END_NAMES = BACK_ENDS.names()


def decide(scores: Tensor, theta: float) -> Tensor:
    """The published decision: the speaker of the highest score if it exceeds theta, else nobody, here -1."""
    best, who = scores.max(1)
    return torch.where(best > theta, who, -1)


def published(task: str, s: Tensor, theta: float, label: int, targeted: bool, kappa: float) -> Tensor:
    """The margin losses of the facts [batch], to be minimized; success below -kappa, or below 0 without it. s: scores
    [batch, N]; label: of the target or the true one, -1 for nobody."""
    top = s.amax(1)
    mine = s[:, label]
    others = torch.cat([s[:, :label], s[:, label + 1 :]], 1)
    rest = others.amax(1) if others.shape[1] else torch.full_like(top, -torch.inf)
    if task == "csi":
        return rest + kappa - mine if targeted else mine + kappa - rest
    if task == "sv":
        accept = theta + kappa - top
        reject = top + kappa - theta
        return (reject if label == -1 else accept) if targeted else (accept if label == -1 else reject)
    bound = torch.full_like(top, theta)
    if label == -1:
        return top + kappa - theta if targeted else theta + kappa - top
    if targeted:
        return torch.maximum(bound, rest) + kappa - mine
    return torch.minimum(top + kappa - theta, torch.maximum(bound, mine) + kappa - rest)


def logits_of(task: str, scores: Tensor, theta: float) -> Tensor:
    return scores if task == "csi" else torch.cat([scores, torch.full((len(scores), 1), theta)], 1)


CASES = [
    (task, label, targeted)
    for task, labels in (("csi", (0, 2)), ("sv", (0, -1)), ("osi", (0, 2, -1)))
    for label in labels
    for targeted in (False, True)
]


@pytest.mark.parametrize("theta", [0.0, 0.4, -1.3])
@pytest.mark.parametrize(("task", "label", "targeted"), CASES)
def test_published_losses_are_the_margin_of_the_logits(task: str, label: int, targeted: bool, theta: float) -> None:
    """Ours is maximized and theirs minimized: published = kappa - margin, in every case but one.

    The exception is the untargeted loss of an enrolled speaker in the open set. With s the speaker's own score, O the
    best of the others and M = max(s, O), ours is the easier of the two ways, kappa + min(s - theta, s - O); theirs is
    kappa + min(M - theta, max(theta, s) - O). They are the same where the speaker is recognized (M = s >= theta), so
    up to success; beyond it ours asks how far the label is left behind, theirs how far one other label leads.
    """
    torch.manual_seed(0)
    scores = torch.randn(2000, 1 if task == "sv" else 4)
    logits = logits_of(task, scores, theta)
    y = torch.full((len(scores),), label % logits.shape[1])
    ours = KAPPA - margin(logits, y, targeted)
    theirs = published(task, scores, theta, label, targeted, KAPPA)
    if task == "osi" and label != -1 and not targeted:
        recognized = decide(scores, theta) == label
        assert 0.02 < recognized.float().mean() < 0.9
        torch.testing.assert_close(ours[recognized], theirs[recognized])
        assert (ours[~recognized] != theirs[~recognized]).any()
    else:
        torch.testing.assert_close(ours, theirs)
    # Success is the same in all cases: their loss without kappa below 0, our margin above 0, and the decision.
    plain = published(task, scores, theta, label, targeted, 0.0)
    decision = scores.argmax(1) if task == "csi" else decide(scores, theta)
    success = (decision == label) if targeted else (decision != label)
    assert torch.equal(plain < 0, success)
    assert torch.equal(margin(logits, y, targeted) > 0, success)
    assert torch.equal(fooled(logits, y, targeted), success)


def test_kappa_beyond_success_in_the_open_set() -> None:
    """Where the published loss differs: ours asks that theta or another speaker is kappa above the own score, theirs
    that one of them is kappa above everything else. So their success with kappa is ours, but not the other way round:
    with theta just below another speaker's score and both far above the own one, ours alone is content."""
    torch.manual_seed(1)
    scores, theta = torch.randn(5000, 4), 0.3
    y = torch.zeros(len(scores), dtype=torch.long)
    confident = margin(logits_of("osi", scores, theta), y) >= KAPPA
    theirs = published("osi", scores, theta, 0, False, KAPPA) <= 0
    assert (theirs & ~confident).sum() == 0
    assert (confident & ~theirs).sum() > 0


@pytest.mark.parametrize(("task", "label", "targeted"), CASES)
def test_the_gradients_are_those_of_the_published_losses(task: str, label: int, targeted: bool) -> None:
    """Where an attack starts: the clip is recognized (untargeted), or not yet the target."""
    torch.manual_seed(2)
    scores = torch.randn(500, 1 if task == "sv" else 4)
    decision = scores.argmax(1) if task == "csi" else decide(scores, 0.2)
    scores = scores[(decision != label) if targeted else (decision == label)].requires_grad_()
    assert len(scores) > 10
    logits = logits_of(task, scores, 0.2)
    y = torch.full((len(scores),), label % logits.shape[1])
    (ours,) = torch.autograd.grad(margin(logits, y, targeted).sum(), scores)
    (theirs,) = torch.autograd.grad(published(task, scores, 0.2, label, targeted, 0.0).sum(), scores)
    torch.testing.assert_close(ours, -theirs)
    assert (ours != 0).any(1).all()


@pytest.mark.parametrize(("task", "label"), [("sv", 0), ("sv", -1), ("osi", 1), ("osi", -1)])
def test_cross_entropy_moves_towards_success(task: str, label: int) -> None:
    """A step up the cross-entropy of these logits leads from the label, a step up its targeted form to the target. Over
    the scores alone, which sum to one for a single speaker, it has no gradient at all."""
    torch.manual_seed(3)
    scores = torch.randn(300, 1 if task == "sv" else 4, dtype=torch.float64)
    y = torch.full((len(scores),), label % (scores.shape[1] + 1))
    for targeted in (False, True):
        s = scores.clone().requires_grad_()
        loss = cross_entropy(logits_of(task, s, 0.2).double(), y, targeted)
        (grad,) = torch.autograd.grad(loss.sum(), s)
        after = logits_of(task, scores + 1e-3 * grad, 0.2).double()
        before = logits_of(task, scores, 0.2).double()
        assert (cross_entropy(after, y, targeted) > cross_entropy(before, y, targeted)).all()
        own = (after - before).gather(1, y[:, None])
        probability = (after.softmax(1) - before.softmax(1)).gather(1, y[:, None])
        assert ((probability > 0) if targeted else (probability < 0)).all()
        if label != -1:
            assert ((own > 0) if targeted else (own < 0)).all()
        elif task == "sv":
            assert ((grad < 0) if targeted else (grad > 0)).all(), "towards nobody the score falls"
    if task == "sv":
        s = scores.clone().requires_grad_()
        (grad,) = torch.autograd.grad(cross_entropy(s, torch.zeros(len(s), dtype=torch.long)).sum(), s)
        assert not grad.any()


def network(n_classes: int = 5) -> Victim:
    torch.manual_seed(0)
    victim = checkpoint.build(
        model="resnet",
        model_options={"widths": (4, 8, 12)},
        front_end_options={"n_mels": 24},
        classes=[f"background{i}" for i in range(n_classes)],
        sample_rate=RATE,
        n_samples=N_SAMPLES,
    )
    for module in victim.modules():  # statistics as after training, so that folding has something to do
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return victim.eval()


def speech(n: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    t = np.arange(N_SAMPLES) / RATE
    pitch = rng.uniform(100, 900, (n, 1))
    return torch.from_numpy(0.2 * np.sin(2 * np.pi * pitch * t) + 0.02 * rng.standard_normal((n, len(t)))).float()


def recognizer(
    back_end: str = "cosine", speakers: int = 3, thresholded: bool = True, cohort: int = 0, theta: float | None = None
) -> Victim:
    """A recognizer of made-up speakers; theta at the middle of the scores unless it is given."""
    enrollment = Enrollment(
        speakers=tuple(f"speaker{i}" for i in range(speakers)), thresholded=thresholded, back_end=back_end,
        options={"lda_dimensions": 3}, n_background=5, cohort=cohort, cohort_top=4 if cohort else 0,
    )  # fmt: skip
    plain = network()
    victim = checkpoint.enrolled(plain, enrollment)
    made = recognizer_of(victim)
    assert made is not None
    with torch.no_grad():
        features = plain.split("log_mel")[0](speech(40, 1))
        background = plain.classifier.embed(features)  # type: ignore[union-attr, operator]
        made.back_end.fit(background, torch.arange(40) % 5)
        if cohort:
            made.back_end.cohort.copy_(made.back_end.project(background[:cohort]))
        made.enrolled.copy_(made.back_end.enroll(list(background[: 2 * speakers].split(2))))
        if thresholded:
            made.theta.fill_(victim(speech(20))[:, :-1].amax(1).median() if theta is None else theta)
    return victim


@pytest.mark.parametrize("back_end", BACK_END_NAMES)
@pytest.mark.parametrize("cohort", [0, 10])
def test_logits_are_scores_and_the_threshold(back_end: str, cohort: int) -> None:
    victim = recognizer(back_end, cohort=cohort, theta=0.25)
    x = speech(6)
    logits = victim(x)
    assert victim.classes == ("speaker0", "speaker1", "speaker2", NOBODY)
    assert logits.shape == (6, 4)
    assert (logits[:, -1] == 0.25).all()
    closed = recognizer(back_end, thresholded=False, cohort=cohort)
    assert closed.classes == victim.classes[:-1]
    torch.testing.assert_close(closed(x), logits[:, :-1])


def test_tasks() -> None:
    tasks = {(n, thresholded): Enrollment(tuple("abc"[:n]), thresholded, "cosine").task
             for n in (1, 3) for thresholded in (False, True)}  # fmt: skip
    assert tasks == {(1, False): "csi", (1, True): "sv", (3, False): "csi", (3, True): "osi"}


def test_a_threshold_of_zero_is_a_threshold(tmp_path: Path) -> None:
    """Scores below 0 are rejected, before and after the way through a file."""
    victim = recognizer("cosine", speakers=1, theta=0.0)
    checkpoint.save(tmp_path / "zero.pt", victim, {})
    loaded = checkpoint.load(tmp_path / "zero.pt")[0]
    for model in (victim, loaded, victim.frozen()):
        logits = model(speech(40))
        best = logits[:, :-1].amax(1)
        assert (best < 0).any()
        assert (best > 0).any()
        assert torch.equal(logits.argmax(1) == 1, best < 0)
        assert (logits[:, -1] == 0).all()


@pytest.mark.parametrize("back_end", BACK_END_NAMES)
def test_a_checkpoint_holds_everything(back_end: str, tmp_path: Path) -> None:
    victim = recognizer(back_end, cohort=10)
    checkpoint.save(tmp_path / "model.pt", victim, {"task": "osi"})
    loaded, facts = checkpoint.load(tmp_path / "model.pt")
    assert facts == {"task": "osi"}
    assert loaded.classes == victim.classes
    enrollment = recognizer_of(loaded).enrollment  # type: ignore[union-attr]
    assert enrollment == recognizer_of(victim).enrollment  # type: ignore[union-attr]
    assert torch.equal(loaded(speech(5)), victim(speech(5)))
    assert loaded.recipe["classes"] == [f"background{i}" for i in range(5)], "those of the network"
    checkpoint.save(tmp_path / "again.pt", loaded, facts)
    assert torch.equal(checkpoint.load(tmp_path / "again.pt")[0](speech(5)), victim(speech(5)))


def test_a_checkpoint_keeps_its_defenses(tmp_path: Path) -> None:
    defended = checkpoint.defend(recognizer(), [{"name": "quantize", "options": {}}])
    checkpoint.save(tmp_path / "model.pt", defended, {})
    loaded = checkpoint.load(tmp_path / "model.pt")[0]
    assert [d.name for d in loaded.defenses] == ["quantize"]
    assert recognizer_of(loaded) is not None
    torch.testing.assert_close(loaded(speech(4)), defended(speech(4)))
    assert (loaded(speech(4)) != loaded.undefended()(speech(4))).any()


@pytest.mark.parametrize("back_end", BACK_END_NAMES)
def test_the_frozen_copy_gives_the_same_logits_and_gradients(back_end: str) -> None:
    victim = recognizer(back_end, cohort=10)
    frozen = victim.frozen()
    assert any(isinstance(m, nn.BatchNorm2d) for m in victim.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules()), "folded into the convolutions"
    x = speech(4).requires_grad_()
    torch.testing.assert_close(frozen(x), victim(x), atol=2e-4, rtol=2e-4)
    ours, theirs = (torch.autograd.grad(model(x)[:, 0].sum(), x)[0] for model in (victim, frozen))
    torch.testing.assert_close(ours, theirs, atol=2e-3 * float(ours.abs().max()), rtol=2e-2)


@pytest.mark.parametrize("back_end", BACK_END_NAMES)
def test_gradient_from_the_logits_to_the_waveform(back_end: str) -> None:
    victim = recognizer(back_end, cohort=10).double()
    x = speech(1).double()
    torch.manual_seed(0)
    direction = torch.randn_like(x)
    direction /= direction.norm()
    leaf = x.clone().requires_grad_()
    for column in range(3):
        (grad,) = torch.autograd.grad(victim(leaf)[0, column], leaf)
        h = 1e-6
        with torch.no_grad():
            slope = (victim(x + h * direction) - victim(x - h * direction))[0, column] / (2 * h)
        assert (grad * direction).sum().item() == pytest.approx(slope.item(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("speakers", [1, 3])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("back_end", BACK_END_NAMES)
def test_pgd_needs_no_case_for_a_task(speakers: int, loss: str, back_end: str) -> None:
    """Both ways in verification and in the open set: accepted clips are rejected, rejected ones accepted."""
    victim = recognizer(back_end, speakers).frozen()
    x = speech(20)
    y = victim(x).argmax(1)
    nobody = speakers
    assert 3 < int((y == nobody).sum()) < 17
    threat = ThreatModel("linf", 0.01, (-1.0, 1.0))
    streams = RandomStreams(0, [str(i) for i in range(len(x))], "test")
    x_adv = ATTACKS["pgd"](victim, x, y, threat, rng=streams, targeted=False, steps=20, loss=loss)
    changed = victim(x_adv).argmax(1) != y
    assert changed[y == nobody].float().mean() > 0.8
    assert changed[y != nobody].float().mean() > 0.8
    target = torch.where(y == nobody, 0, nobody)
    x_adv = ATTACKS["pgd"](victim, x, target, threat, rng=streams, targeted=True, steps=20, loss=loss)
    assert (victim(x_adv).argmax(1) == target).float().mean() > 0.8


def test_a_mask_reaches_the_network() -> None:
    enrollment = Enrollment(speakers=("a",), thresholded=True, back_end="cosine", n_background=5)
    torch.manual_seed(0)
    plain = checkpoint.build(
        model="resnet", model_options={"widths": (4, 8), "masked_pooling": True}, front_end_options={"n_mels": 24},
        classes=["b", "c"], sample_rate=RATE, n_samples=N_SAMPLES,
    ).eval()  # fmt: skip
    victim = checkpoint.enrolled(plain, enrollment)
    victim.classifier.enrolled.fill_(0.3)  # type: ignore[union-attr, operator]
    assert victim.uses_mask
    assert not recognizer().uses_mask
    x, valid = speech(2), torch.ones(2, N_SAMPLES, dtype=torch.bool)
    valid[0, 2000:] = False
    with torch.no_grad():
        masked, whole, frozen = victim(x, valid), victim(x), victim.frozen()(x, valid)
    assert masked[0, 0] != whole[0, 0]
    torch.testing.assert_close(masked[1], whole[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(frozen, masked, atol=1e-4, rtol=1e-4)


def test_embeddings_are_what_the_last_layer_sees() -> None:
    victim = network()
    features = victim.split("log_mel")[0](speech(3))
    classifier = victim.classifier
    assert isinstance(classifier, Embedder)
    embeddings = Embedding(classifier)(features)  # type: ignore[arg-type]
    assert embeddings.shape == (3, classifier.embedding_size)
    torch.testing.assert_close(classifier.head(embeddings), classifier(features))  # type: ignore[operator, attr-defined]


def test_networks_that_cannot_enroll_are_refused() -> None:
    with pytest.raises(ValueError, match="gives no embeddings"):
        check_embeds(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="gives no embeddings"):
        check_embeds(None)
    with pytest.raises(ValueError, match="speakers are enrolled in it already"):
        check_embeds(recognizer().classifier)
    check_embeds(network().classifier)


def test_a_recognizer_does_not_change_its_network() -> None:
    plain = network()
    before = copy.deepcopy(plain.state_dict())
    enrollment = Enrollment(speakers=("a",), thresholded=True, back_end="cosine", n_background=5)
    victim = checkpoint.enrolled(plain, enrollment)
    assert isinstance(victim.classifier, Recognizer)
    assert "recognizer" not in plain.recipe
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())
    assert F.cosine_similarity(victim.classifier.enrolled, torch.zeros(1, 12)).item() == 0


def test_two_recognizers_judge_the_same_clips_by_their_own_truth() -> None:
    """Who is enrolled in one is nobody to the other: equal names are not the same answer."""

    class Says(torch.nn.Module):
        """The class that the first sample names."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot((x[:, 0] * 10).round().long(), 3).float()

    def says(classes: tuple[str, ...]) -> Victim:
        return Victim([], Says(), classes=classes, sample_rate=RATE, n_samples=8)

    def clips_of(first: list[float]) -> Clips:
        samples = np.zeros((3, 8), np.int16)
        samples[:, 0] = np.round(np.array(first) * 3276.8)
        return Clips(samples, torch.tensor([0, 1, 2]), torch.full((3,), 8), tuple("abc"), ("5", "7", "9"), RATE)

    for crafted_on, judging in ((("5", NOBODY), ("7", "5", NOBODY)), (("7", "5", NOBODY), ("5", NOBODY))):
        judge = says(judging)
        right = [judging.index(name) if name in judging else judging.index(NOBODY) for name in ("5", "7", "9")]
        clean = clips_of([float(k) for k in right])
        wrong = clips_of([float((k + 1) % len(judging)) for k in right])
        for heard, expected in ((clean, False), (wrong, True)):
            crafted = heard.relabeled(crafted_on)
            places = {f"prediction_{place}": -1 for place in ("stage", "audio")}
            known = {"target": -1, "feasible": True, "length": 8, "tags": {}, **places}
            facts = [
                {"id": i, "label": int(y), "prediction": int(y), **known}
                for i, y in zip(crafted.ids, crafted.labels, strict=True)
            ]
            rows = list(Judge(judge, torch.device("cpu")).rows(crafted, facts, targeted=False, clean=clean))
            assert [row["correct"] for row in rows] == [True] * 3
            assert [row["success_wav"] for row in rows] == [expected] * 3
            assert [row["share_wav"] for row in rows] == [float(expected)] * 3
