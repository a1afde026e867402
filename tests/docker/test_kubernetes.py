"""Manifests for Kubernetes: what its API and KubeRay's operator accept, and that they say what the server needs."""

from typing import Any

import pytest
import yaml

from tests.docker.files import DOCKER, PROMETHEUS, read_yaml

KUBERNETES = DOCKER / "kubernetes"
VERSION = "1.34"


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


def pods() -> list[dict[str, Any]]:
    """The pods that the operator makes of the RayService: head and workers."""
    cluster = manifests("rayservice.yml")[0]["spec"]["rayClusterConfig"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def applications() -> list[dict[str, Any]]:
    config: dict[str, Any] = yaml.safe_load(manifests("rayservice.yml")[0]["spec"]["serveConfigV2"])
    return list(config["applications"])


def test_kubernetes_knows_every_field() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    for manifest in manifests("deployment.yml"):
        validator.validate(manifest, VERSION, strict=True)
    for pod in pods():
        described = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
        validator.validate(described, VERSION, strict=True)


def test_serve_knows_every_field() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="needs the extra ray")
    schema.ServeDeploySchema.model_validate(read_yaml(DOCKER / "serve.yml"))


def test_both_serve_the_same_application() -> None:
    assert applications() == read_yaml(DOCKER / "serve.yml")["applications"]


def test_a_replica_fits_its_pod() -> None:
    replica = applications()[0]["deployments"][0]
    cpus = pods()[1]["containers"][0]["resources"]["limits"]["cpu"]
    assert replica["ray_actor_options"]["num_cpus"] == int(cpus)


def test_pods_may_drain_and_have_their_keys_from_a_secret() -> None:
    secret, deployment, *_ = manifests("deployment.yml")
    pod = deployment["spec"]["template"]["spec"]
    variables = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
    assert float(variables["KNNSSD_DRAIN_SECONDS"]) < pod["terminationGracePeriodSeconds"]
    for spec in (pod, *pods()):
        assert {"name": "keys", "secret": {"secretName": secret["metadata"]["name"]}} in spec["volumes"]


def test_replicas_are_instances_for_the_same_dashboards() -> None:
    one, all_of_them = (read_yaml(PROMETHEUS / name) for name in ("prometheus.yml", "cluster.yml"))
    relabelled = all_of_them["scrape_configs"][0].pop("metric_relabel_configs")
    assert relabelled == [{"source_labels": ["replica"], "regex": "(.+)", "target_label": "instance"}]
    assert one == all_of_them
