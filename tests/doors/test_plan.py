"""The planner's door: what it refuses at once, and a plan by the real compilers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time

import pytest

from jaxlm import plan
from jaxlm.core.errors import UserError
from jaxlm.planning import meshes

CONFIG = "--config=configs/pretrain_gpt.py:tiny"
LLAMA = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 256,
    "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 2048,
}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([CONFIG], "--topology is missing"),
        (["--topology=v5p:4x4x4"], "--config is missing"),
        ([CONFIG, "--topology=v5q:4x4x4"], "nearest: v5p"),
        ([CONFIG, "--topology=v5p:4x4"], "multiples of 4"),
        ([CONFIG, "--topology=h100:8", "--price=2"], "--price: needs --tokens"),
        ([CONFIG, "--topology=h100:8", "--tokens=-1"], "a number above 0"),
        (
            [CONFIG, "--topology=h100:8", "--tokens=many"],
            "'many' is not allowed; a num",
        ),
        ([CONFIG, "--topology=h100:8", "--tokens=nan"], "a number above 0"),
        ([CONFIG, "--topology=h100:8", "--jobs=0"], "at least 1"),
        ([CONFIG, "--topology=h100:8", "--jobs=1e3"], "'1e3' is not allowed; a whole"),
        ([CONFIG, "--topology=h100:8", "--config.mesh.layout=auto"], "is for main"),
        ([CONFIG, "--topology=h100:8", "--workdir=x"], "--workdir: a plan writes"),
        ([CONFIG, "--topology=h100:8", "--config.mesh.data=3"], "has 8"),
        ([CONFIG, "--topology=h100:8", "--serach"], "nearest: --search"),
        ([CONFIG, "--coordinator=a:1"], "--coordinator: no such flag; --help"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(UserError) as problem:
        plan.main(arguments)
    assert words in str(problem.value)


def test_a_wrong_topology_is_answered_without_jax():
    begin = time.monotonic()
    code = (
        "import sys\nfrom jaxlm import plan\nfrom jaxlm.core.errors import UserError\n"
        f"try: plan.main([{CONFIG!r}, '--topology=v5p:4x4'])\n"
        "except UserError: print('jax' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["False", "False"], done.stderr
    assert time.monotonic() - begin < 30  # a second on a machine that is not busy


def planned(tmp_path, monkeypatch, capsys, *arguments: str) -> dict:
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path))
    plan.main([CONFIG, "--json", "--jobs=1", *arguments])
    return json.loads(capsys.readouterr().out)


def installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize(("topology", "extra"), [("v5e:2x2", "tpu"), ("h100:8", "gpu")])
def test_a_missing_compiler_says_what_to_install(monkeypatch, topology, extra):
    nowhere = dict.fromkeys(meshes.COMPILERS, ("no_such_package.part",))
    monkeypatch.setattr(meshes, "COMPILERS", nowhere)
    with pytest.raises(UserError, match=rf"pip install 'jaxlm\[plan-{extra}\]'"):
        plan.main([CONFIG, f"--topology={topology}"])


@pytest.mark.parametrize(
    "name", ["", "folder", "link", "file/program.hlo", "long" * 60, "file/a/b.hlo"]
)
def test_a_program_that_could_not_be_written_is_refused_first(
    tmp_path, monkeypatch, name
):
    monkeypatch.setattr(plan, "check_compiler", lambda topology: None)
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/dev/null")
    path = str(tmp_path / name) if name else ""
    with pytest.raises(
        UserError, match="is not a file; name|a file stands where|at most"
    ):
        plan.main([CONFIG, "--topology=h100:8", f"--hlo={path}"])


def test_no_folder_is_left_for_a_program_that_is_not_written(tmp_path):
    plan.check_file(str(tmp_path / "new/deep/program.hlo"))
    assert not (tmp_path / "new").exists()


def test_a_cache_that_cannot_be_written_is_refused_first(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "check_compiler", lambda topology: None)
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="file/plans: a file stands where"):
        plan.main([CONFIG, "--topology=h100:8"])


@pytest.mark.slow
@pytest.mark.skipif(not installed("libtpu"), reason="needs jaxlm[plan-tpu]: libtpu")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tpu_s_step_is_planned_and_kept(tmp_path, monkeypatch, capsys):
    arguments = "--topology=v5e:2x2", "--config.mesh.data=1", "--config.mesh.fsdp=-1"
    found = planned(tmp_path, monkeypatch, capsys, *arguments)
    assert found["fits"] and found["devices"] == 4
    assert found["capacity_bytes"] > found["bytes_per_device"] > 0
    assert 0 < found["mfu"] < 1 and found["step_seconds"] > 0
    assert {each["axis"] for each in found["collectives"]} >= {"fsdp"}
    again = planned(tmp_path, monkeypatch, capsys, *arguments)
    assert again == found  # read back, compile seconds and all


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not installed("libtpu"), reason="needs jaxlm[plan-tpu]: libtpu")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_search_tries_blocks_for_the_best_on_a_tpu(tmp_path, monkeypatch, capsys):
    """One chip and a row: all that differs are rematerialisation and, last, blocks."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    given = [
        f"--config.model.pretrained=random:{tmp_path}",
        "--config.data.max_length=1024",
        "--config.train.precision=bf16",  # of fp32 the kernels take ten minutes
        "--config.train.batch_size=1",
    ]
    found = planned(
        tmp_path, monkeypatch, capsys, "--topology=v5e:1x1", "--search", *given
    )
    assert found["fits"] and found["devices"] == 1
    tried = [" ".join(each["overrides"]) for each in found["tried"]]
    blocks = [each for each in tried if "attention_block=" in each]
    assert {each.rpartition("=")[2] for each in blocks} == {"1024"}
    assert len({each.rpartition(" ")[0] for each in blocks}) == 1
    assert " ".join(found["overrides"]) == tried[0]


@pytest.mark.slow
@pytest.mark.skipif(
    not installed("jax_plugins.xla_cuda12"), reason="needs jaxlm[plan-gpu]: CUDA plugin"
)
def test_a_gpu_s_step_is_planned(tmp_path, monkeypatch, capsys):
    path = tmp_path / "program.hlo"
    arguments = "--topology=h100:2x4", "--config.mesh.tensor=2", f"--hlo={path}"
    found = planned(tmp_path, monkeypatch, capsys, *arguments)
    assert found["fits"] and found["mesh"]["data"] == 4
    assert {"data", "tensor"} <= {each["axis"] for each in found["collectives"]}
    assert path.read_text().startswith("HloModule")
