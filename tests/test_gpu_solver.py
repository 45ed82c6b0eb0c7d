"""The solver for GPUs does what the one for the processor does: its numbers by Triton's interpreter, its code by the
compiler, both without a device; all of it together where there is one.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from homoalign import gpu, kernels
from homoalign.config import AlignConfig
from homoalign.differences.refinement import spline_level
from homoalign.homography import corner_errors, motion_of_step, normalise, pixels_from_centred
from homoalign.kernels.solver import solve_direct
from homoalign.levels.pyramid import Level
from homoalign.optimisation import schedule
from homoalign.optimisation.residual import Alignment, build_problem
from homoalign.optimisation.schedule import REFINED_SLACK, Run
from homoalign.optimisation.solver import REASONS, Slack, damped_step
from homoalign.status import StopReason
from jobs.rendering.synthetic import load_scene, render_pair

ROOT = Path(__file__).parents[1]
SIZE = (40, 48)
SETTINGS = {"max_iterations": 12, "step_tol_px": 1e-3, "loss_width": 2.385, "slack": Slack()}

pytestmark = pytest.mark.xdist_group("triton")  # whose interpreter is asked once for all tests


def moved_pair(photograph, parameters, size=SIZE):
    """A pair whose motion is made of the first parameters of the basis alone: (1, 1, H, W) each."""
    step = torch.zeros(1, 8, dtype=torch.float64)
    step[0, :parameters] = torch.tensor([0.02, -0.015, 0.01, 0.008, 0.01, -0.01, 0.01, 0.02])[:parameters]
    to_pixels = pixels_from_centred(*size)
    dst_homo_src = normalise(to_pixels @ motion_of_step(step)[0] @ torch.linalg.inv(to_pixels))
    pair = render_pair(load_scene(photograph, gray=True), dst_homo_src.numpy(), size, rng=np.random.default_rng(7))
    return tuple(torch.from_numpy(image)[None, None].float() for image in (pair.src, pair.dst))


def two_pairs():
    return (torch.cat(images) for images in zip(moved_pair("camera", 8), moved_pair("coins", 8), strict=True))


def problem_of(src, dst, *, mask=None, fit_photometric=True, max_points=10**6):
    levels = Level(src, None), Level(dst, mask)
    return build_problem(*levels, level=0, max_points=max_points, fit_photometric=fit_photometric)


def near_identity(batch):
    """Not at it: pixels would lie on the border of what is read, on either side of it by rounding alone."""
    one = torch.ones(batch, dtype=torch.float64)
    dst_homo_src = torch.eye(3, dtype=torch.float64).repeat(batch, 1, 1)
    dst_homo_src[:, :2, 2] = torch.tensor([0.13, -0.21])
    return Alignment(dst_homo_src, one, 0 * one)


def run_of(problem, start=None, **settings):
    batch = len(problem.scale_floor)
    settings = SETTINGS | {"min_seen": torch.full((batch,), 20.0, dtype=torch.float64)} | settings
    return problem, start or near_identity(batch), settings


def masked_run():
    src, dst = moved_pair("coins", 8)
    mask = torch.ones(1, 1, *SIZE)
    mask[..., 8:24, 12:30] = 0
    dst = torch.where(mask > 0, dst, 0.3)
    return run_of(problem_of(src, dst, mask=mask), max_iterations=3)


def refined_run():
    """As the last run of a level: from nearby, on a spline, with the grid of points shared by all pairs."""
    problem = problem_of(*two_pairs())
    *_, settings = run_of(problem, step_tol_px=0.05)
    start = solve_direct(problem, near_identity(2), **settings).state
    template = dataclasses.replace(problem.template, u=problem.template.u[:1].clone().expand(2, -1, -1))
    dst = spline_level(problem.dst)
    problem = dataclasses.replace(problem, dst=dst, interpolation="spline", template=template)
    return run_of(problem, start, slack=REFINED_SLACK, clean_loss_width=5.0)


def unrelated_run(seed, **settings):
    """Two images that have nothing to do with each other: steps are thrown away, and extrapolated."""
    src, dst = torch.rand(2, 1, 1, *SIZE, generator=torch.Generator().manual_seed(seed))
    return run_of(problem_of(src, dst), **settings)


def noisy_run():
    """The cost rises over short steps, and they are taken."""
    src, dst = moved_pair("page", 8)
    noise = 0.05 * torch.randn(2, *src.shape, generator=torch.Generator().manual_seed(13))
    return run_of(problem_of(src + noise[0], dst + noise[1]), slack=REFINED_SLACK)


def lost_run():
    """Far off dst, no matrix at all, one that sends a corner of src behind the horizon."""
    src, dst = (image.repeat(3, 1, 1, 1) for image in moved_pair("camera", 2))
    start = near_identity(3)
    start.dst_homo_src[0, 0, 2] = 1e4
    start.dst_homo_src[1] = torch.nan
    start.dst_homo_src[2, 2, 0] = -0.03
    return run_of(problem_of(src, dst), start)


def large_run():
    """More points than the robust scale looks at, of a photograph and of one whose light differs."""
    src, dst = moved_pair("page", 6, (130, 150))
    return run_of(problem_of(src.repeat(2, 1, 1, 1), torch.cat([dst, 0.8 * dst**1.3])), max_iterations=2)


RUNS = {
    "a translation": lambda: run_of(problem_of(*moved_pair("camera", 2)).restrict(1, 2)),
    "a similarity on every third point": lambda: run_of(problem_of(*moved_pair("page", 4)).restrict(3, 4)),
    "an affine motion in one light": lambda: run_of(
        problem_of(*moved_pair("coins", 6), fit_photometric=False).restrict(1, 6), max_iterations=4
    ),
    "chosen points": lambda: run_of(problem_of(*two_pairs(), max_points=500), max_iterations=3),
    "under a mask": masked_run,
    "refined": refined_run,
    "unrelated": lambda: unrelated_run(1, max_iterations=6, clean_loss_width=5.0),
    "an extrapolation thrown away": lambda: unrelated_run(12, max_iterations=7),
    "noise": noisy_run,
    "lost": lost_run,
    "nothing to go by": lambda: run_of(problem_of(*(torch.full((1, 1, *SIZE), 0.5),) * 2), max_iterations=20),
    "no steps": lambda: run_of(problem_of(*moved_pair("camera", 2)), max_iterations=0),
    "large": large_run,
}


def residuals(count, unseen):
    """The last of them are not seen."""
    found = torch.randn(count, generator=torch.Generator().manual_seed(count))
    found[count - unseen :] = torch.inf
    return found


SCALES = {
    "even": (residuals(100, 40), 1, 128),
    "odd": (residuals(99, 0), 1, 128),
    "every third": (residuals(301, 30), 3, 128),
    "one": (torch.tensor([torch.inf, -0.25]), 1, 2),
    "none": (torch.full((5,), torch.inf), 1, 8),
    "some NaN": (torch.tensor([torch.nan, 3.0, -1.0, 2.0, torch.nan]), 1, 8),
    "most NaN": (torch.tensor([torch.nan, 3.0, -torch.nan, torch.nan]), 1, 4),
    "zeros": (torch.tensor([0.0, -0.0, 0.0, 1.0]), 1, 4),
}


def systems():
    """Ten equations: in good shape, of unlike sizes, with a row of zeros, not positive definite, with a NaN."""
    generator = torch.Generator().manual_seed(3)
    J, Jtr = torch.randn(10, 40, generator=generator).double(), torch.randn(10, generator=generator).double()
    good = J @ J.mT
    size = 10.0 ** torch.arange(-5, 5).double()
    found = [good, good * size * size[:, None], good.clone(), good.clone(), good.clone()]
    found[2][4], found[2][:, 4] = 0, 0
    found[3][6, 7] = found[3][7, 6] = 1e3
    found[4][9, 9] = torch.nan
    return found, Jtr


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """What the kernels say, by name: (solutions, scales, tail share, damped steps, agreements)."""
    pytest.importorskip("triton", reason="Triton is not installed")
    calls = [("solution", make()) for make in RUNS.values()]
    calls += [("scales", arguments) for arguments in SCALES.values()]
    calls += [("tail_share", (residuals(150, 30), 1.0))]
    matrices, Jtr = systems()
    calls += [("damped", (matrix, Jtr, 1e-3)) for matrix in matrices]
    calls += [("agreement", ("as it is",)), ("agreement", ("stays",)), ("agreement", ("is refused",))]
    folder = tmp_path_factory.mktemp("interpreted")
    torch.save(calls, folder / "calls.pt")
    command = [sys.executable, ROOT / "tests/interpreted.py", folder / "calls.pt", folder / "results.pt"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, timeout=280)
    results = iter(torch.load(folder / "results.pt", weights_only=False))
    solutions = {name: next(results) for name in RUNS}
    of_scales, of_tail, *rest = {name: next(results) for name in SCALES}, *results
    return solutions, of_scales, of_tail, rest[:-3], rest[-3:]


@pytest.mark.parametrize("name", RUNS)
def test_the_gpu_takes_the_steps_of_the_cpu(interpreted, name):
    problem, start, settings = RUNS[name]()
    ours, expected = interpreted[0][name], solve_direct(problem, start, **settings)
    assert ours.num_iterations.dtype == expected.num_iterations.dtype
    assert ours.num_iterations.tolist() == expected.num_iterations.tolist()
    assert ours.stop.tolist() == expected.stop.tolist()
    if name == "lost":
        assert torch.equal(ours.state.dst_homo_src.nan_to_num(7), start.dst_homo_src.nan_to_num(7))
        return
    # Sums in float32, in another order; noise makes the most of it.
    off = corner_errors(ours.state.dst_homo_src, expected.state.dst_homo_src, *problem.src_size)
    assert off.max() < 1e-3
    torch.testing.assert_close(ours.state.gain, expected.state.gain, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.state.bias, expected.state.bias, atol=1e-4, rtol=0)


def test_runs_end_in_every_way(interpreted):
    ends = {REASONS[reason] for solution in interpreted[0].values() for reason in solution.stop.tolist()}
    assert ends == {
        StopReason.CONVERGED, StopReason.MAX_ITERATIONS, StopReason.NO_DESCENT, StopReason.OVERLAP_LOST
    }  # fmt: skip


@pytest.mark.parametrize("name", SCALES)
def test_the_robust_scale_is_that_of_the_cpu(interpreted, name):
    residual, stride, _ = SCALES[name]
    part = residual[::stride][None].contiguous()
    expected = kernels.SCALE_OF_MEDIAN * kernels.magnitude_quantile(part, (~part.isinf()).float(), 8192, part=2)
    assert interpreted[1][name] == expected.nan_to_num(0.0).item()


def test_the_tail_is_what_lies_beyond(interpreted):
    seen = residuals(150, 30)[~residuals(150, 30).isinf()].abs()
    assert interpreted[2] == (seen > 1).double().mean().item()


def test_damped_steps_are_those_of_torch(interpreted):
    matrices, Jtr = systems()
    expected, solved = damped_step(
        torch.stack(matrices), Jtr.expand(len(matrices), -1), torch.full((len(matrices),), 1e-3, dtype=torch.float64)
    )
    assert [is_solved for _, is_solved in interpreted[3]] == solved.tolist() == [True, True, False, False, False]
    for (step, _), other in zip(interpreted[3], expected, strict=True):
        torch.testing.assert_close(step, other, rtol=1e-9, atol=1e-300)


def test_a_device_is_trusted_once_it_solves_as_torch_does(interpreted):
    as_it_is, stays, is_refused = interpreted[4]
    assert as_it_is == "agrees"
    assert "px from where torch has them" in stays
    assert is_refused == "out of resource: registers"


@pytest.mark.parametrize(("capability", "is_spline"), [(80, False), (90, True)])
def test_the_compiler_takes_it(tmp_path, monkeypatch, capability, is_spline):
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget

    from homoalign.gpu import solver

    sizes = {"EVALUATE_BLOCK": 512, "SUM_BLOCK": 256, "SUMS_AT_ONCE": 2, "SLOTS": solver.SLOTS[-1]}
    constants = {"IS_SPLINE": is_spline, "HAS_MASK": is_spline} | sizes
    source = triton.compiler.ASTSource(fn=solver._solve, signature=signature_of(solver._solve), constexprs=constants)
    options = {"num_warps": solver.NUM_WARPS, "maxnreg": solver.NUM_REGISTERS, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert made.asm["cubin"]


def signature_of(kernel):
    """Types of a kernel's arguments, by their names."""
    doubles = {"scale_floor", "free", "dst_homo_centred", "src_motion", "src_corners", "corner_motion", "basis"}
    doubles |= {"min_seen", "states"}
    floats = {"image", "mask", "u", "value", "slope", "brightness", "residuals"}
    sizes = {"num_points", "stride", "height", "width", "u_pair_stride", "u_row_stride", "max_iterations"}
    found = {"usable": "*u8", "outcomes": "*i32"}
    found |= dict.fromkeys(doubles, "*fp64") | dict.fromkeys(floats, "*fp32") | dict.fromkeys(sizes, "i32")
    return {p.name: "constexpr" if p.is_constexpr else found.get(p.name, "fp32") for p in kernel.params}


