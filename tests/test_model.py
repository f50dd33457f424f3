"""The encoder and its heads: attention masks, positions, the tied decoder and the initial weights.

A model here is tiny, and its weights are drawn ten times wider than BERT's, so that what is
wrong shows in its output.
"""
import copy
import dataclasses
import inspect
import math

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from conftest import ROOT

import minibert.model as model_module
from minibert.config import ModelConfig
from minibert.errors import UserError
from minibert.losses import mlm_loss, nsp_loss
from minibert.masking import IGNORE
from minibert.model import MaskedLM, gather, initialize

TINY = dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=14, initializer_range=0.2,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
BERT = dict(model_type="bert")
ROBERTA = dict(model_type="roberta", next_sentence=False, type_vocab_size=1, pad_token_id=1)
DISTILBERT = dict(model_type="distilbert", next_sentence=False, type_vocab_size=0)
KINDS = [BERT, ROBERTA, DISTILBERT]
NAMES = ["bert", "roberta", "distilbert"]
READ = {"bert with nsp": BERT, "bert without": dict(BERT, next_sentence=False),
        "roberta": ROBERTA, "distilbert": DISTILBERT}


def tiny(seed=0, **changes):
    return MaskedLM(ModelConfig(**{**TINY, **changes}), seed)


def sentences(pad=0):
    """Two sentences of nine and five tokens, and their attention mask."""
    ids = torch.tensor([[2, 11, 12, 13, 14, 15, 16, 17, 3], [2, 21, 22, 23, 3, 0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0, 0]])
    return ids.masked_fill(mask == 0, pad), mask


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_close(a, b, atol):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# The second implementation

@torch.no_grad()
def shaken(attention="sdpa", **changes):
    """A model in which every detail shows: a large epsilon, no bias is 0 and no scale is 1."""
    model = tiny(attn_implementation=attention, layer_norm_eps=0.3, num_hidden_layers=3,
                 **changes).double()
    draw = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter += torch.randn(parameter.shape, generator=draw) / 2
    return model


def assert_equals_reference(model, dropout=reference.no_dropout, **given):
    """The model's answers are those of the NumPy code, to 1e-10."""
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    found = model(**given)
    torch.manual_seed(5)
    arrays = {name: None if value is None else value.numpy() for name, value in given.items()}
    expected = reference.masked_lm(weights, model.config, **arrays, dropout=dropout)
    for ours, theirs in zip(found, expected):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=1e-10)


def awkward(config):
    """Rows with padding behind the tokens, between them, everywhere, and nowhere; and the mask."""
    ids = torch.randint(2, 50, (4, 9), generator=torch.Generator().manual_seed(4))
    ids[0, 6:] = ids[1, 3] = ids[2] = config.pad_token_id
    return ids, (ids != config.pad_token_id).long()


BOTH = pytest.mark.parametrize("attention", ["eager", "sdpa"])
POSITIONS = torch.tensor([[2, 5], [4, 1], [0, 3], [8, 8]])
TYPES = (torch.arange(9) > 3).long().expand(4, 9)


@BOTH
@pytest.mark.parametrize("act", reference.ACTIVATIONS)
@pytest.mark.parametrize("kind", READ.values(), ids=READ.keys())
def test_model_equals_the_numpy_code(kind, act, attention):
    """Would catch: any line of the model that is not the papers'. The attention mask
    may come in any type, and in its place or in that of the token types may be nothing."""
    model = shaken(attention, hidden_act=act, hidden_dropout_prob=0.4,
                   attention_probs_dropout_prob=0.4, **kind).eval()
    ids, mask = awkward(model.config)
    for attention_mask in (mask, mask.bool(), mask.double(), None):
        for positions in (POSITIONS, None):
            assert_equals_reference(model, input_ids=ids, attention_mask=attention_mask,
                                    token_type_ids=TYPES, positions=positions)
    assert_equals_reference(model, input_ids=ids, attention_mask=mask)


def draw_dropout(x, rate):
    """What torch's generator drops next: the rest is scaled up, so that the mean stays."""
    return x * F.dropout(torch.ones(x.shape, dtype=torch.float64), rate).numpy()


