"""Settings: every flag arrives, in the right order of precedence, and bad ones end in one line."""
import dataclasses
import importlib
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from minibert import config
from minibert.config import (MODEL_PRESETS, RUN_PRESETS, DistillConfig, ModelConfig, RunConfig,
                             parse_flags)
from minibert.errors import UserError, run_cli

SCRIPTS = {"bert": "train_bert", "roberta": "train_roberta", "distill": "distill"}
NEEDED = {"bert": ["--out", "a"], "roberta": ["--out", "a"],
          "distill": ["--out", "a", "--teacher", "b"]}
EVERY_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)


@pytest.fixture(autouse=True)
def scripts_are_found(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def read(script, *flags, **named):
    """The settings that a script makes of a command line, all in one dictionary."""
    module = importlib.import_module(SCRIPTS[script])
    run, sizes = module.read_flags([*NEEDED[script], *flags], **named)
    return {**dataclasses.asdict(run), **dataclasses.asdict(sizes)}


def help_of(script, capsys):
    """What --help prints, with single spaces."""
    with pytest.raises(SystemExit) as ended:
        read(script, "--preset", "tiny", "--help")
    assert ended.value.code == 0
    return capsys.readouterr().out


# By hand.


def test_flag_before_preset_before_recipe_before_default():
    """A recipe that overrules a preset would make a laptop train for weeks; what overrules a flag
    would give a user another run than the one that was asked for."""
    recipe = dict(batch_size=48, log_every=7, seed=4)
    parse = lambda *argv: parse_flags("A script.", recipe, {"tiny": 11, "small": 22}, ModelConfig,
                                      argv=["--out", "a", "--preset", "tiny", *argv])
    run, sizes = parse()
    assert run.eval_every == RunConfig.eval_every == 500  # nobody says: the default
    assert run.log_every == 7 and run.seed == 4  # the recipe says
    assert run.batch_size == 64 and sizes.hidden_size == 128  # recipe and preset say
    assert run.steps == 11
    run, sizes = parse("--batch-size", "96", "--log-every", "9", "--hidden-size", "256",
                       "--steps", "33", "--seed", "0")
    assert (run.batch_size, run.log_every, run.steps, run.seed) == (96, 9, 33, 0)
    assert sizes.hidden_size == 256


def test_a_finished_run_counts_more_than_the_preset_and_less_than_a_flag():
    """A walk through a run would show other settings than the run had, or not those of a flag."""
    saved = {"batch_size": 9, "mask_rate": 0.3, "num_hidden_layers": 7, "gone": 1}
    values = read("roberta", "--preset", "tiny", "--mask-rate", "0.2", saved=saved)
    assert (values["batch_size"], values["num_hidden_layers"], values["mask_rate"]) == (9, 7, 0.2)


# Flags.

SPECIAL = {"adam_beta2": 0.9, "preset": "small"}  # twice the value is not valid
BESIDE = {("bert", "input_format"): ["--no-nsp"]}


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


@EVERY_SCRIPT
def test_every_flag_arrives(script, capsys):
    """A flag that is parsed and dropped, overwritten, or sets something else would spoil whole
    comparisons in silence; and more than thirty flags are more than a reader can take in."""
    shown = re.findall(r"^  --([a-z0-9-]+)", help_of(script, capsys), re.MULTILINE)
    assert len(shown) <= 30
    fields = {item.name: item for kind in (RunConfig, ModelConfig, DistillConfig)
              for item in dataclasses.fields(kind)}
    for name in (flag.replace("-", "_") for flag in shown):
        base = ["--preset", "tiny", *BESIDE.get((script, name), [])]
        before = read(script, *base)
        value = other_value(fields[name], before[name])
        after = read(script, *base, *as_flags(name, value))
        assert after[name] == value and type(value) is type(fields[name].default), name
        changed = {other for other in after if after[other] != before[other]}
        follows = {"num_attention_heads", "intermediate_size"} if name == "hidden_size" else set()
        assert changed == {name} | follows or name == "preset"


def test_help_shows_what_the_preset_gives(capsys):
    """--help would show another value than the run would have, such as `--steps [1]`."""
    shown = " ".join(help_of("bert", capsys).split())
    for flag, value in (("--steps", 3000), ("--hidden-size", 128), ("--batch-size", 64),
                        ("--max-grad-norm", 1.0), ("--static-masks", 10)):
        assert re.search(rf"{flag} [A-Z]+ [^]]*\[{value}]", shown), flag


def test_heads_and_feed_forward_follow_the_width():
    """A wider model would have the narrow one's heads, which nobody has asked for."""
    wide = read("bert", "--hidden-size", "320", "--intermediate-size", "99")
    assert (wide["num_attention_heads"], wide["intermediate_size"]) == (5, 99)


# Presets and defaults.


@EVERY_SCRIPT
@pytest.mark.parametrize("device, preset", [("cpu", "tiny"), ("mps", "tiny"), ("cuda", "small")])
def test_auto_preset_follows_the_device(script, device, preset, monkeypatch):
    """A laptop would start the GPU's budget, or the other way round."""
    monkeypatch.setattr(config, "pick_device", lambda name: device)
    values = read(script)
    module = importlib.import_module(SCRIPTS[script])
    assert values["preset"] == preset and values["steps"] == module.STEPS[preset]
    assert values["seq_length"] == RUN_PRESETS[preset]["seq_length"]
    assert read(script, "--preset", "auto") == values
    monkeypatch.setattr(config, "pick_device", lambda name: name if name != "auto" else "cuda")
    assert read(script, "--device", "cpu")["preset"] == "tiny"


def test_the_tests_use_no_gpu():
    """These tests would fail on a machine with a GPU, whose sums differ each time."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and config.pick_device("auto") != "cuda"


def test_base_is_the_paper(monkeypatch):
    """A preset would change a recipe at the papers' own size. What the papers say is in
    test_scripts.py."""
    for script in SCRIPTS:
        values = read(script, "--preset", "base")
        recipe = importlib.import_module(SCRIPTS[script]).RECIPE
        assert {name: values[name] for name in recipe} == recipe
        if script != "distill":
            assert (values["hidden_act"], values["layer_norm_eps"]) == ("gelu", 1e-12)
            assert (values["initializer_range"], values["hidden_size"]) == (0.02, 768)


def test_the_student_is_distilbert_by_default():
    """Readers would take for DistilBERT's what is not in Sanh et al. 2019's released command."""
    values = read("distill")
    assert [values[f"alpha_{name}"] for name in ("kl", "mlm", "cos")] == [5, 2, 1]
    assert (values["temperature"], values["student_layers"], values["init"]) == (2, 0, "teacher")
    for name in ("kl", "mlm", "cos"):  # one of them is enough to learn from
        weights = {f"alpha_{term}": float(term == name) for term in ("kl", "mlm", "cos")}
        assert DistillConfig(teacher="a", **weights)


def test_presets_have_heads_of_64_and_a_feed_forward_of_four_times_h():
    """A preset of another width would have 12 heads or 3072 all the same, and be nobody's model."""
    for name in MODEL_PRESETS:
        sizes = ModelConfig.preset(name)
        assert sizes.num_attention_heads * 64 == sizes.hidden_size, name
        assert sizes.intermediate_size == 4 * sizes.hidden_size, name
    with pytest.raises(UserError, match="'bert-huge' is not known.*bert-base"):
        ModelConfig.preset("bert-huge")


def test_settings_cannot_be_changed():
    """A model's config could say something else than its weights."""
    for made in (ModelConfig(), RunConfig(out="a", steps=1), DistillConfig(teacher="a")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.seed = 1


# Bad settings.

# Each ends in a line that names its first flag, or what stands behind an arrow.
BAD = {"bert": """
    --fish 1; --step 5; --hidden-size; --tokenizer bpe
    --steps many; --steps 1.5; --steps -1; --data-tokens -1
    --seed -1; --seed 4294967296
    --batch-size 0; --gradient-accumulation-steps 0
    --batch-size 10 --gradient-accumulation-steps 4
    --eval-targets 0; --log-every 0; --eval-every 0; --checkpoint-every 0
    --learning-rate fast; --learning-rate 0; --learning-rate nan; --learning-rate inf
    --max-grad-norm -1; --adam-beta2 1; --hidden-dropout-prob 1.5; --initializer-range 0
    --mask-rate 0; --mask-rate 1.5; --static-masks 0; --seq-length 4
    --hidden-size 0; --num-attention-heads 0; --num-hidden-layers 0
    --hidden-size 100 --num-attention-heads 3 => hidden size 100
    --masking sometimes => static; --preset huge => tiny; --device tpu => cuda
    --input-format full-sentences => --no-nsp
""", "roberta": """
    fish; --out= => --out is missing; --nsp; --masking static
""", "distill": """
    --tokenizer bpe; --input-format segment-pair; --hidden-size 128
    --init zeros => random; --distill-positions some => predicted; --student-layers -1
    --alpha-kl -1; --alpha-cos inf; --alpha-kl 0 --alpha-mlm 0 --alpha-cos 0 => --alpha
    --temperature 0; --temperature nan
"""}


@pytest.mark.parametrize("script, bad", [
    (script, bad.strip()) for script, lines in BAD.items()
    for bad in lines.strip().replace("\n", ";").split(";")])
def test_bad_settings_end_in_one_line(script, bad, capsys):
    """A user would get a traceback, a usage of forty lines, or a run of hours that is wrong. Flags
    are not abbreviated, or a new one would change what they mean; a seed of 2**32 would be seed 0.
    """
    flags, _, expected = bad.partition(" => ")
    with pytest.raises(SystemExit, match="2"):
        run_cli(lambda: read(script, "--preset", "tiny", *flags.split()))
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and (expected or flags.split()[0]) in line


@pytest.mark.parametrize("changes, expected", [
    (dict(warmup=1.0), "^warmup must"), (dict(weight_decay=-1.0), "^weight_decay must"),
    (dict(short_seq_prob=1.0), "^short_seq_prob must"),
    (dict(seed=True), "--seed must be of type int"),
    (dict(nsp=1), "--nsp must be of type bool")])
def test_a_recipe_is_checked_too(changes, expected):
    """A reader who edits a RECIPE could give it a value that no flag may have."""
    with pytest.raises(UserError, match=expected):
        RunConfig(out="a", **changes)


def test_a_command_exits_with_2_and_one_line(tmp_path):
    """`make` and other programs see how a script ended by its exit code alone. It is started from
    another folder, as users do."""
    done = subprocess.run([sys.executable, ROOT / "distill.py", "--out", "a"], cwd=tmp_path,
                          text=True, capture_output=True)
    assert done.returncode == 2 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: --teacher is missing")
    assert not any(tmp_path.iterdir())


def test_minibert_refuses_in_one_line(monkeypatch, capsys):
    """The other commands would be less kind than the scripts."""
    monkeypatch.setattr(sys, "argv", ["minibert", "fill-mask", "run", "[MASK]", "--top", "0"])
    with pytest.raises(SystemExit, match="2"):
        run_cli(importlib.import_module("minibert.__main__").main)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: argument --top: invalid positive value: '0'")


def test_a_reader_who_goes_away_is_no_error():
    """`python train_bert.py --help | head` would end in a traceback. (A program that imports
    minibert would take seconds to start.)"""
    done = subprocess.run(
        f"{sys.executable} -c 'import runpy; run = runpy.run_path(\"minibert/errors.py\");"
        "run[\"run_cli\"](lambda: [print(100 * str(i)) for i in range(20000)])' | head -n 1",
        shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("0000") and done.stderr == ""
