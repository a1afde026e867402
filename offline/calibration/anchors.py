"""Stage 2: prompt vectors -> anchors, the points that the router compares a prompt with.

Each domain gets the centres of a k-means over its anchor prompts; the mean of all anchors is the
centre that the router subtracts. Search prompts, and anchor prompts beside the centres of the others,
set the domain's threshold; held-out prompts judge it.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor

from offline.calibration.collect import Collection, Part
from offline.records import StageRecord, digest_of, log, reused_or_made
from offline.settings import CalibrationSettings
from server.engine import similarities

FOLDS = 4


class Anchors(StageRecord):
    """Anchor rows [anchors, hidden_size] with the index of each one's domain, and how well they route.

    `confusion` counts held-out prompts by their own domain (rows) and by where they go: the domains
    in order, then those under a threshold.
    """

    rows: list[list[float]]
    domains: list[int]
    thresholds: list[float]
    """By domain, the similarity under which a prompt whose nearest anchor is the domain's is of none."""
    routing_accuracy: float
    """Share of the held-out prompts whose nearest anchor is of their own domain, before the threshold."""
    false_reject_rate: float
    """Share of the held-out prompts that fall under their threshold."""
    false_accept_rate: float | None
    """Share of a domain's prompts that would pass if the domain were unknown, its anchors taken away."""
    confusion: list[list[int]]

    @property
    def tensor(self) -> Tensor:
        return torch.tensor(self.rows)

    @property
    def centre(self) -> Tensor:
        return self.tensor.mean(0)


def place_anchors(collection: Collection, settings: CalibrationSettings, work: Path) -> Anchors:
    """The anchors of all domains, read from the work folder where they are finished."""
    digests = [domain.digest for domain in collection.domains.values()]
    digest = digest_of(digests, settings.anchors_per_domain, settings.threshold_quantile, FOLDS, settings.seed)
    return reused_or_made(work / "anchors.json", Anchors, digest, lambda: make_anchors(collection, settings, digest))


def make_anchors(collection: Collection, settings: CalibrationSettings, digest: str) -> Anchors:
    """Places the anchors of each domain, sets the threshold, and routes the held-out prompts to judge both."""
    names = list(collection.domains)
    centres = [
        cluster_centres(collection.part(name, Part.ANCHOR).numpy(), settings.anchors_per_domain, settings.seed)
        for name in names
    ]
    anchors = torch.from_numpy(np.concatenate(centres))
    owners = torch.tensor([index for index, found in enumerate(centres) for _ in found])
    known = [known_similarities(collection, name, anchors, owners == i, settings) for i, name in enumerate(names)]
    # Some domains' prompts are all alike: under a threshold of their own only, near misses would be lost for nothing.
    overall = torch.cat(known).quantile(settings.threshold_quantile)
    thresholds = torch.stack([each.quantile(settings.threshold_quantile) for each in known]).clamp(max=overall)
    confusion = torch.zeros(len(names), len(names) + 1, dtype=torch.long)
    num_right = 0
    for index, name in enumerate(names):
        similarity, anchor = nearest(collection.part(name, Part.HELDOUT), anchors)
        num_right += int((owners[anchor] == index).sum())
        chosen = torch.where(similarity < thresholds[owners[anchor]], len(names), owners[anchor])
        confusion[index] = chosen.bincount(minlength=len(names) + 1)
    count = int(confusion.sum())
    found = Anchors(
        digest=digest,
        rows=anchors.tolist(),
        domains=owners.tolist(),
        thresholds=thresholds.tolist(),
        routing_accuracy=num_right / count,
        false_reject_rate=int(confusion[:, -1].sum()) / count,
        false_accept_rate=false_accept_rate(collection, anchors, owners, thresholds),
        confusion=confusion.tolist(),
    )
    log.info(
        "anchors: %d, thresholds %s, nearest anchor right for %.1f %%",
        len(owners),
        " ".join(f"{threshold:.3f}" for threshold in found.thresholds),
        100 * found.routing_accuracy,
    )
    return found


def nearest(vectors: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """(similarity to the nearest anchor, its row) of each of `vectors` [n, hidden_size]."""
    found = similarities(vectors, anchors, anchors.mean(0)).max(1)
    return found.values, found.indices


def known_similarities(
    collection: Collection, name: str, anchors: Tensor, is_own: Tensor, settings: CalibrationSettings
) -> Tensor:
    """How similar prompts are to anchors of their domain that were placed without them.

    A domain has a few search prompts only, of which the least similar says little about one in a hundred. So each
    anchor prompt is compared too, with centres of the other folds' prompts.
    """
    centre, points = anchors.mean(0), collection.part(name, Part.ANCHOR)
    found = [similarities(collection.part(name, Part.SEARCH), anchors[is_own], centre).max(1).values]
    folds = torch.arange(len(points)) % FOLDS
    for fold in range(FOLDS):
        others, apart = points[folds != fold], points[folds == fold]
        if len(others) and len(apart):
            centres = torch.from_numpy(cluster_centres(others.numpy(), settings.anchors_per_domain, settings.seed))
            found.append(similarities(apart, centres, centre).max(1).values)
    return torch.cat(found)


def false_accept_rate(collection: Collection, anchors: Tensor, owners: Tensor, thresholds: Tensor) -> float | None:
    """Each domain in turn stands for prompts of an unknown kind; None where there is no other domain."""
    if len(collection.domains) == 1:
        return None
    accepted = []
    for index, name in enumerate(collection.domains):
        others = owners != index
        similarity, anchor = nearest(collection.part(name, Part.SEARCH, Part.HELDOUT), anchors[others])
        accepted.append(similarity >= thresholds[owners[others][anchor]])
    return float(torch.cat(accepted).float().mean())


def cluster_centres(points: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    """k-means centres [k, hidden] of points [n, hidden]; never more centres than a third of the points."""
    distinct = len(np.unique(points, axis=0))
    k = max(1, min(count, len(points) // 3, distinct))
    centres: NDArray[np.float32] = KMeans(k, n_init=4, random_state=seed).fit(points).cluster_centers_
    return centres.astype(np.float32)
