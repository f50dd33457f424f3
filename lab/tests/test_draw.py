"""The lesson's pictures: the numbers that they show are what the code computes."""
import re
import sys

import pytest
import torch
from conftest import ROOT

import minibert.model
from lab.exact import PUBLISHED
from minibert import MaskedLM, ModelConfig, save_pretrained
from minibert.errors import UserError
from minibert.masking import IGNORE, mask_tokens
from minibert.tokenizer import special_ids, train_tokenizer

matplotlib = pytest.importorskip("matplotlib")
sys.path.insert(0, str(ROOT / "docs"))
import draw  # noqa: E402
from matplotlib import style  # noqa: E402
from matplotlib.text import Annotation  # noqa: E402

pytestmark = pytest.mark.promises
CONFIG = ModelConfig(vocab_size=94, hidden_size=12, num_hidden_layers=3, num_attention_heads=2,
                     intermediate_size=32, max_position_embeddings=32, initializer_range=0.5,
                     model_type="roberta", type_vocab_size=1, next_sentence=False)


@pytest.fixture(scope="module")
def tokenizer():
    """One that has every word of the sentence as a single token."""
    return train_tokenizer(lambda: [draw.SENTENCE] * 3, "wordpiece", CONFIG.vocab_size)


@pytest.fixture(scope="module")
def model(tokenizer):
    """A model in which another head would be chosen if [SEP] counted as a word.

    Which seed draws such weights depends on the version of torch.
    """
    _, masked, position = draw.blank(tokenizer)
    for seed in range(100):
        model = MaskedLM(CONFIG, seed=seed).eval()
        with torch.no_grad():
            ahead = draw.attention_weights(model, masked)[..., position, position + 1:]
        if ahead[..., :-1].sum(-1).argmax() != ahead.sum(-1).argmax():
            return model
    pytest.fail("no seed draws such weights")


@pytest.fixture(scope="module")
def figures(model, tokenizer):
    """The five figures before they become files."""
    with style.context(["default", draw.STYLE]):
        return draw.make_figures(model, tokenizer)


@pytest.fixture
def attended(monkeypatch):
    """What each layer's attention is given, and what it makes of it, as the model runs."""
    seen, attend = [], minibert.model.readable_attention

    def record(query, key, value, **options):
        seen.append((query, key, value, attend(query, key, value, **options)))
        return seen[-1][-1]

    monkeypatch.setattr(minibert.model, "readable_attention", record)
    return seen


def test_pictures_are_the_same_files_twice(model, tokenizer, tmp_path, monkeypatch):
    """A date or a random name in a file would change every picture whenever one is drawn."""
    save_pretrained(model, tokenizer, tmp_path / "run")
    for out in ("first", "second"):
        monkeypatch.setattr(sys, "argv", ["draw.py", str(tmp_path / "run"), "--out",
                                          str(tmp_path / out)])
        draw.main()
    first, second = ({path.stem: path.read_bytes() for path in (tmp_path / out).iterdir()}
                     for out in ("first", "second"))
    assert first == second
    assert sorted(first) == ["attention", "encoder", "lineage", "masks", "soft-targets"]


def test_lineage_shows_the_published_sizes(figures):
    """A box with another model's size or depth would teach a wrong number."""
    shown = [text.get_text() for text in figures["lineage"].axes[0].texts if text.get_text()]
    for name, layers in (("BERT", 12), ("RoBERTa", 12), ("DistilBERT", 6), ("DistilRoBERTa", 6)):
        at = next(number for number, text in enumerate(shown) if text.startswith(f"{name} ("))
        size = PUBLISHED[f"{name.lower()}-base"] / 1e6
        assert shown[at + 1].startswith(f"{layers} layers, {size:.0f} M parameters\n"), name
    arrows = [text for text in figures["lineage"].axes[0].texts if isinstance(text, Annotation)]
    assert len(arrows) == 4


