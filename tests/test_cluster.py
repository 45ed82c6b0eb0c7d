"""What deploys the job: every file of `cluster/` against its owner's schema and against the real command lines."""

from __future__ import annotations

import copy
import fnmatch
import functools
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
SCHEMAS = Path(__file__).parent / "cluster_schemas"
DEPLOYED = ["Dockerfile", "README.md", "aws.yaml", "nightly.yaml", "rayjob.yaml"]

Document = dict[str, Any]
Place = tuple[str | int, ...]


# Reading and mutating documents


@functools.cache
def documents(name: str) -> list[Document]:
    """Return the documents of a YAML file; shared between callers, so not to be changed."""
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def the_document(name: str) -> Document:
    [document] = documents(name)
    return document


def places(node: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield every key and list entry below `node` with what stands there."""
    entries: Any = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        yield (*place, key), value
        yield from places(value, (*place, key))


def at(document: Any, place: Place) -> Any:
    return functools.reduce(lambda node, key: node[key], place, document)


def with_key_misspelt(document: Document, place: Place) -> Document:
    mutant = copy.deepcopy(document)
    parent = at(mutant, place[:-1])
    parent[f"{place[-1]}x"] = parent.pop(place[-1])
    return mutant


def with_value(document: Document, place: Place, value: object) -> Document:
    mutant = copy.deepcopy(document)
    at(mutant, place[:-1])[place[-1]] = value
    return mutant


def without(document: Document, place: Place) -> Document:
    mutant = copy.deepcopy(document)
    del at(mutant, place[:-1])[place[-1]]
    return mutant


def dotted(place: Place) -> str:
    return ".".join(map(str, place))


# Kubernetes: rayjob.yaml and nightly.yaml

FREE_FORM = {"labels", "annotations", "nodeSelector", "limits", "requests", "rayStartParams"}
"""Maps whose keys are the user's: a schema cannot know them."""


@functools.cache
def validator(name: str) -> Draft202012Validator:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def kubernetes_places() -> list[tuple[str, int, Place]]:
    return [
        (name, index, place)
        for name in ("rayjob", "nightly")
        for index, document in enumerate(documents(f"{name}.yaml"))
        for place, _ in places(document)
    ]


@pytest.mark.parametrize("name", ["rayjob", "nightly"])
def test_kubernetes_files_fit_their_schema(name):
    found = documents(f"{name}.yaml")
    assert found
    for document in found:
        validator(name).validate(document)


@pytest.mark.parametrize("name", ["rayjob", "nightly"])
def test_no_object_in_the_pruned_schemas_is_open(name):
    def objects(node: Any) -> Iterator[Document]:
        if isinstance(node, dict):
            if node.get("type") == "object":
                yield node
            for value in node.values():
                yield from objects(value)
        elif isinstance(node, list):
            for value in node:
                yield from objects(value)

    found = list(objects(validator(name).schema))
    assert len(found) > 20
    assert [node for node in found if "additionalProperties" not in node] == []


def test_a_key_misspelt_anywhere_in_the_kubernetes_files_fails():
    keys = [
        (name, index, place)
        for name, index, place in kubernetes_places()
        if isinstance(place[-1], str) and (len(place) == 1 or place[-2] not in FREE_FORM)
    ]
    assert len(keys) > 200
    unnoticed = [
        f"{name}: {dotted(place)}"
        for name, index, place in keys
        if validator(name).is_valid(with_key_misspelt(documents(f"{name}.yaml")[index], place))
    ]
    assert unnoticed == []


def test_a_value_of_the_wrong_type_anywhere_in_the_kubernetes_files_fails():
    found = kubernetes_places()
    assert len(found) > 300
    unnoticed = [
        f"{name}: {dotted(place)}"
        for name, index, place in found
        if validator(name).is_valid(with_value(documents(f"{name}.yaml")[index], place, 1.5))
    ]
    assert unnoticed == []


@pytest.mark.parametrize(
    "place",
    [
        "apiVersion", "kind", "metadata", "spec", "spec.entrypoint", "spec.rayClusterSpec",
        "spec.submitterPodTemplate.spec.containers",
        "spec.rayClusterSpec.headGroupSpec", "spec.rayClusterSpec.headGroupSpec.template",
        "spec.rayClusterSpec.headGroupSpec.template.spec.containers",
        "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.name",
        "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.ports.0.containerPort",
        "spec.rayClusterSpec.workerGroupSpecs.0.groupName", "spec.rayClusterSpec.workerGroupSpecs.1.maxReplicas",
        "spec.rayClusterSpec.workerGroupSpecs.1.minReplicas", "spec.rayClusterSpec.workerGroupSpecs.1.template",
        "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.volumes.0.name",
        "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.volumeMounts.0.mountPath",
    ],
)  # fmt: skip
def test_a_rayjob_without_a_required_field_fails(place):
    rayjob = the_document("rayjob.yaml")
    keys = tuple(int(key) if key.isdigit() else key for key in place.split("."))
    with pytest.raises(ValidationError, match="is a required property"):
        validator("rayjob").validate(without(rayjob, keys))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "submissionMode"), "K8SJobMode"),
        (("spec", "backoffLimit"), "2"),
        (("spec", "activeDeadlineSeconds"), 0),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "none"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "rayVersion"), 2.6),
    ],
)
def test_a_rayjob_with_a_value_that_kuberay_refuses_fails(place, value):
    with pytest.raises(ValidationError):
        validator("rayjob").validate(with_value(the_document("rayjob.yaml"), place, value))


