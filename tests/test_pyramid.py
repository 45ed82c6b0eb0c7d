import pytest
import torch

from homoalign.levels.pyramid import Level, build_pyramid, halve, num_levels, take


def wave(height, width, fx, fy):
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    return (0.5 + 0.4 * torch.sin(fx * x + fy * y))[None, None]


def test_levels_keep_the_top_left_pixel_where_it_is():
    # A slow wave survives the blur; at level 1 it is the same wave read at even pixels.
    image = wave(64, 96, 0.05, 0.03)
    inner = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(halve(image)[inner], image[..., ::2, ::2][inner], rtol=0, atol=2e-3)


def test_odd_sides_round_up():
    assert [tuple(level.image.shape[-2:]) for level in build_pyramid(Level(torch.rand(1, 1, 33, 50), None), 3)] == [
        (33, 50),
        (17, 25),
        (9, 13),
    ]


def test_the_depth_follows_the_shortest_side():
    assert num_levels([(640, 800), (480, 640)], min_side_px=16, max_levels=12) == 5
    assert num_levels([(640, 800)], min_side_px=16, max_levels=12) == 6
    assert num_levels([(640, 800)], min_side_px=16, max_levels=3) == 3
    assert num_levels([(20, 800)], min_side_px=16, max_levels=12) == 1


def test_masked_pixels_do_not_leak_into_coarser_levels(rng):
    image = torch.full((1, 1, 64, 64), 0.5)
    mask = torch.ones_like(image)
    image[..., 20:40, 20:40] = 100 * torch.rand(20, 20, generator=rng)
    mask[..., 20:40, 20:40] = 0
    for level in build_pyramid(Level(image, mask), 4)[1:]:
        used = level.mask > 0
        assert used.any()
        torch.testing.assert_close(level.image[used], torch.full_like(level.image[used], 0.5))


def test_slopes_are_per_pixel():
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    slope = Level((3 * x - 2 * y)[None, None], None).slope
    assert slope[0, 0, 1:-1, 1:-1].unique().tolist() == [3.0]
    assert slope[0, 1, 1:-1, 1:-1].unique().tolist() == [-2.0]


def test_rows_are_taken_in_the_order_that_is_asked_for():
    values = torch.arange(6).view(3, 2)
    assert take(values, torch.tensor([2, 0, 1])).tolist() == [[4, 5], [0, 1], [2, 3]]
    assert take(values, torch.arange(3)) is values


@pytest.mark.parametrize("size", [(64, 64), (61, 90)])
def test_what_is_masked_goes_on_where_the_rest_ends(size, rng):
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    ramp = (0.2 + 0.004 * x + 0.002 * y)[None, None].float()
    mask = ((x - 30) ** 2 + (y - 30) ** 2 < 24**2).float()[None, None]
    image = torch.where(mask > 0, ramp, 7 * torch.rand(ramp.shape, generator=rng))
    full, *coarser = build_pyramid(Level(image, mask), 4)
    assert torch.equal(full.image[mask > 0], ramp[mask > 0])
    assert torch.equal(full.mask, mask)
    for level in (full, *coarser):
        assert level.image.amin() >= 0.2 - 1e-5
        assert level.image.amax() <= ramp[mask > 0].amax() + 1e-5
    steps = torch.cat([full.image.diff(dim=dim).abs().flatten() for dim in (-1, -2)])
    assert steps.max() < 0.05  # of the 0.004 of the ramp, and the 7 of what is masked


def test_noise_that_is_known_goes_with_its_pair():
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    shown = Level(images, None)
    known = Level(images, None, shown.noise + torch.tensor([0.0, 0.5, 1.0]))
    for index in (torch.tensor([2, 0]), torch.arange(3)):
        torch.testing.assert_close(known.select(index).noise, known.noise[index])
        torch.testing.assert_close(shown.select(index).noise, shown.noise[index])
