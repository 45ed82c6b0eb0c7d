"""What the image is built from; one version of Ray and of the project in every file, and no secret."""

from __future__ import annotations

import fnmatch
import re
import shlex
import tomllib

import pytest
from cluster_files import CLUSTER, DEPLOYED, ROOT, dockerfile, pod_templates, project, the_document
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet


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
