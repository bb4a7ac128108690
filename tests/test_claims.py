"""Verdicts on made-up records whose truth is known, for and against each claim."""

import dataclasses
import itertools
import json

from ls_keras import study
from ls_keras.study import claims, distillation, mnist, representations
from ls_keras.study.records import Measured, Record
from ls_keras_recipes import paper

import numpy as np
import pytest
from scipy import stats

SEEDS, NUM_EXAMPLES = range(5), 400
CONFIG = paper.Config(all=True)
# Lower values speak for smoothing.
SHAPES = (
    "spread over distance of centres, train",
    "spread over distance of centres, held-out",
    "variation of edges, train",
    "mean distance from the origin, train",
    "continuum",
)


def noise(name):
    """What makes examples differ, far more than networks do, but in the same way in all, and at every temperature."""
    drawn = np.random.default_rng(len(name.removesuffix(" at temperature"))).normal(size=NUM_EXAMPLES)
    return drawn - drawn.mean()


def record(arm, seed, *, means=None, values=None, facts=None):
    """Seeds differ far more than arms do, so that only pairing can tell."""
    means = {name: mean + 0.05 * seed for name, mean in (means or {}).items()}
    values = {name: value + 0.2 * seed for name, value in (values or {}).items()}
    examples = {name: mean + noise(name) for name, mean in means.items()}
    return Record(arm, seed, "plan", {}, facts or {}, means | values, examples)


def measured(sign=1, gain=0.1, change=lambda arm, means, values: None):
    """Records of every arm of the main job: with sign 1 all claims are true, with −1 all are false."""
    records = []
    for arm in paper.plan(CONFIG).arms:
        good = sign * gain * goodness(arm.name)
        for seed in SEEDS:
            wobble = 1 + 0.01 * seed
            means = {
                "accuracy": 0.5 + 0.2 * good * wobble,
                "nll at temperature": 0.8 - good * wobble,
                "overconfidence": sign * 0.3 * wobble if arm.name == "hard targets" else 0.0,
                # Hard targets lose more by T than by α, so that C6d holds, too.
                "bias-reduced ece": 2.0 - good * wobble,
                "bias-reduced ece at temperature": 2.0 - sign * 0.05 * wobble,
            }
            low = 0.0 if arm.name == "hard targets" else -sign * gain * wobble
            values = {name: 2.0 + low for name in SHAPES}
            smoothed = arm.name != "hard targets"
            fall = sign * (1.5 if smoothed else 0.5) * wobble
            values |= {
                "information, start": 1.0,
                "information, training accuracy 0.95": 1.0 + sign * wobble,
                "information, end": 1.0 + sign * wobble - fall,
            }
            change(arm.name, means, values)
            own = record(arm.name, seed, means=means, values=values, facts={"gamma": 0.1})
            own.values["information, fall from training accuracy 0.95"] = fall
            own.values["information, fall from training accuracy 0.999"] = fall / 2
            records.append(own)
    return Measured("paper", {}, {}, {}, tuple(records))


def goodness(arm):
    """In units of `gain`: teachers improve with every α, students of hard targets are best, of smoothed ones worst."""
    alphas = [representations.name_of(alpha) for alpha in (0.0, 0.05, 0.1, 0.3, 0.6)]
    if arm in alphas:
        return float(alphas.index(arm))
    order = ("student of smoothed", "student, smoothed labels", "student of hard")
    known = {mnist.DROPOUT: 0.0, mnist.OF_DROPOUT: 2.0, mnist.OF_SMOOTHED: 1.0}
    return known.get(arm, float(next((at for at, start in enumerate(order) if arm.startswith(start)), 0)))


def judged(records):
    return {verdict.id: verdict for verdict in study.judge(paper.claims(CONFIG), records)[0]}


def outcomes(records):
    return {name: verdict.outcome for name, verdict in judged(records).items()}


@pytest.mark.parametrize(("sign", "expected"), [(1, "holds"), (-1, "does not hold")])
def test_every_claim_holds_where_it_is_true_and_not_where_it_is_false(sign, expected):
    found = outcomes(measured(sign))
    assert found.pop("C7") == "not run"
    assert set(found.values()) == {expected}, found
    assert len(found) > 25


