"""Verdicts against SciPy's t tests, Holm's procedure by hand, closed forms and simulated pages of chance."""

import json
import math

from ls_keras.analysis.intervals import crossed, over_seeds
from ls_keras.verdicts import OUTCOMES, Setting, Verdict, identity, judge, not_run, survivors

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

TEXTS = ("C5", "Accuracy improves.", "Held-out accuracy, percentage points; smoothed − hard.")
numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12).filter(lambda x: np.std(x) > 1e-6)
OPPOSITE = {"holds": "does not hold", "does not hold": "holds", "undecided": "undecided"}

# Of three seeds each: t = 36.4 and p = .0004 above 0, as much below, and t = 0.
UP, DOWN, FLAT = (over_seeds(np.array([-0.01, 0.0, 0.01]) + mean) for mean in (0.21, -0.21, 0.0))


def t_tests(differences, threshold):
    return [stats.ttest_1samp(differences, threshold, alternative=side).pvalue for side in ("greater", "less")]


@given(numbers, st.one_of(st.just(0.0), st.floats(0.01, 10)))
def test_a_setting_is_judged_as_the_paired_t_tests_judge_it(differences, margin):
    (setting,) = judge(*TEXTS, over_seeds(differences), margin=margin).settings
    above, below = t_tests(differences, -margin)
    if min(abs(above - 0.025), abs(below - 0.025)) > 1e-6:
        assert setting.outcome == ("holds" if above < 0.025 else "does not hold" if below < 0.025 else "undecided")
    assert setting.p_value == pytest.approx(min(above, below), abs=1e-9)


@given(numbers)
def test_an_outcome_turns_with_the_sign(differences):
    verdict = judge(*TEXTS, over_seeds(differences))
    turned = judge(*TEXTS, over_seeds([-x for x in differences]))
    assert turned.outcome == OPPOSITE[verdict.outcome]
    assert turned.settings[0].p_value == pytest.approx(verdict.settings[0].p_value, abs=1e-9)
    assert (verdict.num_seeds, verdict.num_examples) == (len(differences), 0)


def test_known_interval():
    # Mean 0.02, standard deviation 0.01, t(0.975, 2) = 4.302653 (Student's tables).
    (setting,) = judge(*TEXTS, over_seeds([0.01, 0.02, 0.03])).settings
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert (setting.low, setting.high) == pytest.approx((0.02 - half, 0.02 + half), abs=1e-7)
    assert setting.at == ""


def test_a_verdict_over_seeds_and_examples_knows_both():
    # Five seeds, 600 examples, of which the same 30 are right for one method alone: 30/600 without seeds' variance.
    differences = np.zeros((5, 600))
    differences[:, :30] = 1.0
    verdict = judge(*TEXTS, crossed(differences, step=1 / 600))
    (setting,) = verdict.settings
    assert (verdict.num_seeds, verdict.num_examples) == (5, 600)
    assert verdict.outcome == "holds" and setting.estimate == pytest.approx(0.05)
    # All of the width is the examples': a proportion of 0.05 in 600.
    half = 1.959964 * math.sqrt(0.05 * 0.95 / 599)
    assert setting.high - setting.low == pytest.approx(2 * half, rel=1e-6)


def test_a_margin_allows_no_difference_and_is_stated():
    same = crossed(np.zeros((5, 600)), step=1 / 600)
    verdict = judge(*TEXTS, same, margin=0.01, note="five seeds")
    assert verdict.outcome == "holds"
    assert verdict.note == "a loss of up to 0.01 was allowed beforehand; five seeds"
    assert judge(*TEXTS, same, note="five seeds").outcome == "undecided"
    assert judge(*TEXTS, same, note="five seeds").note == "five seeds"


@pytest.mark.parametrize(
    ("intervals", "outcome", "somewhere"),
    [
        ([UP, UP], "holds", "holds"),
        ([DOWN, DOWN], "does not hold", "does not hold"),
        ([FLAT, FLAT], "undecided", "undecided"),
        ([UP, FLAT], "undecided", "holds"),
        # It fails at one, so it cannot hold at all of them, but that no other speaks for it is not shown either.
        ([DOWN, FLAT], "undecided", "undecided"),
        ([UP, DOWN], "changes sign", "holds"),
        ([UP, FLAT, DOWN], "changes sign", "holds"),
    ],
)
def test_opposite_signs_never_cancel(intervals, outcome, somewhere):
    named = {f"α = {at}": interval for at, interval in enumerate(intervals)}
    verdict = judge(*TEXTS, named)
    assert verdict.outcome == outcome
    assert [setting.at for setting in verdict.settings] == list(named)
    single = {UP.estimate: "holds", DOWN.estimate: "does not hold", FLAT.estimate: "undecided"}
    assert [setting.outcome for setting in verdict.settings] == [single[each.estimate] for each in intervals]
    assert judge(*TEXTS, named, somewhere=True).outcome == somewhere


