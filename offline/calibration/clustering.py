"""Domains of unlabelled prompts: clusters of their prompt vectors, named by their most typical words."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import adjusted_rand_score, silhouette_score

from offline.prompts import RESERVED_DOMAINS
from offline.records import Strict

MAX_CLUSTERS = 10
MIN_CLUSTER_SIZE = 6
MIN_SILHOUETTE = 0.1
MIN_STABILITY = 0.8
RESAMPLES = 8
RESAMPLED_SHARE = 0.8
ONE_DOMAIN = "general"

Vectors = NDArray[np.float32]
Labels = NDArray[np.int_]


class Clustering(Strict):
    """A domain for each prompt; how far clusters lie apart, and how alike they are found in samples of the prompts.

    Both are None where there is one cluster only: `silhouette` by cosine, `stability` as the mean
    adjusted Rand index between the clusters and those of resampled prompts.
    """

    names: list[str]
    silhouette: float | None = None
    stability: float | None = None


def find_domains(vectors: Vectors, texts: Sequence[str], seed: int) -> Clustering:
    """Clusters of `vectors` [n, hidden]; one domain where nothing separates them.

    Of the numbers of clusters that resampling confirms, the one of the highest silhouette.
    """
    centred = vectors - vectors.mean(0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    most = min(MAX_CLUSTERS, len(vectors) // MIN_CLUSTER_SIZE, len(np.unique(centred, axis=0)))
    candidates = [KMeans(count, n_init=5, random_state=seed).fit_predict(centred) for count in range(2, most + 1)]
    scored = [(float(silhouette_score(centred, labels, metric="cosine")), labels) for labels in candidates]
    for silhouette, labels in sorted(scored, key=lambda pair: -pair[0]):
        if silhouette < MIN_SILHOUETTE:
            break
        if np.bincount(labels).min() >= 3 and (agreement := stability(centred, labels, seed)) >= MIN_STABILITY:
            names = name_clusters(labels, texts)
            return Clustering(names=[names[i] for i in labels], silhouette=silhouette, stability=agreement)
    return Clustering(names=[ONE_DOMAIN] * len(vectors))


def stability(points: Vectors, labels: Labels, seed: int) -> float:
    """Mean adjusted Rand index of `labels` [n] against clusters of random parts of `points` [n, hidden]."""
    chance, count = np.random.default_rng(seed), int(labels.max()) + 1
    indices = []
    for number in range(RESAMPLES):
        part = chance.choice(len(points), round(RESAMPLED_SHARE * len(points)), replace=False)
        found = KMeans(count, n_init=2, random_state=seed + number).fit_predict(points[part])
        indices.append(adjusted_rand_score(labels[part], found))
    return float(np.mean(indices))


def name_clusters(labels: Labels, texts: Sequence[str]) -> list[str]:
    """A distinct ASCII name per cluster: its two words of highest class-based TF-IDF.

    A word's weight is its share of the cluster's words times log(1 + words per cluster / its count in
    all of them), as in BERTopic (arXiv 2203.05794).
    """
    count = int(labels.max()) + 1
    documents = [" ".join(text for text, label in zip(texts, labels, strict=True) if label == i) for i in range(count)]
    try:
        vectoriser = CountVectorizer(token_pattern=r"[^\W\d_]{3,}", stop_words="english")
        counts = vectoriser.fit_transform(map(ascii_text, documents)).toarray()
    except ValueError:  # no cluster has a word of three letters
        return [f"domain-{i + 1}" for i in range(count)]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    weights = shares * np.log1p(counts.sum() / count / counts.sum(0))
    words = vectoriser.get_feature_names_out()
    names: list[str] = []
    for i, row in enumerate(weights):
        top = [str(words[j]) for j in np.argsort(-row, kind="stable")[:2] if row[j] > 0]
        name = "-".join(top)[:60] or f"domain-{i + 1}"
        names.append(f"{name}-{i + 1}" if name in names or name in RESERVED_DOMAINS else name)
    return names


def ascii_text(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z]+", " ", plain).lower()
