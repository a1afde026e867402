"""The names of what is measured: methods, one domain's draft for every prompt, trees."""

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


def test_a_name_may_have_a_domain_and_the_size_of_a_tree() -> None:
    assert Candidate.of("knn") == ("knn", 0, None)
    assert Candidate.of("knn@sql") == ("knn", 0, "sql")
    assert Candidate.of("knn@").domain == ""
    assert Candidate.of("recycling:8") == ("recycling", 8, None)
    assert Candidate.of("early-exit:16@a:b@c") == ("early-exit", 16, "a:b@c")


@pytest.mark.parametrize("name", ["", ":8", "@sql", "recycling:", "recycling:x", "recycling:100"])
def test_other_names_are_of_no_method(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown method {name!r}, known are plain"):
        Candidate.of(name)


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
    with pytest.raises(ValueError, match="'recycling:32': a tree has at most 31 tokens"):
        Candidate.of("recycling:32")
    with pytest.raises(ValueError, match="unknown method 'transformers@sql', known are plain"):
        MethodSettings.check_methods(["transformers@sql"])