@given(st.lists(st.floats(-0.05, 0.05), min_size=1, max_size=6, unique=True))
def test_somewhere_is_bonferronis_test(means):
    spread = np.array([-0.01, 0.0, 0.01, 0.02, -0.02])
    differences = [spread + mean for mean in means]
    verdict = judge(
        *TEXTS, {f"α = {mean}": over_seeds(each) for mean, each in zip(means, differences, strict=True)}, somewhere=True
    )
    above, below = np.transpose([t_tests(each, 0.0) for each in differences])
    if np.abs(np.r_[above * len(means), above, below] - 0.025).min() < 1e-6:
        return
    expected = "holds" if above.min() < 0.025 / len(means) else "does not hold" if below.max() < 0.025 else "undecided"
    assert verdict.outcome == expected
    assert ("settings is enough" in verdict.note) == (len(means) > 1)


def test_claims_about_several_settings_are_granted_by_chance_no_more_often_than_promised():
    # Independent settings without any effect: 1 − (1 − .025/3)³ = 2.48 % hold somewhere, .025³ of them everywhere.
    generator, pages = np.random.default_rng(0), 3000
    outcomes = {True: [], False: []}
    for page in generator.normal(size=(pages, 3, 5)):
        named = {str(at): over_seeds(differences) for at, differences in enumerate(page)}
        for somewhere, found in outcomes.items():
            found.append(judge(*TEXTS, named, somewhere=somewhere).outcome)
    expected = 1 - (1 - 0.025 / 3) ** 3
    low, high = stats.binom.ppf([1e-5, 1 - 1e-5], pages, expected)
    assert low <= outcomes[True].count("holds") <= high
    assert outcomes[False].count("holds") <= stats.binom.ppf(1 - 1e-5, pages, 0.025**3)
    # Both signs: all but those without a "holds", without a "does not hold" (each .975³), plus those with neither.
    both = 1 - 2 * 0.975**3 + 0.95**3
    low, high = stats.binom.ppf([1e-5, 1 - 1e-5], pages, both)
    assert low <= outcomes[False].count("changes sign") <= high


def test_intervals_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"'C5' must be ones of 95%; received \[0.9\]"):
        judge(*TEXTS, over_seeds([0.1, 0.2], level=0.9))
    with pytest.raises(ValueError, match="'C5' must be ones of 95%"):
        judge(*TEXTS, {})
    with pytest.raises(ValueError, match="'C5' must be over equally many seeds"):
        judge(*TEXTS, {"a": over_seeds([0.1, 0.2]), "b": UP})


def test_margin_and_tolerance_must_be_numbers_in_range():
    for margin in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="margin of 'C5'"):
            judge(*TEXTS, UP, margin=margin)
    for tolerance in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="tolerance of 'C5'"):
            identity(*TEXTS, [0.1], tolerance)


@pytest.mark.parametrize(("errors", "outcome"), [([1e-9, -2e-9], "holds"), ([0.0, -2e-3], "does not hold")])
def test_identity_compares_the_largest_error_with_the_tolerance(errors, outcome):
    verdict = identity(*TEXTS, errors, 1e-6, note="in float64")
    (setting,) = verdict.settings
    assert (verdict.outcome, setting.outcome, setting.estimate) == (outcome, outcome, abs(errors[1]))
    assert verdict.num_seeds == 0 and math.isnan(setting.p_value)
    assert verdict.note == "up to 1e-06 was allowed for rounding; in float64"


@pytest.mark.parametrize("errors", [[], [[0.1]], [0.1, math.nan], [-math.inf]])
def test_identity_needs_finite_errors(errors):
    with pytest.raises(ValueError, match=r"at least one number|finite numbers"):
        identity(*TEXTS, errors, 1e-6)


def with_p_values(name, p_values):
    """Return a verdict on as many settings; below .025 each test is decided."""
    settings = [
        Setting(f"α = {at}", 0.0, 0.0, 0.0, "holds" if p <= 0.025 else "undecided", p) for at, p in enumerate(p_values)
    ]
    return Verdict(name, "a", "b", "undecided", tuple(settings), num_seeds=3)


