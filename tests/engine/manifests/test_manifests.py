"""What the files in `cluster/` say, against Kubernetes' own models, Ray's schema, constraints.txt, and a list of what must never be."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stlab.version import __version__

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
KUBERAY = sorted((CLUSTER / "kuberay").glob("*.yaml"))
COMPOSE = CLUSTER / "compose" / "compose.yaml"
EVERY_YAML = sorted(CLUSTER.rglob("*.yaml"))
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
STLAB = __version__

# Of KubeRay's `ray.io/v1` (https://ray-project.github.io/kuberay/reference/api/, 1.7): the fields, and those that are required.
RAY_FIELDS = {
    "RayJobSpec": ({}, {"activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus",
        "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "rayClusterSpec", "runtimeEnvYAML",
        "shutdownAfterJobFinishes", "submissionMode", "submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"}),
    "RayClusterSpec": ({"headGroupSpec"}, {"authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions",
        "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "workerGroupSpecs"}),
    "HeadGroupSpec": ({"template"}, {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType"}),
    "WorkerGroupSpec": ({"groupName", "maxReplicas", "minReplicas", "template"}, {"idleTimeoutSeconds", "labels", "numOfHosts",
        "rayStartParams", "replicas", "resources", "scaleStrategy", "suspend"}),
    "AutoscalerOptions": ({}, {"env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources", "securityContext",
        "upscalingMode", "version", "volumeMounts"}),
    "AuthOptions": ({}, {"enableK8sTokenAuth", "mode", "secretName"}),
}  # fmt: skip


def documents() -> list[tuple[str, dict[str, Any]]]:
    return [(path.name, document) for path in KUBERAY for document in yaml.safe_load_all(path.read_text())]


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    return [document for _, document in documents() if document["kind"] in kinds]


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf and mapping below ``value``, with its path."""
    yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from walk(inner, f"{path}[{index}]")


def assert_fields(value: dict[str, Any], name: str) -> None:
    required, optional = RAY_FIELDS[name]
    assert value.keys() >= set(required), f"{name} lacks {set(required) - value.keys()}"
    assert value.keys() <= set(required) | optional, f"{name} knows no {value.keys() - set(required) - optional}"


def ray_specs() -> list[dict[str, Any]]:
    return [d["spec"] if d["kind"] == "RayCluster" else d["spec"]["rayClusterSpec"] for d in of_kind("RayCluster", "RayJob")]


