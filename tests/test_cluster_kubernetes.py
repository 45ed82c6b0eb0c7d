"""`rayjob.yaml` and `nightly.yaml` against their owners' schemas, which notice what is misspelt or missing."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_files import (
    Document,
    Place,
    documents,
    dotted,
    places,
    the_document,
    with_key_misspelt,
    with_value,
    without,
)
from jsonschema import Draft202012Validator, ValidationError

SCHEMAS = Path(__file__).parent / "cluster_schemas"
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
