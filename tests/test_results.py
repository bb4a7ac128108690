"""results/: every number is what its record says, read here by other code than wrote it; records are whole."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

from ls_keras.study import claims

import numpy as np
import pytest

ROOT = Path(__file__).parents[1] / "results"
STUDIES = json.loads((ROOT / "studies.json").read_text(encoding="utf-8"))
NUMBER = r"−?\d+(?:\.\d+)?"


@pytest.fixture
def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_below(text, heading):
    """Return the cells of the first table below a heading, its header first."""
    part = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in part.splitlines() if line[:1] == "|"]


def close(text, value, scale=1.0):
    """Whether a printed number is a value, to its last digit."""
    decimals = len(text.partition(".")[2])
    return abs(float(text.replace("−", "-")) - scale * value) <= 0.5001 * 10**-decimals


def test_every_table_is_what_the_records_say(tables):
    assert not tables.differing(), "run python results/tables.py"


def test_a_changed_number_is_found(tables, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(ROOT, tmp_path / "results")
    monkeypatch.setattr(tables, "HERE", folder)
    page = folder / next(iter(STUDIES)) / "README.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(r"0\.(\d)", lambda found: f"0.{(int(found[1]) + 1) % 10}", text, count=1), encoding="utf-8")
    assert tables.main(["--check"]) == 1
    assert "is not what the records say" in capsys.readouterr().out
    assert tables.main([]) == 0
    assert page.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("folder", STUDIES)
def test_verdicts_follow_from_their_variances(folder):
    path = ROOT / folder / "verdicts.json"
    wanted = json.loads(path.read_text(encoding="utf-8"))["verdicts"]
    for again, plain in zip(claims.rejudge(path), wanted, strict=True):
        assert (again.id, again.outcome) == (plain["id"], plain["outcome"])
        assert [each.outcome for each in again.settings] == [each["outcome"] for each in plain["settings"]]


@pytest.mark.parametrize("folder", STUDIES)
def test_printed_intervals_are_those_of_the_verdicts(folder):
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    verdicts = json.loads((ROOT / folder / "verdicts.json").read_text(encoding="utf-8"))["verdicts"]
    header, _, *rows = rows_below(text, "Verdicts")
    assert header[2] == "paper" and header[3] == f"ours, on {STUDIES[folder]['on']}"
    assert len(rows) == len(verdicts)
    for row, verdict in zip(rows, verdicts, strict=True):
        assert row[0].startswith(verdict["id"] + " ") and row[4] == f"**{verdict['outcome']}**"
        printed = re.findall(rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\]", row[3])
        settings = [each for each in verdict["settings"] if each["low"] < each["high"]]
        assert len(printed) == len(settings)
        for numbers, each in zip(printed, settings, strict=True):
            for number, name in zip(numbers, ("estimate", "low", "high"), strict=True):
                assert close(number, each[name]), (verdict["id"], number, each[name])


@pytest.mark.parametrize("folder", STUDIES)
def test_printed_means_are_those_of_the_networks(folder):
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    networks = json.loads((ROOT / folder / "measured.json").read_text(encoding="utf-8"))["networks"]
    columns = ("accuracy", "nll at temperature", "overconfidence", "bias-reduced ece")
    _, _, *rows = rows_below(text, "Every kind of network")
    assert {row[0] for row in rows} == {network["arm"] for network in networks}
    for row in rows:
        for cell, name in zip(row[2:], columns, strict=False):
            values = [network["values"][name] for network in networks if network["arm"] == row[0]]
            mean, spread = cell.split(" ± ")
            assert close(mean, np.mean(values)) and close(spread, np.std(values, ddof=1)), (row[0], name)


@pytest.mark.parametrize("folder", STUDIES)
def test_records_are_whole_and_of_the_seeds_that_they_should_be(folder):
    measured = json.loads((ROOT / folder / "measured.json").read_text(encoding="utf-8"))
    first, count = measured["config"]["first_seed"], measured["config"]["seeds"]
    for arm in {network["arm"] for network in measured["networks"]}:
        seeds = [network["seed"] for network in measured["networks"] if network["arm"] == arm]
        assert sorted(seeds) == list(range(first, first + count)), arm
    assert first == 100 or "--first-seed" not in STUDIES[folder]["command"]


def test_every_interval_of_the_advice_is_one_of_the_study_that_it_names():
    text = (ROOT / "should_i_smooth.md").read_text(encoding="utf-8")
    rules = re.split(r"^\d\. ", text, flags=re.MULTILINE)[1:]
    assert len(rules) >= 7
    for rule in rules:
        known = [
            [sign * each[name] for name in ("estimate", *(("low", "high") if sign > 0 else ("high", "low")))]
            for folder in re.findall(r"\]\(([^/)]+)/README\.md\)", rule)
            for verdict in json.loads((ROOT / folder / "verdicts.json").read_text(encoding="utf-8"))["verdicts"]
            for each in verdict["settings"]
            for sign in (1, -1)
        ]
        printed = re.findall(rf"({NUMBER}) (points|nats) \[({NUMBER}), ({NUMBER})\]", " ".join(rule.split()))
        assert printed, rule
        for value, unit, low, high in printed:
            scale = {"points": 100, "nats": 1}[unit]
            three = (value, low, high)
            assert any(all(close(t, v, scale) for t, v in zip(three, each, strict=True)) for each in known), three


def test_no_study_lies_there_unlisted():
    assert {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(STUDIES)