def pod_templates() -> list[dict[str, Any]]:
    """Of everything that starts pods."""
    inner = [d["spec"]["template"] for d in of_kind("Deployment", "StatefulSet", "Job")]
    for spec in ray_specs():
        inner += [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    return inner


def images() -> list[str]:
    found = [value for path in EVERY_YAML for one in yaml.safe_load_all(path.read_text()) for where, value in walk(one)
             if where.endswith(".image")]  # fmt: skip
    return found + built_from((CLUSTER / "Dockerfile").read_text())


def built_from(dockerfile: str) -> list[str]:
    """The images that a Dockerfile starts from or copies from, but for its own stages."""
    stages = set(re.findall(r"^FROM .* AS (\S+)", dockerfile, re.M | re.I))
    found = re.findall(r"^FROM\s+(?:--\S+\s+)*(\S+)|^COPY .*--from=(\S+)", dockerfile, re.M | re.I)
    return [image for pair in found for image in pair if image and image not in stages]


def installs(dockerfile: str) -> list[str]:
    """Every single command of a Dockerfile that has pip install or build something."""
    lines = "\n".join(line for line in dockerfile.splitlines() if not line.startswith("#")).replace("\\\n", " ").splitlines()
    commands = [command for line in lines for command in re.split(r"&&|\|\||[;|]", line)]
    return [command for command in commands if re.search(r"\bpip[\d.]*\b.*\b(install|wheel|download)\b", command)]


def is_pinned(image: str) -> bool:
    return re.fullmatch(r"[a-z0-9./-]+:\d+\.\d+[\w.-]*", image) is not None


def takes_the_constraints(install: str) -> bool:
    return "-c constraints.txt" in install or "--no-deps" in install


def test_kubernetes_own_models_take_every_object() -> None:
    client = pytest.importorskip("kubernetes.client")
    kinds = {"Service": client.V1Service, "Deployment": client.V1Deployment, "StatefulSet": client.V1StatefulSet, "Job": client.V1Job,
             "NetworkPolicy": client.V1NetworkPolicy}  # fmt: skip
    for _, document in documents():
        if document["kind"] in kinds:
            kinds[document["kind"]].model_validate(document)
    for template in pod_templates():
        client.V1PodTemplateSpec.model_validate(template)
    for spec in ray_specs():
        client.V1ResourceRequirements.model_validate(spec["autoscalerOptions"]["resources"])
        client.V1SecurityContext.model_validate(spec["autoscalerOptions"]["securityContext"])
    for wrong in ({"name": "a", "imagee": "b"}, {"image": "b"}):  # the models see what is misspelt and what is missing
        with pytest.raises(ValueError, match=r"imagee|name"):
            client.V1PodTemplateSpec.model_validate({"spec": {"containers": [wrong]}})


def test_kuberay_knows_every_field_and_gets_those_it_requires() -> None:
    for document in of_kind("RayJob", "RayCluster"):
        assert document["apiVersion"] == "ray.io/v1"
        assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"])
        if document["kind"] == "RayJob":
            assert_fields(document["spec"], "RayJobSpec")
            assert document["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode")
    for spec in ray_specs():
        assert_fields(spec, "RayClusterSpec")
        assert_fields(spec["headGroupSpec"], "HeadGroupSpec")
        assert_fields(spec["autoscalerOptions"], "AutoscalerOptions")
        assert_fields(spec["authOptions"], "AuthOptions")
        for group in spec["workerGroupSpecs"]:
            assert_fields(group, "WorkerGroupSpec")
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
            # Autoscaler v2 refuses any other restart policy; the grace time has to hold what preStop waits for.
            pod = group["template"]["spec"]
            assert pod.get("restartPolicy", "Never") == "Never"
            assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["/bin/bash", "-c", "stlab-drain 90; ray stop"]
            assert pod["terminationGracePeriodSeconds"] > 90
            assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_job_and_the_cluster_start_alike() -> None:
    """They are two files of plain YAML with the same nodes; whoever changes one changes the other."""
    first, second = ray_specs()
    assert first == second


def test_rays_own_schema_takes_the_cloud() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    ray = importlib.util.find_spec("ray")  # importing it takes seconds
    assert ray is not None
    assert ray.origin is not None
    cloud = yaml.safe_load((CLUSTER / "ray-up" / "aws.yaml").read_text())
    schema = json.loads((Path(ray.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cloud, schema)
    assert cloud["head_node_type"] in cloud["available_node_types"]
    nodes = [kind["node_config"] for kind in cloud["available_node_types"].values()]
    # Without groups of one's own Ray makes one that opens ssh to 0.0.0.0/0 (autoscaler/_private/aws/config.py).
    assert all(node["SecurityGroupIds"] and node["IamInstanceProfile"] for node in nodes)
    assert all(node["MetadataOptions"]["HttpTokens"] == "required" for node in nodes)


def test_versions_are_those_of_the_constraints() -> None:
    tags = {tuple(image.rsplit("/", 1)[-1].split(":")) for image in images()}
    of = {name: {tag for other, tag in tags if other == name} for name, _ in tags}
    assert of["stlab"] == {STLAB}
    assert of["stlab-mlflow"] == {PINNED["mlflow"]}
    assert [tag.rsplit(".", 1)[0] for tag in of["python"]] == [PROJECT["tool"]["mypy"]["python_version"]]
    assert all(len(found) == 1 for found in of.values())  # the same everywhere
    assert {spec["rayVersion"] for spec in ray_specs()} == {PINNED["ray"]}
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert len(installs(dockerfile)) == dockerfile.count("pip install") + dockerfile.count("pip wheel") >= 4
    assert [install for install in installs(dockerfile) if not takes_the_constraints(install)] == []
    assert f"stlab:{STLAB}" in dockerfile
    assert f"stlab-mlflow:{PINNED['mlflow']}" in dockerfile
    assert {"boto3", "psycopg2-binary"} <= PINNED.keys()  # what the tracking server is installed with
    for readme in CLUSTER.rglob("*.md"):
        named = re.findall(r"stlab(-mlflow)?:([0-9][0-9.]*)", readme.read_text())
        assert all(version == (PINNED["mlflow"] if mlflow else STLAB) for mlflow, version in named), readme


def test_every_image_is_pinned() -> None:
    assert [image for image in images() if not is_pinned(image)] == []
    assert len(built_from((CLUSTER / "Dockerfile").read_text())) == 1  # the stages of one file start from one image


@pytest.mark.parametrize("line", ["FROM python AS base", "FROM --platform=linux/amd64 python:3", "COPY --from=nginx /a /a", "from ${BASE}"])
def test_an_image_that_is_not_pinned_is_seen(line: str) -> None:
    assert [is_pinned(image) for image in built_from(f"FROM python:3.11.14 AS first\n{line}\nFROM first AS second\n")] == [True, False]


@pytest.mark.parametrize("command", ["pip install torch", "python -m pip --quiet install torch", "pip3 wheel torch"])
@pytest.mark.parametrize("between", [" && ", "; ", " \\\n    && ", " || ", "\nRUN "])
def test_an_install_that_is_not_pinned_is_seen(command: str, between: str) -> None:
    for both in (f"pip install -c constraints.txt ray{between}{command}", f"{command}{between}pip install -c constraints.txt ray"):
        assert sorted(takes_the_constraints(install) for install in installs(f"# pip install this\nRUN {both}\n")) == [False, True]


def test_token_authentication_is_on_everywhere() -> None:
    for spec in ray_specs():
        assert spec["authOptions"] == {"mode": "token", "secretName": "stlab-ray-token"}
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for name in ("head", "worker"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert services[name]["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
    cloud = yaml.safe_load((CLUSTER / "ray-up" / "aws.yaml").read_text())
    starts = [c for c in cloud["head_start_ray_commands"] + cloud["worker_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all(command.startswith("RAY_AUTH_MODE=token ray start") for command in starts)
    assert "~/.ray/auth_token" in cloud["file_mounts"]
    assert "export RAY_AUTH_MODE=token" in (CLUSTER / "slurm" / "study.sbatch").read_text()
    assert re.search(r"^ENV RAY_AUTH_MODE=token", (CLUSTER / "Dockerfile").read_text(), re.M)


def test_nothing_is_open_to_the_world() -> None:
    for service in of_kind("Service"):
        assert service["spec"]["type"] == "ClusterIP"
    for spec in ray_specs():
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not of_kind("Ingress", "Gateway", "HTTPRoute")
    for template in pod_templates():
        forbidden = {"hostNetwork", "hostPort", "hostPath", "privileged"}
        assert not [where for where, _ in walk(template) if where.rsplit(".", 1)[-1] in forbidden]
    for service in yaml.safe_load(COMPOSE.read_text())["services"].values():
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service.get("ports", []))
        assert service.get("network_mode") != "host"
        assert not service.get("privileged")
    cloud = (CLUSTER / "ray-up" / "aws.yaml").read_text()
    assert "--dashboard-host=127.0.0.1" in cloud
    assert "0.0.0.0" not in cloud + (CLUSTER / "slurm" / "study.sbatch").read_text()


def test_every_pod_is_reached_by_those_who_need_it_alone() -> None:
    closed, *others = (policy["spec"] for policy in of_kind("NetworkPolicy"))
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress"]}
    open_to = {p["podSelector"]["matchLabels"]["app.kubernetes.io/component"]: p["ingress"] for p in others}
    served = {s["spec"]["selector"]["app.kubernetes.io/component"]: s["spec"]["ports"][0]["port"] for s in of_kind("Service")}
    labels = {t["metadata"]["labels"]["app.kubernetes.io/component"] for t in pod_templates()}
    assert open_to.keys() <= labels
    assert served.keys() <= open_to.keys()
    for component, port in served.items():
        assert [rule["ports"] for rule in open_to[component]] == [[{"protocol": "TCP", "port": port}]]
        assert all(rule["from"] for rule in open_to[component])


def test_pods_run_as_an_ordinary_user() -> None:
    for template in pod_templates():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert container["resources"]["requests"]
    stages = re.split(r"^FROM ", (CLUSTER / "Dockerfile").read_text(), flags=re.M)[1:]
    for stage in stages:
        if " AS stlab" in stage or " AS mlflow" in stage:
            assert re.findall(r"^USER (\S+)", stage, re.M)[-1] == "1000"


def secrets_written_out(document: Any) -> list[str]:
    """Where a secret has a value: under its name, as Kubernetes' pair of name and value, or as NAME=value in a list or a command."""
    found = []
    for where, value in walk(document):
        if isinstance(value, dict):
            pairs = [*value.items(), (value.get("name"), value.get("value"))]
        elif isinstance(value, str):
            pairs = re.findall(r"(\w+)=(\S*)", value)
        else:
            continue
        for name, given in pairs:
            if re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY", str(name)) and not is_taken_from_elsewhere(given):
                found.append(f"{where}: {name}")
    return found


def is_taken_from_elsewhere(value: Any) -> bool:
    """Whether a value is none, or is filled in by compose, Kubernetes or a shell."""
    return isinstance(value, (dict, list)) or str("" if value is None else value).lstrip("\"'")[:1] in ("", "$") or str(value)[:2] == "<("


@pytest.mark.parametrize(
    "written",
    [
        '{"environment": {"AWS_SECRET_ACCESS_KEY": "%s"}}',
        '{"environment": ["AWS_SECRET_ACCESS_KEY=%s"]}',
        '{"env": [{"name": "AWS_SECRET_ACCESS_KEY", "value": "%s"}]}',
        '{"run_options": ["--env RAY_AUTH_TOKEN=%s"]}',
        '{"command": ["bash", "-c", "RAY_AUTH_TOKEN=\'%s\' ray start"]}',
    ],
)
def test_a_secret_that_is_written_out_is_seen(written: str) -> None:
    assert len(secrets_written_out(json.loads(written % "abc"))) == 1
    assert len(secrets_written_out(json.loads(written.replace('"%s"', "%s") % 1234))) == 1
    assert secrets_written_out(json.loads(written % "${ELSEWHERE}")) == []


def test_no_secret_is_in_any_file() -> None:
    assert not of_kind("Secret")
    for path in EVERY_YAML:
        for document in yaml.safe_load_all(path.read_text()):
            assert secrets_written_out(document) == [], path
    example = (CLUSTER / "compose" / ".env.example").read_text()
    assert all(line.startswith("#") or line.endswith("=") for line in example.splitlines())
    for path in (p for p in CLUSTER.rglob("*") if p.is_file()):
        text = path.read_text()
        assert secrets_written_out(text) == [], path
        assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|\b[0-9a-f]{32,}\b|hf_[A-Za-z0-9]{20}|://[^/\s:@]+:[^$\s@]+@", text), path


def test_secrets_that_are_named_are_those_that_the_readme_makes() -> None:
    named = {value["name"] for _, d in documents() for where, value in walk(d) if where.endswith(("secretRef", "secretKeyRef"))}
    named |= {spec["authOptions"]["secretName"] for spec in ray_specs()}
    made = re.findall(r"kubectl create secret generic (\S+)", (CLUSTER / "kuberay" / "README.md").read_text())
    assert named == set(made)


def test_the_line_in_the_readme_writes_an_env_file_with_all_that_compose_reads(tmp_path: Path) -> None:
    folder = CLUSTER / "compose"
    line = next(line for line in (folder / "README.md").read_text().splitlines() if "> .env" in line)
    assert line.strip() in (folder / ".env.example").read_text()
    subprocess.run(["bash", "-euc", line], cwd=tmp_path, check=True)
    written = dict(row.split("=") for row in (tmp_path / ".env").read_text().splitlines())
    assert written.keys() == set(re.findall(r"\$\{(\w+):\?", COMPOSE.read_text()))
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    assert len({*written.values()}) == len(written)
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in written.values())
    ignored = subprocess.run(["git", "check-ignore", "-q", "cluster/compose/.env"], cwd=ROOT, check=False)
    assert ignored.returncode == 0


def test_the_buckets_are_made_and_made_again(s3_server: Any) -> None:
    """The few lines that both files run, against a real server, twice: a restart finds its buckets there."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    job = next(d for d in of_kind("Job") if d["metadata"]["name"] == "buckets")
    code = services["bucket"]["command"][2]
    assert job["spec"]["template"]["spec"]["containers"][0]["command"][2] == code
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env=s3_server.environment, check=True)
    made = set(re.findall("<Name>([^<]*)</Name>", s3_server.request("GET", "").decode()))
    assert made >= {"stlab", "mlflow"}


def test_mlflow_answers_to_the_names_it_is_called_by() -> None:
    """It refuses requests with another `Host` than it was told of (403), so the name in the studies' tracking URI has to be among them."""
    compose = yaml.safe_load(COMPOSE.read_text())["services"]["mlflow"]["command"]
    kubernetes = next(d for d in of_kind("Deployment") if d["metadata"]["name"] == "mlflow")
    arguments = " ".join(kubernetes["spec"]["template"]["spec"]["containers"][0]["args"])
    (used,) = {uri for path in CLUSTER.rglob("*.[my][da]*") for uri in re.findall(r"--tracking-uri http://(mlflow:\d+)", path.read_text())}
    for command in (compose, arguments):
        allowed = re.search(r"--allowed-hosts[ =](\S+)", command)
        assert allowed is not None
        assert {used, "127.0.0.1:5000", "localhost:5000"} == set(allowed[1].split(","))


def test_composes_own_schema_takes_both_files() -> None:
    files = [str(COMPOSE), str(COMPOSE.parent / "compose.gpu.yaml")]
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *files]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_compose_starts_things_in_an_order_that_exists() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for name, service in services.items():
        assert "image" in service
        for other in service.get("depends_on", {}):
            assert other in services, f"{name} waits for {other}"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith(("$", ".")) or source in yaml.safe_load(COMPOSE.read_text())["volumes"]
        build = service.get("build")
        if build:
            assert (COMPOSE.parent / build["context"] / build["dockerfile"]).is_file()
            assert f" AS {build['target']}\n" in (CLUSTER / "Dockerfile").read_text()
    gpu = yaml.safe_load((COMPOSE.parent / "compose.gpu.yaml").read_text())["services"]
    assert gpu.keys() <= services.keys()


def test_the_image_is_built_from_what_the_context_lets_through() -> None:
    lets = {line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [source for line in re.findall(r"^COPY (?!--from)(.*)$", (CLUSTER / "Dockerfile").read_text(), re.M)
              for source in line.split()[:-1] if not source.startswith("--")]  # fmt: skip
    assert set(copied) == lets
    assert all((ROOT / name).exists() for name in lets)
