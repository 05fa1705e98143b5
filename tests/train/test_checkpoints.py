"""Checkpoints: which are kept, which is best, and what damage does to them."""

import errno
import gc
import resource
import shutil
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.core.errors import UserError
from jaxlm.core.grouping import regroup
from jaxlm.core.mesh import make_mesh
from jaxlm.train.checkpoints import Checkpoints, Damaged, OtherLayout, choose
from jaxlm.train.state import State

# Orbax leaves coroutines of reads that failed, and reports them when they are
# collected.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
    "ignore:coroutine .* was never awaited:RuntimeWarning",
)


@pytest.fixture(autouse=True)
def collected():
    """Collect them here, or they fail whichever test runs when they are."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


def mesh_of(**sizes):
    return make_mesh({"data": 1, "fsdp": 1, "tensor": 1, **sizes})[0]


def state_of(step, mesh=None):
    """A state whose every array depends on the step."""
    mesh = mesh or mesh_of()
    table = jnp.arange(64.0).reshape(8, 8) + step
    params = {
        "layer": {"kernel": table, "bias": jnp.full(8, step, jnp.bfloat16)},
        "head": {"kernel": table[:, :4] * 2},
    }
    moments = {"mu": jax.tree.map(lambda leaf: leaf * 0.5, params)}
    key = jnp.array([step, 7], jnp.uint32)
    state = State(params, {}, moments, jnp.int32(step), key, jnp.int32(0))
    return jax.tree.map(jax.device_put, state, placed(state, mesh))


def placed(state, mesh):
    return jax.tree.map(
        lambda leaf: NamedSharding(
            mesh, PartitionSpec("fsdp", "tensor") if leaf.ndim == 2 else PartitionSpec()
        ),
        state,
    )


def abstract_of(mesh=None):
    return abstracted(state_of(0), mesh or mesh_of())


def abstracted(tree, mesh):
    """Shapes, dtypes and shardings."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        tree,
        placed(tree, mesh),
    )


def opened(folder, **options):
    options = {"keep_last": 2, "keep_best": 1, "clean": True, **options}
    return Checkpoints(folder / "checkpoints", score=lambda m: m.get("f1"), **options)


def save_all(folder, scores, **options):
    """Save steps 1, 2, ... with these scores; None for one without metrics."""
    with opened(folder, **options) as checkpoints:
        for step, score in enumerate(scores, start=1):
            metrics = None if score is None else {"f1": score, "loss": 1.0}
            checkpoints.save(state_of(step), metrics)
            checkpoints.wait()
        return checkpoints.steps(), checkpoints.best()


def equal(first, second):
    same = jax.tree.map(np.array_equal, first, second)
    return all(jax.tree.leaves(same))


def test_the_last_and_the_best_are_kept(tmp_path):
    scores = [0.1, 0.9, 0.3, 0.8, 0.2, 0.4]
    steps, best = save_all(tmp_path, scores, keep_last=2, keep_best=2)
    assert steps == [2, 4, 5, 6]
    assert best == 2


def test_of_equal_scores_the_earliest_is_the_best_and_kept(tmp_path):
    steps, best = save_all(tmp_path, [0.1, 0.5, 0.5, 0.5, 0.5])
    assert steps == [2, 4, 5]
    assert best == 2


def test_only_the_last_are_kept_where_no_best_is_asked_for(tmp_path):
    steps, _ = save_all(tmp_path, [0.9, 0.1, 0.1], keep_last=1, keep_best=0)
    assert steps == [3]


def test_checkpoints_without_a_score_are_never_the_best(tmp_path):
    scores = [None, float("nan"), 0.2, None, None]
    steps, best = save_all(tmp_path, scores)
    assert steps == [3, 4, 5]
    assert best == 3


