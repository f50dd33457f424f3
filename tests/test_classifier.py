"""A classifier's head, and its two kinds of folder; tests/parity holds it against `transformers`.
"""
import json

import pytest
import torch
from test_finetune import CONFIG, WORDS, finetune, settings
from test_hub import FAMILIES

from minibert import MaskedLM, ModelConfig, load_pretrained, save_pretrained
from minibert.errors import UserError
from minibert.tasks.classifier import (SequenceClassifier, classify, load_classifier,
                                       save_classifier)
from minibert.tokenizer import train_tokenizer


@pytest.fixture
def tokenizer():
    return train_tokenizer(lambda: [" ".join(WORDS)] * 3, "wordpiece", 24)


def classifier_of(family, pooling="cls", classes=3):
    config = ModelConfig(**{**vars(FAMILIES[family]), "next_sentence": False})
    return SequenceClassifier(config, classes, seed=1, pooling=pooling).eval()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_what_is_saved_is_loaded(family, pooling, tokenizer, tmp_path):
    """Catches a head that comes back as another, labels that are lost, texts cut elsewhere."""
    model = classifier_of(family, pooling)
    tokenizer.enable_truncation(12)
    save_classifier(model, tokenizer, tmp_path, ["x", "y", "z"], texts=2)
    again, read, metadata = load_classifier(str(tmp_path))
    assert again.config == model.config and again.pooling == pooling
    assert metadata["classes"] == ["x", "y", "z"] and metadata["texts"] == 2
    assert metadata["max_length"] == 12 and read.to_str() == tokenizer.to_str()
    ids = torch.randint(5, 24, (2, 9))
    mask = torch.ones_like(ids)
    assert torch.equal(model(ids, attention_mask=mask), again.eval()(ids, attention_mask=mask))
    assert (tmp_path / "config.json").exists() == (pooling == "cls")


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_head_of_each_family(family):
    """Catches another token than [CLS], another activation, dropout where the family has none."""
    model = classifier_of(family)
    ids = torch.randint(5, 24, (4, 9))
    mask = torch.ones_like(ids)
    cls = model.encoder(ids, attention_mask=mask)[:, 0]
    act, drop = (torch.relu, 0.2) if family == "distilbert" else (torch.tanh, 0.1)
    by_hand = model.classifier(act(model.dense(cls)))
    assert torch.allclose(model(ids, attention_mask=mask), by_hand, atol=1e-6)
    inputs = []
    model.dropout.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    model(ids, attention_mask=mask)
    assert model.dropout.p == drop and len(inputs) == 1 + (family == "roberta")


def test_bert_goes_on_with_its_pooler(tokenizer, tmp_path):
    """Catches a pooler at random where pretraining has made one, and a classifier that `classify`
    and a student cannot read."""
    save_pretrained(MaskedLM(CONFIG, seed=9), train_tokenizer(
        lambda: [" ".join(WORDS)] * 3, "wordpiece", 27), tmp_path / "run")
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("text\tlabel\nba\ta\ndu\tb\n")
    run = str(tmp_path / "run")
    finetune(run, settings(tmp_path, epochs=1, learning_rate=1e-12, pooling="cls"))
    model, _, metadata = load_classifier(str(tmp_path / "out"))
    pooler = load_pretrained(run)[0].pooler
    assert torch.allclose(model.dense.weight, pooler.weight, atol=1e-6)
    assert metadata["classes"] == ["a", "b"]
    assert classify(str(tmp_path / "out"), ("ba be",)).count("%") == 2
    taught = finetune(run, settings(tmp_path, epochs=1, teacher=str(tmp_path / "out"),
                                    out=str(tmp_path / "taught")))
    assert 0 <= taught["teacher"] <= 1


@pytest.mark.parametrize("change, message", [
    ({"problem_type": "multi_label_classification"}, "multi_label_classification with 3 outputs"),
    ({"problem_type": "regression"}, "regression with 3 outputs"),
    ({"id2label": ["x"]}, "config.json cannot be used"),
    ({"texts": "two"}, "config.json cannot be used"),
    ({"hidden_size": 8}, "does not have the shape"),
])
def test_their_folders_that_cannot_be_used(change, message, tokenizer, tmp_path):
    """Catches tracebacks, and shares of classes that do not exclude each other."""
    save_classifier(classifier_of("bert"), tokenizer, tmp_path, ["x", "y", "z"], texts=1)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, **change}))
    with pytest.raises(UserError, match=message):
        load_classifier(str(tmp_path))


def test_folder_that_does_not_say_how_many_texts(tokenizer, tmp_path):
    """Catches a classifier of somebody else's that is asked for three texts, or for none of two."""
    save_classifier(classifier_of("bert"), tokenizer, tmp_path, ["x", "y", "z"], texts=1)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields.pop("texts"), fields.pop("id2label")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    for texts in (("ba",), ("ba", "be")):
        shown = classify(str(tmp_path), texts)
        assert shown.startswith(" | ".join(texts) + "\n") and "LABEL_2" in shown
    with pytest.raises(UserError, match="judges 1 or 2 texts at a time, not 3"):
        classify(str(tmp_path), ("ba", "be", "bi"))
