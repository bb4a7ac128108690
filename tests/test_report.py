"""The page against an HTML parser, numbers as printed against numbers as given."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

from ls_keras import report
from ls_keras.analysis.intervals import crossed, over_seeds
from ls_keras.report import Illustration, Table, verdicts_text, write_report
from ls_keras.verdicts import OUTCOMES, Verdict, identity, judge, not_run, survivors

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12).filter(lambda x: np.std(x) > 1e-6)


def some_verdicts() -> list[Verdict]:
    """One of each outcome. t of C1 is 0.21 / (0.01 / √3) = 36.4, so p = .0004; of C3 −43; of C2 1.9."""
    fickle = np.zeros((5, 600))
    fickle[:, :30] = 1.0
    return [
        judge(
            "C1",
            "Smoothing tightens the clusters.",
            "Spread ÷ distance; hard − smoothed.",
            over_seeds([0.2, 0.21, 0.22]),
        ),
        judge("C2", "Clusters form a regular triangle.", "Spread of edges.", over_seeds([0.0004, 0.03, 0.02])),
        judge(
            "C3", "Projections shrink.", "Activations; hard − smoothed.", over_seeds([-2.6, -2.4, -2.5]), paper="larger"
        ),
        judge(
            "C5",
            "Accuracy is kept.",
            "Accuracy, a fraction; smoothed − hard.",
            crossed(fickle),
            margin=0.5,
            paper="86.8 ± 0.2 → 86.7 ± 0.3",
        ),
        not_run("C8", "The teacher improves with α <script>alert('x')</script> & more.", "Accuracy.", "needs CIFAR-10"),
        judge(
            "C9",
            "Students of hard teachers win.",
            "Accuracy of students.",
            {"γ = 0.15": over_seeds([0.2, 0.21, 0.22]), "γ = 0.3": over_seeds([-2.6, -2.4, -2.5])}
            | {"γ = 0.6": over_seeds([-0.01, 0.0, 0.01])},
        ),
        identity("C13", "Smoothing is the reversed penalty.", "Largest error, nats.", [3e-16], 1e-10),
    ]


def test_terminal_table_has_a_line_for_each_claim_and_setting():
    verdicts = [*some_verdicts(), judge("C6b", "Word " * 40, "Measure " * 40, over_seeds([12345.6, 12340.1]))]
    lines = verdicts_text(verdicts).split("\n")
    assert max(map(len, lines)) <= 100
    claim_column = lines[0].index("the paper's claim")
    for verdict in verdicts:
        at = next(number for number, line in enumerate(lines) if line.startswith(f"{verdict.id} "))
        assert lines[at][lines[0].index("outcome") :].startswith(verdict.outcome)
        assert lines[at][claim_column - 1] == " " and lines[at][claim_column] != " "
        if len(verdict.settings) > 1:
            for setting, line in zip(verdict.settings, lines[at + 1 :], strict=False):
                assert setting.outcome in line and line.endswith(setting.at)
    words = re.sub(r"\s+", " ", " ".join(line[claim_column:] for line in lines))
    assert all(re.sub(r"\s+", " ", verdict.claim).strip() in words for verdict in verdicts)
    assert "(needs CIFAR-10)" in words and "Measure" not in words
    # Seven claims in one line each, C8 and C9 of two claims' words in two, C9 with its three settings, and the head.
    assert len(verdicts_text(some_verdicts()).split("\n\n")[0].split("\n")) <= 2 + 7 + 3 + 3


@given(numbers, numbers)
def test_printed_intervals_show_the_side_of_zero_with_equally_many_decimals(first, second):
    if len(first) != len(second):
        second = [*first[1:], 7.0]
    verdict = judge("C5", "Accuracy improves.", "Accuracy.", {"a": over_seeds(first), "b": over_seeds([*second])})
    rows = verdicts_text([verdict]).split("\n")[3:5]
    decimals = set()
    for row, setting in zip(rows, verdict.settings, strict=True):
        estimate, *ends = re.search(r"([+−][\d.]+) +\[([+−][\d.]+), ([+−][\d.]+)\]", row).groups()
        decimals |= {len(number.partition(".")[2]) for number in (estimate, *ends)}
        for shown, exact in zip(ends, (setting.low, setting.high), strict=True):
            value = float(shown.replace("−", "-"))
            if abs(exact) > 1e-9:
                assert np.sign(value) == np.sign(exact)
    assert len(decimals) == 1


def test_a_terminal_page_says_what_its_intervals_are_over():
    verdicts = some_verdicts()
    text = " ".join(verdicts_text(verdicts).split())
    assert "Intervals over 3 seeds: C1, C2, C3, C9; over 5 seeds × 600 examples: C5." in text
    same = " ".join(verdicts_text(verdicts[:3]).split())
    assert same.endswith("All intervals are over 3 seeds.")
    assert "ntervals" not in verdicts_text(verdicts[-1:])


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
    "lead": "We tested seven claims & found <three> that hold.",
    "findings": ["ECE rose by 0.067 <sic>: fit a temperature.", "Clusters shrank by 0.046."],
    "tables": [
        Table("Accuracy in %.", ["network", "α", "accuracy"], [["hard", 0, 97.312], ["<smoothed>", 0.1, -2e-7]])
    ],
    "made_how": {"Data": "digits", "Command": "python recipes/paper.py --alphas 0 -f 0.1-0.2 && echo '<done>'"},
}


@pytest.fixture
def page(tmp_path):
    figures = [
        Illustration(drawing(7), 'Clusters "tighten".', 'Four scatter plots, "train" first.', "Figure 1"),
        Illustration(drawing(3.3), "Calibration.", "Three curves.", "Figure 2"),
        Illustration(drawing(3.3), "Learning rates.", "One curve."),
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
    alternatives = ['Four scatter plots, "train" first.', "Three curves.", "One curve."]
    assert [attrs["alt"] for attrs in parsed.all("img")] == alternatives
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
    table = ("<smoothed>", "97.31", "−2e−07")
    for text in (REPORT["lead"], *REPORT["findings"], *REPORT["made_how"].values(), *table, 'Clusters "tighten".'):
        assert text in words
    counts = "Of 7 claims: ✓ 3 hold, ✗ 1 does not hold, ± 1 changes sign, ? 1 undecided, – 1 not run."
    assert counts in words
    assert "Of 7 claims: 3 hold, 1 does not hold," in verdicts_text(some_verdicts())


def test_options_of_a_command_stay_in_one_piece(page):
    assert re.findall(r'<span class="whole">(.*?)</span>', page[page.index('id="made"') :]) == ["--alphas", "-f"]


def test_page_and_terminal_say_what_chance_would_give_and_mark_what_survives(page):
    verdicts = some_verdicts()
    expected = [(True,), (False,), (True,), (True,), (), (True, True, False), (False,)]
    assert survivors(verdicts) == expected
    chance = "7 tests at 2.5 % a side: if nothing were true, about 0.18 would hold by chance"
    parsed = Page(page)
    assert chance in parsed.words() and "★ marks the 5 that survive Holm" in parsed.words()
    stars = [attrs for attrs in parsed.all("span") if attrs.get("class") == "star"]
    assert len(stars) == 5 and all("survives Holm" in attrs["aria-label"] for attrs in stars)
    lines = verdicts_text(verdicts).split("\n")
    assert chance in " ".join(lines) and "* marks the 5 that survive" in " ".join(lines)
    marked = [line.split()[0] for line in lines if re.match(r"C\d+ +(holds|does not hold) \*", line)]
    assert marked == ["C1", "C3", "C5"]
    assert [line.split()[-1] for line in lines if re.match(r" +(holds|does not hold) \*", line)] == ["0.15", "0.3"]


def test_each_setting_has_a_line_with_its_own_outcome(page):
    row = page[page.index("C9</span>") : page.index("C13</span>")]
    lines = re.findall(r"<li.*?</li>", row, re.DOTALL)
    shown = [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", line)).strip() for line in lines]
    assert [line.replace("\N{NO-BREAK SPACE}", " ") for line in shown] == [
        "γ = 0.15 ✓ holds +0.210 [+0.185, +0.235] ★",
        "γ = 0.3 ✗ does not hold −2.500 [−2.748, −2.252] ★",
        "γ = 0.6 ? undecided +0.000 [−0.025, +0.025]",
    ]
    assert '<span class="outcome changes-sign"><span aria-hidden="true">±</span> changes sign</span>' in row


def test_how_it_was_measured_is_folded_away_and_printed(page):
    parsed = Page(page)
    assert len(parsed.all("details")) == len(parsed.all("summary")) == len(some_verdicts())
    assert not any("open" in attrs for attrs in parsed.all("details"))
    folded = "".join(re.findall(r"<details.*?</details>", page, re.DOTALL))
    for verdict in some_verdicts():
        assert verdict.measure in folded and verdict.claim not in folded
    # Why a claim was not run is no matter of measurement.
    assert "a loss of up to 0.5" in folded and "needs CIFAR-10" in page and "needs CIFAR-10" not in folded
    printed = page[page.index("@media print") : page.index("</style>")]
    assert "details::details-content { content-visibility: visible;" in printed


def test_seeds_and_examples_are_said_once_where_they_are_the_same_for_all(page, tmp_path):
    words = Page(page).words().replace("\N{NO-BREAK SPACE}", " ")
    assert "measured: 5 seeds × 600 examples" in words and words.count("measured: 3 seeds") == 4
    assert "All intervals are over" not in words
    path = write_report(tmp_path / "same.html", verdicts=some_verdicts()[:3], **REPORT)
    words = Page(path.read_text("utf-8")).words().replace("\N{NO-BREAK SPACE}", " ")
    assert words.count("3 seeds") == 1 and "All intervals are over 3 seeds." in words


def test_two_seeds_are_said_to_be_too_few(tmp_path):
    two = [*some_verdicts(), judge("C10", "Students win.", "Accuracy.", over_seeds([0.1, 0.3]))]
    path = write_report(tmp_path / "report.html", verdicts=two, **REPORT)
    for shown in (Page(path.read_text("utf-8")).words(), " ".join(verdicts_text(two).split())):
        assert "2 seeds are too few: their intervals are valid, but 3 to 8 times as wide" in shown
    assert "too few" not in verdicts_text(some_verdicts())


def test_a_page_without_tests_says_nothing_of_chance(tmp_path):
    path = write_report(tmp_path / "report.html", verdicts=some_verdicts()[-1:], **REPORT)
    assert "chance" not in Page(path.read_text("utf-8")).words()


def test_findings_and_the_first_figure_come_before_the_verdicts(page):
    heads = [f'<h2 id="{name}"' for name in ("verdicts", "figures", "tables", "made")]
    wanted = ["<h1>", "<li>ECE rose", '<figure id="figure-1"', *heads[:2], '<figure id="figure-2"', *heads[2:]]
    order = [page.index(part) for part in wanted]
    assert order == sorted(order)
    assert page.count("<figure ") == 3


def test_captions_name_the_papers_figure_once_and_own_data_always(page):
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert [re.sub(r"<[^>]+>", "", caption) for caption in captions] == [
        "Figure 1 (the paper&#39;s Figure 1, own data). Clusters &#34;tighten&#34;.",
        "Figure 2 (the paper&#39;s Figure 2, own data). Calibration.",
        "Figure 3 (own data). Learning rates.",
    ]


@pytest.fixture
def shown(tmp_path):
    """Return a function that gives a table's cells as the page shows them, and whether they are set as numbers."""

    def show(header, rows, **options):
        path = write_report(tmp_path / "t.html", **(REPORT | {"tables": [Table("t", header, rows, **options)]}))
        cells = re.findall(r"<t[hd](?: [^>]*?)?(?: class=\"(number)\")?>([^<]*)</t[hd]>", path.read_text("utf-8"))
        texts = [text for _, text in cells]
        width = len(header)
        grid = [texts[at : at + width] for at in range(width, len(texts), width)]
        return grid, [bool(number) for number, _ in cells[:width]]

    return show