def test_saves_leave_no_threads_behind(tmp_path):
    """Each would keep three files open too, until a long run has too many."""
    counts = {}
    with opened(tmp_path) as checkpoints:
        for step in range(1, 13):
            checkpoints.save(state_of(step))
            if step % 4 == 0:  # and else as in a run, which does not wait
                checkpoints.wait()
                counts[step] = threading.active_count()
    # What Orbax has for itself comes with the first saves, and a pool may grow by one.
    assert counts[12] <= counts[4] + 2


def test_there_is_no_best_where_nothing_was_scored(tmp_path):
    steps, best = save_all(tmp_path, [None, None])
    assert (steps, best) == ([1, 2], None)


def test_metrics_that_are_not_numbers_are_left_out(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state_of(1), {"f1": np.float32(0.5), "note": "x", "no": None})
        checkpoints.wait()
        assert checkpoints.best() == 1


def deep_state(names, mesh):
    """A state of four layers, 8 wide, in the stacks of these names."""
    whole = {"layers": {"kernel": jnp.arange(32.0).reshape(4, 8)}, "bias": jnp.ones(8)}
    params = regroup(whole, [*(f"{name}/kernel" for name in names), "bias"])
    key = jnp.array([0, 7], jnp.uint32)
    state = State(params, {}, {}, jnp.int32(1), key, jnp.int32(0))
    return jax.tree.map(jax.device_put, state, placed(state, mesh))


GROUPINGS = [["layers"], ["layers[0:1]", "layers[1:4]"], ["layers[0:2]", "layers[2:4]"]]


@pytest.mark.parametrize("there", GROUPINGS)
@pytest.mark.parametrize("here", GROUPINGS)
def test_parameters_come_back_in_another_grouping_of_layers(tmp_path, there, here):
    # Two devices split the layers of a stack, where they can.
    odd = "layers[0:1]" in [*there, *here]
    mesh = mesh_of(fsdp=1 if odd else 2)
    wanted = deep_state(here, mesh).trainable
    abstract = abstracted(wanted, mesh)
    with opened(tmp_path) as checkpoints:
        checkpoints.save(deep_state(there, mesh))
        checkpoints.wait()
        found = checkpoints.restore_params(1, abstract)
    assert equal(found, wanted)
    same = jax.tree.map(lambda a, b: a.sharding == b.sharding, found, abstract)
    assert all(jax.tree.leaves(same))


def test_layers_that_devices_cannot_split_on_disk_come_back_split(tmp_path):
    wanted = deep_state(["layers"], mesh_of(fsdp=2)).trainable
    with opened(tmp_path) as checkpoints:
        checkpoints.save(deep_state(["layers[0:1]", "layers[1:4]"], mesh_of()))
        checkpoints.wait()
        abstract = abstracted(wanted, mesh_of(fsdp=2))
        assert equal(checkpoints.restore_params(1, abstract), wanted)


