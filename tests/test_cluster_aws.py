"""`aws.yaml` against Ray's schema, Ray's own code and EC2's call, which notice what is misspelt or missing."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from cluster_files import Document, dotted, places, the_document, with_key_misspelt, with_value, without
from jsonschema import Draft202012Validator, ValidationError


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
