"""`transformers` as the judge of our encoder: `make parity` installs it and runs this file.

Random weights, random padded batches of odd lengths; hidden states, logits, losses and every
gradient, for folders that we wrote and folders that `transformers` wrote.
"""
import dataclasses
import subprocess
import sys

import pytest
import torch
from conftest import BUDGET, ROOT, TOY

transformers = pytest.importorskip("transformers", reason="make parity installs it")

from minibert import MaskedLM, ModelConfig, load_pretrained, save_pretrained  # noqa: E402
from minibert.files.hub import their_names  # noqa: E402
from minibert.losses import mlm_loss, nsp_loss  # noqa: E402
from minibert.tokenizer import train_tokenizer  # noqa: E402

CLASSES = {"bert": transformers.BertForPreTraining, "bert-mlm": transformers.BertForMaskedLM,
           "roberta": transformers.RobertaForMaskedLM,
           "distilroberta": transformers.RobertaForMaskedLM,
           "distilbert": transformers.DistilBertForMaskedLM}
SIZES = {"1 layer": (1, 12, 2, 20, 31), "2 layers": (2, 24, 3, 48, 57),
         "3 layers": (3, 40, 5, 36, 99), "base": None}
TEXT = ["the quick brown fox, jumps over the lazy dog. 0123456789 naïve café"] * 5
AWKWARD = ["", " ", "The quick fox", "naïve CAFÉ", "你好,世界", "a👍b",
           "tab\tnew\nline\x00null",
           "x" * 300, "don't [MASK] me <mask>", "e\u0301\u0302", "\u202eright to left", "1,234.5%"]


def shape_of(family, size, **other):
    """Our config of a family at a size; other settings as they come."""
    preset = ModelConfig.preset({"bert-mlm": "bert-base"}.get(family, f"{family}-base"))
    preset = dataclasses.replace(preset, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                                 next_sentence=family == "bert", **other)
    if SIZES[size] is None:
        return preset
    layers, hidden, heads, intermediate, vocabulary = SIZES[size]
    return dataclasses.replace(preset, num_hidden_layers=layers, hidden_size=hidden,
                               num_attention_heads=heads, intermediate_size=intermediate,
                               vocab_size=vocabulary, max_position_embeddings=40)


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(lambda: ["a b c d e f"] * 2, "wordpiece", 11)


@torch.no_grad()
def shake(model):
    """No weight is 0 or 1, so that none can be left out unseen; activations stay of order 1."""
    std = 0.8 / model.config.hidden_size**0.5
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter += std * torch.randn(parameter.shape, generator=generator)


def assert_equal_models(ours, theirs, config, dtype):
    ours, theirs = ours.to(dtype).eval(), theirs.to(dtype).eval()
    generator = torch.Generator().manual_seed(3)
    B, S = 3, 17
    ids = torch.randint(5, config.vocab_size, (B, S), generator=generator)
    real = torch.arange(S) < torch.tensor([[17], [11], [1]])
    ids = torch.where(real, ids, config.pad_token_id)
    labels = torch.where(real & (torch.rand(B, S, generator=generator) < 0.4), ids, -100)
    labels[0, 3] = ids[0, 3]
    given = dict(attention_mask=real.long())
    if config.type_vocab_size == 2:
        given["token_type_ids"] = torch.randint(0, 2, (B, S), generator=generator)
    is_random = torch.tensor([0, 1, 1])

    output = ours(ids, **given)
    loss = mlm_loss(output.mlm_logits, labels)
    if config.next_sentence:
        loss = loss + nsp_loss(output.nsp_logits, is_random)
        given["next_sentence_label"] = is_random
    expected = theirs(input_ids=ids, labels=labels, output_hidden_states=True, **given)
    # Relative for numbers above 1, absolute below; torch adds the two.
    limit = 1e-10 if dtype == torch.float64 else 1e-5
    close = lambda a, b: torch.testing.assert_close(a, b, atol=limit, rtol=limit)
    close(output.hidden[real], expected.hidden_states[-1][real])
    logits = expected.prediction_logits if config.next_sentence else expected.logits
    close(output.mlm_logits[real], logits[real])
    if config.next_sentence:
        close(output.nsp_logits, expected.seq_relationship_logits)
    close(loss, expected.loss)

    ours.zero_grad(), theirs.zero_grad()
    loss.backward(), expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    compared = set()
    for name, parameter in ours.named_parameters():
        names = their_names(config, name)
        names = names if names[0] in gradients else (_BIAS[names[0]],)
        close(parameter.grad, torch.cat([gradients[one] for one in names]))
        compared.update(names)
    assert not {name for name in set(gradients) - compared if gradients[name] is not None}


