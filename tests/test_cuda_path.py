"""The path of GPUs, walked on a pretended one: no device mixed with another, and the answers of the processor."""

import numpy as np
import pytest
import torch
from pretend_cuda import DEVICE, PretendCuda

from homoalign import AlignConfig, Status, align, cleaning, gpu, warp
from homoalign.descent import full_size, last_steps
from homoalign.differences.faint import solve_faint
from homoalign.differences.prefilter import prefilter
from homoalign.homography import corner_errors
from homoalign.levels.stabilise import stabilise
from jobs.rendering.degrade import add_blur, add_photon_noise, adjust_exposure
from jobs.rendering.synthetic import load_scene, random_homography, render_pair, similarity_homography

SIZE = (72, 96)
NEAR = {"search_max_rotation_deg": 0.0, "search_max_scale": 1.0}


@pytest.fixture(autouse=True)
def no_triton(monkeypatch):
    """Which takes no pretended tensors."""
    monkeypatch.setattr(gpu, "serves", lambda *_: False)


@pytest.fixture
def pretended():
    with PretendCuda() as mode:
        yield mode


@pytest.fixture
def views(numpy_rng):
    """Render pairs under the same similarity and a little perspective: src and dst (B, 1, H, W), and the truth."""

    def render(*photographs, angle_deg=0.0, scale=1.0, size=SIZE):
        pairs = []
        for name in photographs:
            moved = similarity_homography(size, angle_deg=angle_deg, scale=scale)
            moved = moved @ random_homography(numpy_rng, size, 3.0)
            pairs.append(render_pair(load_scene(name, gray=True), moved, size, rng=numpy_rng))
        src, dst, truth = (
            torch.from_numpy(np.stack([getattr(pair, name) for pair in pairs]))
            for name in ("src", "dst", "dst_homo_src")
        )
        return src[:, None].clamp(0, 1), dst[:, None].clamp(0, 1), truth

    return render


def assert_same_answers(src, dst, *, num=1, **options):
    """Align on both, and return the pretended device's answers, of which at least `num` hold a matrix."""
    expected = align(src, dst, **options)
    with PretendCuda():
        there = {name: value.to(DEVICE) if name.endswith("_mask") else value for name, value in options.items()}
        found = align(src.to(DEVICE), dst.to(DEVICE), **there)
    assert found.status == expected.status
    assert found.initialisation == expected.initialisation
    assert [len(levels) for levels in found.levels] == [len(levels) for levels in expected.levels]
    assert found.dst_homo_src.device.type == found.evidence.device.type == "cpu"
    is_known = expected.dst_homo_src.isfinite().flatten(1).all(-1)
    assert torch.equal(found.dst_homo_src.isfinite().flatten(1).all(-1), is_known)
    assert is_known.sum() >= num
    off = corner_errors(found.dst_homo_src[is_known], expected.dst_homo_src[is_known], *src.shape[-2:])
    assert (off < 1e-2).all()  # the contract's
    for name in ("confidence", "corner_std_px", "zncc", "overlap", "gt_corner_error_px", "gt_reprojection_l1"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-2, rtol=0, equal_nan=True)
    return found


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float64])
def test_a_pair_that_is_ruled_out_leaves_its_neighbour_of_any_depth(views, dtype):
    src, dst, truth = views("astronaut", "coins")
    src[1] = 0.5
    whole = {torch.uint8: 255, torch.uint16: 65_535}.get(dtype, 1)
    src, dst = ((whole * image).to(dtype).expand(-1, 3, -1, -1) for image in (src, dst))
    found = assert_same_answers(src, dst, gt=truth, trace=True)
    assert found.status == [Status.OK, Status.LOW_TEXTURE]


def test_masks_priors_and_pixels_that_are_nan(views):
    src, dst, truth = views("camera", "coins", "page")
    src_mask, dst_mask = torch.ones(3, *SIZE), torch.ones(3, *SIZE, dtype=torch.bool)
    src_mask[:, 10:30, 20:40], dst_mask[:, :, 80:], src_mask[2] = 0, False, 0
    src[0, :, 40:50, 50:60] = torch.nan
    init = truth.clone()
    init[1] = torch.nan
    found = assert_same_answers(src, dst, src_mask=src_mask, dst_mask=dst_mask, init=init)
    assert found.initialisation == ["prior", "identity", None]
    with PretendCuda():
        there = align(src.to(DEVICE), dst.to(DEVICE), init=init.to(DEVICE), gt=truth.to(DEVICE))
    assert there.initialisation[:2] == found.initialisation[:2]
    assert there.gt_corner_error_px[:2].isfinite().all()


def test_deep_images_that_use_little_of_their_range(views):
    src, dst, truth = views("camera", "coins")
    src, dst = ((30_000 + 900 * image).to(torch.uint16) for image in (src, dst))
    src[1] = (65_535 * (src[1].float() - 30_000) / 900).clamp(0, 65_535).to(torch.uint16)
    assert_same_answers(src, dst, num=2, gt=truth)