def test_a_column_is_one_quantity_with_equally_many_decimals(shown):
    header = ["network", "α", "accuracy", "steps", "wide range", "interval", "remark"]
    rows = [
        ["hard", 0.0, 0.9713, 800, 97.312, "0.0112 to 0.0301", "ours"],
        ["smoothed", 0.05, 0.97, 2400, -2e-7, "0.06 to 0.10", "3 tests"],
        ["no data", 0.1, float("nan"), 16000, float("inf"), "–", ""],
    ]
    grid, numeric = shown(header, rows)
    assert [row[1] for row in grid] == ["0.00", "0.05", "0.10"]
    assert [row[2] for row in grid] == ["0.9713", "0.9700", "–"]
    assert [row[3] for row in grid] == ["800", "2400", "16000"]
    assert [row[4] for row in grid] == ["97.31", "−2e−07", "∞"]
    assert [row[5:] for row in grid] == [row[5:] for row in rows]
    assert numeric == [False, True, True, True, False, True, False]


def test_a_row_is_one_quantity_where_the_table_says_so(shown):
    rows = [["accuracy", 0.9713, 0.98], ["steps", 2400, 800], ["distance", 123.4, 7.0], ["ECE", "0.021 ± 0.004", 0.1]]
    grid, numeric = shown(["quantity", "hard", "smoothed"], rows, by_row=True)
    stripped = [[cell.strip() for cell in row] for row in grid]
    assert stripped == [
        ["accuracy", "0.9713", "0.9800"],
        ["steps", "2400", "800"],
        ["distance", "123.4", "7.0"],
        ["ECE", "0.021 ± 0.004", "0.100"],
    ]
    assert numeric == [False, True, True]
    # Set right in figures of one width, the points of the last column are all the same number of places from its end.
    assert {len(row[2]) - (row[2].rstrip() + ".").index(".") for row in grid} == {5}