# A tied bias has two names in `transformers`; named_parameters() gives one of them.
_BIAS = {"cls.predictions.bias": "cls.predictions.decoder.bias",
         "lm_head.bias": "lm_head.decoder.bias"}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", CLASSES)
def test_our_folder_in_transformers(family, size, tokenizer, tmp_path):
    """Catches any difference in architecture, names or settings, in what we write."""
    config = shape_of(family, size)
    ours = MaskedLM(config, seed=1)
    shake(ours)
    save_pretrained(ours, tokenizer, tmp_path)
    theirs, found = CLASSES[family].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values()), found
    for dtype in (torch.float32, torch.float64):
        assert_equal_models(ours, theirs, config, dtype)


@pytest.mark.parametrize("act, eps", [("gelu", 1e-12), ("gelu_new", 1e-5), ("relu", 1e-3)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", CLASSES)
def test_their_folder_here(family, size, act, eps, tokenizer, tmp_path):
    """Catches a setting of config.json that is not honoured, and a weight that is misread."""
    if size == "base" and act != "gelu":
        pytest.skip("the activation is tried at three sizes")
    other = {} if family == "distilbert" else dict(layer_norm_eps=eps)
    config = shape_of(family, size, hidden_act=act, **other)
    blank = tmp_path / "blank"
    save_pretrained(MaskedLM(config), tokenizer, blank)  # for its config.json alone
    torch.manual_seed(5)
    theirs = CLASSES[family](transformers.AutoConfig.from_pretrained(blank))
    shake(theirs)
    theirs.save_pretrained(tmp_path / "theirs")  # .safetensors
    tokenizer.save(str(tmp_path / "theirs" / "tokenizer.json"))
    ours, _ = load_pretrained(tmp_path / "theirs")
    assert ours.config == config
    for dtype in (torch.float32, torch.float64):
        assert_equal_models(ours, theirs, config, dtype)


@pytest.mark.parametrize("kind, size", [("wordpiece", 75), ("bpe", 280)])
def test_token_ids(kind, size, tmp_path):
    """Catches a saved tokenizer that reads text in another way than the one that we train with."""
    tokenizer = train_tokenizer(lambda: TEXT, kind, size)
    family = "bert" if kind == "wordpiece" else "roberta"
    config = dataclasses.replace(shape_of(family, "1 layer"), vocab_size=size)
    save_pretrained(MaskedLM(config), tokenizer, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in AWKWARD:
        assert theirs(text).input_ids == tokenizer.encode(text).ids, repr(text)
        both = tokenizer.encode(text, "the fox")
        assert theirs(text, "the fox").input_ids == both.ids, repr(text)
    assert theirs.mask_token_id == tokenizer.encode(theirs.mask_token).ids[1]
    assert theirs.pad_token_id == 0


@pytest.fixture(scope="module")
def runs(toy_text, tmp_path_factory):
    """The four models as their scripts leave them, trained for a few steps."""
    folder = tmp_path_factory.mktemp("runs")
    for name, script, *flags in (("bert", "train_bert", *TOY), ("roberta", "train_roberta", *TOY),
                                 ("distilbert", "distill", "--teacher", folder / "bert"),
                                 ("distilroberta", "distill", "--teacher", folder / "roberta")):
        subprocess.run([sys.executable, ROOT / f"{script}.py", *BUDGET, *map(str, flags),
                        "--corpus", toy_text, "--out", folder / name], check=True)
    return folder


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "distilroberta"])
def test_a_run_loads_by_itself(name, runs):
    """Catches a folder that needs more than its path, or loses weights or logits on the way."""
    kind = transformers.AutoModelForPreTraining if name == "bert" \
        else transformers.AutoModelForMaskedLM
    theirs, found = kind.from_pretrained(runs / name, output_loading_info=True)
    assert not any(found.values()), found
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(runs / name)
    ours, tokenizer = load_pretrained(runs / name)
    text = f"bado geki {their_tokenizer.mask_token} lu, naïve."
    inputs = their_tokenizer(text, return_tensors="pt")
    assert inputs.input_ids[0].tolist() == tokenizer.encode(text).ids
    with torch.no_grad():
        output = theirs.eval()(**inputs)
        expected = ours.eval()(inputs.input_ids, attention_mask=inputs.attention_mask,
                               token_type_ids=inputs.get("token_type_ids"))
    logits = output.prediction_logits if name == "bert" else output.logits
    assert torch.allclose(logits, expected.mlm_logits, atol=1e-5)
    if name == "bert":
        assert torch.allclose(output.seq_relationship_logits, expected.nsp_logits, atol=1e-5)