def test_means_over_examples_are_judged_over_seeds_and_examples_and_shapes_over_seeds():
    sizes = {name: (each.num_seeds, each.num_examples) for name, each in judged(measured()).items()}
    over_seeds = {name for name, size in sizes.items() if size == (5, 0)}
    assert over_seeds == {"C1a", "C1b", "C2", "C3", "C4", "C12a", "C12b", "C12c", "C12d"}
    assert {size for name, size in sizes.items() if name not in over_seeds | {"C7"}} == {(5, NUM_EXAMPLES)}


def test_estimates_are_differences_of_what_they_name():
    found = judged(measured())
    wobble = 1 + 0.01 * np.mean(SEEDS)
    alphas = [setting.estimate for setting in found["C5"].settings]
    assert alphas == pytest.approx([0.02 * k * wobble for k in (1, 2, 3, 4)])
    assert [setting.at for setting in found["C5"].settings] == ["α = 0.05", "α = 0.1", "α = 0.3", "α = 0.6"]
    assert found["C6a"].settings[0].estimate == pytest.approx(0.3 * wobble + 0.05 * np.mean(SEEDS))
    assert found["C6b"].settings[0].estimate == pytest.approx(0.05 * wobble)
    (fall,) = {round(setting.estimate, 6) for setting in found["C3"].settings}
    seeds = np.array(SEEDS)
    assert fall == pytest.approx(np.mean(0.1 * (1 + 0.01 * seeds) / (2 + 0.2 * seeds)), abs=1e-6)
    # By NLL, lower is better: first and second change places.
    assert found["C9b"].settings[0].estimate == pytest.approx(0.1 * wobble)


def test_every_step_of_alpha_is_judged_not_the_ends():
    def dip(arm, means, values):
        if arm == "α = 0.3":
            means["accuracy"] -= 0.08

    found = judged(measured(change=dip))
    assert found["C8a"].outcome == "changes sign"  # α = 0.3 is worse than hard targets, 0.6 better
    assert [each.outcome for each in found["C8b"].settings] == ["holds", "holds", "does not hold", "holds"]
    assert found["C8b"].outcome == "changes sign"


def test_opposite_signs_at_two_softnesses_do_not_cancel():
    def turn(arm, means, values):
        if arm == distillation.arm_name("heated", 0.6):
            means["accuracy"] -= 0.1

    found = judged(measured(change=turn))
    assert found["C9a"].outcome == "changes sign"
    assert found["C9b"].outcome == "holds"


def test_sometimes_worse_needs_one_setting_and_no_better_needs_all():
    def better_once(arm, means, values):
        if arm.startswith("student of smoothed"):
            means["accuracy"] += 0.02 if "0.6" not in arm else 0.08

    found = judged(measured(change=better_once))
    assert found["C10a"].outcome == "changes sign"  # no better at 0.1 and 0.3, better by 6 points at 0.6
    assert found["C10b"].outcome == "undecided"

    def worse_once(arm, means, values):
        if arm.startswith("student of smoothed") and "0.6" not in arm:
            means["accuracy"] += 0.02

    assert judged(measured(change=worse_once))["C10b"].outcome == "holds"


def test_the_margins_are_those_of_the_config():
    def worse(arm, means, values):
        if arm.startswith("α"):
            means["accuracy"] = 0.47  # of 0.5

    assert outcomes(measured(change=worse))["C5"] == "does not hold"
    lenient = dataclasses.replace(CONFIG, accuracy_margin=0.05)
    verdicts, _ = study.judge(paper.claims(lenient), measured(change=worse))
    assert {each.id: each.outcome for each in verdicts}["C5"] == "holds"


def shuffled(records, arms, *, seeds=False, examples=False):
    changed = []
    for each in records.records:
        own = each
        if each.arm in arms:
            own = dataclasses.replace(each, seed=4 - each.seed if seeds else each.seed)
            if examples:
                own = dataclasses.replace(own, examples={name: rows[::-1] for name, rows in own.examples.items()})
        changed.append(own)
    return dataclasses.replace(records, records=tuple(changed))


def test_pairing_is_by_seed():
    found = outcomes(shuffled(measured(), {"α = 0.1"}, seeds=True))
    assert found["C1a"] == found["C4"] == "undecided"


