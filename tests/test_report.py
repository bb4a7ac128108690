"""Verdicts against closed forms and SciPy; the page against an HTML parser."""

import base64
import json
import math
import re
from functools import partial
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

from ls_keras import report
from ls_keras.analysis.intervals import crossed, over_seeds
from ls_keras.report import (
    Illustration,
    Table,
    Verdict,
    identity_verdict,
    noninferiority_verdict,
    not_run,
    paired_verdict,
    survivors,
    verdicts_text,
    write_report,
)

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

TEXTS = ("C5", "Accuracy improves.", "Held-out accuracy, percentage points; smoothed − hard.")
numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12).filter(lambda x: np.std(x) > 1e-6)


@given(numbers)
def test_outcome_is_that_of_the_paired_t_test_and_turns_with_the_sign(differences):
    verdict = paired_verdict(*TEXTS, over_seeds(differences))
    turned = paired_verdict(*TEXTS, over_seeds([-x for x in differences]))
    above, below = (stats.ttest_1samp(differences, 0.0, alternative=side).pvalue for side in ("greater", "less"))
    if min(abs(above - 0.025), abs(below - 0.025)) > 1e-6:
        assert verdict.outcome == ("holds" if above < 0.025 else "does not hold" if below < 0.025 else "undecided")
    opposite = {"holds": "does not hold", "does not hold": "holds", "undecided": "undecided"}
    assert turned.outcome == opposite[verdict.outcome]
    assert verdict.p_value == pytest.approx(min(above, below), abs=1e-9)
    assert turned.p_value == pytest.approx(verdict.p_value, abs=1e-9)
    assert (verdict.num_seeds, verdict.num_examples) == (len(differences), 0)


@given(numbers, st.floats(0.01, 10))
def test_noninferiority_is_the_paired_test_moved_by_its_margin(differences, margin):
    verdict = noninferiority_verdict(*TEXTS, over_seeds(differences), margin)
    # t tests against −margin, at 2.5 % on each side, decide the same way as the interval.
    worse = stats.ttest_1samp(differences, -margin, alternative="less").pvalue
    better = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    if min(abs(worse - 0.025), abs(better - 0.025)) > 1e-6:
        expected = "holds" if better < 0.025 else "does not hold" if worse < 0.025 else "undecided"
        assert verdict.outcome == expected
    assert verdict.p_value == pytest.approx(min(worse, better), abs=1e-9)


def test_known_interval():
    # Mean 0.02, standard deviation 0.01, t(0.975, 2) = 4.302653 (Student's tables).
    verdict = paired_verdict(*TEXTS, over_seeds([0.01, 0.02, 0.03]))
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert (verdict.low, verdict.high) == pytest.approx((0.02 - half, 0.02 + half), abs=1e-7)


def test_a_verdict_over_seeds_and_examples_names_both():
    # Five seeds, 600 examples, of which the same 30 are right for one method alone: 30/600 without seeds' variance.
    differences = np.zeros((5, 600))
    differences[:, :30] = 1.0
    verdict = paired_verdict(*TEXTS, crossed(differences, step=1 / 600))
    assert (verdict.num_seeds, verdict.num_examples) == (5, 600)
    assert verdict.outcome == "holds" and verdict.estimate == pytest.approx(0.05)
    # All of the width is the examples': a proportion of 0.05 in 600.
    half = 1.959964 * math.sqrt(0.05 * 0.95 / 599)
    assert verdict.high - verdict.low == pytest.approx(2 * half, rel=1e-6)
    assert "5×600" in verdicts_text([verdict])


def test_noninferiority_states_its_margin_and_allows_no_difference():
    verdict = noninferiority_verdict(*TEXTS, crossed(np.zeros((5, 600)), step=1 / 600), 0.01, note="five seeds")
    assert verdict.outcome == "holds"
    assert "0.01" in verdict.note and "five seeds" in verdict.note


