"""What the wheel holds, and what its code imports."""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULE_OF = {"pillow": "PIL", "kornia-rs": "kornia_rs", "opencv-python-headless": "cv2", "scikit-image": "skimage"}
WITH_EXTRA = {
    "skimage": "demo",
    "scipy": "demo",
    "aiohttp": "http",
    "triton": "gpu",
}


def distribution_names(requirements):
    return {requirement.split(">")[0].split("[")[0].strip() for requirement in requirements}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


PARTS = (
    "homoalign/py.typed",
    "homoalign/aligner.py",
    "homoalign/trust/confidence.json",
    "jobs/py.typed",
    "jobs/run.py",
    "jobs/reports/templates/report.html.j2",
)


@pytest.mark.parametrize("name", PARTS)
def test_the_wheel_holds_both_packages_whole(wheel, name):
    assert name in wheel.namelist()


def test_the_wheel_holds_nothing_else_and_has_the_console_script(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"homoalign", "jobs", f"homoalign-{PROJECT['version']}.dist-info"}
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "homoalign = jobs.cli:main" in wheel.read(entry_points).decode()


def imported_modules():
    for path in [*ROOT.glob("homoalign/**/*.py"), *ROOT.glob("jobs/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            yield from ((path.relative_to(ROOT), name.split(".")[0]) for name in names)


def test_every_import_is_a_declared_dependency():
    own = {"homoalign", "jobs"}
    core = {MODULE_OF.get(name, name) for name in distribution_names(PROJECT["dependencies"])}
    undeclared = {
        (str(path), name)
        for path, name in imported_modules()
        if name not in core | own | set(sys.stdlib_module_names) | set(WITH_EXTRA)
    }
    assert undeclared == set()


@pytest.mark.parametrize(("module", "extra"), WITH_EXTRA.items())
def test_an_extra_brings_what_is_imported_under_it(module, extra):
    brought = distribution_names(PROJECT["optional-dependencies"][extra])
    assert module in {MODULE_OF.get(name, name) for name in brought}


def test_the_version_is_one():
    import homoalign

    assert homoalign.__version__ == PROJECT["version"]


@pytest.mark.xdist_group("groups")
def test_groups_of_tests_share_a_worker(request):
    """Or tests that want Ray, or the interpreter, to themselves run beside each other."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("not under pytest-xdist")
    assert request.node.nodeid.endswith("@groups")
