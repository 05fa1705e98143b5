"""``predict --model``: a language model's text by the door."""

import json
import shutil

import pytest

from tests.models.test_generate import LETTERS, folder  # noqa: F401


@pytest.fixture
def ask(call, folder):  # noqa: F811
    def asked(*arguments):
        return call("predict", f"--model=random:{folder}", *arguments)

    return asked


def lines(answer):
    assert answer.code == 0, answer
    return [json.loads(line) for line in answer.out.splitlines()]


def test_a_text_is_continued_as_jsonl(ask):
    (found,) = lines(ask("--text", "abc", "--max-new-tokens=5"))
    assert found["id"] == "1" and found["text"] == "abc"
    (sequence,) = found["sequences"]
    assert len(sequence["tokens"]) == len(sequence["logprobs"]) == 5
    assert sequence["text"] == found["generated"]
    assert sequence["text"] == "".join(LETTERS[token] for token in sequence["tokens"])
    assert sequence["score"] == pytest.approx(sum(sequence["logprobs"]), abs=1e-5)


def test_a_file_of_texts_and_conversations_is_answered_in_order(ask, tmp_path):
    path = tmp_path / "prompts"
    said = [{"role": "user", "content": "ab"}]
    rows = ["abc", json.dumps({"text": "ab."}), json.dumps({"messages": said})]
    path.write_text("\n".join(rows))
    found = lines(ask(f"--input={path}", "--max-new-tokens=4"))
    assert [each["id"] for each in found] == ["1", "2", "3"]
    # The template ends what is said with a full stop.
    assert found[1]["sequences"] == found[2]["sequences"]
    assert found[2]["messages"] == said


def test_several_sequences_come_with_their_scores(ask):
    flags = ("--max-new-tokens=6", "--samples=3")
    (drawn,) = lines(ask("--text=abc", *flags, "--temperature=1", "--top-p=0.95"))
    (beams,) = lines(ask("--text=abc", *flags, "--beams=3"))
    assert len(drawn["sequences"]) == len(beams["sequences"]) == 3
    scores = [each["score"] for each in beams["sequences"]]
    assert scores == sorted(scores, reverse=True)


def test_what_a_checkpoint_suggests_and_the_call_passes_over_is_told_once(
    call,
    folder,  # noqa: F811
    tmp_path,
):
    own = shutil.copytree(folder, tmp_path / "model")
    settings = {"do_sample": True, "temperature": 0.6, "top_k": 50, "top_p": 1.0}
    settings |= {"forced_bos_token_id": 3, "length_penalty": 2.0, "num_beams": 1}
    (own / "generation_config.json").write_text(json.dumps(settings))
    start = ["predict", f"--model=random:{own}", "--text=a", "--text=b"]
    answer = call(*start, "--max-new-tokens=2", "--top-k=3")
    assert len(lines(answer)) == 2
    assert answer.err.count("note: ") == 1
    assert answer.err.splitlines()[-1] == (
        f"note: options are those of the call; random:{own} suggests otherwise:"
        " do_sample=true (--temperature), temperature=0.6 (--temperature=0.6),"
        " forced_bos_token_id=3 (which jaxlm has nothing for)"
    )
    (own / "generation_config.json").unlink()
    assert "note: " not in call(*start, "--max-new-tokens=2").err


REFUSED = {
    ("--text=abc", "--max-new-tokens=0"): "--max-new-tokens=0",
    ("--text=abc", "--stop="): "--stop=",
    ("--text=abc", "--max-new-tokens=500"): "positions",
    ("--text=abc", "--temperatur=1"): "nearest: --temperature",
    ("--text=abc", "--top-k=x"): "--top-k",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=str)
def test_a_wrong_flag_is_one_line(ask, arguments):
    assert REFUSED[arguments] in ask(*arguments).error


def test_inputs_are_opened_before_a_model_is_loaded(call):
    start = ("predict", "--model=/no/model")
    assert "--input=/no/file: No such" in call(*start, "--input=/no/file").error
    twice = call(*start, "--input=a", "--input=b").error
    assert "--input: one file at a time" in twice


@pytest.mark.parametrize("bad", ["{bad", json.dumps({"text": "a" * 500})])
def test_what_stands_before_a_bad_input_is_answered(ask, tmp_path, bad):
    path = tmp_path / "prompts"
    path.write_text("\n".join(["ab", "abc", bad, "abcd"]))
    answer = ask(f"--input={path}", "--max-new-tokens=4")
    assert answer.code == 2 and f"{path}:3" in answer.err
    assert [json.loads(line)["id"] for line in answer.out.splitlines()] == ["1", "2"]


def test_a_conversation_of_another_form_is_one_line(ask, tmp_path):
    path = tmp_path / "prompts"
    path.write_text(json.dumps({"messages": [{"role": "user"}]}))
    assert "role and content" in ask(f"--input={path}").error


def test_predictions_do_not_go_into_the_file_they_are_read_from(
    call,
    folder,  # noqa: F811
    tmp_path,
):
    """``>>`` would read them again, without end."""
    path = tmp_path / "prompts"
    path.write_text("a\n")
    with path.open("a") as out:
        start = ["predict", f"--model=random:{folder}", f"--input={path}"]
        answer = call(*start, stdout=out)
    assert answer.code == 2
    assert "is where the predictions go" in answer.err.splitlines()[-1]
    assert path.read_text() == "a\n"


def test_flags_of_generation_are_not_for_a_run(call, tmp_path):
    answer = call("predict", f"--workdir={tmp_path}", "--text=a", "--beams=2")
    assert "--beams" in answer.error


def test_a_model_that_cannot_generate_is_one_line(call):
    answer = call("predict", "--model=random:tiny", "--text=a")
    assert answer.code == 2
    assert "cannot generate" in answer.err.splitlines()[-1]
