"""Which device the job takes, by what Ray and torch find; and what a caller's settings on it change."""

import pytest
import torch

from homoalign import aligner
from jobs import cluster
from jobs.cluster import RayWorkers
from jobs.errors import UsageError


@pytest.fixture
def workers(monkeypatch):
    def join(device, *, num_gpus=None, gpus=1, is_local=True, torch_finds=True):
        monkeypatch.setattr(cluster, "_connect", lambda _: is_local)
        monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": float(gpus)})
        monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_finds)
        return RayWorkers("local", device=device, num_cpus=1, num_gpus=num_gpus, max_workers=1)

    return join


@pytest.mark.parametrize(
    ("found", "device"),
    [
        ({}, "cuda"),
        ({"gpus": 0}, "cpu"),
        ({"num_gpus": 0}, "cpu"),  # asked for none
        ({"torch_finds": False}, "cpu"),  # built without CUDA
        ({"torch_finds": False, "is_local": False}, "cuda"),  # the nodes' torch is not this one
        ({"gpus": 0, "is_local": False}, "cpu"),
    ],
)
def test_auto_takes_a_gpu_that_tasks_can_use(workers, found, device):
    joined = workers("auto", **found)
    assert joined.device == device
    assert joined.num_gpus == (1 if device == "cuda" else 0)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"num_gpus": 0}, "--device cuda with --num-gpus 0"),
        ({"num_gpus": 0, "is_local": False}, "--device cuda with --num-gpus 0"),
        ({"torch_finds": False}, "torch finds no CUDA device here"),
        ({"gpus": 0}, "this machine has 0"),
    ],
)
def test_a_gpu_that_tasks_could_not_use_is_wrong_usage(workers, found, message):
    with pytest.raises(UsageError, match=message):
        workers("cuda", **found)


def test_products_on_a_gpu_keep_their_digits_whatever_the_caller_chose():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with aligner._whole_products(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "high"
        with aligner._whole_products(torch.device("cuda")):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
