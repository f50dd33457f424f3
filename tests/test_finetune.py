"""A classifier that learns what can be learned, with and without a teacher."""
import dataclasses
import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import finetune as script
import numpy as np
import pytest
import torch
from finetune import FinetuneConfig, describe
from tokenizers import Tokenizer

from minibert import MaskedLM, ModelConfig, load_pretrained, save_pretrained
from minibert.__main__ import main
from minibert.errors import UserError, run_cli
from minibert.tasks.classifier import (SequenceClassifier, batches, classify, encoder_of,
                                       load_classifier, predict)
from minibert.tokenizer import train_tokenizer

WORDS = "ba be bi bo bu da de di do du".split()
CONFIG = ModelConfig(vocab_size=27, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                     intermediate_size=32, max_position_embeddings=16, initializer_range=0.2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An encoder that knows nothing yet."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = train_tokenizer(lambda: [" ".join(WORDS)] * 3, "wordpiece", 27)
    save_pretrained(MaskedLM(CONFIG, seed=9), tokenizer, folder)
    return str(folder)


@pytest.fixture
def task_dir(tmp_path):
    """Is "ba" before "du"? Both classes hold the same words, so that order alone tells."""
    draw = np.random.default_rng(0)
    for name, count in (("train", 400), ("dev", 60)):
        lines = ["label\ttext"]
        for i in range(count):
            pair = ["ba", "du"] if i % 2 else ["du", "ba"]
            pair.insert(int(draw.integers(0, 3)), str(draw.choice(WORDS[1:9])))
            lines.append(f"{'first' if i % 2 else 'last'}\t{' '.join(pair)}")
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def settings(task_dir, **other):
    return FinetuneConfig(**{**dict(task="text", task_dir=str(task_dir), batch_size=8, epochs=6,
                                    learning_rate=5e-3, device="cpu",
                                    out=str(task_dir / "out")), **other})


def finetune(run, tune):
    """What the script writes down, and prints, for these settings."""
    with mock.patch.object(script, "read_flags", lambda: (run, tune)):
        script.main()
    return json.loads((Path(tune.out) / "metrics.json").read_text())


def shares_of(task_dir, text):
    """What `classify` shows of a text: each class with its share, in percent."""
    first, *lines = classify(str(task_dir / "out"), (text,)).splitlines()
    assert first == text
    return {line.split()[0]: float(line.split()[-1].rstrip("%")) for line in lines}


def test_learns_what_word_counts_do_not_show(run, task_dir):
    """Catches a head or an encoder that is not trained, labels shuffled against texts."""
    metrics = finetune(run, settings(task_dir))
    assert metrics["score"] > 0.9
    assert metrics["majority"] == 0.5
    rows = [line.split("\t") for line in (task_dir / "dev.tsv").read_text().splitlines()[1:]]
    right = sum(shares_of(task_dir, text)[label] > 50 for label, text in rows)
    assert len(rows) == metrics["dev_rows"] == 60 and right / 60 == pytest.approx(metrics["score"])
    shares = shares_of(task_dir, "ba be du")
    assert [*shares] == ["first", "last"] and sum(shares.values()) == pytest.approx(100, abs=0.2)


def test_starts_from_the_pretrained_encoder(run, task_dir):
    """Catches a fine-tuning that leaves the run's weights aside."""
    finetune(run, settings(task_dir, epochs=1, rows=8, learning_rate=1e-12))
    weights = load_classifier(str(task_dir / "out"))[0].encoder.state_dict()
    for name, weight in load_pretrained(run)[0].encoder.state_dict().items():
        assert torch.allclose(weights[name], weight, atol=1e-6), name


def test_several_seeds_give_their_mean(run, task_dir):
    """Catches a second seed that repeats the first, and a score of one of them alone."""
    settings_of = lambda name, **other: settings(task_dir, epochs=1, rows=40,
                                                 out=str(task_dir / name), **other)
    both = finetune(run, settings_of("both", seed=3, seeds=2))
    alone = [finetune(run, settings_of(f"{seed}", seed=seed))["score"] for seed in (3, 4)]
    assert both["scores"] == alone and both["score"] == pytest.approx(sum(alone) / 2)
    first, kept = (torch.load(task_dir / name / "classifier.pt", weights_only=True)
                   for name in ("3", "both"))
    assert all(torch.equal(first[name], kept[name]) for name in first)


def test_texts_are_tokenized_once(run, task_dir, monkeypatch):
    """Catches texts that are tokenized again in every batch, while a GPU waits, and rows that are
    padded or cut otherwise than alone."""
    make, read = script.encoder_of, []

    def watched(*given):
        encode = make(*given)
        return lambda rows: (read.append(len(rows)), encode(rows))[1]

    monkeypatch.setattr(script, "encoder_of", watched)
    finetune(run, settings(task_dir, epochs=3))
    assert read == [400, 60]
    encode = make(load_pretrained(run)[1], 8, "cpu")
    rows = [("ba",), ("ba be bi bo bu da de di do",), ("du du", "ba")]
    together = encode(rows)
    assert together["input_ids"].shape == (3, 8)  # the longest is cut
    assert together["token_type_ids"][2].sum() == 2  # "ba" and [SEP]
    order = torch.tensor([2, 0, 1])
    for (number, batch), row in zip(batches(together, order, 1), order.tolist(), strict=True):
        alone = encode([rows[row]])
        assert number == row and all(torch.equal(batch[name], alone[name]) for name in alone)
        assert not together["input_ids"][row, alone["input_ids"].shape[1]:].any()  # [PAD] is 0


def test_a_task_says_how_long_it_is_learned(run, task_dir, monkeypatch):
    """Catches few rows that are seen three times only."""
    steps = []
    monkeypatch.setattr(script, "learning_rate", lambda step, run: steps.append(step) or 0)
    monkeypatch.setitem(script.TASKS, "text", dataclasses.replace(
        script.TASKS["text"], epochs=5))
    finetune(run, settings(task_dir, epochs=0, rows=16))
    assert len(steps) // 2 == 5 * 2  # two groups of parameters; two batches of 8


def test_same_seed_same_classifier(run, task_dir):
    """Catches order, dropout or weights that come from a global generator."""
    results = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(results))
        finetune(run, settings(task_dir, epochs=1, seed=seed, out=str(task_dir / name)))
        results.append(torch.load(task_dir / name / "classifier.pt", weights_only=True))
    same = [all(torch.equal(results[0][name], other[name]) for name in other)
            for other in results[1:]]
    assert same == [True, False]


