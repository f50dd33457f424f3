"""Settings: every flag arrives, in the right order of precedence, and bad ones end in one line."""
import dataclasses
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
sys.path.insert(0, str(REPO))  # where the scripts are
import distill  # noqa: E402
import train_bert  # noqa: E402
import train_roberta  # noqa: E402
from minibert import config  # noqa: E402
from minibert.config import MODEL_PRESETS, RUN_PRESETS, parse_flags  # noqa: E402
from minibert.config import DistillConfig, ModelConfig, RunConfig  # noqa: E402
from minibert.errors import UserError, run_cli  # noqa: E402
from minibert.tokenizer import SpecialIds  # noqa: E402

SCRIPTS = {"bert": train_bert, "roberta": train_roberta, "distill": distill}
# The class that gives a script its further flags, the flags it does not have, the ones it needs.
OTHER = {"bert": ModelConfig, "roberta": ModelConfig, "distill": DistillConfig}
WITHOUT = {"bert": (), "roberta": (), "distill": ("nsp", "tokenizer")}
NEEDED = {"bert": ["--out", "a"], "roberta": ["--out", "a"],
          "distill": ["--out", "a", "--teacher", "b"]}
EVERY_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)


class Stop(Exception):
    """Raised to end a script's main() where the test has seen enough."""


def start(script, monkeypatch, *flags):
    """What main() makes of the command line: the RunConfig, and the other class's."""
    def parse_and_stop(*arguments, **named):
        raise Stop(*parse_flags(*arguments, **named))

    monkeypatch.setattr(SCRIPTS[script], "parse_flags", parse_and_stop)
    monkeypatch.setattr(sys, "argv", ["script.py", *NEEDED[script], *flags])
    monkeypatch.setattr(config, "pick_device", lambda name: "cpu")
    with pytest.raises(Stop) as stopped:
        SCRIPTS[script].main()
    return stopped.value.args


def model_config(script, monkeypatch, *flags,
                 vocab=SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)):
    """The ModelConfig that main() builds of the command line, without a corpus."""
    def stop(base_config, seed):
        raise Stop(base_config)

    monkeypatch.setattr(SCRIPTS[script], "prepare", lambda *arguments: (None, None, None, ""))
    monkeypatch.setattr(SCRIPTS[script], "special_ids", lambda tokenizer: vocab)
    monkeypatch.setattr(SCRIPTS[script], "MaskedLM", stop)
    preset = [] if "--preset" in flags else ["--preset", "tiny"]
    monkeypatch.setattr(sys, "argv", ["script.py", *NEEDED[script], *preset, "--tasks", "none",
                                      *flags])
    with pytest.raises(Stop) as stopped:
        SCRIPTS[script].main()
    return stopped.value.args[0]


# Flags

SPECIAL = {"data_fraction": 0.5, "adam_beta2": 0.9, "preset": "small"}  # twice is not valid
BESIDE = {("bert", "input_format"): ["--no-nsp"],
          ("roberta", "nsp"): ["--input-format", "segment-pair"]}


def other_value(item, now):
    """A valid value for a setting that is not the one it has anyway."""
    if item.name in SPECIAL:
        return SPECIAL[item.name]
    if isinstance(now, bool):
        return not now
    if isinstance(item.metadata["allowed"], tuple):
        return next(choice for choice in item.metadata["allowed"] if choice != now)
    return (now or item.default or ("a" if isinstance(item.default, str) else 1)) * 2


def as_flags(name, value):
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", str(value)]


def settings_of(script):
    return [item for kind in (RunConfig, OTHER[script]) for item in dataclasses.fields(kind)
            if item.metadata and item.name not in WITHOUT[script]]


@EVERY_SCRIPT
def test_every_flag_arrives(script, monkeypatch):
    """Would catch: a flag that is parsed and dropped, overwritten, or sets something else."""
    for item in settings_of(script):
        base = ["--preset", "tiny", *BESIDE.get((script, item.name), [])]
        before = together(*start(script, monkeypatch, *base))
        value = other_value(item, before.get(item.name, item.default))
        after = together(*start(script, monkeypatch, *base, *as_flags(item.name, value)))
        assert after[item.name] == value and type(value) is type(item.default), item.name
        changed = {name for name in after if after[name] != before.get(name)}
        together_with = {"corpus": {"tasks"},  # pydocs has tasks of its own
                         "hidden_size": {"num_attention_heads", "intermediate_size"}
                         }.get(item.name, set())
        assert changed == {item.name} | together_with or item.name == "preset"