@pytest.mark.parametrize("judge", [paired_verdict, partial(noninferiority_verdict, margin=0.1)])
def test_an_interval_of_another_level_is_refused(judge):
    with pytest.raises(ValueError, match=r"'C5' must be one of 95%, got 90"):
        judge(*TEXTS, over_seeds([0.1, 0.2], level=0.9))


def holm_by_hand(p_values, level):
    """Holm (1979), as a table is read: reject the smallest while it passes its share of the level."""
    left, rejected = sorted(p_values), []
    while left and left[0] <= level / len(left):
        rejected.append(left.pop(0))
    return rejected


@given(st.lists(st.one_of(st.floats(0, 0.03), st.floats(0, 0.5)), min_size=1, max_size=12, unique=True))
def test_survivors_are_those_of_holms_procedure_among_the_tests(p_values):
    tests = [Verdict(f"C{at}", "a", "b", 0.0, 0.0, 0.0, 3, "undecided", p_value=p) for at, p in enumerate(p_values)]
    others = [not_run("X1", "a", "b", "c"), identity_verdict("X2", "a", "b", [0.0], 1e-9)]
    marks = survivors([others[0], *tests, others[1]])
    assert not marks[0] and not marks[-1]  # and they do not count
    kept = [verdict.p_value for verdict, mark in zip(tests, marks[1:-1], strict=True) if mark]
    assert sorted(kept) == holm_by_hand(p_values, 0.025)


def test_a_page_of_chance_carries_a_mark_in_at_most_five_of_a_hundred():
    generator, pages = np.random.default_rng(0), 400
    null = stats.t.sf(np.abs(generator.standard_t(4, (pages, 20))), 4)
    verdicts = [[Verdict("C1", "a", "b", 0.0, 0.0, 0.0, 5, "undecided", p_value=p) for p in page] for page in null]
    marked = sum(any(survivors(page)) for page in verdicts)
    assert 4 <= marked <= 36  # 20 expected; 36 is 3.7 standard deviations above


@pytest.mark.parametrize(("errors", "outcome"), [([1e-9, -2e-9], "holds"), ([0.0, -2e-3], "does not hold")])
def test_identity_compares_the_largest_error_with_the_tolerance(errors, outcome):
    verdict = identity_verdict(*TEXTS, errors, 1e-6)
    assert (verdict.outcome, verdict.estimate, verdict.num_seeds) == (outcome, abs(errors[1]), 0)
    assert "1e-06" in verdict.note


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_margin_and_tolerance_must_be_positive(bound):
    with pytest.raises(ValueError, match="margin of 'C5'"):
        noninferiority_verdict(*TEXTS, over_seeds([0.1, 0.2]), bound)
    with pytest.raises(ValueError, match="tolerance of 'C5'"):
        identity_verdict(*TEXTS, [0.1], bound)


@pytest.mark.parametrize("errors", [[], [[0.1]], [0.1, math.nan], [-math.inf]])
def test_identity_needs_finite_errors(errors):
    with pytest.raises(ValueError, match=r"at least one number|finite numbers"):
        identity_verdict(*TEXTS, errors, 1e-6)


def test_verdicts_that_contradict_themselves_are_refused():
    with pytest.raises(ValueError, match=r"outcome of 'C5'.*'perhaps'"):
        Verdict(*TEXTS, 0.1, 0.0, 0.2, 5, "perhaps")
    with pytest.raises(ValueError, match="must hold its estimate"):
        Verdict(*TEXTS, 0.3, 0.0, 0.2, 5, "undecided")
    with pytest.raises(ValueError, match="id, claim and measure"):
        Verdict("C5", " ", "x", 0.1, 0.0, 0.2, 5, "undecided")


def test_dict_goes_through_strict_json():
    verdicts = [
        paired_verdict(*TEXTS, over_seeds([0.1, 0.3])),
        not_run("C8", "The teacher improves.", "Accuracy.", "no teacher"),
    ]
    ran, skipped = json.loads(json.dumps([v.to_dict() for v in verdicts], allow_nan=False))
    assert Verdict(**ran) == verdicts[0]
    assert skipped["estimate"] is skipped["low"] is skipped["high"] is skipped["p_value"] is None
    assert skipped["outcome"] == "not run" and skipped["note"] == "no teacher"


