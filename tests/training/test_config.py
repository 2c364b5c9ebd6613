"""One dataclass is the YAML key, the flag and its help; every problem is reported at once, by its flag."""

import dataclasses
from pathlib import Path

import pytest

from coeff_diffusion.training.config import (
    ConfigError,
    TrainConfig,
    field_help,
    flag_of,
    parse_train_config,
    sections,
    train_parser,
)

DIFFUSERS_FLAGS = {
    "pretrained_model_name_or_path", "revision", "instance_data_dir", "class_data_dir", "instance_prompt",
    "class_prompt", "with_prior_preservation", "prior_loss_weight", "num_class_images", "output_dir", "seed",
    "resolution", "center_crop", "random_flip", "train_batch_size", "sample_batch_size", "max_train_steps",
    "gradient_accumulation_steps", "gradient_checkpointing", "learning_rate", "lr_scheduler", "lr_warmup_steps",
    "lr_num_cycles", "lr_power", "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon", "max_grad_norm",
    "snr_gamma", "mixed_precision", "validation_prompt", "num_validation_images", "validation_steps",
    "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "report_to", "logging_dir",
    "dataloader_num_workers",
}  # fmt: skip


def complete(**changes: object) -> TrainConfig:
    return TrainConfig(**{"instance_data_dir": "photos", "class_word": "dog", **changes})  # type: ignore[arg-type]


def problems_of(**changes: object) -> list[str]:
    with pytest.raises(ConfigError) as error:
        complete(**changes).resolve()
    return error.value.problems


def test_every_field_has_help_and_a_section() -> None:
    names = [f.name for f in dataclasses.fields(TrainConfig)]
    assert list(field_help()) == names
    assert all(len(text) > 10 for text in field_help().values())
    assert [name for section in sections().values() for name in section] == names


def test_flags_are_those_of_diffusers() -> None:
    known = set(field_help())
    assert known.issuperset(DIFFUSERS_FLAGS)


def test_flags_as_a_diffusers_user_types_them() -> None:
    config = parse_train_config(
        [
            *("--instance_data_dir", "photos", "--instance_prompt", "a photo of sks dog", "--random_flip"),
            *("--with_prior_preservation", "--class_data_dir=class", "--learning_rate", "1e-3", "--center_crop=false"),
        ]
    ).resolve()
    assert config.random_flip
    assert config.with_prior_preservation
    assert not config.center_crop
    assert config.learning_rate == 1e-3
    assert (config.class_word, config.trigger, config.class_prompt) == ("dog", "sks dog", "a dog")
    assert config.instance_prompt == "a photo of sks dog"


def test_lists_on_the_command_line() -> None:
    assert parse_train_config(["--instance_data_dir", "[a.png, b.png]"]).instance_data_dir == ["a.png", "b.png"]
    assert parse_train_config(["--instance_data_dir", "my photos"]).instance_data_dir == "my photos"
    assert parse_train_config(["--blocks+=mid_block.*", "--blocks+=up_*"]).blocks == ["mid_block.*", "up_*"]


def test_defaults_follow_from_the_class_word() -> None:
    config = complete().resolve()
    assert (config.trigger, config.instance_prompt, config.validation_prompt) == ("sks dog", "a sks dog", "a sks dog")
    assert (config.output_dir, config.name) == ("outputs/sks-dog", "sks dog")
    assert (config.train, config.gate, config.coeff_dropout) == ("coefficients+token", "trigger", 0.2)
    assert config.resolve() == config


@pytest.mark.parametrize(
    ("given", "trigger", "class_word"),
    [
        ({"class_word": "red  teapot"}, "sks red teapot", "red teapot"),
        ({"class_word": None, "trigger": "zwx teapot"}, "zwx teapot", "teapot"),
        ({"class_word": "dog", "trigger": "Rex"}, "Rex", "dog"),
        ({"class_word": None, "instance_prompt": "oil painting of SKS cat, framed"}, "sks cat", "cat"),
    ],
)
def test_trigger_and_class_word(given: dict[str, str], trigger: str, class_word: str) -> None:
    if "trigger" in given:
        given = {**given, "instance_prompt": f"a {trigger}"}
    config = complete(**given).resolve()
    assert (config.trigger, config.class_word) == (trigger, class_word)


