"""Methods with a draft that no router picked: one domain's for every prompt, or a wrong one for each."""

import pytest

from offline.evaluation.evaluate import route_of
from offline.evaluation.measure import Job
from offline.evaluation.methods import Candidate, MethodSettings
from offline.settings import SettingsMistake
from server.engine import RoutingArtifact

JOBS = [Job([1, 2], domain, seed) for seed in range(10) for domain in ("stories", "sql", "unknown")]


def routes(name: str, artifact: RoutingArtifact) -> list[str | None]:
    forced = [route_of(Candidate.of(name), artifact)(job) for job in JOBS]
    return [route.domain if route else None for route in forced]


def test_a_name_may_have_a_domain() -> None:
    assert Candidate.of("knn") == ("knn", None)
    assert Candidate.of("knn@sql") == ("knn", "sql")
    assert Candidate.of("knn@").domain == ""


def test_a_domain_is_forced_on_every_prompt_and_another_is_never_the_prompts_own(
    tiny_artifact: RoutingArtifact,
) -> None:
    assert set(routes("knn", tiny_artifact)) == {None}
    assert set(routes("cascade@sql", tiny_artifact)) == {"sql"}
    wrong = routes("cascade@another", tiny_artifact)
    assert all(domain != job.domain for domain, job in zip(wrong, JOBS, strict=True))
    assert set(wrong) == {"stories", "sql"}


def test_there_is_no_other_domain_where_there_is_one(tiny_artifact: RoutingArtifact) -> None:
    domains = [each for each in tiny_artifact.manifest.domains if each.name == "sql"]
    manifest = tiny_artifact.manifest.model_copy(update={"domains": domains})
    lonely = RoutingArtifact(manifest, tiny_artifact.anchors, tiny_artifact.centre, {})
    with pytest.raises(SettingsMistake, match=r"no domain 'another', only sql$"):
        route_of(Candidate.of("knn@another"), lonely)


def test_a_forced_domain_needs_an_artifact_and_a_method_of_the_engine() -> None:
    assert Candidate.of("suffix@sql").needs_artifact
    assert not Candidate.of("suffix").needs_artifact
    with pytest.raises(ValueError, match="unknown method 'transformers@sql', known are plain"):
        MethodSettings.check_methods(["transformers@sql"])