def test_shapes_on_the_arrows_are_the_models(attended):
    """A shape that the code does not have would send a reader after a tensor that is not there."""
    config = ModelConfig(**{**vars(CONFIG), "attn_implementation": "eager"})
    model, results = MaskedLM(config).eval(), {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, given, result, name=name:
                                     results.update({name: result}))
    B, S, M = 5, 9, 4
    ids = torch.randint(5, config.vocab_size, (B, S))
    logits = model(ids, positions=torch.arange(M).expand(B, M)).mlm_logits
    sizes = dict(B=B, S=S, M=M, H=12, A=2, D=6, V=config.vocab_size)
    assert len(set(sizes.values())) == len(sizes)
    letters = lambda shape: re.search(r"\((.+)\)", shape)[1].split(", ")
    says = lambda shape: tuple(sizes[letter] for letter in letters(shape))
    layers = ["encoder.layers.0", "encoder.layers.2"]
    stations = [results[name] for name in ("encoder.embeddings", *layers, "transform_norm")]
    assert [says(shape) for _, shape, _ in draw.STATIONS] == [
        tuple(output.shape) for output in (*stations, logits)]
    for column, layer, (query, key, value, mix) in zip((1, 2), layers, attended[::2]):
        expected = (query, (query @ key.mT), mix, results[f"{layer}.attention_norm"],
                    results[f"{layer}.output_norm"])
        assert [says(station[column]) for station in draw.INSIDE] == [
            tuple(output.shape) for output in expected]
        assert key.shape == value.shape == (B, 2, S, 6)  # in the last block, too


def test_masks_are_those_of_mask_tokens(figures, tokenizer):
    """Masks drawn otherwise than a run draws them would show static masks that do not come back."""
    special = special_ids(tokenizer)
    clean = torch.tensor([tokenizer.encode(draw.SENTENCE).ids])
    colors = {"[MASK]": draw.BLUE, "random": draw.ORANGE, "kept": draw.PALE}
    seen = set()
    rules = (lambda epoch: epoch % 2, lambda epoch: epoch)
    for plot, duplicate_of in zip(figures["masks"].axes, rules):
        expected = {}
        for epoch in range(4):
            inputs, positions, labels = mask_tokens(
                clean, torch.tensor([draw.SEQUENCE]), seed=0, epoch=duplicate_of(epoch),
                vocab_size=tokenizer.get_vocab_size(), mask_id=special.mask,
                special_ids=tuple(special))
            for position, label in zip(positions[0].tolist(), labels[0].tolist()):
                if label != IGNORE:
                    id = int(inputs[0, position])
                    kind = "[MASK]" if id == special.mask else "kept" if id == label else "random"
                    expected[epoch, position] = (tokenizer.id_to_token(id), colors[kind])
                    seen.add(kind)
        words = {text.get_position(): text.get_text() for text in plot.texts}
        cells = {(round(cell.get_x() + cell.get_width() / 2), round(cell.get_y() + 0.45)):
                 cell.get_facecolor() for cell in plot.patches}
        assert words == {place: word for place, (word, _) in expected.items()}
        assert cells == {place: matplotlib.colors.to_rgba(color)
                         for place, (_, color) in expected.items()}
    assert seen == set(colors)  # so that the legend has an example of each


def test_a_slot_that_is_not_used_is_not_drawn(tokenizer):
    """A short sentence would show a mask on [CLS], which is never chosen."""
    clean = torch.tensor([2, *[1] * 17, 30, 3])  # [CLS], unknown words, one word, [SEP]
    with style.context(draw.STYLE):
        axes = draw.draw_masks(clean, tokenizer).axes
    assert {text.get_position()[1] for plot in axes for text in plot.texts} == {18}