def test_tensors_on_the_processor_are_not_for_the_gpu():
    assert not gpu.serves(torch.zeros(3))


def test_a_gpu_without_triton_is_served_by_torch(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("homoalign.gpu.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    gpu._compiles_for.cache_clear()
    with pytest.warns(UserWarning, match="solving with torch, which is slower: Triton does not work on cuda"):
        assert not gpu._compiles_for(torch.device("cuda"))
    gpu._compiles_for.cache_clear()


@pytest.mark.parametrize(("on_cpu", "on_gpu", "by"), [(1, 0, "direct"), (0, 1, "device"), (0, 0, "torch")])
def test_a_run_is_solved_where_its_tensors_are(monkeypatch, on_cpu, on_gpu, by):
    pytest.importorskip("triton", reason="Triton is not installed")
    from homoalign.gpu import solver

    problem = problem_of(*moved_pair("camera", 2))
    monkeypatch.setattr(kernels, "serves", lambda *_: on_cpu)
    monkeypatch.setattr(gpu, "serves", lambda *_: on_gpu)
    monkeypatch.setattr(schedule, "solve_direct", lambda *_, **__: "direct")
    monkeypatch.setattr(solver, "solve_on_device", lambda *_, **__: "device")
    monkeypatch.setattr(schedule, "solve", lambda *_, **__: "torch")
    assert schedule.solve_run(problem, near_identity(1), Run(1, 8, 0.05), AlignConfig()) == by


def to_device(value):
    """A problem, a level, a template or a state with its tensors on the GPU."""
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if not dataclasses.is_dataclass(value):
        return value
    fields = {field.name: to_device(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return dataclasses.replace(value, **fields)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", RUNS)
def test_a_gpu_solves_as_the_cpu_does(name):
    problem, start, settings = RUNS[name]()
    expected = solve_direct(problem, start, **settings)
    assert gpu.serves(torch.zeros(1, device="cuda"))
    from homoalign.gpu.solver import solve_on_device

    settings["min_seen"] = settings["min_seen"].cuda()
    ours = solve_on_device(to_device(problem), to_device(start), **settings)
    assert ours.stop.tolist() == expected.stop.tolist()
    if name == "lost":
        return
    off = corner_errors(ours.state.dst_homo_src.cpu(), expected.state.dst_homo_src, *problem.src_size)
    assert off.max() < 1e-2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_pair_alone_is_solved_as_among_many():
    problem, start, settings = large_run()
    from homoalign.gpu.solver import solve_on_device

    problem, start = to_device(problem), to_device(start)
    settings["min_seen"] = settings["min_seen"].cuda()
    together = solve_on_device(problem, start, **settings)
    index = torch.tensor([1], device="cuda")
    alone = solve_on_device(problem.select(index), start.select(index), **settings | {"min_seen": 20 * start.gain[:1]})
    assert torch.equal(alone.state.dst_homo_src[0], together.state.dst_homo_src[1])