def pod_templates() -> dict[str, Document]:
    """Every pod that the Kubernetes files make, by name."""
    spec = the_document("rayjob.yaml")["spec"]
    cluster = spec["rayClusterSpec"]
    cron_job = documents("nightly.yaml")[-1]
    return {
        "submitter": spec["submitterPodTemplate"],
        "head": cluster["headGroupSpec"]["template"],
        **{group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]},
        "nightly": cron_job["spec"]["jobTemplate"]["spec"]["template"],
    }


PODS = ["submitter", "head", "cpu", "gpu", "nightly"]


def test_the_list_of_pods_is_whole():
    assert list(pod_templates()) == PODS


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_asks_for_what_it_may_use_and_may_gain_no_privileges(pod):
    spec = pod_templates()[pod]["spec"]
    assert spec["restartPolicy"] == "Never"
    assert spec["securityContext"]["runAsNonRoot"] is True
    for container in spec["containers"]:
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_mounts_only_volumes_it_has(pod):
    spec = pod_templates()[pod]["spec"]
    mounted = {mount["name"] for container in spec["containers"] for mount in container.get("volumeMounts", [])}
    assert mounted == {volume["name"] for volume in spec.get("volumes", [])}


def test_the_shared_memory_of_every_ray_pod_holds_its_object_store():
    cluster = the_document("rayjob.yaml")["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        [volume] = group["template"]["spec"]["volumes"]
        gib = re.fullmatch(r"(\d+)Gi", volume["emptyDir"]["sizeLimit"])
        assert gib, volume
        assert volume["emptyDir"]["medium"] == "Memory"
        assert int(group["rayStartParams"]["object-store-memory"]) < int(gib[1]) * 2**30


def test_no_task_runs_on_the_head():
    assert the_document("rayjob.yaml")["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    aws = the_document("aws.yaml")
    assert aws["available_node_types"][aws["head_node_type"]]["resources"] == {"CPU": 0}


def test_only_the_head_carries_a_kubernetes_token():
    carried = {
        pod: template["spec"].get("automountServiceAccountToken", True) for pod, template in pod_templates().items()
    }
    assert carried == {"submitter": False, "head": True, "cpu": False, "gpu": False, "nightly": True}


def test_only_the_gpu_group_asks_for_gpus_and_both_groups_start_from_nothing():
    groups = the_document("rayjob.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    gpus = {
        group["groupName"]: group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        for group in groups
    }
    assert gpus == {"cpu": None, "gpu": "1"}
    assert [group["minReplicas"] for group in groups] == [0, 0]
    assert all(group["maxReplicas"] > 0 for group in groups)


def test_ray_asks_for_its_token_and_the_dashboard_is_not_put_outside():
    cluster = the_document("rayjob.yaml")["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["enableIngress"] is False
    aws = the_document("aws.yaml")
    assert "-e RAY_AUTH_MODE=token" in aws["docker"]["run_options"]
    assert "--dashboard-host=127.0.0.1" in " ".join(aws["head_start_ray_commands"])


def test_the_driver_is_given_the_30_s_in_which_it_hands_back():
    head = pod_templates()["head"]["spec"]
    [wait] = [entry["value"] for entry in head["containers"][0]["env"] if entry["name"] == "RAY_JOB_STOP_WAIT_TIME_S"]
    assert 30 < int(wait) < head["terminationGracePeriodSeconds"]
    assert f"-e RAY_JOB_STOP_WAIT_TIME_S={wait}" in the_document("aws.yaml")["docker"]["run_options"]
    # The name is Ray's, read on the head by the process that runs the driver.
    supervisor = importlib.util.find_spec("ray.dashboard.modules.job.job_supervisor")
    assert supervisor is not None
    assert supervisor.origin is not None
    assert '"RAY_JOB_STOP_WAIT_TIME_S"' in Path(supervisor.origin).read_text()


def test_nights_do_not_overlap_and_the_nightly_pod_may_do_what_its_script_does():
    account, role, binding, cron_job = documents("nightly.yaml")
    spec = cron_job["spec"]
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert the_document("rayjob.yaml")["spec"]["activeDeadlineSeconds"] < 24 * 3600
    # `create` of a fixed name would fail on the second night.
    assert "name" not in the_document("rayjob.yaml")["metadata"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"]}]
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    [script] = pod["containers"][0]["args"]
    assert set(re.findall(r"kubectl (\w+)", script)) == set(role["rules"][0]["verbs"])


# AWS: aws.yaml


def check_aws(config: Document) -> None:
    """Check a `ray up` file as far as that goes without AWS: Ray's schema, Ray's own code, EC2's call.

    Raises:
        ValidationError, ValueError, AssertionError: where the file is wrong.
    """
    from ray.autoscaler import _private
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema_file = Path(_private.__file__).parent.parent / "ray-schema.json"
    schema = json.loads(schema_file.read_text())
    Draft202012Validator(schema).validate(config)
    validate_config(prepare_config(copy.deepcopy(config)))
    # Ray's schema lets anything pass as a provider's key, a resource or a node_config.
    provider = schema["properties"]["provider"]["properties"].keys()
    assert config["provider"].keys() <= provider, config["provider"].keys() - provider
    for name, node_type in config["available_node_types"].items():
        assert node_type["resources"].keys() <= {"CPU", "GPU"}, name
        check_run_instances(name, node_type["node_config"])


@functools.cache
def run_instances() -> Any:
    """EC2's RunInstances as botocore describes it; None where botocore (extra `s3`) is not installed."""
    try:
        from botocore.session import get_session
    except ImportError:
        return None
    return get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def check_run_instances(name: str, node_config: Document) -> None:
    """Check a node_config against the parameters of the call that Ray makes with it."""
    shape = run_instances()
    if shape is None:
        return
    from botocore.validate import ParamValidator

    report = ParamValidator().validate({**node_config, "MinCount": 1, "MaxCount": 1}, shape)
    if report.has_errors():
        raise ValueError(f"{name}: {report.generate_report()}")
    market = node_config.get("InstanceMarketOptions", {}).get("MarketType", "spot")
    if market not in shape.members["InstanceMarketOptions"].members["MarketType"].enum:
        raise ValueError(f"{name}: MarketType={market}")


needs_botocore = pytest.mark.skipif(
    importlib.util.find_spec("botocore") is None, reason="what EC2 takes is described by botocore (extra s3)"
)


def is_refused(config: Document) -> bool:
    try:
        check_aws(config)
    except (ValidationError, ValueError, AssertionError):
        return True
    return False


def test_the_aws_file_fits_ray_and_ec2():
    check_aws(the_document("aws.yaml"))


@needs_botocore
def test_a_key_misspelt_anywhere_in_the_aws_file_fails():
    config = the_document("aws.yaml")
    users_own = {("file_mounts", path) for path in config["file_mounts"]}
    workers = {
        ("available_node_types", name) for name in config["available_node_types"] if name != config["head_node_type"]
    }
    # The names of the worker types are ours to choose.
    keys = [place for place, _ in places(config) if isinstance(place[-1], str) and place not in users_own | workers]
    assert len(keys) > 60
    assert [dotted(place) for place in keys if not is_refused(with_key_misspelt(config, place))] == []


@pytest.mark.parametrize(
    "place",
    [
        "cluster_name", "provider", "provider.type", "head_node_type", "docker.container_name",
        "available_node_types.gpu_spot.node_config", "available_node_types.cpu_spot.resources",
    ],
)  # fmt: skip
def test_an_aws_file_without_a_required_field_fails(place):
    assert is_refused(without(the_document("aws.yaml"), tuple(place.split("."))))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("max_workers", "48"),
        ("max_workers", -1),
        ("provider.cache_stopped_nodes", "no"),
        ("docker.run_options", "--gpus all"),
        ("available_node_types.head.resources.CPU", 0.5),
        ("available_node_types.gpu_spot.max_workers", "16"),
        ("head_node_type", "heads"),
        ("setup_commands", "pip install ray"),
        pytest.param("available_node_types.head.node_config.ImageId", 5, marks=needs_botocore),
        pytest.param(
            "available_node_types.cpu_spot.node_config.InstanceMarketOptions.MarketType", "spott", marks=needs_botocore
        ),
    ],
)
def test_an_aws_file_with_a_wrong_value_fails(place, value):
    assert is_refused(with_value(the_document("aws.yaml"), tuple(place.split(".")), value))


def test_aws_workers_are_spot_and_the_head_is_not():
    types = the_document("aws.yaml")["available_node_types"]
    market = {name: node_type["node_config"].get("InstanceMarketOptions") for name, node_type in types.items()}
    assert market == {"head": None, "cpu_spot": {"MarketType": "spot"}, "gpu_spot": {"MarketType": "spot"}}
    assert types["gpu_spot"]["resources"]["GPU"] == 1


def test_the_aws_limits_add_up():
    config = the_document("aws.yaml")
    workers = [node_type.get("max_workers", 0) for node_type in config["available_node_types"].values()]
    assert config["max_workers"] == sum(workers)


# No secrets, no drifting versions


@pytest.mark.parametrize("name", [*DEPLOYED, "Dockerfile.dockerignore"])
def test_no_credentials_stand_in_a_file(name):
    assert secrets_in((CLUSTER / name).read_text()) == []


def secrets_in(text: str) -> list[str]:
    pattern = r"AKIA\w+|(?i:aws_secret|aws_access_key|aws_session_token|api_?key|password\s*[:=]|PRIVATE KEY-)"
    return re.findall(pattern, text)


@pytest.mark.parametrize("line", ["AWS_SECRET_ACCESS_KEY: abc", "key: AKIAIOSFODNN7EXAMPLE", "password: hunter2"])
def test_the_search_for_credentials_finds_them(line):
    assert secrets_in(line)


def test_the_list_of_deployed_files_is_whole():
    assert sorted(path.name for path in CLUSTER.iterdir()) == sorted([*DEPLOYED, "Dockerfile.dockerignore"])


def ray_in_constraints() -> str:
    [pinned] = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(pinned)


def project() -> Document:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]  # type: ignore[no-any-return]


def test_one_ray_version_everywhere_and_it_is_allowed_by_the_project():
    version = ray_in_constraints()
    [requirement] = [Requirement(entry) for entry in project()["dependencies"] if Requirement(entry).name == "ray"]
    assert version in requirement.specifier
    assert version in SpecifierSet(">=2.54")  # CVE-2025-62593, CVE-2026-27482
    assert dockerfile_arguments()["RAY_VERSION"] == version
    assert the_document("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == version
    # Clients outside the image (`pip install 'ray[default]==...'`) must speak the cluster's version.
    written = [
        pin for name in DEPLOYED for pin in re.findall(r"ray\[default\]==([\d.]+)", (CLUSTER / name).read_text())
    ]
    assert set(written) == {version}


IMAGE = re.compile(r"registry\.example\.com/homoalign:(\S+?)-ray([\d.]+)-(cpu|gpu)\b")


@pytest.mark.parametrize("name", ["Dockerfile", "README.md", "aws.yaml", "rayjob.yaml"])
def test_every_image_tag_names_this_version_of_the_project_and_of_ray(name):
    text = (CLUSTER / name).read_text()
    tags = IMAGE.findall(text)
    assert len(tags) == text.count("registry.example.com")
    assert {(homoalign, ray) for homoalign, ray, _ in tags} == {(project()["version"], ray_in_constraints())}
    assert {platform for *_, platform in tags} == {"cpu", "gpu"}


def test_every_pod_runs_the_image_of_its_platform():
    images = {pod: template["spec"]["containers"][0]["image"] for pod, template in pod_templates().items()}
    platforms = {pod: image.rsplit("-", 1)[-1] for pod, image in images.items() if pod != "nightly"}
    assert platforms == {"submitter": "cpu", "head": "cpu", "cpu": "cpu", "gpu": "gpu"}
    aws = the_document("aws.yaml")
    assert aws["docker"]["head_image"].endswith("-cpu")
    assert aws["docker"]["worker_image"].endswith("-cpu")
    assert aws["available_node_types"]["gpu_spot"]["docker"]["worker_image"].endswith("-gpu")


# Dockerfile


def dockerfile() -> list[tuple[str, str]]:
    """Return the instructions as (WORD, rest), comments dropped and continued lines joined."""
    lines = [line for line in (CLUSTER / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def dockerfile_arguments() -> dict[str, str]:
    return dict(rest.split("=", 1) for word, rest in dockerfile() if word == "ARG" and "=" in rest)


def copied() -> list[str]:
    return [
        source
        for word, rest in dockerfile()
        if word == "COPY"
        for source in [part for part in shlex.split(rest) if not part.startswith("--")][:-1]
    ]


def test_the_dockerfile_has_only_instructions_that_docker_knows():
    known = {"ARG", "CMD", "COPY", "ENV", "FROM", "RUN", "USER", "WORKDIR"}
    assert {word for word, _ in dockerfile()} == known


def test_everything_the_image_copies_exists_and_is_sent_to_the_builder():
    rules = (CLUSTER / "Dockerfile.dockerignore").read_text().split("\n")
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert copied()
    assert [source for source in copied() if not (ROOT / source).exists()] == []
    assert set(copied()) == allowed
    # Everything else is kept back, .git and data among it.
    assert "*" in rules
    assert not any(fnmatch.fnmatch(".git", pattern) for pattern in allowed)


def test_the_image_gets_what_the_package_is_built_from():
    metadata = project()
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    needed = {"pyproject.toml", metadata["readme"], *metadata["license-files"], *packages, "constraints.txt"}
    assert set(copied()) == needed


def test_both_platforms_have_a_base_of_the_right_python():
    bases = [rest for word, rest in dockerfile() if word == "FROM"]
    assert bases == [
        "rayproject/ray:${RAY_VERSION}-py311-cpu AS base-cpu",
        "rayproject/ray:${RAY_VERSION}-py311-gpu AS base-gpu",
        "base-${PLATFORM}",
    ]
    assert "3.11" in SpecifierSet(project()["requires-python"])
    assert dockerfile_arguments()["PLATFORM"] == "cpu"


def test_every_install_in_the_image_is_constrained_and_takes_the_s3_extra():
    installs = [rest for word, rest in dockerfile() if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in rest for rest in installs)
    assert "'.[s3]'" in installs[-1]
    assert "s3" in project()["optional-dependencies"]


def test_the_image_runs_as_a_user_whom_kubernetes_can_tell_from_root():
    users = [rest for word, rest in dockerfile() if word == "USER"]
    assert users
    assert all(user.isdigit() and int(user) > 0 for user in users)
    pods = {pod: template["spec"]["securityContext"]["runAsUser"] for pod, template in pod_templates().items()}
    assert {uid for pod, uid in pods.items() if pod != "nightly"} == {int(users[-1])}


def test_the_images_own_command_is_a_command_and_nothing_stands_in_front_of_it():
    [command] = [json.loads(rest) for word, rest in dockerfile() if word == "CMD"]
    assert command[0] in project()["scripts"]
    parse_homoalign(command[1:])
    assert "ENTRYPOINT" not in {word for word, _ in dockerfile()}


# Command lines

OURS = re.compile(
    r"(?:^|[ \t`])(?:(?P<module>python -m jobs\.align_manifest)|homoalign)[ \t]+(?P<rest>[a-z-].*)", re.MULTILINE
)
RAYS = re.compile(r"(?:^|; )ray (?P<rest>[a-z-]+.*)", re.MULTILINE)


def logical_text(name: str) -> str:
    """Return the file's text with comment signs and indents dropped and continued lines joined."""
    lines = [
        re.sub(r"^\s*(?:#(?!!)\s?)?\s*(?:- (?!-))?", "", line) for line in (CLUSTER / name).read_text().splitlines()
    ]
    return re.sub(r"\\\n", " ", "\n".join(lines))


def words(command: str) -> list[str]:
    """Split a command line where a shell ends it: at a comment, an operator, or the closing backtick of prose."""
    return shlex.split(re.split(r"`|\s#|[|;&<>]", command)[0])


def our_command_lines() -> list[tuple[str, list[str]]]:
    entrypoint = the_document("rayjob.yaml")["spec"]["entrypoint"]
    found = [("rayjob.yaml", match) for match in OURS.finditer(entrypoint)]
    found += [(name, match) for name in DEPLOYED for match in OURS.finditer(logical_text(name))]
    return [(name, [*(["run"] if match["module"] else []), *words(match["rest"])]) for name, match in found]


def ray_command_lines() -> list[tuple[str, list[str]]]:
    aws = the_document("aws.yaml")
    started = [("aws.yaml", line) for line in aws["head_start_ray_commands"] + aws["worker_start_ray_commands"]]
    texts = started + [(name, logical_text(name)) for name in ("README.md", "aws.yaml")]
    return [(name, words(match["rest"])) for name, text in texts for match in RAYS.finditer(text)]


def parse(group: click.Group, arguments: list[str]) -> None:
    """Parse a command line as far as its last command, running nothing.

    Raises:
        click.UsageError: an unknown command or option, a missing or superfluous argument, a value out of range.
    """
    parent = click.Context(group, info_name=group.name)
    command: click.Command = group
    name, rest = "", arguments
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name, rest = rest[0], rest[1:]
        found = command.get_command(parent, name)
        if found is None:
            raise click.UsageError(f"no such command: {name}")
        command = found
        if isinstance(command, click.Group):
            parent = click.Context(command, info_name=name, parent=parent)
    try:
        command.make_context(name, list(rest), parent=parent, resilient_parsing=False)
    except click.exceptions.Exit as end:  # --help and --version print and leave
        assert end.exit_code == 0  # noqa: PT017  the code is the point


def parse_homoalign(arguments: list[str]) -> None:
    from jobs.cli import main

    parse(main, arguments)


def parse_ray(arguments: list[str]) -> None:
    from ray.scripts.scripts import cli

    parse(cli, arguments)


def labelled(lines: list[tuple[str, list[str]]]) -> list[Any]:
    return [
        pytest.param(arguments, id=f"{name}-{index}-{arguments[0]}") for index, (name, arguments) in enumerate(lines)
    ]


@pytest.mark.parametrize("arguments", labelled(our_command_lines()))
def test_every_homoalign_command_line_in_the_cluster_files_parses(arguments):
    parse_homoalign(arguments)


@pytest.mark.parametrize("arguments", labelled(ray_command_lines()))
def test_every_ray_command_line_in_the_cluster_files_parses(arguments):
    parse_ray(arguments)


def test_no_command_line_is_overlooked():
    ours = our_command_lines()
    per_file = {name: sum(found == name for found, _ in ours) for name in DEPLOYED}
    # As counted by hand; the entrypoint of rayjob.yaml counts as YAML and as text, beside the `plan` of its comment.
    assert per_file == {"Dockerfile": 1, "README.md": 5, "aws.yaml": 2, "nightly.yaml": 0, "rayjob.yaml": 3}
    assert [arguments[0] for name, arguments in ours if name == "aws.yaml"] == ["run", "status"]
    assert sorted(arguments[0] for _, arguments in ray_command_lines()) == [
        "dashboard", "down", "get-auth-token", "job",
        "start", "start", "start", "start", "stop", "stop", "stop", "stop",
        "up",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "s3://b/in/", "s3://b/out/", "--num-gpu-fraction", "0.25"], "num-gpu-fraction"),
        (["run", "s3://b/in/", "s3://b/out/", "--num-gpus", "a quarter"], "num-gpus"),
        (["run", "s3://b/in/", "s3://b/out/", "--device", "tpu"], "tpu"),
        (["run", "s3://b/in/"], "OUT"),
        (["run", "s3://b/in/", "s3://b/out/", "s3://b/more/"], "unexpected extra argument"),
        (["rum", "s3://b/in/", "s3://b/out/"], "rum"),
    ],
)
def test_a_wrong_homoalign_command_line_does_not_parse(arguments, complaint):
    with pytest.raises(click.UsageError) as refusal:
        parse_homoalign(arguments)
    assert complaint in str(refusal.value.format_message())


@pytest.mark.parametrize("arguments", [["up"], ["upp", "x.yaml"], ["job", "submit", "--no-weight", "--", "python"]])
def test_a_wrong_ray_command_line_does_not_parse(arguments):
    with pytest.raises(click.UsageError):
        parse_ray(arguments)


def test_the_module_of_the_entrypoint_exists():
    assert importlib.util.find_spec("jobs.align_manifest") is not None


def test_every_run_that_something_may_retry_outwaits_a_dead_lock():
    runs = [
        arguments
        for _, arguments in our_command_lines()
        if arguments[0] == "run" and "s3://my-bucket/pairs/" in arguments
    ]
    whole = [arguments for arguments in runs if "--progress" in arguments]
    assert len(whole) == 3  # rayjob.yaml's entrypoint, aws.yaml, README.md's nightly line
    for arguments in whole:
        assert int(arguments[arguments.index("--wait-lock") + 1]) > 60


def option(arguments: list[str], name: str) -> float:
    return float(arguments[arguments.index(name) + 1])


def test_the_tasks_asked_for_fit_the_workers_exactly():
    rayjob = the_document("rayjob.yaml")["spec"]
    [gpu_group] = [group for group in rayjob["rayClusterSpec"]["workerGroupSpecs"] if group["groupName"] == "gpu"]
    limits = gpu_group["template"]["spec"]["containers"][0]["resources"]["limits"]
    on_kubernetes = words(rayjob["entrypoint"])
    tasks = float(limits["nvidia.com/gpu"]) / option(on_kubernetes, "--num-gpus")
    assert tasks * option(on_kubernetes, "--num-cpus") <= float(limits["cpu"])
    assert option(on_kubernetes, "--max-workers") == tasks * gpu_group["maxReplicas"]

    gpu_type = the_document("aws.yaml")["available_node_types"]["gpu_spot"]
    [on_aws] = [arguments for name, arguments in our_command_lines() if name == "aws.yaml" and arguments[0] == "run"]
    tasks = gpu_type["resources"]["GPU"] / option(on_aws, "--num-gpus")
    assert tasks * option(on_aws, "--num-cpus") <= gpu_type["resources"]["CPU"]
    assert option(on_aws, "--max-workers") == tasks * gpu_type["max_workers"]