def test_all_problems_at_once() -> None:
    found = problems_of(
        instance_data_dir=None, max_train_steps=-3, learning_rate=-1.0, coeff_dropout=1.0, instance_prompt="a dog"
    )
    flags = [problem.split()[0] for problem in found]
    assert set(flags) == {
        "--instance_data_dir", "--max_train_steps", "--learning_rate", "--coeff_dropout", "--instance_prompt",
    }  # fmt: skip
    assert any("is -3, expected at least 1" in problem for problem in found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"class_word": None}, "--class_word is missing"),
        ({"class_word": None, "trigger": "rex"}, "--class_word is missing"),
        ({"trigger": "dog"}, "is the class word itself"),
        ({"trigger": " "}, "--trigger is '', expected words such as 'sks dog'"),
        ({"trigger": "***"}, "--trigger is '***', expected words"),
        (
            {"trigger": "caf\udce9 dog"},
            r"--trigger is 'caf\udce9 dog', part of which is no text; write it anew, in UTF-8",
        ),
        ({"validation_prompt": "a sks dog \ud83d"}, "--validation_prompt is 'a sks dog "),
        ({"validation_prompt": "a dog"}, "--validation_prompt 'a dog' lacks the trigger 'sks dog', so the previews"),
        ({"instance_prompt": "a photo of a dog"}, "--instance_prompt 'a photo of a dog' lacks the trigger 'sks dog'"),
        ({"with_prior_preservation": True}, "--class_data_dir is missing"),
        ({"class_data_dir": "x"}, "only used with --with_prior_preservation"),
        (
            {"with_prior_preservation": True, "class_data_dir": "x", "class_prompt": "a sks dog"},
            "--class_prompt 'a sks dog' contains the trigger",
        ),
        ({"max_train_steps": 0}, "--max_train_steps is 0, expected at least 1"),
        ({"token_learning_rate": float("nan")}, "--token_learning_rate is nan"),
        ({"snr_gamma": 0.0}, "--snr_gamma is 0.0, expected a number above 0"),
        ({"seed": 2**32 - 1}, "--seed is 4294967295, expected at most 4294967293"),
        ({"lr_warmup_steps": 5}, "--lr_warmup_steps has no effect"),
        (
            {"lr_scheduler": "cosine", "lr_num_cycles": 3},
            "--lr_num_cycles has no effect with --lr_scheduler cosine; it",
        ),
        ({"lr_power": 2.0}, "--lr_power has no effect with --lr_scheduler constant; it is for polynomial"),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 300}, "--lr_warmup_steps is 300, expected less than"),
        ({"mixed_precision": "fp16"}, "--mixed_precision fp16 needs a GPU"),
        ({"overwrite_output_dir": True, "resume_from_checkpoint": "latest"}, "exclude each other"),
        ({"logging_dir": "../logs"}, "--logging_dir is '../logs'"),
        ({"created": "yesterday"}, "--created is 'yesterday', expected a date"),
        ({"revision": "main"}, "--revision only means something for a Hub id"),
    ],
)
def test_each_problem_names_its_flag(changes: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert any(said in problem for problem in problems_of(**changes))


@pytest.mark.parametrize("epoch", ["yesterday", "-1", "99999999999999", "1.5"])
def test_a_date_of_the_environment_that_is_none(monkeypatch: pytest.MonkeyPatch, epoch: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    assert problems_of() == [f"SOURCE_DATE_EPOCH is '{epoch}' in the environment, expected whole seconds since 1970"]
    complete(created="2026-11-23").resolve()


def test_tensorboard_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert problems_of(report_to="tensorboard") == [
        "--report_to tensorboard: it is not installed; pip install 'coeff-diffusion[tracking]'"
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lerning_rate: 1", "unknown setting 'lerning_rate'; did you mean 'learning_rate'?"),
        ("lr_schedule: constant", "unknown setting 'lr_schedule'; did you mean 'lr_scheduler'?"),
        ("zzz: 1", "unknown setting 'zzz'; --help lists all settings"),
        ("learning_rate: fast", "--learning_rate is 'fast', expected float"),
        ("token_learning_rate: fast", "--token_learning_rate is 'fast', expected float"),
        ("resolution: wide", "--resolution is 'wide', expected int"),
        ("crop_boxes: 3", "--crop_boxes is '3', expected dict[str, list[float]]"),
        ("train: everything", "--train is 'everything', expected one of 'coefficients+token', 'coefficients', 'token'"),
        ("max-train-steps: 5", "unknown setting 'max-train-steps'; did you mean 'max_train_steps'?"),
        ("seed: 1\nrandom_flip: true\nseed: 2", "'seed' is there twice, in lines 1 and 3"),
        ("crop_boxes: {1.png: [0, 0, 1, 1], 1.png: [0, 0, 1, 0.5]}", "'1.png' is there twice"),
        ("random_flip: 1", "--random_flip is 1, expected true or false"),
        ("random_flip: sometimes", "--random_flip is 'sometimes', expected true or false"),
        ("max_train_steps: 1.5", "--max_train_steps is '1.5', expected int"),
        ("- a list", "config"),
    ],
)
def test_wrong_yaml(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(line)
    with pytest.raises(ConfigError) as error:
        TrainConfig.from_yaml(file)
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["seed", "blocks", "use_masks", "lr_scheduler", "logging_dir", "train"])
def test_a_line_without_a_value_is_refused_where_a_setting_needs_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "c.yaml").write_text(f"{name}:\ninstance_prompt:\ninstance_data_dir: photos\nclass_word: dog\n")
    with pytest.raises(ConfigError) as error:
        TrainConfig.from_yaml(tmp_path / "c.yaml").resolve()
    assert error.value.problems == [f"--{name} has no value; write one, or leave it out"]


