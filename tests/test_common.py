"""Every public estimator through all of scikit-learn's own checks, with the tags for 2-D and 3-D input on."""

import pytest
from common_estimators import expected_failures, public_estimator_classes, public_estimators
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

CASES = public_estimators()


@parametrize_with_checks(
    [case.estimator for case in CASES if not case.heavy], expected_failed_checks=expected_failures, xfail_strict=True
)
def test_scikit_learn_check(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [case.estimator for case in CASES if case.heavy], expected_failed_checks=expected_failures, xfail_strict=True
)
def test_scikit_learn_check_of_heavy_variants(estimator, check):
    check(estimator)


def test_every_public_estimator_is_listed():
    listed = {type(case.estimator) for case in CASES if not case.variant}
    assert public_estimator_classes() == listed


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tags(case):
    tags = get_tags(case.estimator)
    # With two_d_array off, scikit-learn would run a single check.
    assert tags.input_tags.two_d_array
    assert tags.input_tags.three_d_array
    # The checks must not be switched off by tags.
    assert not tags.no_validation
    assert not tags.non_deterministic
    if tags.transformer_tags is not None:
        assert set(tags.transformer_tags.preserves_dtype) == {"float64", "float32"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_expected_failures_are_few_and_have_reasons(case):
    failures = expected_failures(case.estimator)
    assert len(failures) <= 1
    assert all(len(reason) > 20 for reason in failures.values())
