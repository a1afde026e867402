"""Domains of unlabelled prompts: clusters of their prompt vectors, named by their most typical words."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import silhouette_score

from offline.prompts import RESERVED_DOMAINS

MAX_CLUSTERS = 10
MIN_CLUSTER_SIZE = 6
MIN_SILHOUETTE = 0.1
ONE_DOMAIN = "general"


def find_domains(vectors: NDArray[np.float32], texts: Sequence[str], seed: int) -> list[str]:
    """A domain name for each of `vectors` [n, hidden]; one domain where nothing separates them.

    The number of clusters is the one of the highest cosine silhouette over the centred vectors.
    """
    centred = vectors - vectors.mean(0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    best_score, best = MIN_SILHOUETTE, np.zeros(len(vectors), dtype=int)
    for count in range(2, min(MAX_CLUSTERS, len(vectors) // MIN_CLUSTER_SIZE, len(np.unique(centred, axis=0))) + 1):
        labels = KMeans(count, n_init=5, random_state=seed).fit_predict(centred)
        score = silhouette_score(centred, labels, metric="cosine")
        if score > best_score and np.bincount(labels).min() >= 3:
            best_score, best = score, labels
    names = name_clusters(best, texts)
    return [names[label] for label in best]


def name_clusters(labels: NDArray[np.int_], texts: Sequence[str]) -> list[str]:
    """A distinct ASCII name per cluster: its two words of highest TF-IDF weight against the other clusters."""
    count = int(labels.max()) + 1
    if count == 1:
        return [ONE_DOMAIN]
    documents = [" ".join(text for text, label in zip(texts, labels, strict=True) if label == i) for i in range(count)]
    try:
        vectoriser = TfidfVectorizer(token_pattern=r"[^\W\d_]{3,}", stop_words="english", sublinear_tf=True)
        weights = vectoriser.fit_transform(map(ascii_text, documents)).toarray()
    except ValueError:  # no cluster has a word of three letters
        return [f"domain-{i + 1}" for i in range(count)]
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
