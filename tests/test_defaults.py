"""Torch's default dtype and default device are the caller's: they move no answer."""

import ast
from dataclasses import fields
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch

import homoalign
from homoalign import AlignConfig, align
from homoalign.result import AlignResult
from jobs.rendering.synthetic import load_scene, render_pair, similarity_homography

DTYPES = [torch.float64, torch.bfloat16]
SIZE = (96, 128)


@cache
def calls():
    """Walk what the library has: plain light and uneven, noise, masks, a search, the cascade's end, the tutorial."""
    numpy_rng = np.random.default_rng(0)
    turned = similarity_homography(SIZE, angle_deg=70.0, scale=1.2)
    near = similarity_homography(SIZE, angle_deg=3.0, scale=1.02)
    pair = render_pair(load_scene("camera", gray=True), near, SIZE, rng=numpy_rng)
    src, dst, truth = pair.src.clip(0, 1), pair.dst.clip(0, 1), pair.dst_homo_src
    far = render_pair(load_scene("astronaut", gray=False), turned, SIZE, rng=numpy_rng)
    mask = numpy_rng.random(SIZE) < 0.9
    uneven = dst * np.linspace(0.4, 1, SIZE[1], dtype=np.float32) ** 2
    noisy = (dst + numpy_rng.normal(0, 0.05, SIZE)).astype(np.float32)
    unrelated = render_pair(load_scene("coffee", gray=True), near, SIZE, rng=numpy_rng).dst.clip(0, 1)
    disc = np.hypot(*np.meshgrid(np.arange(128) - 63.5, np.arange(96) - 47.5)) < 46
    return [
        ((src, dst), {"gt": truth, "trace": True, "config": AlignConfig(forward_backward=True)}),
        ((src, uneven), {"gt": truth, "init": truth}),
        ((src, noisy), {"src_mask": mask}),
        ((300 * src, 1 - dst), {}),
        ((far.src.clip(0, 1), far.dst.clip(0, 1)), {}),
        ((src, unrelated), {}),
        ((src * disc, dst * disc), {}),
        ((src, dst), {"config": AlignConfig(signal="structure", use_search=False)}),
        ((src, dst), {"config": AlignConfig(solver="adam", adam_steps=5)}),
        ((np.zeros_like(src), dst), {}),
    ]


def answers(*, searched: bool = True) -> list[AlignResult]:
    more = {} if searched else {"config": AlignConfig(use_search=False, use_features=False)}
    return [align(*images, **{**more, **options}) for images, options in calls()]


def assert_same(found: list[AlignResult], expected: list[AlignResult]):
    for one, other in zip(found, expected, strict=True):
        for field in fields(AlignResult):
            value, wanted = getattr(one, field.name), getattr(other, field.name)
            if isinstance(wanted, torch.Tensor):
                torch.testing.assert_close(value, wanted, rtol=0, atol=0, equal_nan=True, msg=field.name)
            else:
                assert repr(value) == repr(wanted), field.name


@pytest.fixture
def default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@cache
def expected() -> list[AlignResult]:
    return answers()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_default_dtype_does_not_move_the_answer(default_dtype, dtype):
    wanted = expected()
    default_dtype(dtype)
    assert_same(answers(), wanted)


def test_the_default_dtype_does_not_move_the_answer_of_torch(default_dtype, by_torch):
    by_torch_itself = partial(by_torch, partial(answers, searched=False))
    wanted = by_torch_itself()
    default_dtype(torch.float64)
    assert_same(by_torch_itself(), wanted)


def test_the_default_device_does_not_move_the_answer():
    wanted, nobody = expected(), torch.rand(0, 1, 32, 32)
    with torch.device("meta"):
        assert_same(answers(), wanted)
        assert torch.get_default_device().type == "meta"
        assert align(nobody, nobody).zncc.is_cpu


def test_a_warp_is_where_its_image_is_whatever_the_defaults(default_dtype):
    image, matrix = torch.rand(1, 1, 20, 30), torch.eye(3, dtype=torch.float64)[None]
    expected = homoalign.warp(image, matrix, (20, 31))
    default_dtype(torch.float64)
    with torch.device("meta"):
        assert torch.equal(homoalign.warp(image, matrix, (20, 31)), expected)


def test_what_makes_a_tensor_of_floats_names_its_dtype():
    makers = {"empty", "zeros", "ones", "full", "eye", "rand", "randn", "linspace"}
    nameless = []
    for path in Path(homoalign.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            is_maker = ast.unparse(node.func.value) == "torch" and node.func.attr in makers
            if is_maker and "dtype" not in {keyword.arg for keyword in node.keywords}:
                nameless.append(f"{path.name}:{node.lineno}")
    assert nameless == []