def test_pairing_is_by_example():
    smoothed = {representations.name_of(alpha) for alpha in (0.05, 0.1, 0.3, 0.6)}
    found = outcomes(shuffled(measured(), smoothed, examples=True))
    assert found["C6c"] == "undecided"
    assert found["C6b"] == "holds"  # within the hard-target networks


def test_a_few_examples_that_every_seed_gets_right_decide_nothing():
    """Three of 400: every seed gives a difference of exactly 0.0075, so that over seeds alone claims would hold."""
    rows = np.zeros(NUM_EXAMPLES)
    right = rows.copy()
    right[:3] = 1.0
    records = [
        Record(arm, seed, "", {}, {}, {"accuracy": values.mean()}, {"accuracy": values})
        for arm, values in (("a", right), ("b", rows))
        for seed in SEEDS
    ]
    claim = study.Claim(
        "C", "a is better", "accuracy", (study.Comparison(study.Term("a", "accuracy"), study.Term("b", "accuracy")),)
    )
    (verdict,), _ = study.judge([claim], Measured("", {}, {}, {}, tuple(records)))
    assert verdict.outcome == "undecided"


def test_an_interval_over_seeds_is_students():
    values = [0.1, 0.3, 0.2]
    records = tuple(Record("a", seed, "", values={"x": value}) for seed, value in enumerate(values))
    found = study.interval(Measured("", {}, {}, {}, records), study.Comparison(study.Term("a", "x")))
    expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)


def test_only_seeds_in_common_are_compared():
    records = [Record("a", seed, "", values={"x": 1.0 + 0.1 * seed}) for seed in (0, 1, 2)]
    records += [Record("b", seed, "", values={"x": 0.5}) for seed in (1, 2, 3)]
    comparison = study.Comparison(study.Term("a", "x"), study.Term("b", "x"))
    found = study.interval(Measured("", {}, {}, {}, tuple(records)), comparison)
    assert (found.num_seeds, found.estimate) == (2, pytest.approx(0.65))


def test_information_falls_from_each_training_accuracy_or_is_not_judged():
    found = judged(measured())
    wobble = 1 + 0.01 * np.mean(SEEDS)
    assert [(each.at, each.estimate) for each in found["C12c"].settings] == [
        ("from training accuracy 0.95", pytest.approx(wobble)),
        ("from training accuracy 0.999", pytest.approx(wobble / 2)),
    ]
    name = "information, fall from training accuracy 0.999"
    records = measured()
    for each in records.of("hard targets")[1:3]:
        each.values[name] = np.nan
    found = judged(records)
    assert len(found["C12b"].settings) == 2 and not found["C12b"].note  # about smoothing alone
    (setting,) = found["C12c"].settings
    assert (setting.at, found["C12c"].outcome) == ("from training accuracy 0.95", "holds")
    assert f"0.999: not judged, since hard targets has no “{name}” with seed 1, 2" in found["C12c"].note
    for each in records.of("α = 0.1"):
        each.values["information, training accuracy 0.95"] = np.nan
    never = judged(records)["C12a"]
    assert (never.outcome, never.settings) == ("not run", ())
    assert "α = 0.1 has no “information, training accuracy 0.95” with seed 0, 1, 2, 3, 4" in never.note


def test_a_claim_that_is_judged_at_some_settings_alone_is_judged_again_so(tmp_path):
    records = measured()
    records.of("hard targets")[0].values["information, fall from training accuracy 0.999"] = np.nan
    wanted = paper.claims(CONFIG)
    found, behind = study.judge(wanted, records)
    claims.write_evidence(tmp_path / "verdicts.json", wanted, found, behind)
    assert claims.rejudge(tmp_path / "verdicts.json") == found


