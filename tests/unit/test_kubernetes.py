"""The manifests of ``deploy/kubernetes``: as the published schemas want them, and as the daemon is."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml

from deployed import DEPLOY, MANIFESTS, arguments, documents, parse, pod, ran, resources
from node.daemon.nodefile import Address
from node.daemon.process import _GONE_BY_S


@pytest.mark.parametrize(
    "path", [path for path in MANIFESTS if path.stem != "kustomization"], ids=lambda path: path.stem
)
def test_manifests_follow_the_published_schemas(path):
    checker = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for found in documents(path):
        checker.validate(found, checker.latest_version(), strict=True)
        with pytest.raises(checker.ValidationError):
            checker.validate({**found, "sepc": {}}, checker.latest_version(), strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_puts_the_manifests_together():
    command = ["kubectl", "kustomize", str(DEPLOY / "kubernetes")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    made = list(yaml.safe_load_all(ended.stdout))
    assert sorted(found["kind"] for found in made) == sorted(
        ["ConfigMap", "Service", *["PodDisruptionBudget"] * 2, *["StatefulSet"] * 2]
    )
    named = next(found["metadata"]["name"] for found in made if found["kind"] == "ConfigMap")
    assert ended.stdout.count(f"name: {named}\n") == 3  # itself, and where the founder reads both of its keys


def test_the_service_names_pods_before_they_are_ready():
    (service,) = resources("Service")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    assert {port["targetPort"] for port in service["spec"]["ports"]} == {"peers", "admin"}


@pytest.mark.parametrize("found", resources("StatefulSet"), ids=lambda found: found["metadata"]["name"])
class TestStatefulSets:
    def node(self, found):
        return found["spec"]["template"]["spec"]["containers"][0]

    def test_it_belongs_to_the_service_and_to_one_budget(self, found):
        (service,) = resources("Service")
        labels = found["spec"]["template"]["metadata"]["labels"]
        assert found["spec"]["serviceName"] == service["metadata"]["name"]
        assert service["spec"]["selector"].items() <= labels.items()
        assert found["spec"]["selector"]["matchLabels"] == labels
        budgets = [budget["spec"]["selector"]["matchLabels"] for budget in resources("PodDisruptionBudget")]
        assert sum(selector.items() <= labels.items() for selector in budgets) == 1

    def test_probes_and_prometheus_ask_where_the_node_answers(self, found):
        node, variables = self.node(found), {each["name"]: each.get("value") for each in self.node(found)["env"]}
        ports = {port["name"]: port["containerPort"] for port in node["ports"]}
        assert ports["admin"] == Address.parse(variables["STARLING_NODE__ADMIN"]).port
        assert ports["peers"] == Address.parse(variables["STARLING_NODE__LISTEN"]).port
        probes = {name: node[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
        assert {probe["port"] for probe in probes.values()} == {"admin"}
        assert [probes[name]["path"] for name in probes] == ["/healthz", "/healthz", "/readyz"]
        annotations = found["spec"]["template"]["metadata"]["annotations"]
        assert annotations["prometheus.io/port"] == str(ports["admin"])

    def test_it_is_confined_and_keeps_its_keys_to_itself(self, found):
        spec, node = found["spec"]["template"]["spec"], self.node(found)
        assert spec["securityContext"]["runAsUser"] == int(arguments("USER")[0].split(":")[0])
        assert spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
        assert spec["terminationGracePeriodSeconds"] > _GONE_BY_S
        assert not spec["enableServiceLinks"]
        assert node["securityContext"]["readOnlyRootFilesystem"]
        assert node["resources"].keys() == {"requests", "limits"}
        known = {volume["name"] for volume in spec["volumes"]}
        known |= {claim["metadata"]["name"] for claim in found["spec"]["volumeClaimTemplates"]}
        assert {mount["name"] for mount in node["volumeMounts"]} == known

    def test_it_keeps_what_it_has_in_a_volume_of_its_own(self, found):
        params = parse(self.node(found)["args"])
        assert str(params["config"] or params["state"]).startswith("/state/")
        assert found["spec"]["volumeClaimTemplates"][0]["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_the_network_is_founded_for_as_many_nodes_as_there_are_pods():
    (literals,) = [path["literals"] for found in resources("Kustomization") for path in found["configMapGenerator"]]
    assert f"nodes={sum(found['spec']['replicas'] for found in resources('StatefulSet'))}" in literals
    learners = next(f for f in resources("StatefulSet") if f["metadata"]["name"] == "starling-learner")
    assert f"--uses {learners['spec']['replicas']} " in (DEPLOY / "kubernetes/founder.yaml").read_text()


def test_the_founding_pod_founds_once(tmp_path):
    container = pod("starling-founder")["initContainers"][0]
    assert container["command"] == ["/bin/sh", "-euc"]
    environ = {"EXPERIMENT": "digits-gossip", "NODES": "5"}
    status, calls = ran(tmp_path, container["args"][0], **environ)
    assert (status, len(calls), parse(calls[0])["sets"]) == (0, 1, ["nodes=5"])
    assert (tmp_path / "state/network/node.toml").exists()
    assert ran(tmp_path, container["args"][0], **environ) == (0, [])