def test_tiles(views):
    src, dst, truth = views("camera", "coins")
    off = torch.tensor([[1, 0, -40], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    init = off @ truth
    init[:, :2, 2] += torch.tensor([2.0, -1.0])
    assert_same_answers(src[..., :56].contiguous(), dst[..., 40:].contiguous(), num=2, init=init, gt=off @ truth)


def test_images_of_more_pixels_than_points(views, monkeypatch):
    asked = []
    monkeypatch.setattr(full_size, "prefilter", lambda *given: asked.append(given[1].tolist()) or prefilter(*given))
    src, dst, truth = views("camera", "coins", size=(120, 160))
    src[1] = noisy(src[1], np.random.default_rng(0))
    mask = torch.ones(2, 120, 160)
    mask[:, 20:50, 90:120] = 0
    config = AlignConfig(final_points=6000)
    assert_same_answers(src, dst, num=2, src_mask=mask, dst_mask=mask, gt=truth, config=config)
    assert asked == [[True, True]] * 2


def test_noise_that_grows_with_brightness(views, numpy_rng, monkeypatch):
    found = []
    monkeypatch.setattr(cleaning, "stabilise", lambda *given: found.append(stabilise(*given)) or found[-1])
    src, dst, truth = views("camera", "coins", size=(160, 200))
    src[1], dst[1] = (
        torch.from_numpy(add_photon_noise(image[1].numpy(), sigma_8bit=40.0, rng=numpy_rng)) for image in (src, dst)
    )
    here = assert_same_answers(src.clamp(0, 1), dst.clamp(0, 1), num=2, gt=truth)
    assert [is_bent.tolist() for *_, is_bent in found] == [[False, True]] * 2
    assert here.gain[1] == pytest.approx(1, rel=0.1)


def test_images_of_few_levels(views):
    src, dst, truth = views("camera", "coins", size=(120, 160))
    src[1], dst[1] = (src[1] > 0.5).to(src), (dst[1] > 0.5).to(dst)
    assert_same_answers(src, dst, num=2, gt=truth)


def test_faint_pairs_of_more_pixels_than_points(views, numpy_rng, monkeypatch):
    solved = []

    def solve(*given):
        found = solve_faint(*given)
        solved.append(found.is_better.tolist())
        return found

    monkeypatch.setattr(last_steps, "solve_faint", solve)
    src, dst, truth = views("brick", size=(160, 200))
    src, dst = (noisy(0.2 + 0.6 * image, numpy_rng) for image in (src, dst))
    config = AlignConfig(final_points=9000, use_search=False, use_features=False)
    assert_same_answers(src, dst, gt=truth, config=config)
    assert solved == [[True]] * 2


def test_unlike_sizes(views):
    src, dst, truth = views("camera")
    assert_same_answers(src, dst[..., 4:-4, 2:-9].contiguous(), gt=truth)


def test_a_surround_in_one_of_two_pairs(views):
    src, dst, truth = views("camera", "coins")
    for image in (src, dst):
        image[1, :, :12], image[1, :, -10:] = 0, 0
    assert_same_answers(src, dst, num=2, gt=truth)


def noisy(image, rng):
    return image + torch.from_numpy(rng.normal(0, 20 / 255, image.shape)).float()


def unevenly_lit(image, rng):  # noqa: ARG001
    return image * torch.linspace(0.5, 1, image.shape[-1])


def bent(image, rng):  # noqa: ARG001
    return torch.from_numpy(adjust_exposure(image.numpy(), gamma=2.2))


def covered(image, rng):
    image = image.clone()
    image[..., 20:50, 30:60] = torch.from_numpy(rng.random((30, 30))).float()
    return image


def blurred(image, rng):  # noqa: ARG001
    return torch.from_numpy(np.stack([add_blur(one, sigma_px=1.5) for one in image[:, 0].numpy()]))[:, None]


def sharpened(image, rng):  # noqa: ARG001
    return image + 2 * (image - blurred(image, None))


def striped(image, rng):
    return image + torch.from_numpy(rng.normal(0, 8 / 255, (*image.shape[:3], 1))).float()


def with_holes(image, rng):
    return torch.where(torch.from_numpy(rng.random(image.shape)) < 0.1, torch.nan, image)


@pytest.mark.parametrize("change", [noisy, unevenly_lit, bent, covered, blurred, sharpened, striped, with_holes])
def test_what_noise_light_and_covers_ask_for(views, numpy_rng, change):
    src, dst, truth = views("camera", "coins")
    assert_same_answers(src, change(dst, numpy_rng), gt=truth)


@pytest.mark.parametrize(
    "config",
    [
        AlignConfig(signal="structure", use_search=False, use_features=False),
        AlignConfig(solver="adam", adam_steps=5),
        AlignConfig(model="similarity", photometric="none", use_search=False, use_features=False),
    ],
    ids=["structure", "adam", "similarity"],
)
def test_other_solvers(views, config):
    src, dst, truth = views("camera", "coins")
    assert_same_answers(src, dst, gt=truth, trace=True, config=config)


def test_zooms_are_solved_on_levels_of_like_pitch(views):
    (src, dst, truth), (other_src, other_dst, other_truth) = views("astronaut"), views("camera", scale=2.0)
    src, dst, truth = torch.cat([other_src, src]), torch.cat([other_dst, dst]), torch.cat([other_truth, truth])
    assert_same_answers(src, dst, init=truth, trace=True)


def test_what_is_not_found_is_searched(views):
    src, dst, _ = views("camera", size=(48, 64))
    config = AlignConfig(use_features=False, **NEAR)
    found = assert_same_answers(src, 1 - dst.roll(20, -1), config=config)
    assert found.initialisation == ["search"]


def test_features_are_matched(views):
    src, dst, truth = views("astronaut", angle_deg=90, size=(96, 96))
    found = assert_same_answers(src, dst, gt=truth, config=AlignConfig(use_search=False))
    assert found.initialisation == ["features"]


def test_images_that_are_too_small_or_none():
    assert_same_answers(torch.rand(2, 1, 10, 30), torch.rand(2, 1, 40, 40), num=0)
    assert align(*(torch.rand(0, 1, 40, 40) for _ in range(2))).status == []


@pytest.mark.usefixtures("pretended")
def test_images_are_warped(views):
    src, _, truth = views("camera")
    warped = warp(src.to(DEVICE), truth.to(DEVICE), SIZE)
    assert torch.equal(warped.cpu(), warp(src, truth, SIZE))


def test_the_host_seldom_waits(views, pretended):
    src, dst, _ = views("camera", "coins", size=(120, 160))
    src, dst = src.to(DEVICE), dst.to(DEVICE)
    align(src, dst)  # what is kept for the next call
    pretended.waits.clear()
    steps = int(align(src, dst).num_iterations.sum())
    in_solver = sum(count for where, count in pretended.waits.items() if where.startswith("solver.py"))
    assert 0 < in_solver < 2 * steps
    assert sum(pretended.waits.values()) < in_solver + 55


@pytest.mark.usefixtures("pretended")
def test_the_pretended_device_takes_nothing_of_another():
    x, here = torch.rand(3, 4, device=DEVICE), torch.rand(3, 4)
    for operation in (
        lambda: x + here,
        lambda: torch.where(x > 0, x, here),
        lambda: x @ here.mT,
        lambda: torch.addcmul(x, x, torch.tensor(2.0)),
        lambda: here[torch.tensor([0], device=DEVICE)],
        lambda: x.index_copy(0, torch.tensor([0]), x[:1]),
        lambda: torch.cat([x, here]),
        lambda: torch.linalg.solve_ex(x[:, :3], here[:, :3]),
    ):
        with pytest.raises(RuntimeError, match="device"):
            operation()
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    with pytest.raises(NotImplementedError, match="index_cuda"):
        torch.zeros(3, dtype=torch.uint16, device=DEVICE)[torch.tensor([0], device=DEVICE)]


@pytest.mark.usefixtures("pretended")
def test_the_pretended_device_takes_what_cuda_takes():
    here = torch.arange(12.0).view(3, 4)
    x = here.to(DEVICE)
    assert (x + torch.tensor(1.0)).tolist() == (here + 1).tolist()
    assert torch.where(x > 5, x, torch.tensor(0.0)).device == DEVICE
    assert x[torch.tensor([2, 0]), [1, 3]].tolist() == [9, 3]
    x[0] = torch.tensor([3.0, 2, 1, 0])
    assert x.mul_(2)[0].tolist() == [6, 4, 2, 0]
    assert x.cpu().numpy()[0, 0] == 6
    assert x.new_tensor([1]).device == x.squeeze_(0).device == DEVICE
    values = torch.fft.rfft2(x)
    torch.testing.assert_close((values.conj() * values).cpu(), (values.cpu().conj() * values.cpu()))
    slope = torch.ones(3, device=DEVICE, requires_grad=True)
    (slope * slope).sum().backward()
    assert slope.grad.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("operation", "waits"),
    [
        (lambda x: x.sum() * 2, 0),
        (lambda x: float(x.sum()), 1),
        (lambda x: bool((x > 0).all()), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x[x > 0], 1),
        (torch.nonzero, 1),
        (lambda x: x.cpu(), 1),
        (lambda x: torch.tensor([1.0], device=x.device), 1),
        (lambda x: x.to(x), 0),
        (torch.linalg.inv, 1),
        (torch.linalg.inv_ex, 0),
        (lambda x: torch.equal(x, x[0]), 0),
        (lambda x: torch.equal(x, x), 1),
    ],
)
def test_waits_are_counted(pretended, operation, waits):
    x = torch.eye(3, device=DEVICE)
    operation(x)
    assert pretended.waits.total() == waits
    assert pretended.kernels["eye"] == 1