def test_what_is_committed_is_enough_to_judge_again(tmp_path):
    wanted = paper.claims(CONFIG)
    found, behind = study.judge(wanted, measured())
    claims.write_evidence(tmp_path / "verdicts.json", wanted, found, behind)
    assert claims.rejudge(tmp_path / "verdicts.json") == found
    content = json.loads((tmp_path / "verdicts.json").read_text())
    (c9,) = (each for each in content["verdicts"] if each["id"] == "C9b")
    assert set(c9["settings"][0]["variances"]) == {"seeds", "residual", "examples", "skewness", "shrinkage"}
    content["format"] = "ls_keras verdicts 99"
    (tmp_path / "verdicts.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="format 'ls_keras verdicts 99', and this version of ls_keras reads"):
        claims.rejudge(tmp_path / "verdicts.json")


def test_findings_say_what_was_best_and_what_to_do():
    records = measured()
    for each in records.records:
        each.values.setdefault("temperature", 0.28)
    records = dataclasses.replace(records, data={"name": "digits"})
    nll, calibration = representations.findings(records, CONFIG.alphas)
    assert "α = 0.6 (the best of 5, chosen on these examples) with T = 0.28 gave the best NLL" in nll
    assert "smooth, and fit a temperature" in nll
    assert "are over-confident" in calibration
    for each in records.records:
        if each.arm == "hard targets":
            each.values["nll at temperature"] = 0.01
    assert "Hard targets with a fitted temperature" in representations.findings(records, CONFIG.alphas)[0]


@pytest.mark.parametrize(("sign", "said"), [(1, "beat hard labels"), (-1, "none beat hard labels")])
def test_findings_do_not_praise_students_that_lose(sign, said):
    seeds = itertools.cycle(SEEDS)

    def all_students(arm, means, values):
        wobble = 1 + 0.01 * next(seeds)
        if arm.startswith("student") and arm != distillation.PLAIN:
            means["nll at temperature"] = 0.8 - sign * 0.1 * wobble

    (sentence,) = distillation.findings(measured(change=all_students), CONFIG.distilled)
    assert said in sentence and "by 0.102 [0.10" in sentence and "chance" not in sentence


def test_calibration_advice_heeds_the_intervals():
    records = dataclasses.replace(measured(), data={"name": "digits"})
    for each in records.records:
        each.values.setdefault("temperature", 1.0)
        for name in ("bias-reduced ece", "bias-reduced ece at temperature"):
            each.values[name] = 0.1
            each.examples[name] = 0.1 + np.random.default_rng([each.seed, len(each.arm)]).normal(0, 1, NUM_EXAMPLES)
    assert "neither is shown to help" in representations.findings(records, CONFIG.alphas)[1]
    for each in records.records:
        if each.arm == "hard targets":
            each.values["bias-reduced ece"] += 1.0 + 0.01 * each.seed
            each.examples["bias-reduced ece"] = each.examples["bias-reduced ece"] + 1.0
    assert "neither is shown" not in representations.findings(records, CONFIG.alphas)[1]


def test_each_claim_has_the_margin_of_its_own_kind():
    config = dataclasses.replace(CONFIG, accuracy_margin=0.01, ece_margin=0.02, nll_margin=0.03)
    margins = {claim.id: claim.margin for claim in paper.claims(config) if claim.margin}
    assert margins == {"C5": 0.01, "C6d": 0.02, "C10a": 0.01, "C10d": 0.03}


def test_the_steps_of_alpha_are_steps():
    wobble = 1 + 0.01 * np.mean(SEEDS)
    found = judged(measured())
    assert [each.estimate for each in found["C8a"].settings] == pytest.approx([0.02 * k * wobble for k in (1, 2, 3, 4)])
    assert [each.estimate for each in found["C8b"].settings] == pytest.approx([0.02 * wobble] * 4)
    # By NLL, lower is better: first and second change places.
    assert [each.estimate for each in found["C8c"].settings] == pytest.approx([0.1 * k * wobble for k in (1, 2, 3, 4)])
    assert [each.estimate for each in found["C8d"].settings] == pytest.approx([0.1 * wobble] * 4)
    assert found["C8c"].measure == "held-out NLL at the fitted T, nats, hard targets − smoothing"


def test_identities_hold_to_rounding_and_not_otherwise():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(50, 5)).astype("float32"), generator.integers(0, 5, 50)
    errors = study.identities.errors(logits, labels)
    assert all(np.abs(each).max() < 1e-12 for each in errors.values())
    assert {each.outcome for each in study.identities.judge(errors)} == {"holds"}
    wrong = {name: each + 1e-6 for name, each in errors.items()}
    assert {each.outcome for each in study.identities.judge(wrong)} == {"does not hold"}
