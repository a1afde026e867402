"""The default model's artifact with masks that skip something: what the shipped ones do is a matter of calibration."""

from server.engine import DEFAULT_ARTIFACT, DomainRecord, RoutingArtifact, SkipMask

MASKS = [SkipMask(frozenset({i, 20}), frozenset({i + 4, 21})) for i in range(5, 15)]


def skipping_artifact() -> RoutingArtifact:
    shipped = RoutingArtifact.load(DEFAULT_ARTIFACT)
    masks = iter(MASKS)

    def skipping(record: DomainRecord) -> DomainRecord:
        others = {"patch": None, "vocabulary_size": None, "max_draft": 12, "confidence": 0.0, "floor": 0.0}
        changes = {"mask": next(masks), **others}
        return record.model_copy(update={"draft": record.draft.model_copy(update=changes), "history_size": None})

    domains = [skipping(domain) for domain in shipped.manifest.domains]
    mixed = skipping(shipped.manifest.mixed)
    manifest = shipped.manifest.model_copy(update={"domains": domains, "mixed": mixed})
    return RoutingArtifact(manifest, shipped.anchors, shipped.centre, {})
