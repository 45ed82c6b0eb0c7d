import dataclasses
import re

import numpy as np
import pytest

from homoalign import AlignConfig


def test_the_fingerprint_is_stable_and_changes_with_every_field():
    default = AlignConfig()
    assert default.fingerprint() == AlignConfig().fingerprint()
    other = {"solver": "adam", "model": "affine", "photometric": "none", "signal": "structure"}
    for field in dataclasses.fields(AlignConfig):
        value = other.get(field.name, getattr(default, field.name) / 2 if field.type == "float" else None)
        if value is None:
            value = not getattr(default, field.name) if field.type == "bool" else getattr(default, field.name) + 1
        assert dataclasses.replace(default, **{field.name: value}).fingerprint() != default.fingerprint(), field.name


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("solver", "newton", "solver='newton' is none of gauss_newton, adam"),
        ("model", "rigid", "model='rigid' is none of translation, euclidean, similarity, affine, homography"),
        ("solver", None, "solver=None is none of gauss_newton, adam"),
        ("min_overlap", 1.5, r"min_overlap=1.5 is outside \[0, 1\]"),
        ("min_level_side_px", 1, r"min_level_side_px=1 is outside \[4, 2147483647\]"),
        ("max_iterations", 0, r"max_iterations=0 is outside \[1, 2147483647\]"),
        ("max_iterations", 10**20, r"max_iterations=100000000000000000000 is outside \[1, 2147483647\]"),
        ("points_per_level", 1, r"points_per_level=1 is outside \[16, 2147483647\]"),
        ("final_points", 15, r"final_points=15 is outside \[16, 2147483647\]"),
        ("loss_width", 0, r"loss_width=0 is outside \[0.01, inf\)"),
        ("search_max_scale", 0.5, r"search_max_scale=0.5 is outside \[1, 1000\]"),
        ("search_max_scale", 1e300, r"search_max_scale=1e\+300 is outside \[1, 1000\]"),
        ("adam_learning_rate", 1e300, r"adam_learning_rate=1e\+300 is outside \[0, 1\]"),
        ("step_tol_px", float("nan"), r"step_tol_px=nan is outside \[0, inf\)"),
        ("step_tol_px", float("inf"), r"step_tol_px=inf is outside \[0, inf\)"),
        ("step_tol_px", 10**400, r"step_tol_px=10+ is outside \[0, inf\)"),
    ],
)
def test_a_value_out_of_range_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        AlignConfig(**{field: value})


FIELDS = {field.name: field.type for field in dataclasses.fields(AlignConfig)}
STRANGERS = ["5", "", None, [1], b"1", 1j, object()]
WRONG = {"int": [*STRANGERS, 5.0, float("inf"), True], "float": [*STRANGERS, True], "bool": [*STRANGERS, 0, 1, 1.0]}


@pytest.mark.parametrize(("field", "kind"), [(name, kind) for name, kind in FIELDS.items() if kind in WRONG])
def test_a_value_of_another_type_is_named(field, kind):
    for value in WRONG[kind]:
        message = f"{field}={value!r} should be {kind}, got {type(value).__name__}"
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            AlignConfig(**{field: value})


def test_values_are_kept_as_pythons_own_whatever_they_came_as():
    config = AlignConfig(
        solver=np.str_("adam"),
        use_search=np.bool_(False),
        max_levels=np.int64(5),
        search_max_rotation_deg=20,
        search_max_scale=np.float32(1.5),
        step_tol_px=np.float64(0.25),
        min_contrast=-0.0,
    )
    plain = AlignConfig(
        solver="adam",
        use_search=False,
        max_levels=5,
        search_max_rotation_deg=20.0,
        search_max_scale=1.5,
        step_tol_px=0.25,
        min_contrast=0.0,
    )
    assert config == plain
    assert config.fingerprint() == plain.fingerprint()
    for field in dataclasses.fields(AlignConfig):
        assert type(getattr(config, field.name)) is type(getattr(plain, field.name)), field.name


def test_the_defaults_have_the_fingerprint_they_always_had():
    # Changes with a default, and then runs of earlier releases cannot be continued.
    assert AlignConfig().fingerprint() == "eefa59cbe4c7"
