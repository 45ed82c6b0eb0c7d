"""Imports point one way: `homoalign` is pure, `jobs` is the shell."""

import subprocess
import sys

import pytest


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


@pytest.fixture(scope="module")
def loaded_by_the_library():
    loaded = loaded_after("import homoalign, homoalign.decoding.images; homoalign.align")
    assert "torch" in loaded
    return loaded


OUTSIDERS = ["ray", "pyarrow", "fsspec", "jobs", "kornia", "cv2", "skimage", "rich", "click", "triton"]


@pytest.mark.parametrize("module", OUTSIDERS)
def test_the_library_does_not_import_the_job_shell(loaded_by_the_library, module):
    assert module not in loaded_by_the_library


def test_the_check_above_can_fail():
    assert "fsspec" in loaded_after("import homoalign, fsspec")


def test_a_shard_does_not_import_ray():
    assert "ray" not in loaded_after("import jobs.worker.shard")


def test_who_only_looks_at_results_or_drives_the_job_does_not_wait_for_torch():
    assert {"torch", "numba"}.isdisjoint(
        loaded_after("import homoalign.status, jobs.run, jobs.reports.evaluate, jobs.reports.report")
    )


def test_the_library_has_what_it_lists():
    import homoalign

    assert {*homoalign.__all__} <= {*dir(homoalign)}
    assert all(getattr(homoalign, name).__module__.startswith("homoalign.") for name in homoalign.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'aline'"):
        homoalign.aline  # noqa: B018


def test_help_imports_neither_torch_nor_ray():
    loaded = loaded_after(
        "from click.testing import CliRunner; from jobs.cli import main; "
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0"
    )
    assert {"torch", "ray"}.isdisjoint(loaded)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_worker_loads_the_library_before_its_rows_are_timed(device):
    prepare = f"from jobs.worker import child; child.prepare_process(1, {device!r})"
    assert "homoalign.aligner" not in loaded_after("from jobs.worker import child")
    assert "homoalign.aligner" in loaded_after(prepare)
