"""k-means of the frames of every clip of a batch at once: greedy k-means++ (Arthur and Vassilvitskii 2007), Lloyd's
algorithm and Hartigan's exchange of frames, which goes on where Lloyd's stops (Telgarsky and Vattani 2010); and warped
k-means (Leiva and Vidal 2013), whose clusters are consecutive frames.

Frames are [batch, n, d]; labels are long [batch, n], from 0, and -1 for frames that do not count. Every clip has its
own number of clusters; nothing depends on the other clips of the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TRIALS = 2
"""Candidates in each step of greedy k-means++."""


def mean_weights(labels: Tensor, most: int) -> Tensor:
    """Weights whose product with the frames gives the mean of each cluster, [batch, most, n]: the row of a cluster
    without frames is zero."""
    members = labels[:, None] == torch.arange(most, device=labels.device)[:, None]
    return members / members.sum(2, keepdim=True).clamp_min(1)


def squared_error(frames: Tensor, labels: Tensor) -> Tensor:
    """Sum of squared distances of the frames to the mean of their cluster, [batch]."""
    means = mean_weights(labels, int(labels.max()) + 1).to(frames) @ frames
    own = means.gather(1, labels.clamp_min(0)[..., None].expand_as(frames))
    return ((frames - own).square().sum(2) * (labels >= 0)).sum(1)


def kmeans(frames: Tensor, valid: Tensor, n_clusters: Tensor, centers: Tensor, iterations: int) -> Tensor:
    """Labels by one step of Lloyd's algorithm and then Hartigan's exchange, which lowers the error further per step,
    numbered by their first frames; no cluster is empty.

    Args:
        valid: bool [batch, n], the frames that count.
        n_clusters: of each clip [batch], at most its valid frames.
        centers: to start from, [batch, most clusters, d].
        iterations: of the exchange, at most.
    """
    labels = lloyd(frames, valid, n_clusters, centers, 1)
    labels = exchange(frames, labels, n_clusters, centers.shape[1], iterations)
    return in_order(_fill_empty(frames, labels, n_clusters))


def lloyd(frames: Tensor, valid: Tensor, n_clusters: Tensor, centers: Tensor, iterations: int) -> Tensor:
    """Labels after frames went to the nearest center and centers to the mean of their frames, in turns, until no frame
    of a clip changes its cluster; arguments as for `kmeans`."""
    unused = torch.arange(centers.shape[1], device=frames.device) >= n_clusters[:, None]
    labels = torch.full(valid.shape, -2, device=frames.device)
    rows = torch.arange(len(frames), device=frames.device)  # the clips that still change
    x, inside = frames, valid
    for _ in range(iterations):
        # |x - c|^2 is smallest where x c - |c|^2 / 2 is largest.
        offset = centers.square().sum(2).div_(-2).masked_fill_(unused[rows], -math.inf)
        nearest = torch.baddbmm(offset[:, None], x, centers.transpose(1, 2)).max(2).indices.masked_fill_(~inside, -1)
        changed = (nearest != labels[rows]).any(1)
        labels[rows] = nearest
        if not changed.all():
            rows, x, inside, nearest, centers = (t[changed] for t in (rows, x, inside, nearest, centers))
        if not len(rows):
            break
        centers = _means(x, nearest, centers)[0]
    return labels


def exchange(frames: Tensor, labels: Tensor, n_clusters: Tensor, most: int, iterations: int) -> Tensor:
    """Labels after single frames moved to another cluster where the squared error falls, which accounts for the change
    of both means: of every cluster at most the best frame leaves and the best one enters at once.

    Args:
        most: clusters of any clip.
        iterations: at most; a clip stops when its error does not fall.
    """
    unused = torch.arange(most, device=frames.device) >= n_clusters[:, None]
    squares = frames.square().sum(2, keepdim=True)
    points = torch.cat([frames * -2, squares, torch.ones_like(squares)], 2)
    rows = torch.arange(len(frames), device=frames.device)  # the clips whose error still falls
    x, current, error = frames, labels, frames.new_full((len(frames),), math.inf)
    labels = labels.clone()
    for last in (*[False] * iterations, True):
        member = current.clamp_min(0)
        centers, counts = _means(x, current, x.new_zeros(len(x), most, x.shape[2]))
        own = centers.flatten(0, 1)[(member + most * torch.arange(len(x), device=x.device)[:, None]).flatten()]
        distance = (x - own.view_as(x)).square_().sum(2) * (current >= 0)
        falls = distance.sum(1) < error
        if not falls.all():
            rows, x, points, current, member, centers, counts, distance = (
                t[falls] for t in (rows, x, points, current, member, centers, counts, distance)
            )
        labels[rows], error = current, distance.sum(1)
        if last or not len(rows):
            break
        # Leaving a cluster of n saves n / (n - 1) of the squared distance, entering one costs n / (n + 1) of it.
        sizes = counts.gather(1, member)
        saved = distance * (sizes > 1) * sizes / (sizes - 1).clamp_min(1)
        share = counts / (counts + 1)
        offset = (centers.square().sum(2) * share).masked_fill_(unused[rows], math.inf)
        costs = points @ torch.cat([centers * share[..., None], share[..., None], offset[..., None]], 2).mT
        cost, target = costs.scatter_(2, member[..., None], math.inf).min(2)
        gain = saved - cost
        best = [x.new_zeros(len(rows), most).scatter_reduce_(1, i, gain, "amax").gather(1, i) for i in (member, target)]
        moves = (gain > 1e-6 * distance) & (gain >= best[0]) & (gain >= best[1])
        current = torch.where(moves, target, labels[rows])
    return labels


def _means(frames: Tensor, labels: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """(mean of each cluster, the old center where it has no frame; number of its frames [batch, most])."""
    batch, most, d = centers.shape
    # One more row per clip takes the frames that do not count.
    index = (labels.remainder(most + 1) + (most + 1) * torch.arange(batch, device=labels.device)[:, None]).flatten()
    sums = frames.new_zeros(batch * (most + 1), d).index_add_(0, index, frames.flatten(0, 1)).view(batch, -1, d)[:, :-1]
    counts = torch.bincount(index, minlength=batch * (most + 1)).view(batch, -1)[:, :-1].to(frames.dtype)
    return torch.where(counts[..., None] > 0, sums / counts[..., None].clamp_min(1), centers), counts


def _fill_empty(frames: Tensor, labels: Tensor, n_clusters: Tensor) -> Tensor:
    """The same labels, but every empty cluster gets the frame farthest from the mean of its own; it is rare, and
    happens where frames are equal."""
    most = int(n_clusters.max()) if len(n_clusters) else 0
    filled = torch.zeros(len(labels), most + 1, dtype=torch.bool, device=labels.device)
    filled.scatter_(1, labels.remainder(most + 1), True)
    missing = ~filled[:, :most] & (torch.arange(most, device=labels.device) < n_clusters[:, None])
    for clip in missing.any(1).nonzero().flatten().tolist():
        count = int(n_clusters[clip])
        for empty in missing[clip].nonzero().flatten().tolist():
            weights = mean_weights(labels[clip][None], count)[0].to(frames)
            sizes = (weights > 0).sum(1)
            own = labels[clip].clamp_min(0)
            distance = (frames[clip] - (weights @ frames[clip])[own]).square().sum(1)
            movable = (labels[clip] >= 0) & (sizes[own] > 1)
            labels[clip, distance.masked_fill(~movable, -1).argmax()] = empty
    return labels


def in_order(labels: Tensor) -> Tensor:
    """The same clusters, numbered in the order of their first frames."""
    most = int(labels.max()) + 1 if labels.numel() else 0
    n = labels.shape[1]
    first = torch.full((len(labels), most + 1), n, device=labels.device)
    position = torch.arange(n, device=labels.device).expand_as(labels)
    first.scatter_reduce_(1, labels.remainder(most + 1), position, "amin")
    rank = first[:, :-1].argsort(1).argsort(1)
    return torch.where(labels >= 0, rank.gather(1, labels.clamp_min(0)), -1) if most else labels


def random_start(frames: Tensor, valid: Tensor, uniform: Tensor, most: int) -> Tensor:
    """Valid frames of each clip, no frame twice and all choices equally likely: [batch, most, d].

    Args:
        uniform: random numbers in [0, 1), [batch, n].
    """
    chosen = uniform.masked_fill(~valid, 2).argsort(1)[:, :most]
    return frames.gather(1, chosen[..., None].expand(-1, -1, frames.shape[2]))


def plus_plus_start(frames: Tensor, valid: Tensor, uniform: Tensor) -> Tensor:
    """Frames drawn with a probability proportional to the squared distance from those drawn before; of TRIALS
    candidates that one is taken which lowers the error most. [batch, most, d].

    Args:
        uniform: random numbers in [0, 1), [batch, most, 1 + TRIALS].
    """
    batch, n, _ = frames.shape
    most, device = uniform.shape[1], frames.device
    squares = frames.square().sum(2, keepdim=True)
    one = torch.ones_like(squares)
    # All squared distances as one product: |x|^2 + |y|^2 - 2 x y. Each step then reads the rows of its candidates.
    distances = torch.cat([frames * -2, squares, one], 2) @ torch.cat([frames, one, squares], 2).transpose(1, 2)
    distances, first = distances.flatten(0, 1), n * torch.arange(batch, device=device)[:, None]
    offset = TRIALS * torch.arange(batch, device=device)
    chosen = torch.empty(batch, most, dtype=torch.long, device=device)
    chosen[:, :1] = _draw(valid.to(frames.dtype), uniform[:, 0, :1])
    # Frames that do not count are at distance 0 from the start, so that none is ever drawn.
    nearest = distances[chosen[:, 0] + first[:, 0]].clamp_min_(0) * valid
    for step in range(1, most):
        candidates = _draw(nearest, uniform[:, step, 1:])
        after = distances.index_select(0, (candidates + first).flatten()).view(batch, TRIALS, n)
        after = torch.minimum(after, nearest[:, None])
        best = after.sum(2).argmin(1) + offset
        nearest = after.view(-1, n).index_select(0, best).clamp_min_(0)  # rounding makes equal frames differ
        chosen[:, step] = candidates.flatten()[best]
    return frames.gather(1, chosen[..., None].expand(-1, -1, frames.shape[2]))


def _draw(weight: Tensor, uniform: Tensor) -> Tensor:
    """Indices drawn with probability proportional to the weight [batch, n], as many as uniform [batch, draws] has."""
    cumulative = weight.cumsum(1)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).clamp_max_(weight.shape[1] - 1)


def warped_kmeans(frames: Tensor, valid: Tensor, n_clusters: Tensor) -> Tensor:
    """Labels of consecutive segments, equally long at first, whose boundaries move by a frame while the squared error
    falls. Every second boundary moves at once: those have no segment in common.

    Args:
        valid: bool [batch, n], the frames that count; the others are skipped.
        n_clusters: of each clip [batch], at most its valid frames.
    """
    batch, n = valid.shape
    order = valid.logical_not().to(torch.uint8).argsort(dim=1, stable=True)  # valid frames first
    x = (frames * valid[..., None]).gather(1, order[..., None].expand_as(frames)).double()
    x = x - x.mean(1, keepdim=True)  # sums of squares lose fewer digits
    start = x.new_zeros(batch, 1, 1)
    sums = torch.cat([start.expand(-1, -1, x.shape[2]), x.cumsum(1)], 1)
    squares = torch.cat([start[..., 0], x.square().sum(2).cumsum(1)], 1)
    total, most = valid.sum(1, keepdim=True), int(n_clusters.max()) if batch else 0
    j = torch.arange(most + 1, device=frames.device)
    bounds = torch.minimum(j * total // n_clusters[:, None].clamp_min(1), total)
    inner = (j > 0) & (j < n_clusters[:, None])

    def error(low: Tensor, high: Tensor) -> Tensor:
        """Squared error of the segments [low, high), [batch, segments]."""
        index = [i[..., None].expand(-1, -1, x.shape[2]) for i in (low, high)]
        energy = (sums.gather(1, index[1]) - sums.gather(1, index[0])).square().sum(2)
        return squares.gather(1, high) - squares.gather(1, low) - energy / (high - low).clamp_min(1)

    for _ in range(10 * n):  # it ends far earlier, when no boundary moves
        before = bounds.clone()
        for parity in (1, 2):
            left, here, right = (bounds[:, parity + k : most + k : 2] for k in (-1, 0, 1))
            movable = inner[:, parity:most:2]
            best, position = error(left, here) + error(here, right), here.clone()
            for step in (-1, 1):
                moved = torch.where(movable & (here + step > left) & (here + step < right), here + step, here)
                other = error(left, moved) + error(moved, right)
                # Rounding must not move a boundary to and fro.
                falls = other < best - 1e-12 * squares[:, -1:]
                best, position = torch.where(falls, other, best), torch.where(falls, moved, position)
            bounds[:, parity:most:2] = position
        if torch.equal(bounds, before):
            break
    place = torch.arange(n, device=frames.device).expand(batch, -1).contiguous()
    labels = torch.searchsorted(bounds[:, 1:].contiguous(), place, right=True)
    labels = torch.minimum(labels, n_clusters[:, None] - 1)
    return torch.where(valid, torch.empty_like(labels).scatter_(1, order, labels), -1)