@BOTH
@pytest.mark.parametrize("hidden, attended", [(0.3, 0.5), (0.3, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("kind", READ.values(), ids=READ.keys())
def test_dropout_equals_the_numpy_code(kind, hidden, attended, attention):
    """Would catch: dropout at another place, at another rate, before its norm or after the
    residual. Both models draw from torch's generator, in the same order and shapes."""
    model = shaken(attention, hidden_dropout_prob=hidden, attention_probs_dropout_prob=attended,
                   **kind).train()
    ids, mask = awkward(model.config)
    for positions in (POSITIONS, None):
        assert_equals_reference(model, draw_dropout, input_ids=ids, attention_mask=mask,
                                token_type_ids=TYPES, positions=positions)


def test_attention_is_the_one_that_was_chosen(monkeypatch):
    """Would catch: a flag that is not read, though both give the same numbers."""
    calls, readable = [], model_module.readable_attention
    monkeypatch.setattr(model_module, "readable_attention",
                        lambda *given, **named: calls.append(1) or readable(*given, **named))
    ids, _ = sentences()
    tiny(attn_implementation="sdpa")(ids)
    assert not calls
    tiny(attn_implementation="eager")(ids)
    assert len(calls) == 2  # one for each layer


def test_readable_attention_has_the_defaults_of_the_fused_one():
    """Would catch: a function that needs what torch's does not, or drops what nobody asked for."""
    query, key, value = torch.randn(3, 2, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    assert_close(model_module.readable_attention(query, key, value),
                 F.scaled_dot_product_attention(query, key, value), atol=1e-6)


# Attention masks and batches

@BOTH
def test_a_mask_of_ones_costs_no_digits(attention):
    """Would catch: a large number added to the scores of real tokens, too, which their softmax
    does not see, but which leaves them three digits."""
    model = tiny(attn_implementation=attention)
    ids, _ = sentences()
    assert_close(model(ids, attention_mask=torch.ones_like(ids)).mlm_logits, model(ids).mlm_logits,
                 atol=1e-6)


def test_masks_and_token_types_are_named():
    """Would catch: token types that are passed in the place of the attention mask."""
    ids, mask = sentences()
    with pytest.raises(TypeError):
        tiny()(ids, mask)
    for module in (MaskedLM, type(tiny().encoder)):
        arguments = list(inspect.signature(module.forward).parameters.values())[2:]
        assert all(argument.kind is argument.KEYWORD_ONLY for argument in arguments)


@BOTH
@pytest.mark.parametrize("precision", ["float32", "bfloat16 autocast", "float16"])
def test_a_row_of_padding_is_finite(attention, precision):
    """Would catch: minus infinity, or -1e9 in half precision: NaN in an empty row."""
    model = tiny(attn_implementation=attention)
    if precision == "float16":
        model = model.half()
    ids, mask = sentences()
    mask[1] = 0
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16 autocast"):
        output = model(ids, attention_mask=mask)
    assert torch.isfinite(output.mlm_logits).all() and torch.isfinite(output.nsp_logits).all()
    mlm_loss(output.mlm_logits[:1], ids[:1]).backward()
    for name, parameter in model.encoder.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


# The tied decoder

AFTER = {
    "as built": lambda model: model,
    "load_state_dict": lambda model: loaded(model.state_dict()),
    "load_state_dict that assigns": lambda model: loaded(model.state_dict(), assign=True),
    "deepcopy": copy.deepcopy,
    "to another type": lambda model: model.to(torch.float64),
}


def loaded(weights, assign=False):
    model = tiny(seed=1)
    model.load_state_dict(weights, assign=assign)
    return model


@pytest.mark.parametrize("change", AFTER.values(), ids=AFTER.keys())
def test_decoder_is_the_word_table(change):
    """Would catch: a tie that is a copy, is lost on the way, or adds the bias twice."""
    model = change(tiny())
    ids, _ = sentences()
    with torch.no_grad():
        model.encoder.embeddings.word.weight[40] = 0  # no token of the input
        model.decoder_bias[40] = 3.0
        logits = model(ids).mlm_logits
    assert (logits[..., 40] == 3).all()  # 0 from the table, and the bias once
    tables = [name for name, tensor in model.state_dict().items() if tensor.shape == (50, 16)]
    assert tables == ["encoder.embeddings.word.weight"]


def test_decoder_teaches_the_word_table():
    """Would catch: a decoder that reads a detached table, or a bias that is not free."""
    model = tiny()
    ids, _ = sentences()
    mlm_loss(model(ids).mlm_logits, ids).backward()
    assert model.encoder.embeddings.word.weight.grad[40].abs().sum() > 0  # no token of the input
    assert (model.decoder_bias.grad != 0).all()


# Parameters of the published models: encoder, with a pooler, with the MLM head, and with all.
# distilbert-base-cased is no preset: it is distilbert-base with the cased vocabulary.
PUBLISHED = {
    "bert-base": (108_891_648, 109_482_240, 109_514_298, 110_106_428),
    "bert-base-cased": (107_719_680, 108_310_272, 108_340_804, 108_932_934),
    "bert-large": (334_092_288, 335_141_888, 335_174_458, 336_226_108),
    "distilbert-base": (66_362_880, None, 66_985_530, None),
    "distilbert-base-cased": (65_190_912, None, 65_812_036, None),
    "roberta-base": (124_055_040, 124_645_632, 124_697_433, None),
    "roberta-large": (354_310_144, 355_359_744, 355_412_057, None),
    "distilroberta-base": (81_527_808, 82_118_400, 82_170_201, None),
    "bert-tiny": (4_369_408, 4_385_920, 4_416_698, 4_433_468),
    "bert-mini": (11_104_768, 11_170_560, 11_201_594, 11_267_900),
    "bert-small": (28_500_992, 28_763_648, 28_795_194, 29_058_876),
    "bert-medium": (41_110_528, 41_373_184, 41_404_730, 41_668_412),
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    """Would catch: a table counted twice; and a layer, bias or norm too many or few."""
    encoder, with_pooler, masked_lm, pretraining = PUBLISHED[name]
    if name == "distilbert-base-cased":
        config = dataclasses.replace(ModelConfig.preset("distilbert-base"), vocab_size=28996)
    else:
        config = ModelConfig.preset(name)
    with torch.device("meta"):  # shapes without memory
        model = MaskedLM(dataclasses.replace(config, next_sentence=False))
        with_nsp = MaskedLM(dataclasses.replace(config, next_sentence=True))
    assert count(model.encoder) == encoder
    assert count(model) == masked_lm
    if with_pooler:
        assert count(with_nsp.encoder) + count(with_nsp.pooler) == with_pooler
    if pretraining:
        assert count(with_nsp) == pretraining and config.next_sentence


# Positions

@pytest.mark.parametrize("kind, longest", [(BERT, 14), (ROBERTA, 12), (DISTILBERT, 14)],
                         ids=NAMES)
def test_the_longest_input_fits(kind, longest):
    """Would catch: a table without RoBERTa's two rows more, or an index error."""
    model = tiny(**kind)
    assert model.config.max_length == longest
    assert torch.isfinite(model(torch.full((1, longest), 7)).mlm_logits).all()
    with pytest.raises(UserError, match=f"{longest} positions"):
        model(torch.full((1, longest + 1), 7))


def test_published_models_read_512_tokens():
    """Would catch: RoBERTa's 514 rows taken for 514 tokens."""
    for name in PUBLISHED:
        if name != "distilbert-base-cased":
            assert ModelConfig.preset(name).max_length == 512, name


# Reading some positions only

@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
@pytest.mark.parametrize("kind", READ.values(), ids=READ.keys())
def test_reading_some_positions_is_reading_all_and_picking(kind, padded):
    """Would catch: the shortcut of the last layer giving another loss or another gradient."""
    positions = torch.tensor([[2, 5, 7], [1, 3, 0]])
    labels = torch.tensor([[12, 15, 17], [21, 23, IGNORE]])  # the last slot is not used
    found = []
    for shortcut in (True, False):
        model = tiny(**kind).double()
        ids, mask = sentences(model.config.pad_token_id)
        ids, mask = (ids, mask) if padded else (ids[:1].repeat(2, 1), None)
        output = model(ids, attention_mask=mask, positions=positions if shortcut else None)
        logits, hidden = output.mlm_logits, output.hidden
        if not shortcut:
            logits, hidden = gather(logits, positions), gather(hidden, positions)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
        if output.nsp_logits is not None:
            loss = loss + F.cross_entropy(output.nsp_logits, torch.tensor([0, 1]))
        loss.backward()
        found.append((loss, logits, hidden, gradients(model)))
    for some, all_of_them in zip(found[0][:3], found[1][:3]):
        assert_close(some, all_of_them, atol=1e-12)
    for name, gradient in found[0][3].items():
        assert_close(gradient, found[1][3][name], atol=1e-12)


@pytest.mark.parametrize("kind", READ.values(), ids=READ.keys())
def test_every_parameter_learns(kind):
    """Would catch: a module that is built and not used, or a detached part."""
    model = tiny(**kind)
    ids, mask = sentences(model.config.pad_token_id)
    types = (torch.arange(9) > 3).long().expand(2, 9)
    output = model(ids, attention_mask=mask, token_type_ids=types)
    loss = mlm_loss(output.mlm_logits, ids)
    if output.nsp_logits is not None:
        loss = loss + nsp_loss(output.nsp_logits, torch.tensor([0, 1]))
    loss.backward()
    for name, gradient in gradients(model).items():
        assert gradient is not None and gradient.any(), name


# Initial weights

def common_parts(a, b):
    """How many tensors of one name and shape two models have; they must be equal."""
    a, b = a.state_dict(), b.state_dict()
    common = [name for name in a if name in b and a[name].shape == b[name].shape]
    for name in common:
        assert torch.equal(a[name], b[name]), name
    return len(common)


def test_models_share_the_initial_weights_of_common_parts():
    """Would catch: weights that depend on what else is in the model: arms that are not paired."""
    bert = tiny(num_hidden_layers=2)
    assert common_parts(bert, bert) == 42
    assert common_parts(bert, tiny(num_hidden_layers=4)) == 42
    assert common_parts(bert, tiny(**ROBERTA)) == 37  # less token types, pooler and NSP head
    assert common_parts(bert, tiny(**DISTILBERT)) == 37


def test_every_initial_matrix_is_its_own():
    """Would catch: one key for all parts, or a seed that is not read."""
    one, other = tiny(seed=0), tiny(seed=1)
    matrices = [tensor for model in (one, other) for tensor in model.state_dict().values()
                if tensor.dim() == 2]
    for i, a in enumerate(matrices):
        for b in matrices[:i]:
            assert a.shape != b.shape or not torch.equal(a, b)


def test_initial_weights_leave_torchs_generator_alone():
    """Would catch: weights drawn from torch's generator, which others draw from, too."""
    torch.manual_seed(1)
    one = tiny()
    torch.manual_seed(2)
    assert common_parts(one, tiny()) == 42
    before = torch.get_rng_state()
    initialize(one, 0.02, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(f"torch=={torch.__version__.split('+')[0]}\n" not in
                    (ROOT / "requirements.txt").read_text(encoding="utf-8"),
                    reason="another version of torch draws other numbers (2.11 did)")
def test_golden_values_of_the_initial_weights():
    """Would catch: other keys for the draw, after which no old run could be repeated."""
    drawn = MaskedLM(ModelConfig(**TINY)).encoder.layers[1].output.weight[0, :4]  # with seed 0
    assert drawn.tolist() == pytest.approx([0.2398, 0.1844, 0.2669, 0.3632], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_initial_weights_are_bert_s(kind):
    """Would catch: torch's defaults left in place, no cut at two standard deviations."""
    model = tiny(**kind, vocab_size=2000, initializer_range=0.02)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            assert parameter.abs().max() <= 0.04, name
            # A normal distribution cut at two has 0.88 of its standard deviation.
            assert parameter.std().item() == pytest.approx(0.88 * 0.02, rel=0.35), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            assert "norm" in name and (parameter == 1).all(), name
    words = model.encoder.embeddings.word.weight
    assert words.abs().max() > 0.0399 and words.std().item() == pytest.approx(0.0176, rel=0.01)


@pytest.mark.parametrize("preset", ["bert-base", "roberta-base", "tiny", "small"])
def test_first_loss_is_that_of_a_uniform_guess(preset):
    """Would catch: weights that are not initialised, or hidden states that are scaled."""
    config = dataclasses.replace(ModelConfig.preset(preset), vocab_size=1000, intermediate_size=64,
                                 num_hidden_layers=1, max_position_embeddings=40)
    model = MaskedLM(config).eval()
    draw = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(5, 1000, (2, 10, 32), generator=draw)
    with torch.no_grad():
        loss = mlm_loss(model(ids).mlm_logits, labels).item()
    assert loss == pytest.approx(math.log(1000), abs=0.2)
