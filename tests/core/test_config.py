"""Config files, overrides, the table of --explain and the workdir's config.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxlm.core import config as configs
from jaxlm.core import schema
from jaxlm.core.errors import UserError
from jaxlm.experiment import ExperimentConfig

EXAMPLE = """
from jaxlm.core.config import pick, to_config_dict
from jaxlm.experiment import ExperimentConfig

def base(config):
    config.train.steps = 10

def tiny(config):
    config.model.pretrained = "random:tiny"
    config.model.dropout = 0.0
    config.task.labels = ["PER", "LOC"]

def get_config(variant=""):
    config = to_config_dict(ExperimentConfig)
    pick(variant, {"": base, "tiny": tiny})(config)
    return config
"""


@pytest.fixture(autouse=True)
def in_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "ner.py").write_text(EXAMPLE)


def file_with(line: str) -> str:
    text = (
        "from jaxlm.core.config import to_config_dict\n"
        "from jaxlm.experiment import ExperimentConfig\n"
        "def get_config():\n"
        "    config = to_config_dict(ExperimentConfig)\n"
        f"    {line}\n"
        "    return config\n"
    )
    Path("configs/other.py").write_text(text)
    return "configs/other.py"


def resolve(spec: str | None, *overrides: str) -> ExperimentConfig:
    return configs.resolve(ExperimentConfig, spec, overrides).config


def refused(spec: str | None, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        resolve(spec, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_config_dict_holds_every_default():
    config = configs.to_config_dict(ExperimentConfig)
    assert schema.flatten_dict(config.to_dict()) == schema.flatten(ExperimentConfig())


def test_a_file_changes_the_defaults():
    assert resolve("configs/ner.py").train.steps == 10


def test_a_variant_is_chosen_after_a_colon():
    config = resolve("configs/ner.py:tiny")
    assert config.model.pretrained == "random:tiny" and config.train.steps is None


def test_a_file_may_set_what_is_none_by_default():
    assert resolve("configs/ner.py:tiny").model.dropout == 0.0


def test_a_file_may_write_a_tuple_as_a_list():
    assert resolve("configs/ner.py:tiny").task.labels == ("PER", "LOC")


def test_a_file_may_give_records_as_data():
    spec = file_with("config.data.train = [{'id': '1', 'text': 'a', 'label': 'b'}]")
    assert resolve(spec).data.train == ({"id": "1", "text": "a", "label": "b"},)


def test_a_file_edited_within_a_second_is_read_again():
    first = resolve(file_with("config.train.steps = 11")).train.steps
    second = resolve(file_with("config.train.steps = 12")).train.steps
    assert (first, second) == (11, 12)


def test_a_missing_file_is_told_the_files_that_are_there():
    assert refused("configs/nerr.py") == (
        "--config=configs/nerr.py: no such file; nearest: configs/ner.py;"
        " there are configs/ner.py"
    )


def test_a_missing_folder_is_told_the_files_of_configs():
    assert "nearest: configs/ner.py" in refused("config/ner.py")


def test_an_unknown_variant_is_told_the_nearest():
    assert refused("configs/ner.py:tinny") == (
        "configs/ner.py:15: no such variant: 'tinny'; nearest: tiny; variants: tiny,"
        " or none"
    )


def test_a_variant_of_a_file_without_any_is_refused():
    spec = file_with("pass")
    assert refused(f"{spec}:tiny") == f"{spec}: has no variants, so not 'tiny'"


def test_a_file_without_get_config_is_refused():
    Path("configs/empty.py").write_text("x = 1\n")
    message = "configs/empty.py: has no function get_config(variant)"
    assert refused("configs/empty.py") == message


def test_a_get_config_that_returns_nothing_is_refused():
    Path("configs/nothing.py").write_text("def get_config(): pass\n")
    assert refused("configs/nothing.py").endswith("it returned None")


@pytest.mark.parametrize(
    ("line", "key", "near"),
    [
        ("config.train.batchsize = 4", "train.batchsize", "train.batch_size"),
        ("config.trian.steps = 4", "trian", "train"),
        ("config.learning_rate = 4", "learning_rate", "optimizer.learning_rate"),
        ("train = config.train; train.stepz = 4", "stepz", "train.steps"),
        ("config['train']['stepz'] = 4", "stepz", "train.steps"),
        ("print(config.train.stepz)", "train.stepz", "train.steps"),
    ],
)
def test_an_unknown_key_in_a_file_is_told_line_and_nearest(
    line: str, key: str, near: str
):
    start = f"configs/other.py:5: config.{key}: no such key; nearest: config.{near};"
    assert refused(file_with(line)).startswith(start)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("{}['tiny']", "KeyError: 'tiny'"),
        ("import no_such_module", "ModuleNotFoundError: No module named"),
        ("raise ValueError('a\\nb')", "ValueError: a b"),
        ("x = = 3", "SyntaxError: invalid syntax"),
    ],
)
def test_an_error_inside_a_file_is_told_with_its_line(line: str, message: str):
    assert refused(file_with(line)).startswith(f"configs/other.py:5: {message}")


def test_a_bad_value_in_a_file_is_told_with_the_file():
    message = "configs/other.py: config.train.steps: -4 is not allowed; a whole number"
    assert refused(file_with("config.train.steps = -4")).startswith(message)


def test_a_bad_value_of_the_command_line_is_told_without_the_file():
    message = refused("configs/ner.py", "--config.train.batch_size=-4")
    assert message == (
        "config.train.batch_size: -4 is not allowed; a whole number, at least 1,"
        " at most 1048576"
    )


def test_a_file_that_ends_the_process_is_refused():
    assert refused(file_with("raise SystemExit(3)")).endswith(
        ":5: ends the process; it must return the config"
    )


def test_a_section_that_a_file_made_a_number_is_refused():
    spec = file_with("config.train = 3")
    message = refused(spec, "--config.train.steps=3")
    assert message.startswith("configs/other.py: config.train: 3 is not allowed")


def test_the_command_line_is_stronger_than_the_file():
    assert resolve("configs/ner.py", "--config.train.steps=3").train.steps == 3


def test_the_last_of_two_overrides_holds():
    config = resolve(None, "--config.seed=1", "--config.seed=2")
    assert config.seed == 2


def test_an_override_may_stand_apart_from_its_value():
    config = resolve(None, "--config.train.steps", "3", "--config.seed", "4")
    assert (config.train.steps, config.seed) == (3, 4)


def test_an_override_may_be_none():
    assert (
        resolve(None, "--config.optimizer.clip_norm=none").optimizer.clip_norm is None
    )


def test_an_override_may_be_empty():
    assert resolve(None, "--config.data.test=").data.test == ""


@pytest.mark.parametrize(
    ("overrides", "value"),
    [
        (["--config.model.scan"], True),
        (["--config.model.scan", "--config.seed=1"], True),
        (["--config.model.scan", "false"], False),
        (["--config.model.scan=true"], True),
        (["--config.model.scan=0"], False),
    ],
)
def test_a_bare_flag_means_true(overrides: list[str], value: bool):
    assert resolve(None, *overrides).model.scan is value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "--config.train.batch_size",
            "config.train.batch_size: needs a value; a whole",
        ),
        ("--config.train=3", "config.train: is a section; set a key in it: config.tr"),
        ("--config.=3", "config: is a section; set a key in it: config.seed"),
        (
            "--config.train.stepz=3",
            "config.train.stepz: no such key; nearest: config.t",
        ),
        ("--config.seed=x", "config.seed: 'x' is not allowed; a whole number, at l"),
        ("--config.seed=inf", "config.seed: 'inf' is not allowed; a whole number"),
        ("--config.seed=", "config.seed: '' is not allowed; a whole number"),
        ("--config.optimizer.beta1=nan", "config.optimizer.beta1: nan is not allowed"),
        ("--config.model.scan=yes", "config.model.scan: 'yes' is not allowed; true or"),
    ],
)
def test_a_bad_override_is_refused(override: str, message: str):
    assert refused(None, override).startswith(message)


def test_overrides_are_checked_together_with_the_file():
    spec = file_with("config.train.batch_size = 6")
    assert "a divisor of" in refused(spec, "--config.train.accumulation=4")
    resolve(spec, "--config.train.accumulation=4", "--config.train.batch_size=8")


def test_the_origin_of_every_value_is_known():
    origin = configs.resolve(
        ExperimentConfig, "configs/ner.py:tiny", ["--config.seed=0"]
    ).origin
    assert origin["seed"] == "command line"
    assert origin["model.pretrained"] == "configs/ner.py:tiny"
    assert origin["train.steps"] == "default"
    assert origin.keys() == schema.leaves(ExperimentConfig).keys()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_explain_fits_the_terminal(width: int):
    resolved = configs.resolve(ExperimentConfig, "configs/ner.py:tiny", [])
    longest = max(map(len, configs.explain(resolved, width).splitlines()))
    assert longest <= width


def test_explain_shows_every_key_with_value_origin_and_help():
    resolved = configs.resolve(ExperimentConfig, "configs/ner.py", [])
    text = configs.explain(resolved, 400)
    assert "steps            10" in text
    assert sum(" default " in line for line in text.splitlines()) == (
        len(resolved.origin) - 1
    )
    for leaf in schema.leaves(ExperimentConfig).values():
        assert leaf.rule.help in text


def test_a_written_config_is_read_again():
    config = resolve("configs/ner.py:tiny")
    configs.write("config.json", config, configs.versions())
    assert configs.read("config.json", ExperimentConfig) == config


def test_a_written_config_names_the_versions():
    configs.write("config.json", ExperimentConfig(), configs.versions())
    versions = json.loads(Path("config.json").read_text())["versions"]
    assert {"python", "jaxlm", "jax", "flax", "optax", "transformers"} <= set(versions)


def test_writing_leaves_no_partial_file():
    configs.write("config.json", ExperimentConfig(), {})
    assert [path.name for path in Path().glob("*config.json*")] == ["config.json"]


def test_writing_where_no_folder_can_be_is_refused():
    Path("file").write_text("mine")
    with pytest.raises(UserError, match="file/config.json: cannot be written"):
        configs.write("file/config.json", ExperimentConfig(), {})


def test_records_in_memory_are_read_as_a_source_that_cannot_be_opened():
    config = resolve(file_with("config.data.train = [{'id': '1'}]"))
    configs.write("config.json", config, {})
    train = configs.read("config.json", ExperimentConfig).data.train
    assert isinstance(train, str) and train.startswith("memory:1-records-")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json:1:2: broken JSON"),
        ("[]", "config.json: is not the config of a run"),
        ('{"config": 3, "versions": {}}', "config.json: is not the config of a run"),
        (
            '{"config": {"train": {"warp": 1}}, "versions": {"jaxlm": "99.0"}}',
            r"config.json: config.train.warp: no such key; .*written by jaxlm 99.0",
        ),
    ],
)
def test_a_config_of_a_run_that_cannot_be_used_is_refused(text: str, message: str):
    Path("config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        configs.read("config.json", ExperimentConfig)


def test_a_missing_config_of_a_run_is_refused():
    with pytest.raises(UserError, match="runs/x/config.json: no such file; --workdir"):
        configs.read("runs/x/config.json", ExperimentConfig)


def test_a_new_workdir_differs_in_nothing():
    assert configs.changes(".", ExperimentConfig()) == []


def test_the_same_config_may_resume():
    config = resolve("configs/ner.py:tiny")
    configs.write("config.json", config, {})
    assert configs.refuse_difference(".", config) == []


def test_another_config_in_the_workdir_is_refused_with_what_differs():
    configs.write("config.json", ExperimentConfig(), {})
    with pytest.raises(UserError, match="config.train.batch_size was 16, now 8; name"):
        configs.refuse_difference(".", resolve(None, "--config.train.batch_size=8"))


@pytest.mark.parametrize("allowed", ["train.epochs", "train"])
def test_an_allowed_difference_is_returned(allowed: str):
    configs.write("config.json", ExperimentConfig(), {})
    changed = resolve(None, "--config.train.epochs=9")
    assert configs.refuse_difference(".", changed, {allowed}) == ["train.epochs"]


def test_a_key_that_the_run_did_not_know_yet_had_its_default():
    document = {"config": {"seed": 0}, "versions": {}}
    Path("config.json").write_text(json.dumps(document))
    assert configs.changes(".", ExperimentConfig()) == []
