"""Stage 2: prompt vectors -> anchors, the points that the router compares a prompt with.

Each domain gets the centres of a k-means over its anchor prompts; the mean of all anchors is the
centre that the router subtracts. The threshold is read from prompts that placed no anchor.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor

from offline.collect import Collection, Part, read_vectors
from offline.settings import CalibrationSettings
from offline.stage import StageRecord, digest_of, log, reused_or_made
from server.engine import similarities


class Anchors(StageRecord):
    """Anchor rows [anchors, hidden_size] with the index of each one's domain, and how well they route."""

    rows: list[list[float]]
    domains: list[int]
    similarity_threshold: float
    routing_accuracy: float
    """Share of the unused prompts whose nearest anchor is of their own domain, before the threshold."""

    @property
    def tensor(self) -> Tensor:
        return torch.tensor(self.rows)

    @property
    def centre(self) -> Tensor:
        return self.tensor.mean(0)


def place_anchors(collection: Collection, settings: CalibrationSettings, work: Path) -> Anchors:
    digest = digest_of(collection.digest, settings.anchors_per_domain, settings.threshold_quantile, settings.seed)

    def make() -> Anchors:
        vectors = read_vectors(collection, work)
        return make_anchors(collection, vectors, settings, digest)

    return reused_or_made(work / "anchors.json", Anchors, digest, make)


def make_anchors(collection: Collection, vectors: Tensor, settings: CalibrationSettings, digest: str) -> Anchors:
    rows, owners = [], []
    for index, domain in enumerate(collection.domains):
        points = vectors[collection.chosen(domain, Part.ANCHOR)].numpy()
        found = cluster_centres(points, settings.anchors_per_domain, settings.seed)
        rows.append(torch.from_numpy(found))
        owners += [index] * len(found)
    anchors = torch.cat(rows)
    unused = [i for domain in collection.domains for i in collection.chosen(domain, Part.SEARCH, Part.HELDOUT)]
    labels = [collection.domains.index(collection.prompts[i].domain) for i in unused]
    nearest = similarities(vectors[unused], anchors, anchors.mean(0)).max(1)
    threshold = float(nearest.values.quantile(settings.threshold_quantile))
    accuracy = float((torch.tensor(owners)[nearest.indices] == torch.tensor(labels)).float().mean())
    log.info("anchors: %d, threshold %.3f, nearest anchor right for %.1f %%", len(owners), threshold, 100 * accuracy)
    return Anchors(
        digest=digest,
        rows=anchors.tolist(),
        domains=owners,
        similarity_threshold=threshold,
        routing_accuracy=accuracy,
    )


def cluster_centres(points: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    """k-means centres [k, hidden] of points [n, hidden]; never more centres than a third of the points."""
    distinct = len(np.unique(points, axis=0))
    k = max(1, min(count, len(points) // 3, distinct))
    centres: NDArray[np.float32] = KMeans(k, n_init=4, random_state=seed).fit(points).cluster_centers_
    return centres.astype(np.float32)
