"""The structure channels: blind to light and sign, turned with the image, silent where nothing is known."""

import math

import numpy as np
import pytest
import torch
from levels import level_of

from homoalign.levels.intensity import to_gray
from homoalign.levels.pyramid import Level
from homoalign.levels.structure import HARMONICS, Structure, correlation, describe


@pytest.fixture
def photo(make_pair):
    return make_pair("astronaut", size=(96, 112))[0]


@pytest.mark.parametrize(
    "change",
    [lambda x: 1 - x, lambda x: 0.2 + 0.3 * x, lambda x: 0.9 - 0.05 * x],
    ids=["inverted", "gain and bias", "inverted and faint"],
)
def test_neither_sign_nor_gain_nor_bias_changes_the_channels(photo, change):
    plain, changed = describe(level_of(photo)), describe(level_of(change(photo)))
    # float32 intensities of a twentieth of the contrast keep five digits.
    torch.testing.assert_close(changed.channels, plain.channels, rtol=0, atol=1e-3)


def test_where_there_is_structure_the_channels_are_about_one(photo):
    found = describe(level_of(photo))
    size = found.channels.square().sum(1, keepdim=True)[found.usable > 0].sqrt()
    assert 0.5 < size.median() < 1.5
    assert size.max() < 5  # the local mean is over 25 pixels


def test_light_that_differs_from_place_to_place_is_evened_out(photo):
    shade = np.linspace(0.1, 1, photo.shape[1], dtype=np.float32) ** 2
    agreement, _ = correlation(describe(level_of(photo)), describe(level_of(photo * shade)))
    assert agreement.item() > 0.85


def test_a_quarter_turn_turns_each_channel_by_its_harmonic(photo):
    plain, turned = describe(level_of(photo)), describe(level_of(np.rot90(photo)))
    expected = torch.rot90(plain.channels, dims=(-2, -1))
    # exp(i h pi / 2) is -1 for the second harmonic and 1 for the fourth.
    sign = torch.tensor([round(math.cos(h * math.pi / 2)) for h in HARMONICS for _ in range(2)])
    assert sign.tolist() == [-1, -1, 1, 1]
    torch.testing.assert_close(turned.channels, sign[:, None, None] * expected, rtol=0, atol=1e-4)
    assert torch.equal(turned.usable, torch.rot90(plain.usable, dims=(-2, -1)))


@pytest.mark.parametrize("angle_deg", [30, 45, 60, 90])
def test_waves_that_cross_correlate_as_the_cosines_of_their_angle(angle_deg):
    y, x = np.mgrid[:96, :96]

    def wave(direction_deg):
        t = math.radians(direction_deg)
        return describe(level_of(0.5 + 0.5 * np.sin(0.5 * (x * math.cos(t) + y * math.sin(t)))))

    found, _ = correlation(wave(10), wave(10 + angle_deg))
    expected = np.mean([math.cos(math.radians(h * angle_deg)) for h in HARMONICS])
    # A crest has no gradient: the normalised channels of two waves are not constant there.
    assert found.item() == pytest.approx(expected, abs=0.1)


def test_masked_pixels_say_nothing_and_do_not_leak(photo, numpy_rng):
    mask = np.ones(photo.shape, dtype=bool)
    mask[30:60, 40:80] = False
    stained = np.where(mask, photo, numpy_rng.random(photo.shape)).astype(np.float32)
    plain, found = describe(level_of(photo, mask=mask)), describe(level_of(stained, mask=mask))
    assert torch.equal(found.channels, plain.channels)
    assert torch.equal(found.usable, plain.usable)
    assert not found.usable[0, 0, 29:61, 39:81].any()  # nor are those whose gradient reaches over the edge
    assert not found.channels[:, :, 29:61, 39:81].any()
    assert found.usable[0, 0, 28, 40] == 1
    far = (0, slice(None), slice(70, 90), slice(10, 100))
    # Only the whole image's mean energy, a tenth of which is added to the local one, knows of the mask.
    torch.testing.assert_close(found.channels[far], describe(level_of(photo)).channels[far], rtol=0.1, atol=0.02)


def test_pixels_that_are_nan_are_as_if_masked(photo):
    image = torch.as_tensor(photo)[None, None].clone()
    image[..., 20:40, 30:50] = torch.nan
    gray, finite = to_gray(image)
    found = describe(Level(gray, finite.float().view_as(gray)))
    assert found.channels.isfinite().all()
    assert not found.usable[..., 19:41, 29:51].any()


def test_the_border_cannot_be_used(photo):
    usable = describe(level_of(photo)).usable[0, 0]
    assert usable[1:-1, 1:-1].all()
    assert usable.sum() == usable[1:-1, 1:-1].sum()


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_flat_image_has_no_structure(value):
    found = describe(level_of(np.full((40, 50), value)))
    assert found.channels.abs().max() < 1e-3
    agreement, _ = correlation(found, found)
    assert 0 <= agreement.item() < 1e-3


def test_a_thing_correlates_with_itself_and_not_with_another(make_pair):
    one, other = (describe(level_of(make_pair(name)[0])) for name in ("astronaut", "coffee"))
    with_itself, overlap = correlation(one, one)
    assert with_itself.item() == pytest.approx(1, abs=1e-6)
    assert overlap.item() == pytest.approx(118 * 158 / (120 * 160))
    # Photographs have more upright and level edges than oblique ones, wherever they are.
    assert abs(correlation(one, other)[0].item()) < 0.15


def test_correlation_is_of_what_both_can_use(photo):
    left, right = (np.zeros(photo.shape, dtype=bool) for _ in range(2))
    left[:, :60], right[:, 40:] = True, True
    a, b = describe(level_of(photo, mask=left)), describe(level_of(photo, mask=right))
    agreement, overlap = correlation(a, b)
    assert agreement.item() > 0.98  # each has a mean energy of its own
    assert overlap.item() == pytest.approx((59 - 41) * 94 / (96 * 112))
    nothing, none = correlation(a, Structure(b.channels, 0 * b.usable))
    assert (nothing.item(), none.item()) == (0, 0)


def test_every_image_of_a_batch_is_described_as_alone(make_pair):
    images = torch.stack([torch.as_tensor(make_pair(name)[0]) for name in ("astronaut", "coffee", "camera")])[:, None]
    together = describe(Level(images, None))
    for i in range(3):
        torch.testing.assert_close(
            together.select(torch.tensor([i])).channels, describe(Level(images[i : i + 1], None)).channels,
            rtol=0, atol=1e-5,
        )  # fmt: skip
