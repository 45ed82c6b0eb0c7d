"""Imports point one way: `homoalign` is pure, `jobs` is the shell."""

import subprocess
import sys

import pytest


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


@pytest.fixture(scope="module")
def loaded_by_the_library():
    return loaded_after("import homoalign, homoalign.images")


@pytest.mark.parametrize("module", ["ray", "pyarrow", "fsspec", "jobs", "kornia", "cv2", "skimage", "rich", "click"])
def test_the_library_does_not_import_the_job_shell(loaded_by_the_library, module):
    assert module not in loaded_by_the_library


def test_the_check_above_can_fail():
    assert "fsspec" in loaded_after("import homoalign, fsspec")


def test_a_shard_does_not_import_ray():
    assert "ray" not in loaded_after("import jobs.shard")


def test_help_imports_neither_torch_nor_ray():
    loaded = loaded_after(
        "from click.testing import CliRunner; from jobs.cli import main; "
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0"
    )
    assert {"torch", "ray"}.isdisjoint(loaded)