def test_a_bare_no_is_what_it_says(tmp_path: Path) -> None:
    """YAML takes it for false."""
    lines = "mixed_precision: no\nquantization: no\nlearning_rate: 1e-4\ncreated: 2026-11-23\nrandom_flip: no\n"
    (tmp_path / "c.yaml").write_text(lines)
    config = TrainConfig.from_yaml(tmp_path / "c.yaml")
    assert (config.mixed_precision, config.quantization, config.random_flip) == ("no", "no", False)
    assert (config.learning_rate, config.created) == (1e-4, "2026-11-23")


def test_wrong_flag_and_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'lerning_rate'; did you mean 'learning_rate'\?"):
        parse_train_config(["--lerning_rate", "3"])
    with pytest.raises(ConfigError, match=r"unknown setting 'max-train-steps'; did you mean 'max_train_steps'\?"):
        parse_train_config(["--max-train-steps", "3"])
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        TrainConfig.from_yaml("nowhere.yaml")


FLAGS = (["--seed", "3"], ["--no_random_flip"])
FILES = (["--config", "a.yaml"], ["--config=b.yaml"])


@pytest.mark.parametrize("order", [
    (*FILES, *FLAGS), (*FLAGS, *FILES), (FLAGS[0], FILES[0], FLAGS[1], FILES[1]), (FILES[0], *FLAGS, FILES[1]),
])  # fmt: skip
def test_flags_win_over_files_and_later_files_over_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[list[str], ...]
) -> None:
    """In every order they can be typed in; what lost is said, once."""
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("learning_rate: 1e-4\nmax_train_steps: 7\nrandom_flip: true\nseed: 1\n")
    Path("b.yaml").write_text("max_train_steps: 8\nseed: 2\nlearning_rate: 0.0001\n")
    notes: list[str] = []
    config = parse_train_config([word for part in order for word in part], say=notes.append)
    assert (config.learning_rate, config.max_train_steps, config.seed, config.random_flip) == (1e-4, 8, 3, False)
    assert sorted(notes) == [
        "note: max_train_steps is 8 of b.yaml, not 7 of a.yaml",
        "note: random_flip is False of the command line, not True of a.yaml",
        "note: seed is 3 of the command line, not 1 of a.yaml, not 2 of b.yaml",
    ]


def test_nothing_is_said_where_nothing_is_overridden(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("blocks: [up_*]\nseed: 3\n")
    notes: list[str] = []
    arguments = ["--blocks+=mid_block.*", "--seed=3", "--config", str(tmp_path / "a.yaml"), "--random_flip"]
    config = parse_train_config(arguments, say=notes.append)
    assert (config.blocks, config.seed, config.random_flip, notes) == (["up_*", "mid_block.*"], 3, True, [])
    with pytest.raises(ConfigError, match="config.*expected one argument"):
        parse_train_config(["--seed", "3", "--config"])


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = complete(
        instance_data_dir=["a b.png", "ü.png"], learning_rate=1e-5, blocks=["up_*"], trigger='a "b": c', revision="1",
        pretrained_model_name_or_path="me/base", class_word="no", instance_prompt='a "b": c\u2028', snr_gamma=5.0,
    ).resolve()  # fmt: skip
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert TrainConfig.from_yaml(file) == config
    assert TrainConfig.from_yaml(file, seed=9) == dataclasses.replace(config, seed=9)
    for name, text in field_help().items():
        assert f"# {text}\n{flag_of(name)}:" in file.read_text(encoding="utf-8")


def test_paths_become_text(tmp_path: Path) -> None:
    config = complete(instance_data_dir=[tmp_path / "a.png"], output_dir=tmp_path, blocks=("up_*",)).resolve()
    assert (config.instance_data_dir, config.output_dir) == ([str(tmp_path / "a.png")], str(tmp_path))
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert TrainConfig.from_yaml(tmp_path / "config.yaml") == config


def test_previews_without_the_trigger_are_fine_where_the_subject_acts_on_all() -> None:
    complete(validation_prompt="a dog", gate="always", train="coefficients").resolve()
    complete(validation_prompt="a dog", validation_steps=0).resolve()


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train_parser().parse_args(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{flag_of(name)}" in shown for name in field_help())
    assert all(section in shown for section in sections())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "holds 'hello', expected lines such as 'seed: 1'"),
        (b"/etc/hostname", "holds '/etc/hostname', expected lines"),  # a path in it is not opened
        (b"- a", r"holds \['a'\], expected lines"),
        (b"seed: [", "is no YAML"),
        (b"[" * 100_000, "is no YAML"),
        (b"\xff\xfe", "cannot be read as text in UTF-8"),
    ],
)
def test_a_config_that_is_none(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"--config: .*c\.yaml {message}"):
        parse_train_config(["--config", str(tmp_path / "c.yaml")])


def test_a_config_is_text_in_utf8(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes("\ufefftrigger: sks 🐶\r\nlearning_rate: 1e-3\r\n".encode())
    (tmp_path / "empty.yaml").touch()
    found = parse_train_config(["--config", str(tmp_path / "c.yaml"), "--config", str(tmp_path / "empty.yaml")])
    assert (found.trigger, found.learning_rate) == ("sks 🐶", 1e-3)
