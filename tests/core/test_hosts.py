"""Several processes decide, stop and end as one; here threads, and a store of a dict.

Real processes: tests/test_hosts.py.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from jaxlm.core import hosts, joining, watch
from jaxlm.core.cluster import Place
from jaxlm.core.errors import Lost, UserError
from jaxlm.core.hosts import Group, Hosts, here
from jaxlm.core.watch import Watch
from launch.local import free_port


class Store:
    """What jax's coordination service keeps, and what it raises."""

    def __init__(self):
        self.kept, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.changed:
            if key in self.kept and not allow_overwrite:
                raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
            self.kept[key] = value
            self.changed.notify_all()

    def key_value_try_get(self, key):
        with self.changed:
            if key not in self.kept:
                raise jax.errors.JaxRuntimeError(f"NOT_FOUND: {key}")
            return self.kept[key]

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.kept, milliseconds / 1e3):
                raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED: {key}")
            return self.kept[key]

    def key_value_dir_get(self, folder):
        with self.changed:
            return [(key, self.kept[key]) for key in self.kept if folder in key]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(watch, "TICK_SECONDS", 0.005)
    monkeypatch.setattr(watch, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(watch, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(hosts, "WAIT_MS", 20)


@pytest.fixture
def group():
    """Makes the processes of one run; they are closed at the end."""
    made = []

    def make(count, lost_seconds=60.0):
        store = Store()
        made.extend(Group(store, index, count, lost_seconds) for index in range(count))
        return made

    yield make
    for each in made:
        each._watch.close()


def each(groups, act):
    """What all get who do the same at once."""
    with ThreadPoolExecutor(len(groups)) as pool:
        return list(pool.map(act, groups))


def test_a_process_alone_decides_for_itself():
    alone = here()
    assert type(alone) is Hosts and alone.first
    assert alone.decide(lambda: 3) == 3 and alone.gather("a") == ["a"]
    assert alone.share(b"ab") == b"ab"
    assert not alone.stops(1, None) and alone.stops(1, 15)


def test_process_0_decides_and_all_have_the_same(group):
    decided = []

    def act(one):
        value = one.decide(lambda: decided.append(one.index) or {"step": one.index})
        return value, one.gather([one.index]), one.decide(lambda: None)

    whole = [[0], [1], [2]]
    assert each(group(3), act) == [({"step": 0}, whole, None)] * 3
    assert decided == [0]


def test_what_is_not_the_same_everywhere_is_refused_everywhere(group):
    def act(one):
        one.same("the data", "equal")
        with pytest.raises(UserError) as caught:
            one.same("the data", "other" if one.index == 2 else "equal")
        return str(caught.value)

    (message,) = set(each(group(3), act))
    assert message.startswith("the data: process 2 of 3 has another content")


def test_what_is_asked_for_differently_is_refused_everywhere_by_name(group):
    def act(one):
        one.alike({"config.seed": 3, "config.mesh.rules.batch": ("data",)})
        with pytest.raises(UserError) as caught:
            one.alike({"--step": "best"} if one.index else {})
        return str(caught.value)

    (message,) = set(each(group(2), act))
    assert message.startswith("--step: process 1 of 2 has 'best', process 0 None;")


def test_another_number_of_processes_is_refused_by_name(group):
    """Its mesh would be said to leave a process out that nobody started."""

    def act(one):
        one.count += one.index
        with pytest.raises(UserError) as caught:
            one.alike({"--step": "best"} if one.index else {})
        return str(caught.value)

    first, second = each(group(2), act)
    assert first.startswith("--processes: process 1 of 2 has 3, process 0 2;")
    assert second.startswith("--processes: process 1 of 3 has 3, process 0 2;")


def test_a_log_that_cannot_be_written_is_the_user_s_to_mend(group, tmp_path):
    (tmp_path / "logs").touch()
    other = group(2)[1]
    with pytest.raises(UserError, match="logs: a file stands where a directory"):
        other.log_to(tmp_path / "logs")


@pytest.mark.parametrize("asked_at", [1, 7, 30])
def test_one_that_is_asked_to_stop_stops_all_at_one_step(group, asked_at):
    """Main threads run ahead of one another, as far as devices let them."""
    groups, places = group(3), [0, 0, 0]
    moved = threading.Condition()

    def act(one):
        for number in range(1, 2000):
            with moved:  # what the others' devices wait for
                moved.wait_for(lambda at=number: at - min(places) <= 5)
            time.sleep(0.002 * one.index)
            asked = 15 if one.index == 1 and number >= asked_at else None
            stop = one.stops(number, asked)
            with moved:
                places[one.index] = number
                moved.notify_all()
            if stop:
                return number, one.asked(asked), one.stopping
        return None

    found = each(groups, act)
    assert len(set(found)) == 1 and found[0] is not None, found
    step, signal, stopping = found[0]
    assert step > asked_at and signal == 15 and stopping


def test_who_waits_for_itself_hears_that_another_was_asked(group):
    def act(one):
        until, asked = time.monotonic() + 20, 15 if one.index == 1 else None
        assert not one.heard(None)
        one.barrier()
        while not one.heard(asked):
            assert time.monotonic() < until
            time.sleep(0.01)
        return one.asked(asked)

    assert each(group(3), act) == [15] * 3


def test_nobody_stops_who_was_not_asked(group):
    def act(one):
        return any(one.stops(step, None) for step in range(100)), one.asked(None)

    assert each(group(2), act) == [(False, None)] * 2


def ends(groups, fails):
    """Who fails tells the others, which wait for it; what these are told."""

    def act(one):
        try:
            if one.index == 1:
                raise fails
            one.barrier()
        except BaseException as problem:
            one.fail(problem)
            return problem

    return each(groups, act)


@pytest.mark.parametrize(
    ("problem", "code", "text"),
    [
        (UserError("a.csv: is gone"), 2, "process 1 of 3 (host "),
        (UserError("a.csv: is gone"), 2, ") ended: a.csv: is gone"),
        (ValueError("a bug"), 1, "ended: ValueError: a bug"),
        (SystemExit(143), 143, "was ended by SIGTERM"),
        (KeyboardInterrupt(), 130, "was interrupted"),
    ],
)
def test_all_end_with_the_reason_and_the_code_of_the_first(group, problem, code, text):
    first, own, third = ends(group(3), problem)
    assert own is problem
    for told in (first, third):
        assert isinstance(told, Lost) and told.code == code
        assert text in str(told)


def test_one_of_which_nothing_is_heard_is_gone(group):
    groups = group(2, lost_seconds=0.3)
    while not groups[1]._watch._get("alive/1"):  # it was there
        time.sleep(0.01)
    groups[1]._watch.close()
    with pytest.raises(Lost) as caught:
        groups[0].barrier()
    assert caught.value.code == 75
    assert "process 1 of 2 (host " in str(caught.value)
    assert "is gone: nothing was heard of it" in str(caught.value)
    assert "start all of them again" in str(caught.value)


def test_devices_that_fail_are_laid_to_one_that_is_gone(group, monkeypatch):
    monkeypatch.setattr(watch, "TROUBLE_SECONDS", 0.3)
    groups = group(2)
    while not groups[1]._watch._get("alive/1"):
        time.sleep(0.01)
    groups[1]._watch.close()
    broken = jax.errors.JaxRuntimeError("Gloo all-reduce failed")
    assert "process 1 of 2" in str(groups[0].cause(broken))
    other = ValueError("a bug")
    assert groups[0].cause(other) is other


def test_a_main_thread_that_does_not_end_is_ended(monkeypatch, capfd):
    codes, said = [], []
    monkeypatch.setattr(watch.os, "_exit", codes.append)
    store = Store()
    one, other = Watch(store, 0, 2, 60), Watch(store, 1, 2, 60)
    one.last_words = said.append
    other.end("ended: the disk is full", 2)
    until = time.monotonic() + 10
    while not codes and time.monotonic() < until:
        time.sleep(0.01)
    one.close(), other.close()
    assert codes == [2]
    assert said and said[0] in capfd.readouterr().err
    assert "process 1 of 2" in said[0] and said[0].endswith("ended: the disk is full")


def test_processes_that_are_not_joined_end_with_a_line():
    """Neither who waits for a coordinator that is not there, nor one that is alone."""
    code = (
        "import sys; from jaxlm.core.joining import join\n"
        "from jaxlm.core.cluster import Place\n"
        "join(Place(sys.argv[1], 2, int(sys.argv[2]), join_seconds=2))"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"localhost:{free_port()}", str(process)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in (0, 1)
    ]
    (_, first), (_, second) = (process.communicate(timeout=100) for process in running)
    assert [process.returncode for process in running] == [75, 75], first + second
    assert "process 0 of 2: not all of the 2 processes have come after 2 s" in first
    assert "process 1 of 2: --coordinator=localhost:" in second
    assert "is not reached after 2 s (Connection refused)" in second


def test_sigterm_is_told_to_the_others_wherever_a_process_is(group, monkeypatch):
    """Killed by it, one would be missed only after a minute of silence."""
    one, other = group(2)
    monkeypatch.setattr(joining, "join", lambda place: None)
    monkeypatch.setattr(joining, "here", lambda: other)
    with pytest.raises(SystemExit) as end, joining.joined(Place()):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)  # never slept to its end
    assert end.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(Lost, match="process 1 of 2 .* was ended by SIGTERM"):
        one.barrier()


def test_ctrl_c_ends_a_process_that_waits_for_others():
    port = free_port()
    code = (  # a shell's job in the background is born deaf to it
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from jaxlm.core.joining import join\n"
        "from jaxlm.core.cluster import Place\n"
        f"join(Place('localhost:{port}', 2, 0))"
    )
    waiting = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 100
    while not listens(port) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(timeout=30) == -signal.SIGINT


def listens(port):
    with socket.socket() as trial:
        return trial.connect_ex(("localhost", port)) == 0


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(UserError, match="is a run of several processes still"):
            joining.check_port(f"localhost:{taken.getsockname()[1]}")