def test_all_families_by_one_rule():
    """Catches a head that reads [CLS] for some, or a pooler that only BERT's pretraining made."""
    shapes = {model_type: {name: tuple(weight.shape) for name, weight in SequenceClassifier(
        ModelConfig(**{**vars(CONFIG), "model_type": model_type, "next_sentence": False}), 3)
        .named_parameters() if not name.startswith("encoder.")}
        for model_type in ("bert", "roberta", "distilbert")}
    assert shapes["bert"] == shapes["roberta"] == shapes["distilbert"]


def test_reads_the_mean_of_what_is_no_padding(monkeypatch):
    """Catches a classifier that reads [CLS] alone, or padding, too."""
    model = SequenceClassifier(CONFIG, 3).eval()
    hidden = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(model.encoder, "forward", lambda *ids, **masks: hidden)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    mean = torch.stack([hidden[0].mean(0), hidden[1, :2].mean(0)])
    logits = model(torch.zeros(2, 4, dtype=torch.long), attention_mask=mask)
    assert torch.allclose(logits, model.classifier(torch.tanh(model.dense(mean))), atol=1e-6)


def test_padding_does_not_change_the_class():
    """Catches a mean that counts padding."""
    model = SequenceClassifier(CONFIG, 3).eval()
    ids = torch.tensor([[2, 7, 8, 3]])
    padded = torch.tensor([[2, 7, 8, 3, 0, 0]])
    alone = model(ids, attention_mask=torch.ones_like(ids))
    batched = model(padded, attention_mask=(padded > 0).long())
    assert torch.allclose(alone, batched, atol=1e-6)


