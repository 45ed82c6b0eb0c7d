"""Every command line in the cluster's files against the real command lines, ours and Ray's."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from typing import Any

import click
import pytest
from cluster_files import CLUSTER, DEPLOYED, dockerfile, project, the_document

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


def test_the_images_own_command_is_a_command_and_nothing_stands_in_front_of_it():
    [command] = [json.loads(rest) for word, rest in dockerfile() if word == "CMD"]
    assert command[0] in project()["scripts"]
    parse_homoalign(command[1:])
    assert "ENTRYPOINT" not in {word for word, _ in dockerfile()}


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
