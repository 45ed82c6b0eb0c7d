import torch

from homoalign.pyramid import Level, build_pyramid, halve, num_levels


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