@given(st.lists(st.floats(1e-4, 1e5), min_size=1, max_size=6))
def test_floats_keep_four_digits_of_the_largest_and_two_of_the_smallest(values):
    cells = report._cells(Table("t", ["x", "y"], [["a", value] for value in values]))
    texts = [row[1].strip() for row in cells["rows"]]
    for text, value in zip(texts, values, strict=True):
        error = abs(float(text) - value)
        assert error <= 0.0501 * value
        assert error <= 0.5001e-3 * max(values)
    assert len({len(text.partition(".")[2]) for text in texts}) == 1


def test_only_a_table_that_is_wider_than_a_telephone_is_said_to_scroll(page, tmp_path):
    hint = "Scroll the table sideways"
    assert hint not in page
    wide = Table("t", ["quantity", *"abcd"], [["accuracy", *["0.9713 ± 0.0051"] * 4]])
    assert hint in write_report(tmp_path / "wide.html", **(REPORT | {"tables": [wide]})).read_text("utf-8")


def test_figures_are_inside_at_full_resolution(page):
    images = Page(page).all("img")
    for attrs, inches in zip(images, (7, 3.3, 3.3), strict=True):
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
    pairs = re.findall(
        r"\.(?:holds|does-not-hold|changes-sign|undecided|not-run) \{ color: (\S+); background: (\S+); \}", page
    )
    assert len(pairs) == 5
    for color in re.findall(r"[{;] color: (#\w+)", page):
        assert contrast(color, "#fff") >= 4.5
    assert all(contrast(*pair) >= 4.5 for pair in pairs)


def test_outcomes_differ_by_word_symbol_and_class(page):
    shown = re.findall(r'<span class="outcome ([\w-]+)"><span aria-hidden="true">(.)</span> ([\w ]+)</span>', page)
    assert [word for *_, word in shown] == [verdict.outcome for verdict in some_verdicts()]
    assert {word for *_, word in shown} == set(OUTCOMES)
    assert len(set(shown)) == len({symbol for _, symbol, _ in shown}) == 5
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL).group(1)
    assert all(f".{name} {{" in style for name, *_ in shown)


def test_a_report_without_verdicts_or_figures_has_no_empty_sections(tmp_path):
    path = write_report(tmp_path / "report.html", **(REPORT | {"tables": [], "findings": []}))
    parsed = Page(path.read_text("utf-8"))
    assert [attrs["href"] for attrs in parsed.all("a")] == ["#made"]
    assert not parsed.all("table") and not parsed.all("img") and len(parsed.all("ul")) == 1  # of the links


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": " "}, "title"),
        ({"lead": ""}, "lead"),
        ({"findings": ["ECE rose.", " "]}, "findings"),
        ({"findings": "ECE rose."}, "findings"),
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
