"""How large a codec's errors are, told by its blocks."""

import numpy as np
import pytest
import torch

from homoalign.levels.coding import coding_noise
from jobs.rendering.degrade import add_noise, compress_jpeg

NAMES = ("astronaut", "camera", "cell", "chelsea", "coins", "grass", "moon", "retina", "text")


def told(*images):
    stacked = torch.from_numpy(np.stack(images).astype(np.float32))[:, None]
    found = coding_noise(stacked, torch.arange(len(images)))
    assert torch.equal(coding_noise(stacked, torch.tensor([len(images) - 1])), found[-1:])
    return found.tolist()


def view(make_pair, name, size=(200, 240)):
    return make_pair(name, size=size)[0]


@pytest.mark.parametrize("name", NAMES)
def test_jumps_between_blocks_tell_how_much_was_lost(make_pair, name):
    image = view(make_pair, name)
    coded = [compress_jpeg(image, quality=quality) for quality in (15, 30, 50)]
    found = told(*coded)
    assert found == sorted(found, reverse=True)
    for amount, other in zip(found, coded, strict=True):
        assert 0.3 < amount / np.std(other - image) < 1.6


@pytest.mark.parametrize("name", NAMES)
def test_a_crop_has_its_blocks_elsewhere_and_no_other_noise(make_pair, name):
    coded = compress_jpeg(view(make_pair, name), quality=25)
    [whole], [part] = told(coded), told(coded[3:, 5:-2])
    assert part == pytest.approx(whole, rel=0.2)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_that_no_codec_cut_into_blocks_has_none(make_pair, name):
    image, rng = view(make_pair, name), np.random.default_rng(0)
    framed = np.pad(image, ((16, 24), (32, 8)))  # its edges lie where those of blocks would
    noisy = add_noise(image, sigma_8bit=8.0, rng=rng)
    assert told(image) == told(framed) == told(noisy) == told(np.zeros_like(image)) == [0.0]


@pytest.mark.parametrize("name", NAMES)
def test_stripes_of_eight_pixels_are_no_blocks(make_pair, name):
    image = view(make_pair, name)
    assert told(image + 0.2 * (np.arange(image.shape[1]) // 4 % 2)) == [0.0]
    assert told(image + 0.2 * (np.arange(image.shape[0]) // 8 % 2)[:, None]) == [0.0]


def test_what_repeats_within_eight_pixels_is_no_codec():
    art = np.kron(np.random.default_rng(0).random((40, 50)), np.ones((4, 4)))
    assert told(art) == [0.0]
    assert told(np.kron(art[::4, ::4][:20, :25], np.ones((8, 8))))[0] > 0  # nothing tells these from blocks


def test_few_blocks_tell_nothing(make_pair):
    coded = compress_jpeg(view(make_pair, "coins"), quality=10)
    assert told(coded[:31, :30]) == [0.0]
    assert told(coded[:, :30]) == [0.0]


def test_an_image_is_told_alone_as_beside_others_and_from_some_rows_as_from_all(make_pair, monkeypatch):
    images = [compress_jpeg(view(make_pair, name), quality=20) for name in NAMES]
    assert told(*images) == [amount for image in images for amount in told(image)]
    monkeypatch.setattr("homoalign.levels.coding.SAMPLES", 10_000)
    assert told(*images) == pytest.approx([amount for image in images for amount in told(image)], rel=1e-12)
    of_some = told(*images)
    monkeypatch.undo()
    assert of_some == pytest.approx(told(*images), rel=0.15)
