"""Back ends against closed forms and independent computations: the projection, cosine, PLDA and AS-norm."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.nn import functional as F

from src.registry import BACK_ENDS
from src.speaker.back_end import BackEnd
from src.speaker.plda import Plda, two_covariances
from src.speaker.projection import Projection, resolve
from src.speaker.score_norm import as_norm

EVERY = BACK_ENDS.names()
SIZE = 8


def speakers(n_speakers: int, n: int, d: int = SIZE, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings [n_speakers n, d] of speakers apart from each other, off the origin, and their numbers."""
    rng = np.random.default_rng(seed)
    shape = rng.standard_normal((d, d))
    means = 3 + 2 * rng.standard_normal((n_speakers, d))
    x = np.repeat(means, n, 0) + rng.standard_normal((n_speakers * n, d)) @ shape * 0.5
    return torch.from_numpy(x).float(), torch.arange(n_speakers).repeat_interleave(n)


def fitted(name: str, **options: object) -> BackEnd:
    x, labels = speakers(6, 12)
    back_end = BACK_ENDS[name](embedding_size=SIZE, n_background=6, **options)
    back_end.fit(x, labels)
    return back_end


def test_lda_of_two_classes_is_the_direction_of_fisher() -> None:
    """With two speakers it is W^-1 (m1 - m2), W the covariance within speakers; with many clips nothing is shrunk."""
    x, labels = speakers(2, 4000)
    projection = Projection(SIZE, 1)
    projection.fit(x, labels)
    a, b = (x[labels == k].double().numpy() for k in (0, 1))
    within = (np.cov(a.T, bias=True) + np.cov(b.T, bias=True)) / 2
    fisher = np.linalg.solve(within, a.mean(0) - b.mean(0))
    direction = projection.lda[:, 0].double().numpy()
    cosine = direction @ fisher / np.linalg.norm(direction) / np.linalg.norm(fisher)
    assert abs(cosine) > 0.9999
    torch.testing.assert_close(projection.mean, x.mean(0), atol=1e-4, rtol=1e-4)


def test_projected_embeddings_have_length_one() -> None:
    x, labels = speakers(6, 12)
    for dimensions in (0, 3):
        projection = Projection(SIZE, dimensions)
        projection.fit(x, labels)
        out = projection(x)
        assert out.shape == (len(x), dimensions or SIZE)
        torch.testing.assert_close(out.norm(dim=1), torch.ones(len(x)))


def test_lda_separates_speakers_better_than_chance_directions() -> None:
    x, labels = speakers(6, 400)
    projection = Projection(SIZE, 5)
    projection.fit(x, labels)
    y = (x - projection.mean) @ projection.lda
    groups = torch.stack([y[labels == k] for k in range(6)])
    within = groups.var(1).mean(0)
    between = groups.mean(1).var(0)
    assert (between / within).tolist() == sorted((between / within).tolist(), reverse=True)
    # Directions of an LDA are uncorrelated within speakers.
    residual = (groups - groups.mean(1, keepdim=True)).flatten(0, 1)
    correlation = np.corrcoef(residual.numpy().T)
    assert np.abs(correlation - np.eye(5)).max() < 0.15


@pytest.mark.parametrize(
    ("dimensions", "size", "n", "expected"),
    [("auto", 256, 10, 9), ("auto", 4, 10, 4), ("auto", 512, 1000, 150), (0, 256, 10, 0), (9, 256, 10, 9)],
)
def test_lda_dimensions(dimensions: int, size: int, n: int, expected: int) -> None:
    assert resolve(dimensions, size, n) == expected  # type: ignore[arg-type]


def test_fewer_speakers_than_lda_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="lda_dimensions = 10: an LDA of 10 background speakers has at most 9"):
        resolve(10, 256, 10)
    with pytest.raises(ValueError, match="only 4 values"):
        resolve(5, 4, 10)


def test_cosine_is_the_cosine_from_the_mean() -> None:
    back_end = fitted("cosine")
    x, _ = speakers(4, 2, seed=1)
    mean = speakers(6, 12)[0].mean(0)
    expected = F.cosine_similarity((x - mean)[:, None], (x - mean)[None], dim=2)
    torch.testing.assert_close(back_end.pairwise(back_end.project(x), back_end.project(x)), expected)


