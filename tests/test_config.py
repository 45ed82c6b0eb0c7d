import dataclasses

import pytest

from homoalign import AlignConfig


def test_the_fingerprint_is_stable_and_changes_with_every_field():
    default = AlignConfig()
    assert default.fingerprint() == AlignConfig().fingerprint()
    other = {"solver": "adam", "model": "affine", "photometric": "none", "signal": "structure"}
    for field in dataclasses.fields(AlignConfig):
        value = other.get(field.name, getattr(default, field.name) / 2 if field.type == "float" else None)
        value = getattr(default, field.name) + 1 if value is None else value
        assert dataclasses.replace(default, **{field.name: value}).fingerprint() != default.fingerprint(), field.name


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("solver", "newton", "solver='newton' is none of gauss_newton, adam"),
        ("model", "rigid", "model='rigid' is none of translation, euclidean, similarity, affine, homography"),
        ("min_overlap", 1.5, r"min_overlap=1.5 is outside \[0, 1\]"),
        ("min_level_side_px", 1, "min_level_side_px=1 is below 4"),
        ("max_iterations", 0, "max_iterations=0 is below 1"),
        ("max_iterations", 10**20, "max_iterations=100000000000000000000 is above 2147483647"),
        ("adam_learning_rate", 1e300, r"adam_learning_rate=1e\+300 is outside \[0, 1\]"),
        ("search_max_scale", 1e300, r"search_max_scale=1e\+300 is outside \[1, 1000\]"),
        ("search_max_scale", 0.5, r"search_max_scale=0.5 is outside \[1, 1000\]"),
        ("step_tol_px", float("nan"), "step_tol_px=nan is negative or not finite"),
    ],
)
def test_a_value_out_of_range_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        AlignConfig(**{field: value})
