"""A classifier: its head by hand, its inputs, its answers, and its two kinds of folder.

tests/parity holds it against `transformers`.
"""
import json
import shutil
import sys

import pytest
import torch
from test_hub import FAMILIES

from minibert import ModelConfig
from minibert.__main__ import main
from minibert.errors import UserError, run_cli
from minibert.tasks.classifier import (SequenceClassifier, batches, classify, encoder_of,
                                       load_classifier, predict, save_classifier)
from minibert.tokenizer import train_tokenizer

WORDS = "ba be bi bo bu da de di do du".split()


@pytest.fixture
def tokenizer():
    return train_tokenizer(lambda: [" ".join(WORDS)] * 3, "wordpiece", 27)


def classifier_of(family, pooling="mean", classes=3):
    config = ModelConfig(**{**vars(FAMILIES[family]), "next_sentence": False})
    return SequenceClassifier(config, classes, seed=1, pooling=pooling).eval()


# ---- the head, by hand


def test_the_mean_of_two_tokens_by_hand(monkeypatch):
    """If padding counted, or [CLS] alone, the same text would have another class in another
    batch."""
    model = classifier_of("bert", classes=2)
    hidden = torch.zeros(2, 3, model.config.hidden_size)
    hidden[:, :, 0] = torch.tensor([[1.0, 3.0, 8.0], [1.0, 3.0, 99.0]])
    monkeypatch.setattr(model.encoder, "forward", lambda *ids, **masks: hidden)
    means = torch.zeros(2, model.config.hidden_size)
    means[:, 0] = torch.tensor([4.0, 2.0])  # (1 + 3 + 8) / 3, and (1 + 3) / 2
    logits = model(torch.zeros(2, 3, dtype=torch.long),
                   attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]))
    by_hand = model.classifier(torch.tanh(model.dense(means)))
    assert torch.allclose(logits, by_hand, atol=1e-6)


@pytest.mark.parametrize("pooling, family, act, rate, places", [
    ("cls", "bert", torch.tanh, 0.1, 1), ("cls", "roberta", torch.tanh, 0.1, 2),
    ("cls", "distilbert", torch.relu, 0.2, 1), ("mean", "bert", torch.tanh, 0.1, 2),
    ("mean", "roberta", torch.tanh, 0.1, 2), ("mean", "distilbert", torch.tanh, 0.1, 2)])
