import pytest
import torch

from homoalign.levels.noise import BAND_NOISE, denoise, noise_level, smooth


@pytest.mark.parametrize("sigma", [0.01, 0.08])
def test_the_noise_level_of_a_photograph_is_that_of_what_was_added(make_pair, rng, sigma):
    src = torch.as_tensor(make_pair("camera")[0])[None, None]
    noisy = src + sigma * torch.randn(src.shape, generator=rng)
    assert noise_level(noisy).item() == pytest.approx(sigma, rel=0.15)
    assert noise_level(src).item() < 0.003


def test_the_bands_of_white_noise_are_as_strong_as_the_table_says(rng):
    image = torch.randn(1, 1, 512, 512, generator=rng)
    for scale, variance in enumerate(BAND_NOISE[:3]):
        coarser = smooth(image, 2**scale)
        assert (image - coarser).var().item() == pytest.approx(variance, rel=0.1)
        image = coarser


def test_slopes_come_out_nearer_to_those_without_noise(make_pair, rng):
    src = torch.as_tensor(make_pair("camera")[0])[None, None]
    sigma = torch.tensor([0.05], dtype=torch.float64)
    noisy = src + 0.05 * torch.randn(src.shape, generator=rng)
    clean = denoise(noisy, noisy, sigma)

    def error(image):
        return (image.diff(dim=-1) - src.diff(dim=-1)).square().mean().sqrt()

    assert error(clean) < 0.4 * error(noisy)
    assert (denoise(src, src, 0 * sigma) - src).abs().max() < 1e-6


def test_small_images_are_denoised_on_the_scales_they_have(rng):
    image = torch.randn(2, 1, 16, 17, generator=rng)
    both = denoise(image, image, torch.ones(2, dtype=torch.float64))
    assert both.var() < 0.5
    assert torch.equal(both[1:], denoise(image[1:], image[1:], torch.ones(1, dtype=torch.float64)))


def test_the_noise_of_what_is_masked_does_not_count(rng):
    noise = 0.03 * torch.randn(2, 1, 60, 80, generator=rng)
    noise[0, :, :, :50] = 0
    mask = torch.ones_like(noise)
    mask[0, :, :, :50] = 0
    assert noise_level(noise)[0] == 0
    torch.testing.assert_close(noise_level(noise, mask), torch.full((2,), 0.03).double(), rtol=0.1, atol=0)
    torch.testing.assert_close(noise_level(noise, 0 * mask), noise_level(noise))  # nothing is left to look at


def test_bands_beyond_those_asked_for_stay_as_they_are(rng):
    image = torch.rand(1, 1, 64, 64, generator=rng, dtype=torch.float32)
    sigma = torch.full((1,), 10.0, dtype=torch.float64)  # nothing stands out of it
    coarse = image
    for bands in (0, 1, 2):
        assert (denoise(image, image, sigma, bands=bands) - coarse).abs().max() < 1e-5
        coarse = smooth(coarse, 2**bands)