def some_verdicts() -> list[Verdict]:
    fickle = np.zeros((5, 600))
    fickle[:, :30] = 1.0
    return [
        paired_verdict(
            "C1",
            "Smoothing tightens the clusters.",
            "Spread ÷ distance; hard − smoothed.",
            over_seeds([0.2, 0.21, 0.22]),
        ),
        paired_verdict(
            "C2", "Clusters form a regular triangle.", "Spread of edges, no unit.", over_seeds([0.0004, 0.03, 0.02])
        ),
        paired_verdict(
            "C3", "Projections shrink.", "Activations; hard − smoothed.", over_seeds([-3.0, -2.0, -2.5]), paper="larger"
        ),
        noninferiority_verdict(*TEXTS, crossed(fickle), 0.5, paper="86.8 ± 0.2 → 86.7 ± 0.3"),
        not_run("C8", "The teacher improves with α <script>alert('x')</script> & more.", "Accuracy.", "needs CIFAR-10"),
        identity_verdict("C13", "Smoothing is the reversed penalty.", "Largest error, nats.", [3e-16], 1e-10),
    ]


def test_terminal_table_is_aligned_and_complete():
    verdicts = [*some_verdicts(), paired_verdict("C6b", "Word " * 40, "Measure " * 40, over_seeds([12345.6, 12340.1]))]
    lines = verdicts_text(verdicts).split("\n")
    assert max(map(len, lines)) <= 100
    outcome_column = lines[0].index("outcome")
    claim_column = lines[0].index("the paper's claim")
    for verdict in verdicts:
        row = next(line for line in lines if line.startswith(f"{verdict.id} "))
        assert row[outcome_column:].startswith(verdict.outcome)
        assert row[claim_column - 1] == " " and row[claim_column] != " "
    words = re.sub(r"\s+", " ", " ".join(line[claim_column:] for line in lines))
    for verdict in verdicts:
        for text in (verdict.claim, verdict.measure, verdict.note, verdict.paper):
            assert re.sub(r"\s+", " ", text).strip() in words


@given(numbers)
def test_printed_interval_shows_the_side_of_zero(differences):
    verdict = paired_verdict(*TEXTS, over_seeds(differences))
    row = verdicts_text([verdict]).split("\n")[2]
    low, high = re.search(r"([+−][\d.]+) to ([+−][\d.]+)", row).groups()
    for shown, exact in ((low, verdict.low), (high, verdict.high)):
        if abs(exact) > 1e-9:
            value = float(shown.replace("−", "-"))
            assert np.sign(value) == np.sign(exact)


VOID = {"meta", "link", "img", "br", "path"}