def holm_by_hand(p_values, level):
    """Holm (1979), as a table is read: reject the smallest while it passes its share of the level."""
    left, rejected = sorted(p_values), []
    while left and left[0] <= level / len(left):
        rejected.append(left.pop(0))
    return rejected


@given(st.lists(st.one_of(st.floats(0, 0.03), st.floats(0, 0.5)), min_size=2, max_size=12, unique=True), st.data())
def test_survivors_are_those_of_holms_procedure_among_all_settings(p_values, data):
    cut = data.draw(st.integers(1, len(p_values) - 1))
    tests = [with_p_values("C1", p_values[:cut]), with_p_values("C2", p_values[cut:])]
    others = [not_run("X1", "a", "b", "c"), identity("X2", "a", "b", [0.0], 1e-9)]
    marks = survivors([others[0], tests[0], others[1], tests[1]])
    assert (marks[0], marks[2]) == ((), (False,))  # and they do not count
    kept = [p for p, mark in zip(p_values, [*marks[1], *marks[3]], strict=True) if mark]
    assert sorted(kept) == holm_by_hand(p_values, 0.025)


def test_what_is_undecided_never_survives():
    # With nothing left beside it Holm would grant .02 all of .025; of two settings either of which is enough, each
    # has half of that.
    t = stats.t.isf([0.001, 0.02], 4) / math.sqrt(5)
    spread = np.array([-1.0, -0.5, 0.0, 0.5, 1.0]) / np.std([-1.0, -0.5, 0.0, 0.5, 1.0], ddof=1)
    verdict = judge(*TEXTS, {str(mean): over_seeds(spread + mean) for mean in t}, somewhere=True)
    assert [setting.p_value for setting in verdict.settings] == pytest.approx([0.001, 0.02])
    assert [setting.outcome for setting in verdict.settings] == ["holds", "undecided"]
    assert survivors([verdict]) == [(True, False)]


def test_a_page_of_chance_carries_a_mark_in_at_most_five_of_a_hundred():
    generator, pages = np.random.default_rng(0), 400
    null = stats.t.sf(np.abs(generator.standard_t(4, (pages, 20))), 4)
    marked = sum(any(survivors([with_p_values("C1", page)])[0]) for page in null)
    assert 4 <= marked <= 36  # 20 expected; 36 is 3.7 standard deviations above


def test_verdicts_that_contradict_themselves_are_refused():
    one = Setting("", 0.1, 0.0, 0.2, "holds")
    with pytest.raises(ValueError, match=r"outcome of 'C5'.*'perhaps'"):
        Verdict(*TEXTS, "perhaps", (one,))
    with pytest.raises(ValueError, match="must hold its estimate"):
        Setting("", 0.3, 0.0, 0.2, "undecided")
    with pytest.raises(ValueError, match="must hold its estimate"):
        Setting("", math.nan, 0.0, 0.2, "undecided")
    with pytest.raises(ValueError, match=r"holds, does not hold or is undecided.*'not run'"):
        Setting("", 0.1, 0.0, 0.2, "not run")
    with pytest.raises(ValueError, match="id, claim and measure"):
        Verdict("C5", " ", "x", "holds", (one,))
    for outcome, settings in (("not run", (one,)), ("holds", ())):
        with pytest.raises(ValueError, match="unless it was not run"):
            Verdict(*TEXTS, outcome, settings)


def test_dict_goes_through_strict_json():
    verdicts = [
        judge(*TEXTS, {"α = 0.1": UP, "α = 0.2": DOWN}, paper="86.7"),
        identity(*TEXTS, [1e-9], 1e-6),
        not_run("C8", "The teacher improves.", "Accuracy.", "no teacher"),
    ]
    ran, exact, skipped = json.loads(json.dumps([v.to_dict() for v in verdicts], allow_nan=False))
    settings = tuple(Setting(**setting) for setting in ran.pop("settings"))
    assert Verdict(**ran, settings=settings) == verdicts[0]
    assert exact["settings"][0]["p_value"] is None
    assert (skipped["outcome"], skipped["settings"], skipped["note"]) == ("not run", [], "no teacher")


def test_outcomes_are_the_five_of_the_design():
    assert set(OUTCOMES) == {"holds", "does not hold", "changes sign", "undecided", "not run"}