def test_soft_targets_are_the_models(figures, model, tokenizer):
    """Another position's words, or a T that multiplies, would show the opposite of softening."""
    ids = tokenizer.encode(draw.SENTENCE).ids
    label = tokenizer.token_to_id(draw.WORD)
    position = ids.index(label)
    ids[position] = special_ids(tokenizer).mask
    logits = model(torch.tensor([ids])).mlm_logits[0, position].detach()
    axes = figures["soft-targets"].axes
    words = [tick.get_text() for tick in axes[0].get_yticklabels()]
    best = [tokenizer.token_to_id(word) for word in words]
    assert label in best and len(set(best)) == 7
    one_hot = torch.zeros(len(logits))
    one_hot[label] = 1
    shares = [one_hot, *((logits / T).softmax(-1) for T in (1, 2, 8))]
    for plot, title, expected in zip(axes, ("label", "T = 1", "T = 2", "T = 8"), shares):
        assert plot.get_title().endswith(title)
        said = [text.get_text() for text in plot.texts]
        assert said == [f"{share:.1%}" for share in expected[best].tolist()]
        others = float(re.search(r"others?.*: ([\d.]+)%", plot.get_xlabel())[1]) / 100
        assert expected[best].sum() + others == pytest.approx(1, abs=1e-3)
        widths = [bar.get_width() for bar in plot.patches]
        assert widths == pytest.approx((expected[best] / expected.max()).tolist(), abs=6e-4)


def test_the_label_is_shown_though_the_teacher_is_wrong(tokenizer):
    """Where the right word is not among the likeliest, its panel would show nothing but zeros."""
    logits, label = torch.arange(94).float(), 20
    with style.context(draw.STYLE):
        axes = draw.draw_soft_targets(logits, label, tokenizer).axes
    assert [text.get_text() for text in axes[0].texts] == ["0.0%"] * 6 + ["100.0%"]


@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_attention_weights_are_what_the_model_mixes_by(kind, attended, tokenizer):
    """Weights that the model does not mix by would draw a head that is not there."""
    changes = dict(attn_implementation="eager", initializer_range=0.3, model_type=kind)
    if kind == "bert":
        changes |= dict(type_vocab_size=2, next_sentence=True)
    model = MaskedLM(ModelConfig(**{**vars(CONFIG), **changes})).eval()
    _, masked, _ = draw.blank(tokenizer)
    with torch.no_grad():
        model(masked[None])
        layers = list(attended)
        weights = draw.attention_weights(model, masked)
    assert len(weights) == len(layers) == 3
    for drawn, (query, key, value, mix) in zip(weights, layers):
        scores = query[0] @ key[0].mT / query.shape[-1] ** 0.5
        assert torch.allclose(drawn, scores.exp() / scores.exp().sum(-1, keepdim=True), atol=1e-5)
        assert torch.allclose(drawn @ value[0], mix[0], atol=1e-5)
    above = torch.ones(weights.shape[-2:], dtype=torch.bool).triu(1)
    assert (weights[..., above] > 0).all()


def test_attention_drawn_is_the_head_that_looks_ahead(figures, model, tokenizer):
    """A reader would see another head than the title says, or what a causal mask hides."""
    _, masked, position = draw.blank(tokenizer)
    with torch.no_grad():
        weights = draw.attention_weights(model, masked)
    ahead = weights[..., position, position + 1:-1].sum(-1)
    both, causal = figures["attention"].axes
    layer, head = map(int, re.search(r"layer (\d) of 3, head (\d)", both.get_title()).groups())
    assert ahead[layer - 1, head - 1] == ahead.max()
    chosen = weights[layer - 1, head - 1]
    assert (both.images[0].get_array() == chosen.numpy()).all()
    right = f"{chosen[position, position + 1:].sum():.0%} of [MASK]'s attention goes to the right"
    assert right in both.get_title() and "\n0% of [MASK]'s" in causal.get_title()
    shown = causal.images[0].get_array()
    S = len(masked)
    assert (shown.mask == torch.ones(S, S).triu(1).bool().numpy()).all()
    # The softmax over the scores that are left is the drawn one, scaled up.
    scores = chosen.log().masked_fill(torch.ones(S, S).triu(1).bool(), -torch.inf)
    assert torch.allclose(torch.tensor(shown.filled(0)), scores.softmax(-1), atol=1e-6)
    names = [label.get_text() for label in both.get_yticklabels()]
    for plot in (both, causal):
        [frame] = plot.patches
        assert names[round(frame.get_y() + 0.5)] == "[MASK]"


def test_a_word_that_is_no_token_of_the_run():
    """A run with another vocabulary would draw a picture of [UNK], or end in a traceback."""
    with pytest.raises(UserError, match="'will' is no token of this run's vocabulary"):
        draw.blank(train_tokenizer(lambda: ["some other text"] * 3, "wordpiece", 30))