class Page(HTMLParser):
    """Elements with attributes and text, failing on wrong nesting."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"repeated attribute in {tag}"
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs, _ in self.elements if name == tag]

    def words(self):
        return re.sub(r"\s+", " ", "".join(self.text))


def drawing(width: float) -> Figure:
    figure = Figure(figsize=(width, 2))
    figure.add_subplot().plot([0, 1])
    return figure


REPORT = {
    "title": "When does label smoothing help?",
    "lead": "We tested six claims & found <four> that hold.",
    "tables": [
        Table("Accuracy in %.", ["network", "α", "accuracy"], [["hard", 0, 97.312], ["<smoothed>", 0.1, -2e-7]])
    ],
    "made_how": {"Data": "digits", "Command": "python recipes/paper.py --alphas 0 0.1 && echo '<done>'"},
}


@pytest.fixture
def page(tmp_path):
    figures = [
        Illustration(drawing(7), 'Clusters "tighten".', 'Four scatter plots, "train" first.'),
        Illustration(drawing(3.3), "Calibration.", "Three curves."),
    ]
    path = write_report(tmp_path / "report.html", verdicts=some_verdicts(), figures=figures, **REPORT)
    assert [child.name for child in tmp_path.iterdir()] == ["report.html"]
    return path.read_text("utf-8")


def test_page_asks_no_network_and_runs_no_script(page):
    parsed = Page(page)
    for tag, attrs, _ in parsed.elements:
        assert tag not in {"script", "iframe", "object", "embed", "base"}
        for name, value in attrs.items():
            assert not name.startswith("on")
            if name in {"src", "href", "srcset", "action", "data", "poster"}:
                assert value.startswith(("data:", "#")), value
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL).group(1)
    assert "url(" not in style and "@import" not in style
    # The browser holds the page to it, whatever a later change of the template brings.
    policy = next(attrs["content"] for attrs in parsed.all("meta") if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'")
    assert any(attrs.get("rel") == "icon" for attrs in parsed.all("link"))


def test_page_is_accessible(page):
    parsed = Page(page)
    assert parsed.all("html") == [{"lang": "en"}]
    assert len(parsed.all("h1")) == len(parsed.all("title")) == len(parsed.all("main")) == 1
    assert any(attrs.get("name") == "viewport" for attrs in parsed.all("meta"))
    assert all(attrs.get("scope") in {"row", "col"} for attrs in parsed.all("th"))
    assert len(parsed.all("caption")) == len(parsed.all("table")) == 2
    assert [attrs["alt"] for attrs in parsed.all("img")] == ['Four scatter plots, "train" first.', "Three curves."]
    assert all("figure" in parents for tag, _, parents in parsed.elements if tag in {"img", "figcaption"})
    ids = [attrs["id"] for _, attrs, _ in parsed.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    links = [attrs["href"].removeprefix("#") for attrs in parsed.all("a")]
    labels = [attrs["aria-labelledby"] for _, attrs, _ in parsed.elements if "aria-labelledby" in attrs]
    assert links == labels == ["verdicts", "figures", "tables", "made"] and set(links) <= set(ids)


def test_page_shows_everything_and_escapes_it(page):
    words = Page(page).words()
    for verdict in some_verdicts():
        for text in (verdict.id, verdict.claim, verdict.measure, verdict.note, verdict.paper, verdict.outcome):
            assert text in words
    for text in (REPORT["lead"], *REPORT["made_how"].values(), "<smoothed>", "97.31", "−2e−07", 'Clusters "tighten".'):
        assert text in words
    assert "Outcome of 6 tests: holds 3, does not hold 1, undecided 1, not run 1." in words


def test_page_and_terminal_say_what_chance_would_give_and_mark_what_survives(page):
    # t of C1 is 0.21 / (0.01 / √3) = 36.4, so p = .0004; of C3 −8.7, p = .0065; of C2 1.9. C5 is 60 errors away.
    verdicts = some_verdicts()
    assert survivors(verdicts) == [True, False, True, True, False, False]
    chance = "4 tests at 2.5 % a side: if nothing were true, about 0.1 would hold by chance"
    words = Page(page).words()
    assert chance in words and "★ marks the 3 that survive Holm" in words and "None survives" not in words
    assert words.count("★ survives Holm") == 3
    lines = verdicts_text(verdicts).split("\n")
    assert chance in " ".join(lines) and "* marks the 3 that survive" in " ".join(lines)
    marked = [line.split()[0] for line in lines if re.match(r"C\d+ +(holds|does not hold) \*", line)]
    assert marked == ["C1", "C3", "C5"]


def test_page_says_which_interval_is_which(page):
    words = Page(page).words().replace("\N{NO-BREAK SPACE}", " ")
    assert "(5 seeds × 600 examples)" in words and words.count("(3 seeds)") == 3
    assert "covers fresh seeds and fresh examples" in words and "Student’s t over seeds" in words
    assert "too few" not in words


def test_two_seeds_are_said_to_be_too_few(tmp_path):
    two = [*some_verdicts(), paired_verdict("C9", "Students win.", "Accuracy.", over_seeds([0.1, 0.3]))]
    path = write_report(tmp_path / "report.html", verdicts=two, **REPORT)
    for shown in (Page(path.read_text("utf-8")).words(), " ".join(verdicts_text(two).split())):
        assert "2 seeds are too few: their intervals are valid, but 3 to 8 times as wide" in shown
    assert "too few" not in verdicts_text(some_verdicts())


def test_a_page_without_tests_says_nothing_of_chance(tmp_path):
    path = write_report(tmp_path / "report.html", verdicts=some_verdicts()[-2:], **REPORT)
    assert "chance" not in Page(path.read_text("utf-8")).words()


def test_verdicts_come_first_then_figures_tables_and_the_making(page):
    order = [page.index(f'<h2 id="{name}"') for name in ("verdicts", "figures", "tables", "made")]
    assert order == sorted(order)


def test_figures_are_inside_at_full_resolution(page):
    images = Page(page).all("img")
    for attrs, inches in zip(images, (7, 3.3), strict=True):
        with Image.open(BytesIO(base64.b64decode(attrs["src"].removeprefix("data:image/png;base64,")))) as image:
            assert image.size == (round(200 * inches), 400)
            assert int(attrs["width"]) / int(attrs["height"]) == pytest.approx(inches / 2, rel=0.01)


def luminance(color: str) -> float:
    """Relative luminance, WCAG 2.2."""
    digits = color.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    channels = np.array([int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(first: str, second: str) -> float:
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def test_text_contrast_is_at_least_that_of_wcag_aa(page):
    pairs = re.findall(r"\.(?:holds|does-not-hold|undecided|not-run) \{ color: (\S+); background: (\S+); \}", page)
    assert len(pairs) == 4
    for color in re.findall(r"[{;] color: (#\w+)", page):
        assert contrast(color, "#fff") >= 4.5
    assert all(contrast(*pair) >= 4.5 for pair in pairs)


def test_outcomes_differ_by_word_symbol_and_class(page):
    shown = re.findall(r'<span class="outcome ([\w-]+)"><span aria-hidden="true">(.)</span> ([\w ]+)</span>', page)
    assert [word for *_, word in shown] == [verdict.outcome for verdict in some_verdicts()]
    assert len({(name, symbol, word) for name, symbol, word in shown}) == 4
    assert len({symbol for _, symbol, _ in shown}) == 4
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL).group(1)
    assert all(f".{name} {{" in style for name, *_ in shown)


def test_a_report_without_verdicts_or_figures_has_no_empty_sections(tmp_path):
    path = write_report(tmp_path / "report.html", **(REPORT | {"tables": []}))
    parsed = Page(path.read_text("utf-8"))
    assert [attrs["href"] for attrs in parsed.all("a")] == ["#made"]
    assert not parsed.all("table") and not parsed.all("img")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": " "}, "title"),
        ({"lead": ""}, "lead"),
        ({"verdicts": [some_verdicts()[0]] * 2}, "id of its own"),
        ({"figures": [Illustration(Figure(), "caption", "")]}, "figure 1"),
        ({"figures": [Illustration(Figure(), "", "alt")]}, "figure 1"),
        ({"tables": [Table("t", ["a", "b"], [["x"]])]}, "1 cells for 2 columns"),
        ({"tables": [Table("t", ["a", "b"], [])]}, "no rows"),
    ],
)
def test_incomplete_reports_are_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "report.html", **(REPORT | changes))
    assert not list(tmp_path.iterdir())


def test_a_failed_report_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(self, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            write_report(path, **REPORT)
    broken = Illustration(drawing(7), "caption", "alt")
    monkeypatch.setattr(broken.figure, "savefig", full)
    with pytest.raises((OSError, TypeError)):
        write_report(path, figures=[broken], **REPORT)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_report(tmp_path / "nowhere" / "report.html", **REPORT)


def test_the_same_report_gives_the_same_bytes(tmp_path):
    pages = [
        write_report(tmp_path / name, figures=[Illustration(drawing(3.3), "c", "a")], **REPORT).read_bytes()
        for name in ("one.html", "two.html")
    ]
    assert pages[0] == pages[1]


def test_outcomes_are_the_four_of_the_design():
    assert set(report.OUTCOMES) == {"holds", "does not hold", "undecided", "not run"}
