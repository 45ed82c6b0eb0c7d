"""The files of `cluster/` as documents, and copies of them with one thing wrong."""

from __future__ import annotations

import copy
import functools
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
DEPLOYED = ["Dockerfile", "README.md", "aws.yaml", "nightly.yaml", "rayjob.yaml"]
Document = dict[str, Any]
Place = tuple[str | int, ...]


@functools.cache
def documents(name: str) -> list[Document]:
    """Return the documents of a YAML file; shared between callers, so not to be changed."""
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def the_document(name: str) -> Document:
    """Return the document of a YAML file that has one."""
    [document] = documents(name)
    return document


def places(node: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield every key and list entry below `node` with what stands there."""
    entries: Any = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        yield (*place, key), value
        yield from places(value, (*place, key))


def at(document: Any, place: Place) -> Any:
    """Return what stands at a place."""
    return functools.reduce(lambda node, key: node[key], place, document)


def with_key_misspelt(document: Document, place: Place) -> Document:
    """Return a copy with the last key of a place misspelt."""
    mutant = copy.deepcopy(document)
    parent = at(mutant, place[:-1])
    parent[f"{place[-1]}x"] = parent.pop(place[-1])
    return mutant


def with_value(document: Document, place: Place, value: object) -> Document:
    """Return a copy with another value at a place."""
    mutant = copy.deepcopy(document)
    at(mutant, place[:-1])[place[-1]] = value
    return mutant


def without(document: Document, place: Place) -> Document:
    """Return a copy that lacks a place."""
    mutant = copy.deepcopy(document)
    del at(mutant, place[:-1])[place[-1]]
    return mutant


def dotted(place: Place) -> str:
    """Return a place as one writes it."""
    return ".".join(map(str, place))


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


def project() -> Document:
    """Return the table `project` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]  # type: ignore[no-any-return]


def dockerfile() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions as (WORD, rest), comments dropped and continued lines joined."""
    lines = [line for line in (CLUSTER / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]
