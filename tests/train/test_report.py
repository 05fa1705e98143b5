"""The report page: self-contained, escaped, and whole with whatever a run has."""

import re
from html.parser import HTMLParser

import pytest

from jaxlm.train.charts import downsample, nice_ticks, smooth, tick_text
from jaxlm.train.page import VOID, element
from jaxlm.train.records import RunRecords
from jaxlm.train.report import write_report

CONFIG = {"task": {"name": "token_classification"}, "seed": 7}
HOSTILE = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Elements by tag, and all text outside scripts; complains of unbalanced tags."""

    def __init__(self, text):
        super().__init__()
        self.source, self.open, self.elements, self.words = text, [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)

    def all(self, tag, **wanted):
        return [
            found
            for name, found in self.elements
            if name == tag and wanted.items() <= found.items()
        ]


@pytest.fixture
def records(tmp_path):
    """Records without event files, which no report reads."""
    records = RunRecords(tmp_path)
    records._append_events = lambda record: None
    with records:
        yield records


def report(records, config=CONFIG):
    return Page(write_report(records.workdir, config).read_text(encoding="utf-8"))


def fill(records, labels=("PER", "LOC")):
    for step in range(10, 60, 10):
        figures = {"learning_rate": 1e-5, "tokens_per_second": 900.0, "seconds": step}
        records.append(step, "train", loss=3 / step, gradient_norm=1.0, **figures)
    for step, f1 in ((0, 0.0125), (50, 0.7321)):
        scores = {"loss": 1 - f1, "f1": f1, "accuracy": f1 / 2}
        records.append(step, "validation", **scores)
        own = {f"{label}/f1": f1 for label in labels}
        matrix = [
            [8 if row == n else 1 for n in range(len(labels))]
            for row, _ in enumerate(labels)
        ]
        confusion = {"labels": list(labels), "matrix": matrix}
        records.write_results("test", step, {**scores, **own, "confusion": confusion})
    records.write_status("finished", 50, 50, device="TPU v5e")


def test_the_page_loads_nothing_from_elsewhere(records):
    fill(records)
    page = report(records)
    assert not re.search(r"https?:|//\w|@import|url\(", page.source)
    for _, attributes in page.elements:
        assert not attributes.keys() & {"src", "href", "srcset", "xlink:href"}
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none';")


def test_final_scores_stand_beside_those_of_step_0(records):
    fill(records)
    text = report(records).text
    for shown in ("0.0125", "0.7321", "+0.7196", "step 0", "step 50"):
        assert shown in text


def test_the_best_checkpoint_is_shown_and_not_the_last_that_was_scored(records):
    fill(records)
    worse = {"labels": ["PER", "LOC"], "matrix": [[1, 8], [8, 1]]}
    scores = {"f1": 0.1111, "PER/f1": 0.2222, "confusion": worse}
    records.write_results("test", 90, scores)
    records.write_status("finished", 90, 90, best=50)
    text = report(records).text
    assert "0.1111" not in text and "0.2222" not in text and "0.7321" in text
    assert "By label, test at step 50" in text and "Confusion, test at step 50" in text


def test_a_best_checkpoint_that_was_never_scored_leaves_the_last_result(records):
    fill(records)
    records.write_status("finished", 50, 50, best=20)
    assert "Confusion, test at step 50" in report(records).text


def test_curves_are_drawings_with_title_and_description(records):
    fill(records)
    page = report(records)
    charts = page.all("svg", role="img")
    assert len(charts) == 6  # loss, scores, three small ones, confusion
    ids = {found["id"] for _, found in page.elements if "id" in found}
    for chart in charts:
        assert set(chart["aria-labelledby"].split()) <= ids
    assert "train: 0.3000 at step 10 to 0.0600 at step 50" in page.text


def test_run_facts_show_config_device_and_duration(records):
    fill(records)
    text = report(records, {**CONFIG, "versions": {"jax": "0.10.2"}}).text
    for shown in ("TPU v5e", "00:50", "0.10.2", "token_classification", "finished"):
        assert shown in text


def test_hostile_labels_config_and_reasons_stay_text(records):
    fill(records, labels=(HOSTILE, '" onload="x', "&amp;"))
    records.write_status("failed", 1, 2, reason=HOSTILE)
    page = report(records, {"task": {"name": HOSTILE}, HOSTILE: HOSTILE})
    assert "<script>alert" not in page.source
    assert len(page.all("script")) == 1
    assert HOSTILE in page.text and "&amp;" in page.text
    assert not any("onload" in found for _, found in page.elements)


def test_a_hostile_score_name_stays_text_in_the_hover_data(records):
    records.append(1, "validation", **{"<b>": 0.5, "'\"><i>": 0.25})
    page = report(records)
    assert not page.all("i") and "<b>" in page.text


def test_a_lone_surrogate_in_a_label_does_not_stop_the_report(records):
    fill(records)
    assert report(records, {"task": {"name": "\ud800"}}).all("svg")


def test_an_empty_run_says_that_nothing_is_recorded(records):
    assert "Nothing has been recorded yet" in report(records, {}).text


def test_one_point_is_drawn_as_a_dot(records):
    records.append(1, "train", loss=2.0)
    page = report(records)
    assert len(page.all("circle")) == 1 and not page.all("path")


def test_lines_without_a_finite_value_draw_no_chart(records):
    records.append(1, "train", loss=float("nan"))
    assert not report(records).all("svg")


def test_scores_that_are_all_zero_have_an_axis_from_0_to_1(records):
    for step in (0, 10):
        records.append(step, "validation", f1=0.0)
    ticks = report(records).text.split()
    assert "1.0" in ticks and not any(tick.startswith("−") for tick in ticks)


def test_results_without_training_lines_are_shown(records):
    records.write_results("test", 5, {"accuracy": 0.8642})
    assert "0.8642" in report(records).text


def test_77_labels_are_drawn_with_names_and_tips(records):
    labels = [f"balance_not_updated_after_bank_transfer_{n}" for n in range(77)]
    fill(records, labels)
    page = report(records)
    assert f"true {labels[76]}, predicted {labels[76]}: 8" in page.text
    assert len(page.all("rect", **{"class": "right"})) == 77


def test_a_row_without_examples_is_allowed_in_the_confusion_matrix(records):
    confusion = {"labels": ["a", "b"], "matrix": [[3, 1], [0, 0]]}
    records.write_results("test", 5, {"accuracy": 0.75, "confusion": confusion})
    assert "3 of 4 on the diagonal are right" in report(records).text


def test_wide_things_scroll_in_a_box_that_the_keyboard_reaches(records):
    fill(records)
    page = report(records)
    assert all(box["tabindex"] == "0" for box in page.all("div", role="region"))
    assert len(page.all("div", role="region")) == 4


def test_10000_lines_make_a_small_page_that_keeps_its_spike(records):
    text = "".join(
        f'{{"step": {n}, "split": "train", "loss": {50 if n == 7321 else 1}}}\n'
        for n in range(10_000)
    )
    (records.workdir / "metrics.jsonl").write_text(text)
    page = report(records)
    assert len(page.source) < 100_000
    assert "50" in page.text.split()  # the axis reaches the spike
    assert any(" 12L" in path["d"] for path in page.all("path"))


def test_downsampling_keeps_ends_and_extremes_in_order():
    points = [(n, (n * 7919) % 1000) for n in range(10_000)]
    kept = downsample(points, buckets=50)
    assert len(kept) <= 102 and kept == sorted(kept)
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert {value for _, value in kept} >= {0, 999}


def test_smoothing_a_constant_leaves_it_alone():
    assert smooth([(0, 2.0), (1, 2.0)], span=10) == [(0, 2.0), (1, 2.0)]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.03, 0.97, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 5e-5, ["0", "1e−5", "2e−5", "3e−5", "4e−5", "5e−5"]),
        (0, 14_000, ["0", "5k", "10k", "15k"]),
        (10, 1250, ["0", "500", "1,000", "1,500"]),
        (-0.2, 0.2, ["−0.2", "−0.1", "0", "0.1", "0.2"]),
    ],
)
def test_ticks_are_round_numbers_around_the_values(low, high, ticks):
    found = nice_ticks(low, high, count=4 if high == 14_000 else 5)
    assert [tick_text(tick, found[1] - found[0]) for tick in found] == ticks


def test_text_is_escaped_unless_it_is_markup_already():
    inner = element("b", "1 < 2")
    whole = element("p", inner, "&", None, title='"')
    assert whole == '<p title="&quot;"><b>1 &lt; 2</b>&amp;</p>'