def random_plda(d: int, seed: int) -> tuple[Plda, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    between, within = (m @ m.T + 0.1 * np.eye(d) for m in rng.standard_normal((2, d, d)))
    mean = rng.standard_normal(d)
    plda = Plda(embedding_size=d, n_background=d + 1, lda_dimensions=0).double()
    plda.set_covariances(mean, between, within)
    return plda, mean, between, within


@pytest.mark.parametrize("d", [1, 2, 5])
def test_plda_score_is_the_log_likelihood_ratio(d: int) -> None:
    """Two embeddings under one speaker are jointly normal with covariance B between them; else with none."""
    plda, mean, between, within = random_plda(d, d)
    rng = np.random.default_rng(9)
    a, b = rng.standard_normal((3, d)), rng.standard_normal((4, d))
    total, zero = between + within, np.zeros((d, d))
    same = multivariate_normal(np.tile(mean, 2), np.block([[total, between], [between, total]]))
    other = multivariate_normal(np.tile(mean, 2), np.block([[total, zero], [zero, total]]))
    pairs = np.array([[np.concatenate([u, v]) for v in b] for u in a])
    expected = same.logpdf(pairs) - other.logpdf(pairs)
    np.testing.assert_allclose(plda.pairwise(torch.tensor(a), torch.tensor(b)).numpy(), expected, rtol=1e-8, atol=1e-8)


def test_plda_in_one_dimension_by_hand() -> None:
    """B = 3, W = 1, mean 0: psi = 3, so the score of (1, 1) is log 4 - log(7) / 2 + 3 / 7 - 9 * 2 / (2 * 4 * 7)."""
    plda = Plda(embedding_size=1, n_background=2, lda_dimensions=0).double()
    plda.set_covariances(np.zeros(1), np.full((1, 1), 3.0), np.ones((1, 1)))
    one = torch.ones(1, 1, dtype=torch.float64)
    expected = np.log(4) - np.log(7) / 2 + 3 / 7 - 18 / 56
    assert plda.pairwise(one, one).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", EVERY)
def test_scores_are_symmetric(name: str) -> None:
    back_end = fitted(name)
    a, b = (back_end.project(speakers(3, 2, seed=seed)[0]) for seed in (1, 2))
    torch.testing.assert_close(back_end.pairwise(a, b), back_end.pairwise(b, a).T)


@pytest.mark.parametrize("name", EVERY)
def test_the_same_speaker_scores_higher(name: str) -> None:
    back_end = fitted(name)
    x, labels = speakers(6, 12)
    enrolled = back_end.enroll([x[labels == k][:6] for k in range(6)])
    torch.testing.assert_close(enrolled.norm(dim=1), torch.ones(6))
    test = torch.cat([x[labels == k][6:] for k in range(6)])
    assert (back_end(test, enrolled).argmax(1) == torch.arange(6).repeat_interleave(6)).float().mean() > 0.9


def test_the_model_of_a_speaker_is_the_mean_of_normalized_embeddings() -> None:
    back_end = fitted("cosine")
    x, _ = speakers(2, 3, seed=4)
    loud = torch.cat([x[:2], back_end.project.mean + 100 * (x[2:3] - back_end.project.mean)])
    torch.testing.assert_close(back_end.enroll([x[:3]]), back_end.enroll([loud]))
    expected = F.normalize(F.normalize(x[:3] - back_end.project.mean, dim=1).mean(0), dim=0)
    torch.testing.assert_close(back_end.enroll([x[:3]])[0], expected)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("cohort", [0, 7])
def test_gradient_is_whole(name: str, cohort: int) -> None:
    """Against finite differences, through mean, LDA, length normalization, score and AS-norm."""
    back_end = fitted(name).double()
    if cohort:
        back_end.normalize_by(back_end.project(speakers(7, 1, seed=3)[0].double()), 4)
    enrolled = back_end.enroll([e.double() for e in speakers(3, 4, seed=5)[0].split(4)])
    x = speakers(2, 1, seed=6)[0].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: back_end(x, enrolled), (x,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_length_normalization_passes_no_gradient_along_its_input(name: str) -> None:
    """The score does not change with the length of a centered embedding, so its gradient there is orthogonal to it. A
    detached length would leave a part along it."""
    back_end = fitted(name).double()
    enrolled = back_end.enroll([e.double() for e in speakers(3, 4, seed=5)[0].split(4)])
    x = speakers(4, 1, seed=6)[0].double().requires_grad_()
    (grad,) = torch.autograd.grad(back_end(x, enrolled).square().sum(), x)
    along = ((x - back_end.project.mean) * grad).sum(1) / (x - back_end.project.mean).norm(dim=1)
    assert (grad.norm(dim=1) > 1e-3).all()
    assert along.abs().max() < 1e-6 * grad.norm(dim=1).max()


def test_em_of_equal_numbers_of_utterances_stays_at_the_maximum() -> None:
    """In the balanced case the maximum has a closed form (analysis of variance), if B is positive."""
    x, labels = (part.double().numpy() for part in speakers(40, 10, 3))
    groups = x.reshape(40, 10, 3)
    within = sum(np.cov(group.T, ddof=1) for group in groups) / 40
    between = np.cov(groups.mean(1).T, ddof=0) - within / 10
    for iterations in (1, 30):
        mean, b, w = two_covariances(x, labels, iterations)
        np.testing.assert_allclose(mean, x.mean(0), atol=1e-10)
        np.testing.assert_allclose(w, within, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(b, between, rtol=1e-8, atol=1e-10)


def likelihood(x: np.ndarray, labels: np.ndarray, model: tuple[np.ndarray, ...]) -> float:
    """Log-likelihood of all embeddings, speaker by speaker, from the covariance of their stacked vector."""
    mean, between, within = model
    total = 0.0
    for k in np.unique(labels):
        mine = x[labels == k]
        n = len(mine)
        covariance = np.kron(np.ones((n, n)), between) + np.kron(np.eye(n), within)
        total += multivariate_normal(np.tile(mean, n), covariance, allow_singular=True).logpdf(mine.ravel())
    return total


def test_em_raises_the_likelihood() -> None:
    x, labels = (part.double().numpy() for part in speakers(9, 9, 3, seed=2))
    keep = np.concatenate([np.flatnonzero(labels == k)[: k + 1] for k in range(9)])  # 1 to 9 utterances
    values = [likelihood(x[keep], labels[keep], two_covariances(x[keep], labels[keep], n)) for n in (0, 1, 5, 20, 200)]
    assert values == sorted(values)
    assert values[-1] - values[0] > 0.01


def test_em_finds_the_covariances_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    between, within = np.diag([4.0, 1.0]), np.array([[1.0, 0.5], [0.5, 2.0]])
    labels = np.repeat(np.arange(800), rng.integers(2, 8, 800))
    y = rng.multivariate_normal([1, -1], between, 800)
    x = y[labels] + rng.multivariate_normal([0, 0], within, len(labels))
    mean, b, w = two_covariances(x, labels, 20)
    np.testing.assert_allclose(mean, [1, -1], atol=0.2)
    np.testing.assert_allclose(b, between, atol=0.5)
    np.testing.assert_allclose(w, within, atol=0.1)


def test_fewer_utterances_than_dimensions_leave_finite_scores() -> None:
    x, labels = speakers(3, 2, 20)
    plda = Plda(embedding_size=20, n_background=3, lda_dimensions=0)
    plda.fit(x, labels)
    assert plda.pairwise(plda.project(x), plda.project(x)).isfinite().all()


@pytest.mark.parametrize("name", EVERY)
def test_estimates_do_not_depend_on_chance(name: str) -> None:
    one, two = fitted(name).state_dict(), fitted(name).state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_as_norm_by_hand() -> None:
    scores = torch.tensor([[5.0, 1.0]])
    test, enrolled = torch.tensor([[1.0, 3.0, -9.0]]), torch.tensor([[2.0, 4.0, -9.0], [0.0, -9.0, 8.0]])
    # The two nearest: test 1 and 3 (mean 2, deviation 1); enrolled 2 and 4 (3, 1), 0 and 8 (4, 4).
    expected = [[(3 / 1 + 2 / 1) / 2, (-1 / 1 + -3 / 4) / 2]]
    torch.testing.assert_close(as_norm(scores, test, enrolled, 2), torch.tensor(expected))


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_as_norm_does_not_change_with_scale_and_offset(scale: float, offset: float) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(4, 3).double(), torch.randn(4, 9).double(), torch.randn(3, 9).double()]
    moved = [scale * part + offset for part in parts]
    torch.testing.assert_close(as_norm(*moved, 5), as_norm(*parts, 5), atol=1e-4, rtol=1e-4)


def test_as_norm_of_equal_scores_is_finite() -> None:
    assert as_norm(torch.ones(1, 2), torch.ones(1, 5), torch.ones(2, 5), 3).isfinite().all()


def test_a_cohort_smaller_than_its_top_is_refused() -> None:
    with pytest.raises(ValueError, match="cohort_top = 8: there are only 7 background clips"):
        fitted("cosine").normalize_by(torch.zeros(7, SIZE), 8)


def test_simultaneous_diagonalization() -> None:
    plda, _, between, within = random_plda(4, 0)
    v = plda.transform.numpy()
    np.testing.assert_allclose(v.T @ within @ v, np.eye(4), atol=1e-10)
    np.testing.assert_allclose(v.T @ between @ v, np.diag(plda.between.numpy()), atol=1e-10)
    expected = np.sort(scipy.linalg.eigvals(np.linalg.solve(within, between)).real)
    np.testing.assert_allclose(np.sort(plda.between.numpy()), expected, rtol=1e-8)
