"""PyTorch's files: the tensors of transformers, and never any code."""

import json
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxlm.core import pickles
from jaxlm.core.errors import UserError
from jaxlm.core.pickles import INDEX, SINGLE, open_pickles
from jaxlm.core.safetensors import open_weights


class Evil:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def refusal(folder, word):
    with pytest.raises(UserError) as caught:
        open_pickles(folder)
    assert "\n" not in str(caught.value) and word in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.fixture
def save(torch, tmp_path):
    def saved(value, name=SINGLE, **options):
        torch.save(value, tmp_path / name, **options)
        return tmp_path

    return saved


def test_tensors_are_read_by_name_and_slice(torch, save):
    kinds = ("float32", "float16", "bfloat16", "float64", "int64", "float8_e4m3fn")
    made = {
        name: torch.arange(12.0).reshape(3, 4).to(getattr(torch, name))
        for name in kinds
    }
    turned = torch.arange(6.0).reshape(2, 3).T  # of other strides
    files = open_pickles(save({**made, "turned": turned, "one": torch.tensor(2.0)}))
    assert files.names == (*kinds, "turned", "one")
    for name in kinds:
        dtype = getattr(ml_dtypes, name, None) or name
        assert files.dtype(name) == np.dtype(dtype) and files.shape(name) == (3, 4)
        wanted = np.arange(12.0).reshape(3, 4).astype(dtype)
        assert np.array_equal(files.read(name), wanted)
        part = files.read(name, (slice(1, 3), slice(0, 2)))
        assert np.array_equal(part, wanted[1:3, :2]) and part.flags.c_contiguous
    assert np.array_equal(files.read("turned"), turned.numpy())
    assert files.read("one") == 2.0


def test_a_part_that_is_read_does_not_hang_on_the_file(torch, save):
    folder = save({"a": torch.zeros(4)})
    part = open_pickles(folder).read("a", slice(0, 2))
    part[:] = 1
    assert not open_pickles(folder).read("a").any()


def test_shards_are_found_by_their_index(torch, save):
    save({"a": torch.ones(2)}, "pytorch_model-00001-of-00002.bin")
    folder = save({"b": torch.zeros(3)}, "pytorch_model-00002-of-00002.bin")
    names = {
        name: f"pytorch_model-0000{n}-of-00002.bin" for name, n in [("a", 1), ("b", 2)]
    }
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    files = open_pickles(folder)
    assert files.names == ("a", "b") and files.read("a").tolist() == [1, 1]
    (folder / INDEX).write_text(json.dumps({"weight_map": names | {"c": names["a"]}}))
    refusal(folder, "tensor 'c' is not in 'pytorch_model-00001-of-00002.bin'")
    (folder / names["b"]).unlink()
    refusal(folder, f"shard '{names['b']}' is absent")


@pytest.mark.parametrize("protocol", ["bare", "archive", "among tensors"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not(
    torch, save, tmp_path, protocol
):
    evil = Evil(tmp_path / "MARK")
    if protocol == "bare":
        (tmp_path / SINGLE).write_bytes(pickle.dumps(evil))
    elif protocol == "archive":
        save(evil)
    else:
        save({"a": torch.ones(2), "b": evil})
    refusal(tmp_path, "can run code")
    assert not (tmp_path / "MARK").exists()
    if protocol == "archive":  # which it would, had it been opened in another way
        torch.load(tmp_path / SINGLE, weights_only=False)
        assert (tmp_path / "MARK").exists()


def test_a_pickle_under_the_name_of_safetensors_is_no_header(torch, save):
    folder = save({"a": torch.ones(2)}, "model.safetensors")
    with pytest.raises(UserError, match="is a pickle of PyTorch by another name"):
        open_weights(folder)


@pytest.mark.parametrize("value", [[1], {"model": {}}, {1: 2}, {"a": "text"}])
def test_what_is_no_names_and_tensors_is_refused(torch, save, value):
    refusal(save(value), "names to plain tensors")


def test_a_file_cut_off_or_of_another_format_is_refused(torch, save):
    folder = save({"a": torch.ones(99)})
    whole = (folder / SINGLE).read_bytes()
    for content in (whole[:-99], whole[:99], b"", b"<html>", b"\x80\x04."):
        (folder / SINGLE).write_bytes(content)
        refusal(folder, "can run code")
    save({"a": torch.ones(2)}, _use_new_zipfile_serialization=False)
    refusal(folder, "not in the format of torch 1.6")


def test_without_torch_the_message_says_how_to_convert(monkeypatch, tmp_path):
    (tmp_path / SINGLE).touch()
    monkeypatch.setattr(pickles, "find_spec", lambda name: None)
    refusal(tmp_path, "not installed: pip install torch, or convert it once")


def test_a_torch_that_runs_code_all_the_same_is_not_asked(torch, monkeypatch, tmp_path):
    (tmp_path / SINGLE).touch()
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    refusal(tmp_path, "torch 2.5.1+cpu does not keep it from that; at least 2.6")


@pytest.mark.parametrize("shards", [False, True])
def test_a_checkpoint_of_pickles_loads_as_that_of_safetensors(torch, tmp_path, shards):
    from transformers import BertConfig, BertForMaskedLM

    from jaxlm.models.pretrained import logits

    sizes = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 3, "intermediate_size": 40}
    theirs = BertForMaskedLM(BertConfig(**sizes)).eval()
    theirs.save_pretrained(tmp_path)
    tokens = np.arange(5, 15).reshape(2, 5)
    wanted = np.asarray(logits(str(tmp_path), tokens))
    (tmp_path / "model.safetensors").unlink()
    state = theirs.state_dict()  # with the tied kernel twice, as such files have it
    names = list(state)
    files = {SINGLE: names}
    if shards:
        files = {f"pytorch_model-{n}.bin": names[n::2] for n in range(2)}
        place = {name: file for file in files for name in files[file]}
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": place}))
    for file in files:
        torch.save({name: state[name] for name in files[file]}, tmp_path / file)
    assert np.array_equal(logits(str(tmp_path), tokens), wanted)


def test_torch_is_named_nowhere_else():
    root = Path(pickles.__file__).parents[1]
    asking = {
        path.name
        for path in root.rglob("*.py")
        if any(f'("{name}")' in path.read_text() for name in ("torch", "tensorflow"))
    }
    assert asking == {"pickles.py"}