def test_head_of_each_family(pooling, family, act, rate, places):
    """On [CLS], a head that is not its authors' loads into `transformers` and gives other answers;
    on the mean, a head of its own would favour one family in every comparison."""
    model = classifier_of(family, pooling)
    ids = torch.randint(5, 24, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    hidden = model.encoder(ids, attention_mask=mask)
    pooled = hidden[:, 0] if pooling == "cls" else hidden.mean(1)
    dropped = []
    model.dropout.register_forward_pre_hook(lambda _, inputs: dropped.append(inputs))
    logits = model(ids, attention_mask=mask)
    assert torch.allclose(logits, model.classifier(act(model.dense(pooled))), atol=1e-6)
    assert model.dropout.p == rate and len(dropped) == places


# ---- inputs and answers


def test_rows_become_inputs(tokenizer):
    """A text that is padded as a token, cut where nobody asked, or whose "[SEP]" ends its first
    segment is another text than the one that the label is about."""
    encode = encoder_of(tokenizer, 8, "cpu")
    cls, sep = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    word = [tokenizer.token_to_id(word) for word in WORDS]
    inputs = encode([("ba",), (" ".join(WORDS),), ("du du", "ba")])
    assert inputs["input_ids"].tolist() == [
        [cls, word[0], sep, 0, 0, 0, 0, 0], [cls, *word[:6], sep],
        [cls, word[9], word[9], sep, word[0], sep, 0, 0]]
    assert inputs["attention_mask"].tolist() == [[1] * 3 + [0] * 5, [1] * 8, [1] * 6 + [0] * 2]
    assert inputs["token_type_ids"].tolist() == [[0] * 8, [0] * 8, [0] * 4 + [1] * 2 + [0] * 2]
    special = encoder_of(tokenizer, 16, "cpu")([("ba [SEP] be [MASK]", "[CLS]")])["input_ids"][0]
    assert [id for id in special.tolist() if id in (2, 3, 4)] == [cls, sep, sep]
    assert len(encode([("ba",)] * 1001)["input_ids"]) == 1001  # more than are read at a time


def test_batches_are_rows_in_order(tokenizer):
    """A batch that is longer than its longest row wastes time, and one whose numbers are not those
    of its rows would give each text the label of another."""
    encode = encoder_of(tokenizer, 8, "cpu")
    rows = [("ba",), (" ".join(WORDS),), ("du du", "ba")]
    order = torch.tensor([2, 0, 1])
    pieces = list(batches(encode(rows), order, 2))
    assert [numbers.tolist() for numbers, _ in pieces] == [[2, 0], [1]]
    for numbers, batch in pieces:
        alone = encode([rows[number] for number in numbers])
        assert all(torch.equal(batch[name], alone[name]) for name in alone)


def test_a_prediction_is_always_the_same(tokenizer):
    """With dropout, or with a mean that counts padding, a text would be judged anew each time."""
    model = classifier_of("bert").train()
    encode = encoder_of(tokenizer, 16, "cpu")
    texts = [("ba be",), ("du",), (" ".join(WORDS),)] * 30  # more than a batch
    logits = predict(model, encode, texts)
    assert torch.equal(logits, predict(model.train(), encode, texts))
    for row, text in enumerate(texts[:3]):
        assert torch.allclose(logits[row], predict(model, encode, [text])[0], atol=1e-6)
        assert torch.allclose(logits[row], logits[row + 87], atol=1e-6)


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A classifier of single texts that reads the mean."""
    save_classifier(classifier_of("bert"), tokenizer, tmp_path / "made", ["x", "yes", "z"], texts=1)
    return tmp_path / "made"


def test_classify_shows_the_whole_distribution(folder):
    """If shares stood beside the names of other classes, everybody would read a wrong answer."""
    model, tokenizer, _ = load_classifier(str(folder))
    shares = predict(model, encoder_of(tokenizer, 16, "cpu"), [("ba",)])[0].softmax(-1).tolist()
    first, *lines = classify(str(folder), ("ba",)).splitlines()
    assert first == "ba" and [line.split()[0] for line in lines] == ["x", "yes", "z"]
    assert [line.split()[-1] for line in lines] == [f"{share:.1%}" for share in shares]
    assert [line.count("#") for line in lines] == [round(20 * share) for share in shares]


def test_classify_says_how_many_texts_it_needs(folder, monkeypatch, capsys):
    """A pair would be judged by its first text, or end in a traceback; an empty text is a text."""
    for texts in (["ba"], [""]):
        monkeypatch.setattr(sys, "argv", ["minibert", "classify", str(folder), *texts])
        run_cli(main)
        assert capsys.readouterr().out.count("%") == 3
    monkeypatch.setattr(sys, "argv", ["minibert", "classify", str(folder), "ba", "du"])
    with pytest.raises(SystemExit, match="2"):
        run_cli(main)
    assert "1 text at a time, not 2" in capsys.readouterr().err


# ---- folders


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_what_is_saved_is_loaded(family, pooling, tokenizer, tmp_path):
    """A head that comes back as another, lost labels, or texts that are cut elsewhere would change
    the answers of whoever reads the folder; `transformers` must not read a mean as [CLS]."""
    model = classifier_of(family, pooling)
    tokenizer.enable_truncation(12)
    save_classifier(model, tokenizer, tmp_path, ["x", "y", "z"], texts=2)
    again, read, metadata = load_classifier(str(tmp_path))
    assert again.config == model.config and again.pooling == pooling
    assert metadata == {"classes": ["x", "y", "z"], "texts": 2, "max_length": 12}
    assert read.to_str() == tokenizer.to_str()
    weights = model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in again.state_dict().items())
    assert (tmp_path / "config.json").exists() == (pooling == "cls")


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
    ("classifier.pt", dict.fromkeys(["a", "b", "classifier.weight"], torch.zeros(2, 16)),
     "lacks the weight"),
    ("classifier.pt", {"dense.weight": torch.full((16, 16), float("nan"))}, "not finite"),
    ("tokenizer.json", None, "tokenizer.json is missing"),
])
def test_folders_that_cannot_be_used(file, content, message, folder, tmp_path, monkeypatch):
    """A stranger's folder could run code, or take all memory by the sizes that it states."""
    monkeypatch.chdir(tmp_path)
    path = shutil.copytree(folder, tmp_path / "copy") / file
    if content is None:
        path.unlink()
    elif isinstance(content, str):
        path.write_text(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        load_classifier(str(tmp_path / "copy"))
    assert not (tmp_path / "made-by-a-pickle").exists()


def change_config(folder, **fields):
    """Write other fields into config.json; None takes one out."""
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in fields.items()
                                if value is not None}))


@pytest.mark.parametrize("fields, classes, message", [
    ({"problem_type": "multi_label_classification"}, 3, "multi_label_classification with 3"),
    ({"problem_type": "regression"}, 1, "regression with 1"), ({"problem_type": None}, 1, "with 1"),
    ({"id2label": ["x"]}, 3, "config.json cannot be used"),
    ({"texts": "two"}, 3, "config.json cannot be used"),
    ({"hidden_size": 8}, 3, "does not have the shape"),
])
def test_classifiers_of_others_that_cannot_be_used(fields, classes, message, tokenizer, tmp_path):
    """Shares of classes that do not exclude each other, or of a single output, mean nothing."""
    model = classifier_of("bert", "cls", classes)
    save_classifier(model, tokenizer, tmp_path, ["x", "y", "z"][:classes], texts=1)
    change_config(tmp_path, **fields)
    with pytest.raises(UserError, match=message):
        load_classifier(str(tmp_path))


def test_a_folder_that_does_not_say_how_many_texts(tokenizer, tmp_path):
    """A classifier of `transformers` does not say it: one or two are right, three never are."""
    save_classifier(classifier_of("bert", "cls"), tokenizer, tmp_path, ["x", "y", "z"], texts=1)
    change_config(tmp_path, texts=None, id2label=None)
    for texts in (("ba",), ("ba", "be")):
        shown = classify(str(tmp_path), texts)
        assert shown.startswith(" | ".join(texts) + "\n") and "LABEL_2" in shown
    with pytest.raises(UserError, match="judges 1 or 2 texts at a time, not 3"):
        classify(str(tmp_path), ("ba", "be", "bi"))