def test_prediction_is_without_dropout():
    """Catches another answer each time that the same text is asked about."""
    model = SequenceClassifier(CONFIG, 3).train()
    given = {"input_ids": torch.tensor([[2, 7, 8, 3]]), "attention_mask": torch.ones(1, 4)}
    first, second = (predict(model.train(), lambda rows: given, [("x",)]) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("train, dev, message", [
    (None, "label\ttext\na\tb\n", "train.tsv is missing"),
    ("", "", "holds no rows"),
    ("label\ttext\n", "", "holds no rows"),
    ("label\ttext\nx\ta\0b\n", "", "holds a NUL"),
    ("label\tsentence\na\tb\n", "", "no column 'text'"),
    ("label\ttext\na\n", "", "line 2 has 1 columns, the first 2"),
    ("label\ttext\na\tb\tc\n", "", "line 2 has 3 columns"),
    ("label\ttext\na\tb\n", "label\ttext\na\tb\n", "different labels"),
    ("label\ttext\na\tb\nc\td\n", "label\ttext\nz\tb\n", "label 'z'"),
    ("label\ttext\na\tb\nc\t \n", "", "line 3 has nothing in the column 'text'"),
    ("label\ttext\n0.5\tb\n1\td\n-.25\td\n", "label\ttext\n1\tb\n", "values and no classes"),
])
def test_tasks_that_cannot_be_used(train, dev, message, run, tmp_path):
    """Catches a traceback, or a score on labels that were never learned."""
    for name, content in (("train", train), ("dev", dev)):
        if content is not None:
            (tmp_path / f"{name}.tsv").write_text(content)
    with pytest.raises(UserError, match=message):
        finetune(run, settings(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def contrary(run, tmp_path_factory):
    """A teacher that learned the labels the wrong way round, and its task."""
    folder = tmp_path_factory.mktemp("contrary")
    for name, count in (("train", 200), ("dev", 90)):
        rows = [f"{'ba' if i % 2 else 'du'} {WORDS[1 + i % 8]}" for i in range(count)]
        lines = [f"{'du' if i % 2 else 'ba'}\t{row}" for i, row in enumerate(rows)]
        (folder / f"{name}.tsv").write_text("\n".join(["label\ttext", *lines]) + "\n")
    finetune(run, settings(folder, epochs=3))
    return folder / "out"


def right_way(contrary, folder):
    """The teacher's texts with the labels that are right."""
    for name in ("train", "dev"):
        text = (contrary.parent / f"{name}.tsv").read_text()
        swapped = text.replace("du\t", "?\t").replace("ba\t", "du\t").replace("?\t", "ba\t")
        (folder / f"{name}.tsv").write_text(swapped)
    return folder


@pytest.mark.parametrize("share, follows", [("1.0", True), ("0.0", False)])
def test_student_learns_from_a_teacher_as_far_as_asked(share, follows, run, contrary, tmp_path):
    """Catches soft targets that are not used, used always, or used for the twin without teacher;
    the teacher is wrong, so that whoever follows it scores 0."""
    metrics = finetune(run, settings(right_way(contrary, tmp_path), epochs=3, teacher=str(contrary),
                                   alpha_kl=float(share)))
    assert metrics["teacher"] < 0.1 and metrics["without_teacher"] > 0.9
    assert metrics["score"] < 0.1 if follows else metrics["score"] == metrics["without_teacher"]
    assert describe(metrics).endswith("the teacher itself 0.000)")


def test_soft_targets_alone_do_not_look_at_the_labels(run, contrary, tmp_path):
    """Catches a share of 1 that leaves the hard labels in the loss."""
    weights = []
    for folder in (contrary.parent, right_way(contrary, tmp_path)):
        out = tmp_path / f"of {folder.name}"
        finetune(run, settings(folder, epochs=1, teacher=str(contrary), alpha_kl=1.0,
                               out=str(out)))
        weights.append(torch.load(out / "classifier.pt", weights_only=True))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_teacher_reads_with_its_own_tokenizer(run, contrary, tmp_path):
    """Catches a teacher that is given the student's token ids."""
    other = json.loads(load_pretrained(run)[1].to_str())
    ids = other["model"]["vocab"]
    ids["ba"], ids["du"] = ids["du"], ids["ba"]
    tokenizer = Tokenizer.from_str(json.dumps(other))
    save_pretrained(MaskedLM(CONFIG, seed=9), tokenizer, tmp_path / "student")
    metrics = finetune(str(tmp_path / "student"), settings(contrary.parent, epochs=1, teacher=str(
        contrary), out=str(tmp_path / "out")))
    assert metrics["teacher"] > 0.9


def test_soft_targets_are_softened(run, contrary, tmp_path):
    """Catches a temperature that does not reach the loss."""
    right_way(contrary, tmp_path)
    weights = []
    for name, temperature in (("warm", 1.0), ("hot", 9.0)):
        finetune(run, settings(tmp_path, epochs=1, teacher=str(contrary), temperature=temperature,
                               out=str(tmp_path / name)))
        weights.append(torch.load(tmp_path / name / "classifier.pt", weights_only=True))
    assert not torch.equal(weights[0]["classifier.weight"], weights[1]["classifier.weight"])


def test_teacher_of_another_task_is_refused(run, contrary, task_dir):
    """Catches soft targets of classes that mean something else."""
    with pytest.raises(UserError, match="same task"):
        finetune(run, settings(task_dir, teacher=str(contrary)))
    with pytest.raises(UserError, match="has no classifier"):
        finetune(run, settings(task_dir, teacher=run))
    with pytest.raises(UserError, match="no head for words"):
        load_pretrained(str(contrary))


def test_inputs_are_cut_to_what_was_asked_and_what_fits(run, task_dir, monkeypatch):
    """Catches a --max-length without effect, and positions that the model does not have."""
    metrics = finetune(run, settings(task_dir, epochs=1, rows=8, max_length=8))
    assert metrics["settings"]["max_length"] == 8
    lengths = []
    forward = SequenceClassifier.forward

    def watch(self, input_ids, **others):
        lengths.append(input_ids.shape[1])
        return forward(self, input_ids, **others)

    monkeypatch.setattr(SequenceClassifier, "forward", watch)
    text = " ".join(WORDS * 4)
    for name in ("train", "dev"):
        (task_dir / f"{name}.tsv").write_text(f"text\tlabel\n{text}\ta\nba\tb\n")
    for max_length, expected in ((8, 8), (128, CONFIG.max_length)):
        out = str(task_dir / f"out{max_length}")
        lengths.clear()
        finetune(run, settings(task_dir, epochs=1, max_length=max_length, out=out))
        classify(out, (text,))
        assert set(lengths) == {expected}


def test_special_tokens_in_a_text_are_text(run):
    """Catches a "[SEP]" that ends a text's first segment, and a "[MASK]" that is a blank."""
    tokenizer = load_pretrained(run)[1]
    ids = encoder_of(tokenizer, 16, "cpu")([("ba [SEP] be [MASK]", "[CLS]")])["input_ids"][0]
    assert [id for id in ids.tolist() if id in (2, 3, 4)] == [2, 3, 3] and ids[0] == 2


class Hostile:
    def __reduce__(self):
        return (open, ("made-by-a-pickle", "w"))


@pytest.mark.parametrize("file, content, message", [
    ("classifier.json", None, "has no classifier"),
    ("classifier.json", "{", "classifier.json is broken"),
    ("classifier.json", "[]", "classifier.json holds no names"),
    ("classifier.json", '{"hidden_size": 100000000, "num_attention_heads": 1, '
     '"num_hidden_layers": 1}', "does not have the shape"),
    ("classifier.json", '{"num_hidden_layers": 100000000}', "100000000 layers are more than"),
    ("classifier.json", '{"model_type": "gpt2"}', "classifier.json asks for a model .*gpt2"),
    ("classifier.pt", None, "classifier.pt is missing"),
    ("classifier.pt", "no weights", "classifier.pt"),
    ("classifier.pt", Hostile(), "could run code"),
    ("classifier.pt", {"bert.pooler.dense.weight": torch.zeros(1)}, "has no classifier"),
    ("classifier.pt", {"classifier.weight": torch.zeros(2, 16)}, "lacks the weight"),
    ("classifier.pt", {"dense.weight": torch.full((16, 16), float("nan"))}, "not finite"),
    ("tokenizer.json", None, "tokenizer.json is missing"),
])
def test_classifier_folders_that_cannot_be_used(file, content, message, contrary, tmp_path,
                                                monkeypatch):
    """Catches tracebacks, code that a file brings, memory for sizes that a file states."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(contrary, tmp_path / "copy")
    path = tmp_path / "copy" / file
    if content is None:
        path.unlink()
    elif isinstance(content, str):
        path.write_text(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        load_classifier(str(tmp_path / "copy"))
    assert not (tmp_path / "made-by-a-pickle").exists()


def test_classify_says_how_many_texts_it_needs(contrary, monkeypatch, capsys):
    """Catches a traceback for a pair where single texts were learned; an empty text is a text."""
    for texts in (["ba"], [""]):
        monkeypatch.setattr(sys, "argv", ["minibert", "classify", str(contrary), *texts])
        run_cli(main)
        assert capsys.readouterr().out.count("%") == 2
    monkeypatch.setattr(sys, "argv", ["minibert", "classify", str(contrary), "ba", "du"])
    with pytest.raises(SystemExit) as ended:
        run_cli(main)
    assert ended.value.code == 2 and "1 text at a time, not 2" in capsys.readouterr().err


@pytest.fixture
def command(run, task_dir, run_script, tmp_path):
    """Run the script on a copy of the run, by its flags."""
    shutil.copytree(run, tmp_path / "run")
    return lambda *flags: run_script("finetune", tmp_path / "run", "--task", "text", "--task-dir",
                                     task_dir, "--device", "cpu", "--epochs", 1, *flags)


def test_from_the_command_line(command, tmp_path, capsys):
    """Catches flags that do not arrive, another place than the run's folder, and a second run that
    trains again, or passes other settings off as the same."""
    command("--rows", 16)
    first = capsys.readouterr().out
    folder = tmp_path / "run" / "tasks" / "text"
    assert "text: accuracy" in first and "bag of words" in first
    assert json.loads((folder / "metrics.json").read_text())["settings"]["rows"] == 16
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    command("--rows", 16)
    assert capsys.readouterr().out.endswith(first) and "part" not in str(list(folder.iterdir()))
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(UserError, match="was made with rows 16, not 8"):
        command("--rows", 8)
    save_pretrained(MaskedLM(CONFIG, seed=3), load_pretrained(tmp_path / "run")[1],
                    tmp_path / "run")
    with pytest.raises(UserError, match="was made from other weights"):
        command("--rows", 16)


def test_a_kill_leaves_nothing_half_done(command, tmp_path, monkeypatch):
    """Catches a folder that counts as finished because the command was stopped in it."""
    def stop(*_):
        raise KeyboardInterrupt

    folder = tmp_path / "run" / "tasks" / "text"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(script, "write_metrics", stop)
        command()
    assert not folder.exists()
    command()
    assert (folder / "metrics.json").exists() and not folder.with_name("text.part").exists()


def test_a_folder_of_something_else_is_left_alone(command, tmp_path):
    """Catches a fine-tuning that writes into somebody's documents."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="name another folder with --out"):
        command("--out", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_inputs_as_long_as_in_the_pretraining(command, tmp_path):
    """Catches positions that nothing has trained, where it was asked to leave them out."""
    with pytest.raises(UserError, match="run.json is missing; give --max-length a number"):
        command("--max-length", 0)
    (tmp_path / "run" / "run.json").write_text('{"settings": {"seq_length": 9}}')
    command("--max-length", 0)
    metrics = json.loads((tmp_path / "run" / "tasks" / "text" / "metrics.json").read_text())
    assert metrics["settings"]["max_length"] == 9


@pytest.mark.parametrize("flags, message", [
    (["--epochs", -1], "--epochs"), (["--seed", 4294967296], "--seed must be in"),
    (["--task", "poetry"], "no task 'poetry'"), (["--alpha-kl", 0.3], "--teacher")])
def test_bad_flags(flags, message, command, tmp_path):
    """Catches tracebacks on what users get wrong, and a folder that is left behind."""
    with pytest.raises(UserError, match=message):
        command(*flags)
    assert not (tmp_path / "run" / "tasks").exists()


def test_choices_are_scored_without_training(command, run, tmp_path, monkeypatch):
    """Catches a task of choices that is trained, or scored with another model than the run's."""
    monkeypatch.setattr(script, "train", lambda *_: pytest.fail("it was trained"))
    (tmp_path / "halves").mkdir()
    (tmp_path / "halves" / "dev.tsv").write_text("right\twrong\tscored\nba du\tdu ba\t0:2\n")
    command("--task", "halves", "--task-dir", tmp_path)
    folder = tmp_path / "run" / "tasks" / "halves"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["task"], metrics["dev_rows"], metrics["majority"]) == ("halves", 1, 0.5)
    assert metrics["score"] in (0, 1) and {path.name for path in folder.iterdir()} == {
        "metrics.json"}