def test_parameters_of_another_depth_are_refused_in_any_grouping(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(deep_state(["layers[0:2]", "layers[2:4]"], mesh_of()))
        checkpoints.wait()
        deeper = {"layers": {"kernel": jnp.ones((5, 8))}, "bias": jnp.ones(8)}
        with pytest.raises(OtherLayout, match="layers/kernel is absent"):
            checkpoints.restore_params(1, abstracted(deeper, mesh_of()))


def test_a_state_comes_back_as_it_was(tmp_path):
    save_all(tmp_path, [0.5, 0.6])
    with opened(tmp_path) as checkpoints:
        assert equal(checkpoints.restore(2, abstract_of()), state_of(2))
        abstract = abstract_of()
        params = checkpoints.restore_params(1, abstract.trainable)
        assert equal(params, state_of(1).trainable)


def test_a_state_comes_back_on_another_mesh(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state_of(3, mesh_of(fsdp=4, tensor=2)))
    mesh = mesh_of(fsdp=2, tensor=4)
    with opened(tmp_path) as checkpoints:
        found = checkpoints.restore(3, abstract_of(mesh))
    assert equal(found, state_of(3))
    kernel = found.trainable["layer"]["kernel"]
    assert kernel.sharding == NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    bump = jax.jit(
        lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0
    )
    with opened(tmp_path, keep_last=9) as checkpoints:
        for step in (1, 2, 3, 4):
            state = state_of(step)
            checkpoints.save(state)
            for _ in range(50):  # overwrites the buffers while they are being written
                state = bump(state)
    with opened(tmp_path, keep_last=9) as checkpoints:
        for step in (1, 2, 3, 4):
            assert equal(checkpoints.restore(step, abstract_of()), state_of(step))


def test_a_step_is_saved_once(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state_of(1), {"f1": 0.5})
        checkpoints.save(state_of(1))  # still being written
        checkpoints.wait()
        checkpoints.save(state_of(1))
        assert checkpoints.best() == 1


def files_of(folder, step):
    root = folder / "checkpoints" / str(step)
    return sorted(
        path.relative_to(folder) for path in root.rglob("*") if path.is_file()
    )


def emptied(data):
    return b""


def truncated(data):
    return data[: len(data) // 2]


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    save_all(folder, [0.5, 0.6])
    return folder


@pytest.mark.parametrize("damage", [emptied, truncated, flipped])
def test_no_damaged_file_gives_a_wrong_state(two, tmp_path, damage):
    """Every file in turn: the newest state is whole, or the one before is taken."""
    abstract, fell_back = abstract_of(), []
    for name in files_of(two, 2):
        folder = tmp_path / "run"
        shutil.copytree(two, folder)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(damage(data))
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
    assert {"params", "training", "metrics"} <= names


def test_arrays_swapped_between_checkpoints_are_noticed(two, tmp_path):
    """Files that are whole but not those that were saved together."""
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    with opened(folder) as checkpoints:
        params = checkpoints.restore_params(2, abstract_of().trainable)
        found = checkpoints._fingerprints(params)
        wrong = checkpoints._fingerprints(state_of(1).trainable)
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


def test_what_is_frozen_comes_back_apart_and_is_read_as_one_tree(tmp_path):
    def halved(state):
        trainable = {"head": state.trainable["head"], "layer": {}}
        trainable["layer"]["bias"] = state.trainable["layer"]["bias"]
        frozen = {"layer": {"kernel": state.trainable["layer"]["kernel"]}}
        return state._replace(trainable=trainable, frozen=frozen)

    with opened(tmp_path) as checkpoints:
        checkpoints.save(halved(state_of(1)))
        checkpoints.wait()
        found = checkpoints.restore(1, halved(abstract_of()))
        params = checkpoints.restore_params(1, abstract_of().trainable)
    assert equal(found, halved(state_of(1)))
    assert equal(params, state_of(1).trainable)


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
        monkeypatch.setattr(checkpoints._manager, "load_checkpointables", failing)
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
        path.write_bytes(flipped(path.read_bytes()))
    with opened(tmp_path) as checkpoints, pytest.raises(Damaged, match="DATA_LOSS"):
        checkpoints.restore(1, abstract_of())


def test_a_reader_sees_what_was_saved_since(tmp_path):
    save_all(tmp_path, [0.5])
    with opened(tmp_path, clean=False) as reader:
        with opened(tmp_path) as writer:
            writer.save(state_of(2), {"f1": 0.9})
        assert reader.steps() == [1]
        reader.reload()
        assert reader.steps() == [1, 2]
        assert reader.best() == 2


def test_choosing_steps(tmp_path):
    save_all(tmp_path, [0.5, 0.9, 0.1, 0.2])
    with opened(tmp_path) as checkpoints:
        assert choose(checkpoints, "best") == [2]
        assert choose(checkpoints, "last") == [4]
        assert choose(checkpoints, "all") == [2, 3, 4]
        assert choose(checkpoints, "3") == [3]
        with pytest.raises(UserError, match="--step=1: not there; allowed: best"):
            choose(checkpoints, "1")


def test_choosing_among_none_says_to_train_first(tmp_path):
    with opened(tmp_path) as checkpoints, pytest.raises(UserError, match="train with"):
        choose(checkpoints, "best")
