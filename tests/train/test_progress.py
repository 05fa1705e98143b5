"""What a person sees in a log and on a terminal."""

import io

import pytest
from rich.console import Console

from jaxlm.train.progress import Progress, make_table, print_table, score_table


class Clock:
    """Seconds that pass only when told to."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log():
    return Console(file=io.StringIO(), force_terminal=False)


@pytest.fixture
def terminal():
    return Console(
        file=io.StringIO(), force_terminal=True, width=120, _environ={"TERM": "xterm"}
    )


def lines(console):
    return console.file.getvalue().splitlines()


def test_a_log_gets_a_line_at_most_every_interval(log, clock):
    with Progress(100, console=log, clock=clock) as progress:
        for step in range(1, 101):
            clock.now += 0.25
            progress.update(step, loss=1.0)
    assert [line.split()[1] for line in lines(log)] == ["40/100", "80/100", "100/100"]


def test_the_last_step_is_always_printed(log, clock):
    with Progress(3, console=log, clock=clock) as progress:
        progress.update(3, loss=0.25, tokens_per_second=12345.4)
    assert lines(log) == ["step 3/3  loss 0.2500  12,345 tokens/s  00:00"]


def test_a_line_says_the_time_passed_and_the_time_left(log, clock):
    """Of this process's own steps: a resumed run may be on another machine."""
    with Progress(100, start_step=60, console=log, clock=clock) as progress:
        clock.now += 20
        progress.update(70, loss=0.5)
    assert lines(log) == ["step 70/100  loss 0.5000  00:20, 01:00 left"]


def test_no_line_comes_before_that_of_the_epoch(log, clock):
    with Progress(9, console=log, clock=clock) as progress:
        clock.now += 99
        progress.update(3, loss=0.25, epoch=0.333333, line=False)
        progress.epoch_line(3, epoch=0.333333, loss=0.5)
    assert [line.split("  ")[:3] for line in lines(log)] == [
        ["epoch 0.33", "step 3/9", "loss 0.5000"]
    ]


def test_the_last_step_is_not_printed_twice(log, clock):
    with Progress(3, console=log, clock=clock) as progress:
        progress.update(3)
        progress.epoch_line(3, epoch=1)
    assert len(lines(log)) == 1


def test_a_run_that_fails_still_prints_how_far_it_came(log, clock):
    with pytest.raises(RuntimeError), Progress(9, console=log, clock=clock) as progress:
        progress.update(4)
        raise RuntimeError
    assert lines(log) == ["step 4/9  00:00"]


def test_a_figure_left_out_keeps_its_last_value(log, clock):
    with Progress(4, console=log, clock=clock) as progress:
        progress.update(1, loss=0.5)
        progress.update(2)
    assert lines(log) == ["step 2/4  loss 0.5000  00:00"]


def test_an_epoch_is_summed_up_in_one_line(log, clock):
    with Progress(125, epochs=5, console=log, clock=clock) as progress:
        clock.now = 31
        progress.epoch_line(
            50,
            epoch=2,
            loss=0.4312,
            accuracy=0.91,
            validation={"f1": 0.7312},
            tokens_per_second=12345,
        )
    assert lines(log) == [
        "epoch 2/5  step 50/125  loss 0.4312  accuracy 0.9100  validation f1 0.7312"
        "  12,345 tokens/s  00:31, 00:46 left"
    ]


def test_a_score_of_zero_is_shown(log, clock):
    with Progress(1, console=log, clock=clock) as progress:
        progress.epoch_line(1, epoch=1, accuracy=0.0)
    assert "accuracy 0 " in lines(log)[0]


def test_say_prints_text_as_it_is(log):
    text = "[red]label[/red] " + "long " * 40
    Progress(1, console=log).say(text)
    assert lines(log) == [text]


def test_a_terminal_shows_step_loss_and_speed_in_a_bar(terminal, clock):
    with Progress(10, epochs=2, console=terminal, clock=clock) as progress:
        progress.update(4, loss=0.75, tokens_per_second=900, epoch=1)
    shown = terminal.file.getvalue()
    for part in ("epoch 1/2", "4/10", "loss 0.7500", "900 tokens/s"):
        assert part in shown


def test_a_terminal_keeps_what_is_said_above_the_bar(terminal, clock):
    with Progress(10, console=terminal, clock=clock) as progress:
        progress.say("saved checkpoint 4")
    assert "saved checkpoint 4" in terminal.file.getvalue()


def test_score_table_sets_step_0_beside_the_last(log):
    before = {"step": 0, "split": "test", "loss": 2.5, "f1": 0.02, "examples": 9}
    after = {"step": 125, "split": "test", "loss": 0.5, "f1": 0.78, "PER/f1": 0.5}
    print_table(score_table(before, after), log)
    rows = [line.split() for line in lines(log) if line.strip()]
    assert rows == [
        ["test"],
        ["step", "0", "step", "125", "change"],
        ["f1", "0.0200", "0.7800", "+0.7600"],
        ["loss", "2.5000", "0.5000", "−2.0000"],
    ]


def test_score_table_shows_a_score_that_is_missing_on_one_side(log):
    print_table(score_table({}, {"f1": 0.5, "loss": None}), log)
    text = log.file.getvalue()
    assert "0.5000" in text and "nan" not in text.lower()


def test_labels_in_a_table_are_not_markup(log):
    print_table(make_table(["label", "f1"], [["[red]", 0.5]]), log)
    assert "[red]" in log.file.getvalue()


def test_a_table_in_a_log_has_no_rules_and_is_not_cut(log):
    name = "balance_not_updated_after_bank_transfer" * 2
    print_table(make_table(["label", "f1", "support"], [[name, 0.5, 40]]), log)
    text = log.file.getvalue()
    assert name in text and "─" not in text