def together(run, other):
    return {**dataclasses.asdict(run), **dataclasses.asdict(other)}


@EVERY_SCRIPT
def test_help_lists_the_flags_that_were_tested(script, monkeypatch, capsys):
    """Would catch: a flag that is not made of a setting, or a setting without a flag."""
    monkeypatch.setattr(sys, "argv", ["script.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        SCRIPTS[script].main()
    assert ended.value.code == 0
    shown = set(re.findall(r"^  (?:-h, )?(--[a-z0-9-]+)", capsys.readouterr().out, re.MULTILINE))
    expected = {"--" + item.name.replace("_", "-") for item in settings_of(script)}
    assert shown == expected | {"--help", "--print-config"}


def test_help_shows_no_default_that_a_preset_overrules(monkeypatch, capsys):
    """Would catch: `--steps [1]`, which no preset has."""
    monkeypatch.setattr(sys, "argv", ["script.py", "--help"])
    with pytest.raises(SystemExit):
        train_bert.main()
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("0 leaves them as they start [by preset]",
                 "a feed-forward of 4 H [by preset]",
                 "sequences in an optimizer step [by preset]",
                 "clip the gradient to this norm; 0 means never [1.0]",
                 "masks that repeat, or new ones [static]"):
        assert text in shown, text


@pytest.mark.parametrize("command, expected", [
    ("fill-mask r [MASK] --top 0", "argument --top: invalid positive value: '0'"),
    ("finetune r --out x --alpha-kl 1", "name the teacher with --teacher")])
def test_minibert_refuses_in_one_line(command, expected, monkeypatch, capsys):
    """Would catch: a traceback, a command that waits for ever, a flag that is guessed."""
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(sys, "argv", ["minibert", *command.split()])
    with pytest.raises(SystemExit) as ended:
        run_cli(importlib.import_module("minibert.__main__").main)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and expected in line


def test_a_reader_who_goes_away_is_no_error():
    """Would catch: the traceback of `... | head`."""
    done = subprocess.run(
        f"{sys.executable} -c 'from minibert.errors import run_cli;"
        "run_cli(lambda: [print(100 * str(i)) for i in range(20000)])' | head -n 1",
        shell=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.startswith("0000") and done.stderr == ""


@pytest.mark.parametrize("script", ["bert", "roberta"])
def test_every_model_flag_reaches_the_model(script, monkeypatch):
    """Would catch: a shape that is read from the preset, whatever the flag says."""
    before = model_config(script, monkeypatch)
    for item in dataclasses.fields(ModelConfig):
        if item.metadata:
            value = other_value(item, getattr(before, item.name))
            after = model_config(script, monkeypatch, *as_flags(item.name, value))
            if item.name != "max_position_embeddings":
                assert getattr(after, item.name) == value, item.name
    wider = model_config(script, monkeypatch, "--hidden-size", "320", "--intermediate-size", "99")
    assert (wider.num_attention_heads, wider.intermediate_size) == (5, 99)  # BERT's heads of 64
    longer = model_config(script, monkeypatch, "--max-position-embeddings", "200")
    assert longer.max_length == 200  # in tokens: RoBERTa's table has more rows


@pytest.mark.parametrize("script", ["bert", "roberta"])
@pytest.mark.parametrize("preset", RUN_PRESETS)
def test_every_preset_builds_a_model_for_its_sequences(script, preset, monkeypatch):
    """Would catch: a script that reads a field which only some presets set."""
    base_config = model_config(script, monkeypatch, "--preset", preset)
    assert base_config.max_length >= RUN_PRESETS[preset]["seq_length"]
    assert base_config.hidden_size == MODEL_PRESETS[preset]["hidden_size"]


def test_scripts_build_their_architecture(monkeypatch):
    """Would catch: RoBERTa without its own positions; an NSP head that is not asked for."""
    bert = model_config("bert", monkeypatch)
    assert (bert.model_type, bert.next_sentence, bert.type_vocab_size) == ("bert", True, 2)
    assert not model_config("bert", monkeypatch, "--no-nsp").next_sentence
    vocab = SpecialIds(pad=7, unk=1, cls=2, sep=3, mask=4)
    roberta = model_config("roberta", monkeypatch, vocab=vocab)
    assert (roberta.model_type, roberta.next_sentence) == ("roberta", False)
    assert (roberta.type_vocab_size, roberta.pad_token_id) == (1, 7)
    assert (roberta.max_position_embeddings, roberta.max_length) == (128 + 8, 128)
    pairs = model_config("roberta", monkeypatch, "--nsp", "--input-format", "segment-pair")
    assert (pairs.model_type, pairs.next_sentence, pairs.type_vocab_size) == ("bert", True, 2)


# Precedence

@EVERY_SCRIPT
def test_print_config_says_where_each_setting_comes_from(script, monkeypatch, capsys):
    """Would catch: a setting that is missing, shown with another value than the run gets, or said
    to come from elsewhere; a run that starts all the same."""
    flags = ["--preset", "tiny", "--device", "cpu", "--seed", "3"]
    monkeypatch.setattr(SCRIPTS[script], "prepare", lambda *_, **__: pytest.fail("it went on"))
    if script != "distill":
        flags += ["--hidden-size", "256"]
    monkeypatch.setattr(sys, "argv", ["script.py", "--print-config", *flags])
    with pytest.raises(SystemExit) as ended:
        SCRIPTS[script].main()
    assert not ended.value.code  # without --out or --teacher: nothing is trained
    found = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  --"):
            flag, value, origin = re.split(r"\s{2,}", line.strip())
            found[flag] = value, origin
    values = together(*start(script, monkeypatch, *flags))
    assert found.keys() == {as_flags(item.name, "")[0] for item in settings_of(script)}
    for item in settings_of(script):
        value, _ = found[as_flags(item.name, "")[0]]
        if item.name not in ("out", "teacher"):
            assert value == (str(values[item.name]) or "-"), item.name
    assert found["--seed"] == ("3", "flag") and found["--preset"] == ("tiny", "flag")
    assert found["--steps"] == (str(SCRIPTS[script].STEPS["tiny"]), "preset tiny")
    assert found["--masking"][1] == "recipe" and found["--log-every"] == ("50", "default")
    if script != "distill":
        assert found["--hidden-size"] == ("256", "flag")
        assert found["--num-attention-heads"] == ("4", "--hidden-size")


def test_print_config_refuses_a_bad_value(monkeypatch, capsys):
    """Would catch: a value that no run can have, shown as if one could."""
    monkeypatch.setattr(sys, "argv", ["script.py", "--print-config", "--steps", "-1"])
    with pytest.raises(SystemExit) as ended:
        run_cli(train_bert.main)
    assert ended.value.code == 2 and "--steps must be in" in capsys.readouterr().err


def test_flag_before_preset_before_recipe_before_default(monkeypatch):
    """Would catch: a recipe that overrules a preset, or anything that overrules a flag."""
    recipe = dict(batch_size=48, log_every=7, seed=4)
    parse = lambda *argv: parse_flags("A script.", recipe, {"tiny": 11, "small": 22}, ModelConfig,
                                      argv=["--out", "a", "--preset", "tiny", *argv])
    run, base_config = parse()
    assert run.eval_every == RunConfig.eval_every == 500  # nobody says: the default
    assert run.log_every == 7 and run.seed == 4  # the recipe says
    assert run.batch_size == 64 and base_config.hidden_size == 128  # recipe and preset say
    assert run.steps == 11
    run, base_config = parse("--batch-size", "96", "--log-every", "9", "--hidden-size", "256",
                             "--steps", "33", "--seed", "0")
    assert (run.batch_size, run.log_every, run.steps, run.seed) == (96, 9, 33, 0)
    assert base_config.hidden_size == 256


@EVERY_SCRIPT
@pytest.mark.parametrize("device, preset", [("cpu", "tiny"), ("mps", "tiny"), ("cuda", "small")])
def test_auto_preset_follows_the_device(script, device, preset, monkeypatch):
    """Would catch: a laptop that starts the GPU's budget, or the other way round."""
    monkeypatch.setattr(config, "pick_device", lambda name: device)
    run, _ = parse_flags("A script.", SCRIPTS[script].RECIPE, SCRIPTS[script].STEPS,
                         OTHER[script], argv=NEEDED[script])
    assert run.preset == preset and run.steps == SCRIPTS[script].STEPS[preset]
    assert run.seq_length == RUN_PRESETS[preset]["seq_length"]


def test_the_tests_use_no_gpu():
    """Would catch: a suite that trains on a GPU where there is one; its sums differ each time."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and config.pick_device("auto") != "cuda"


# Defaults

def test_train_bert_is_bert_by_default(monkeypatch):
    """Would catch: a default that is not Devlin et al. 2018's."""
    run, made = start("bert", monkeypatch, "--preset", "base")
    assert (run.input_format, run.nsp, run.short_seq_prob) == ("segment-pair", True, 0.1)
    assert (run.masking, run.static_masks, run.mask_rate) == ("static", 10, 0.15)
    assert not run.whole_word_masking and run.tokenizer == "wordpiece"
    assert (run.adam_beta2, run.weight_decay, run.max_grad_norm) == (0.999, 0.01, 1.0)
    assert (run.steps, run.batch_size, run.seq_length) == (1_000_000, 256, 512)
    assert run.learning_rate == 1e-4 and run.warmup * run.steps == 10_000
    assert (made.hidden_dropout_prob, made.attention_probs_dropout_prob) == (0.1, 0.1)
    assert (made.layer_norm_eps, made.initializer_range, made.hidden_act) == (1e-12, 0.02, "gelu")


def test_train_roberta_is_roberta_by_default(monkeypatch):
    """Would catch: a default that is not Liu et al. 2019's."""
    run, _ = start("roberta", monkeypatch, "--preset", "base")
    assert (run.input_format, run.nsp, run.masking) == ("full-sentences", False, "dynamic")
    assert (run.adam_beta2, run.weight_decay, run.max_grad_norm) == (0.98, 0.01, 0.0)
    assert (run.mask_rate, run.seq_length, run.steps) == (0.15, 512, 1_000_000)


def test_distill_is_distilbert_by_default(monkeypatch):
    """Would catch: a default that is not Sanh et al. 2019's, or not the documented one."""
    run, made = start("distill", monkeypatch, "--preset", "base")
    assert (run.input_format, run.nsp, run.masking) == ("full-sentences", False, "dynamic")
    assert (run.adam_beta2, run.weight_decay, run.max_grad_norm) == (0.98, 0.0, 5.0)
    assert (made.alpha_kl, made.alpha_mlm, made.alpha_cos, made.temperature) == (5, 2, 1, 2)
    assert (made.student_layers, made.init) == (0, "teacher")  # half the layers, and copied
    assert made.distill_positions == "predicted"


# Shapes

def test_presets_have_heads_of_64_and_a_feed_forward_of_four_times_h():
    """Would catch: 12 heads, or 3072, in a model of another width."""
    for name in MODEL_PRESETS:
        base_config = ModelConfig.preset(name)
        assert base_config.num_attention_heads * 64 == base_config.hidden_size, name
        assert base_config.intermediate_size == 4 * base_config.hidden_size, name


def test_unknown_preset_names_the_known_ones():
    """Would catch: a KeyError instead of a list to choose from."""
    with pytest.raises(UserError) as raised:
        ModelConfig.preset("bert-huge")
    assert "'bert-huge'" in str(raised.value)
    assert all(name in str(raised.value) for name in MODEL_PRESETS)


def test_settings_cannot_be_changed():
    """Would catch: a model whose config says something else than its weights."""
    for made in (ModelConfig(), RunConfig(out="a", steps=1), DistillConfig(teacher="a")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.seed = 1


# Bad settings

BAD = [  # script, flags, and what the line must say
    ("bert", "--fish 1", "--fish"),
    ("bert", "--step 5", "--step"),  # no abbreviations: a new flag would change what they mean
    ("roberta", "fish", "fish"),
    ("roberta", "--out=", "--out is missing"),
    ("distill", "--nsp", "--nsp"),
    ("distill", "--tokenizer bpe", "--tokenizer"),
    ("bert", "--hidden-size", "--hidden-size"),
    ("bert", "--masking sometimes", "static"),
    ("bert", "--preset huge", "tiny"),
    ("bert", "--device tpu", "cuda"),
    ("bert", "--hidden-act swish", "gelu"),
    ("bert", "--attn-implementation flash", "eager"),
    ("distill", "--init zeros", "random"),
    ("distill", "--distill-positions some", "predicted"),
    ("bert", "--steps many", "--steps"),
    ("bert", "--steps 1.5", "--steps"),
    ("bert", "--steps -1", "--steps"),
    ("bert", "--steps -3", "--steps"),
    ("bert", "--seed -1", "--seed"),
    ("bert", "--seed 4294967296", "4294967296)"),  # 2**32 would give the numbers of seed 0
    ("bert", "--batch-size 0", "--batch-size"),
    ("bert", "--gradient-accumulation-steps 0", "--gradient-accumulation-steps"),
    ("bert", "--batch-size 10 --gradient-accumulation-steps 4", "--gradient-accumulation-steps"),
    ("bert", "--eval-targets 0", "--eval-targets"),
    ("bert", "--log-every 0", "--log-every"),
    ("bert", "--eval-every 0", "--eval-every"),
    ("bert", "--checkpoint-every 0", "--checkpoint-every"),
    ("bert", "--static-masks 0", "--static-masks"),
    ("bert", "--seq-length 4", "--seq-length"),
    ("bert", "--learning-rate fast", "--learning-rate"),
    ("bert", "--learning-rate 0", "--learning-rate"),
    ("bert", "--learning-rate nan", "--learning-rate"),
    ("bert", "--learning-rate inf", "--learning-rate"),
    ("bert", "--weight-decay -1", "--weight-decay"),
    ("bert", "--max-grad-norm -1", "--max-grad-norm"),
    ("bert", "--mask-rate 0", "--mask-rate"),
    ("bert", "--mask-rate 1.5", "--mask-rate"),
    ("bert", "--data-fraction 0", "--data-fraction"),
    ("bert", "--data-fraction 2", "--data-fraction"),
    ("bert", "--warmup 1", "--warmup"),
    ("bert", "--short-seq-prob -0.1", "--short-seq-prob"),
    ("bert", "--adam-beta2 1", "--adam-beta2"),
    ("bert", "--input-format full-sentences", "--no-nsp"),
    ("roberta", "--nsp", "segment-pair"),
    ("bert", "--hidden-size 100 --num-attention-heads 3", "100"),
    ("bert", "--hidden-size 0", "--hidden-size"),
    ("bert", "--num-attention-heads 0", "--num-attention-heads"),
    ("bert", "--num-hidden-layers 0", "--num-hidden-layers"),
    ("bert", "--max-position-embeddings 0", "--max-position-embeddings"),
    ("bert", "--hidden-dropout-prob 1.5", "--hidden-dropout-prob"),
    ("bert", "--attention-probs-dropout-prob -0.1", "--attention-probs-dropout-prob"),
    ("bert", "--initializer-range 0", "--initializer-range"),
    ("bert", "--layer-norm-eps -1", "--layer-norm-eps"),
    ("distill", "--student-layers -1", "--student-layers"),
    ("distill", "--alpha-kl -1", "--alpha-kl"),
    ("distill", "--alpha-cos inf", "--alpha-cos"),
    ("distill", "--alpha-kl 0 --alpha-mlm 0 --alpha-cos 0", "--alpha"),
    ("distill", "--temperature 0", "--temperature"),
    ("distill", "--temperature -2", "--temperature"),
    ("distill", "--temperature nan", "--temperature"),
]


@pytest.mark.parametrize("script, flags, expected", BAD, ids=[" ".join(bad[:2]) for bad in BAD])
def test_bad_settings_end_in_one_line(script, flags, expected, monkeypatch, capsys):
    """Would catch: a traceback, a usage of forty lines, or a setting that is taken and wrong."""
    def go_on(*arguments):
        raise Stop("the settings were taken")

    if script == "distill":
        monkeypatch.setattr(distill, "load_pretrained", go_on)
    else:
        monkeypatch.setattr(SCRIPTS[script], "prepare", lambda *arguments: (None, None, None, ""))
        monkeypatch.setattr(SCRIPTS[script], "special_ids",
                            lambda tokenizer: SpecialIds(0, 1, 2, 3, 4))
        monkeypatch.setattr(SCRIPTS[script], "MaskedLM", go_on)
    monkeypatch.setattr(sys, "argv", ["script.py", *NEEDED[script], "--preset", "tiny",
                                      *flags.split()])
    with pytest.raises(SystemExit) as ended:
        run_cli(SCRIPTS[script].main)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and expected in line


def test_negative_vocabulary_is_refused(tmp_path, monkeypatch, capsys):
    """Would catch: a size that reaches the tokenizer's trainer before anyone has looked at it."""
    (tmp_path / "text.txt").write_text("\n\n".join(["One two. Three."] * 5), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["script.py", "--out", str(tmp_path / "run"), "--vocab-size",
                                      "-4", "--corpus", str(tmp_path / "text.txt")])
    with pytest.raises(SystemExit) as ended:
        run_cli(train_bert.main)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("command, expected", [
    ("train_bert.py --preset tiny", "--out is missing"),
    ("distill.py --out a", "--teacher is missing"),
])
def test_commands_exit_with_2_and_one_line(command, expected, tmp_path):
    """Would catch: a script that does not run, exits with 0 or 1, or prints a traceback."""
    script, *flags = command.split()
    done = subprocess.run([sys.executable, REPO / script, *flags], cwd=tmp_path, text=True,
                          capture_output=True)
    assert done.returncode == 2 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ") and expected in line
    assert not any(tmp_path.iterdir())
