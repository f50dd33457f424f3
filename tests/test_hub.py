"""Model folders: what is written is what is read, and what cannot be right is refused."""
import dataclasses
import json
import pickle

import pytest
import torch
from conftest import BUDGET, assert_one_error_line, start_script

from minibert import MaskedLM, ModelConfig, load_pretrained, save_pretrained
from minibert.errors import UserError
from minibert.tokenizer import train_tokenizer

BERT = ModelConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                   intermediate_size=32, max_position_embeddings=20)
FAMILIES = {
    "bert": BERT,
    "bert without NSP": dataclasses.replace(BERT, next_sentence=False, hidden_act="gelu_new"),
    "roberta": dataclasses.replace(BERT, model_type="roberta", next_sentence=False,
                                   type_vocab_size=1, layer_norm_eps=1e-5),
    "distilbert": dataclasses.replace(BERT, model_type="distilbert", next_sentence=False,
                                      type_vocab_size=0, num_hidden_layers=1),
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(lambda: ["ba be bi bo bu da de di do du ga ge gi go gu"] * 3,
                           "wordpiece", 24)


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A sound folder of a small BERT, for a test to break."""
    save_pretrained(MaskedLM(BERT), tokenizer, tmp_path)
    return tmp_path


def change_weights(folder, change):
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    change(weights)
    torch.save(weights, folder / "pytorch_model.bin")


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_what_is_saved_is_loaded(config, tokenizer, tmp_path):
    """Catches a weight under a wrong name, keys and values swapped, a setting that is lost."""
    model = MaskedLM(config, seed=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # no two alike, LayerNorms and biases neither
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    save_pretrained(model, tokenizer, tmp_path)
    again, read = load_pretrained(tmp_path)
    assert again.config == config
    assert read.to_str() == tokenizer.to_str()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(),
                                                 again.state_dict().values(), strict=True))
    ids = torch.randint(5, 40, (2, 9))
    one, two = model(ids), again.eval()(ids)
    assert torch.equal(one.mlm_logits, two.mlm_logits)
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_names_are_theirs_and_each_once(folder):
    """Catches a file that `transformers` would load with weights missing or left over."""
    names = set(torch.load(folder / "pytorch_model.bin", weights_only=True))
    assert "bert.encoder.layer.1.attention.self.value.bias" in names
    assert "cls.seq_relationship.weight" in names
    assert len(names) == 5 + 2 * 16 + 2 + 2 + 2 + 1 + 2 + 2  # the last two: the tied decoder
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForPreTraining"] and config["vocab_size"] == 40


def test_old_checkpoints_call_them_gamma_and_beta(folder):
    """Catches a first-generation bert-base-uncased that cannot be a teacher."""
    def rename(weights):
        for name in list(weights):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            weights[old.replace("LayerNorm.bias", "LayerNorm.beta")] = weights.pop(name)
    before = load_pretrained(folder)[0].state_dict()
    change_weights(folder, rename)
    after = load_pretrained(folder)[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


WORD = "bert.embeddings.word_embeddings.weight"


@pytest.mark.parametrize("change, message", [
    (lambda w: w.pop("bert.encoder.layer.0.output.dense.bias"), "layer.0.output.dense.bias"),
    (lambda w: w.update({"bert.encoder.layer.0.extra": torch.zeros(1)}), "layer.0.extra"),
    (lambda w: w.update({"bert.encoder.layer.7.output.dense.bias": torch.zeros(16)}), "layer.7"),
    (lambda w: w.update({WORD: w[WORD][:, :8]}), f"{WORD} does not have the shape"),
    (lambda w: w.update({WORD: w[WORD] * float("nan")}), f"{WORD} is not finite"),
])
def test_weights_that_do_not_fit(folder, change, message):
    """Catches a model with parts left at random, silently."""
    change_weights(folder, change)
    with pytest.raises(UserError, match=message):
        load_pretrained(folder)


@pytest.mark.parametrize("name, content, message", [
    ("config.json", None, "config.json is missing"),
    ("config.json", "{", "config.json is broken"),
    ("config.json", "[]", "config.json holds no names"),
    ("config.json", {"model_type": "gpt2"}, "not supported .*gpt2.*; use another one"),
    ("config.json", {"hidden_act": "silu"}, "not supported .*silu.*; use another one"),
    ("config.json", {"model_type": "bert", "hidden_size": "wide"}, "not supported .*wide"),
    ("config.json", {"pad_token_id": 3}, "padding is token 0 to the tokenizer and 3 to the"),
    ("pytorch_model.bin", None, "pytorch_model.bin is missing"),
    ("pytorch_model.bin", "not a model", "cannot be read|more than tensors"),
    ("tokenizer.json", None, "tokenizer.json is missing"),
    ("tokenizer.json", "{}", "is not a tokenizer"),
])
def test_folders_that_are_no_model(folder, name, content, message):
    """Catches tracebacks on folders that are incomplete, broken or something else."""
    if isinstance(content, dict):
        content = json.dumps({**json.loads((folder / name).read_text()), **content})
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_pretrained(folder)


@pytest.mark.parametrize("architecture", ["BertForSequenceClassification", "BertModel"])
def test_model_without_a_head_for_words(folder, architecture):
    """Catches "copy the folder again" for a folder that is whole, but another kind of model."""
    change_weights(folder, lambda weights: [weights.pop(name) for name in list(weights)
                                            if name.startswith("cls.predictions")])
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "architectures": [architecture]}))
    with pytest.raises(UserError, match=f"holds {architecture}, which has no head for words"):
        load_pretrained(folder)


def test_decoder_that_is_not_tied(folder):
    """Catches other logits than the folder's, silently: its decoder would be left aside."""
    def untie(weights):
        weights["cls.predictions.decoder.weight"] += 1
    change_weights(folder, untie)
    with pytest.raises(UserError, match="tied"):
        load_pretrained(folder)


def test_weights_cut_short(folder):
    """Catches a traceback on half a download."""
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        load_pretrained(folder)


class Bomb:
    def __reduce__(self):
        return print, ("boom",)


@pytest.mark.parametrize("save", [torch.save, lambda bomb, path: path.write_bytes(
    pickle.dumps(bomb))], ids=["in torch's format", "plain pickle"])
def test_pickle_with_code_is_not_run(folder, save, capsys):
    """Catches a folder from a stranger that runs its code here."""
    save({"weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="could run code"):
        load_pretrained(folder)
    assert "boom" not in capsys.readouterr().out


def test_tokenizer_of_another_model(folder):
    """Catches teacher and student with different vocabularies: ids beyond the teacher's table."""
    texts = ["ba be bi bo bu da de di do du ga ge gi go gu ka ke ki ko ku la le li lo lu"] * 3
    train_tokenizer(lambda: texts, "wordpiece", 45).save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match="do not belong together"):
        load_pretrained(folder)


def test_distill_says_it_in_one_line(folder, toy_text, tmp_path):
    """Catches a traceback where a user meets all of this: `distill.py --teacher FOLDER`."""
    (folder / "config.json").write_text("{")
    process = start_script("distill", *BUDGET, "--teacher", folder, "--corpus", toy_text,
                           "--out", tmp_path / "student")
    assert_one_error_line(process, "config.json")
    assert not (tmp_path / "student").exists()
