"""What damage does to checkpoints, and what trouble of the machine does not."""

import errno
import resource
import shutil
import threading

import jax
import jax.numpy as jnp
import pytest

from jaxlm.core.errors import UserError
from jaxlm.train.checkpoints import Damaged, OtherLayout
from jaxlm.train.retention import choose
from jaxlm.train.staging import marked
from tests.conftest import LEFTOVERS
from tests.damages import DAMAGES, deleted, emptied, flipped, truncated
from tests.train.states import (
    abstract_of,
    equal,
    opened,
    save_all,
    state_of,
)

pytestmark = LEFTOVERS


def files_of(folder, step):
    root = folder / "checkpoints" / str(step)
    return sorted(
        path.relative_to(folder) for path in root.rglob("*") if path.is_file()
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    save_all(folder, [0.5, 0.6])
    return folder


# Of an empty file and one cut in two, the second is more easily taken for whole.
TRIED = [
    pytest.param(each, marks=pytest.mark.slow) if each is emptied else each
    for each in DAMAGES
]


@pytest.mark.parametrize("damage", TRIED)
def test_no_damaged_file_gives_a_wrong_state(two, tmp_path, monkeypatch, damage):
    """Every file in turn: the newest state is whole, or the one before is taken."""
    monkeypatch.setattr("jaxlm.train.damage.SETTLE_SECONDS", 0.0)  # shouts are ignored
    abstract, fell_back = abstract_of(), []
    for name in files_of(two, 2):
        folder = tmp_path / "run"
        shutil.copytree(two, folder)
        damage(folder / name)
        assert_no_reader_sees_a_wrong_state(folder, name)
        said = []
        with opened(folder) as checkpoints:
            found = checkpoints.restore_latest(lambda _: abstract, said.append)
            assert checkpoints.best() == int(found.step), name
        assert equal(found, state_of(int(found.step))), name
        if int(found.step) == 1:
            fell_back.append(name)
            assert len(said) == 1 and "checkpoint 2 is damaged" in said[0], name
            assert (folder / "damaged" / "2").is_dir(), name
            assert not (folder / "checkpoints" / "2").exists(), name
        else:  # files that only say when, or that nobody reads
            assert said == [], name
        shutil.rmtree(folder)
    names = {str(name.relative_to("checkpoints/2")).split("/")[0] for name in fell_back}
    assert {"params", "training"} <= names
    assert "metrics" in names or damage not in (emptied, truncated, deleted, flipped)


def assert_no_reader_sees_a_wrong_state(folder, name):
    """What evaluate and predict read of it is whole, or one error; nothing is moved."""
    with opened(folder, clean=False, say=lambda _: None) as checkpoints:
        steps = checkpoints.steps()
        assert steps[0] == 1 and checkpoints.best() in (1, 2), name
        if 2 in steps:
            try:
                found = checkpoints.restore_params(2, abstract_of().trainable)
            except (Damaged, OtherLayout):
                pass
            else:
                assert equal(found, state_of(2).trainable), name
    assert (folder / "checkpoints" / "2").is_dir(), name


def test_arrays_of_one_checkpoint_have_not_the_fingerprints_of_another(two, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    with opened(folder) as checkpoints:
        params = checkpoints.restore_params(2, abstract_of().trainable)
        found = marked(params)
        wrong = marked(state_of(1).trainable)
        assert not equal(found, wrong)


def test_a_best_checkpoint_whose_score_rotted_is_not_the_best(tmp_path):
    save_all(tmp_path, [0.5, 0.7, 0.6])
    path = tmp_path / "checkpoints" / "3" / "metrics" / "metrics"
    path.write_text(path.read_text().replace("0.6", "0.9"))
    said = []
    with opened(tmp_path) as checkpoints:
        assert checkpoints.best() == 2
        assert (
            int(checkpoints.restore_latest(lambda _: abstract_of(), said.append).step)
            == 2
        )
    assert "its metrics changed on disk" in said[0]


def test_a_reader_leaves_out_rotten_metrics_with_a_word_and_moves_nothing(tmp_path):
    save_all(tmp_path, [0.5, 0.6])
    path = tmp_path / "checkpoints" / "2" / "metrics" / "metrics"
    for rotten in ("", path.read_text().replace("0.6", "0.7")):
        path.write_text(rotten)
        said = []
        with opened(tmp_path, clean=False, say=said.append) as checkpoints:
            assert checkpoints.steps() == [1] and checkpoints.best() == 1
            checkpoints.reload()
            assert choose(checkpoints, "all") == [1]
            with pytest.raises(UserError, match="2: is damaged .its metrics"):
                choose(checkpoints, "2")
        assert len(said) == 1 and "checkpoint 2 is left out" in said[0]
        assert path.exists()


def test_a_reader_of_one_checkpoint_whose_metrics_rotted_is_told(tmp_path, capsys):
    save_all(tmp_path, [0.5])
    (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").write_text("")
    with opened(tmp_path, clean=False) as checkpoints:
        with pytest.raises(UserError, match="its metrics are not JSON"):
            choose(checkpoints, "best")
    assert "checkpoint 1 is left out" in capsys.readouterr().err


def wider(leaf):
    shape = (*leaf.shape[:-1], 16) if leaf.ndim else leaf.shape
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)


def narrower(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float16, sharding=leaf.sharding)


@pytest.mark.parametrize("change", [wider, narrower, lambda leaf: {"new": leaf}])
def test_another_layout_is_refused_and_nothing_moved(two, tmp_path, change):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    abstract = abstract_of()
    abstract = abstract._replace(trainable=jax.tree.map(change, abstract.trainable))
    said = []
    with opened(folder) as checkpoints:
        with pytest.raises(UserError, match="another version or layout"):
            checkpoints.restore_latest(lambda _: abstract, said.append)
        assert checkpoints.steps() == [1, 2]
    assert said == [] and not (folder / "damaged").exists()


TROUBLES = [
    OSError(errno.EMFILE, "Too many open files"),
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.EIO, "Input/output error"),
    ValueError("PERMISSION_DENIED: Error opening: [OS error 13: EACCES denied]"),
    ValueError("UNKNOWN: Error reading: [OS error 5: EIO Input/output error]"),
    ValueError("UNKNOWN: Error reading; [os_error_code='5']"),
    ValueError("RESOURCE_EXHAUSTED: no memory"),
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=str)
def test_trouble_of_the_machine_moves_nothing(two, tmp_path, monkeypatch, trouble):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)

    def failing(*_):
        raise KeyError("no handler") from trouble

    with opened(folder) as checkpoints:
        monkeypatch.setattr(checkpoints, "_load_items", failing)
        with pytest.raises(UserError, match="nothing was moved"):
            checkpoints.restore_latest(lambda _: abstract_of(), lambda _: None)
        assert checkpoints.steps() == [1, 2]
    assert not (folder / "damaged").exists()


def test_too_many_open_files_are_not_damage(two, tmp_path):
    """The real thing: no file can be opened any more."""
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with opened(folder) as checkpoints:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            with pytest.raises(UserError, match="Too many open files"):
                checkpoints.restore_latest(lambda _: abstract_of(), lambda _: None)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert int(checkpoints.restore_latest(lambda _: abstract_of(), print).step) == 2
    assert not (folder / "damaged").exists()


def test_a_reader_lives_with_checkpoints_that_are_deleted_under_it(two, tmp_path):
    """A thread makes and deletes checkpoints as fast as it can."""
    folder, ended = tmp_path / "run", threading.Event()
    shutil.copytree(two, folder)

    def churn():
        step = 3
        while not ended.is_set():
            shutil.copytree(two / "checkpoints" / "2", folder / "new" / str(step))
            (folder / "new" / str(step)).rename(folder / "checkpoints" / str(step))
            shutil.rmtree(folder / "checkpoints" / str(step))
            step += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(10):
            with opened(folder, clean=False) as checkpoints:
                for _ in range(20):
                    checkpoints.reload()
                    assert checkpoints.steps()[:2] == [1, 2]
    finally:
        ended.set()
        thread.join()


def test_checkpoints_that_are_all_damaged_are_refused_and_kept(tmp_path):
    save_all(tmp_path, [0.5, 0.6])
    for path in (tmp_path / "checkpoints").glob("*/params/_METADATA"):
        path.unlink()
    said = []
    with opened(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="every checkpoint was damaged"):
            checkpoints.restore_latest(lambda _: abstract_of(), said.append)
        assert checkpoints.steps() == []
        assert checkpoints.restore_latest(lambda _: abstract_of(), said.append) is None
    assert len(said) == 2
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["1", "2"]


def test_a_step_that_was_set_aside_can_be_saved_again(tmp_path):
    save_all(tmp_path, [0.5, 0.6])
    for aside in ("2", "2-2"):  # the second time, damaged/2 is there already
        (tmp_path / "checkpoints" / "2" / "params" / "_METADATA").unlink()
        with opened(tmp_path) as checkpoints:
            state = checkpoints.restore_latest(lambda _: abstract_of(), lambda _: None)
            assert int(state.step) == 1
            assert (tmp_path / "damaged" / aside).is_dir()
            checkpoints.save(state_of(2), {"f1": 0.6})
        with opened(tmp_path) as checkpoints:
            assert checkpoints.steps() == [1, 2]
            assert equal(checkpoints.restore(2, abstract_of()), state_of(2))


def half_written(folder, name):
    whole, half = folder / "checkpoints" / "2", folder / "checkpoints" / name
    shutil.copytree(whole, half)
    shutil.rmtree(half / "training")
    (half / "commit_success.txt").unlink()
    return half


def test_what_a_killed_save_left_is_ignored_and_removed(two, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    half = half_written(folder, "3.orbax-checkpoint-tmp")
    with opened(folder) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        state = checkpoints.restore_latest(lambda _: abstract_of(), lambda _: None)
        assert int(state.step) == 2
        checkpoints.save(state_of(3))
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
    assert not half.exists()


def test_a_reader_leaves_a_save_in_flight_alone(two, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    half = half_written(folder, "3.orbax-checkpoint-tmp")
    with opened(folder, clean=False) as checkpoints:
        assert checkpoints.steps() == [1, 2]
    assert half.exists()


def test_a_directory_that_is_half_there_is_set_aside(two, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    half_written(folder, "3")
    said = []
    with opened(folder) as checkpoints:
        state = checkpoints.restore_latest(lambda _: abstract_of(), said.append)
        assert int(state.step) == 2
        assert checkpoints.steps() == [1, 2]
    assert "checkpoint 3 is damaged" in said[0]


def test_restoring_a_damaged_checkpoint_says_why(tmp_path):
    save_all(tmp_path, [0.5])
    for path in (tmp_path / "checkpoints" / "1" / "params" / "d").iterdir():
        flipped(path)
    with opened(tmp_path) as checkpoints, pytest.raises(Damaged, match="DATA_LOSS"):
        checkpoints.restore(1, abstract_of())
