"""Draw the five pictures of docs/lesson.md, from the code itself and from one finished run.

B batch, S sequence, H hidden, A heads, D head size, V vocabulary, M masked positions, L layers.
"""
import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib import style
from matplotlib.figure import Figure
from tokenizers import Tokenizer
from torch import Tensor

from minibert.config import ModelConfig
from minibert.data import Batch
from minibert.errors import UserError, run_cli
from minibert.files.hub import load_pretrained
from minibert.masking import IGNORE, DynamicMasker, StaticMasker
from minibert.model import MaskedLM, readable_attention
from minibert.tokenizer import special_ids

# A held-out sentence of pydocs, in which the right side of the word says more than the left one.
SENTENCE = ("The shortest path from any of the source nodes will be found if multiple sources are "
            "provided.")
WORD = "will"
SEQUENCE = 2410  # its number in a text, by which masks are drawn: here all three kinds occur
EPOCHS = 4

# Colours that differ in lightness, too: they stay apart in grey and for colour-blind readers.
INK, BLUE, BROWN, ORANGE = "#222222", "#0072B2", "#8A4F00", "#E69F00"
PALE, SAND = "#E8EEF3", "#FBE6C2"
# A fixed salt for the names inside an SVG file: the same picture has the same bytes.
STYLE = {"svg.hashsalt": "minibert", "text.color": INK, "font.size": 12, "figure.titlesize": 15,
         "figure.titleweight": "bold", "axes.titlesize": 13, "axes.spines.top": False,
         "axes.spines.right": False, "xtick.major.size": 0, "ytick.major.size": 0}
ARROW = dict(arrowstyle="-|>", color=INK, linewidth=1.5, shrinkA=0, shrinkB=0, mutation_scale=16)

# The arrows of draw_lineage: start, end, where the text stands and on which side, what changes.
RECIPE = "a better recipe\nnew masks each epoch\nno next-sentence task\nmore text, larger batches"
SMALLER = "a smaller model\nhalf of the layers,\ntaught by soft targets"
ARROWS = (
    ((3.4, 3.4), (6.6, 3.4), (5.0, 3.4), "center", RECIPE),
    ((3.4, 0.6), (6.6, 0.6), (5.0, 0.6), "center", "a better teacher\nRoBERTa instead of BERT"),
    ((1.9, 2.95), (1.9, 1.05), (2.1, 2.1), "left", SMALLER),
    ((8.1, 2.95), (8.1, 1.05), (7.9, 2.1), "right", SMALLER),
)
# The stations of draw_encoder: what to write, the shape of what comes out, and that shape in the
# last block, whose queries are the masked tokens only.
STATIONS = (
    ("Embeddings\nword + position + token type", "(B, S, H)", ""),
    ("Blocks 1 to L − 1\nattention, then feed-forward", "(B, S, H)", ""),
    ("Block L\nqueries: M masked tokens\nkeys and values: all S tokens", "(B, M, H)", ""),
    ("MLM head\nlinear, GELU, LayerNorm", "(B, M, H)", ""),
    ("Decoder\nthe word embeddings again", "(B, M, V)", ""),
)
INSIDE = (
    ("Query, key, value\nlinear, split into A heads", "(B, A, S, D)", "queries (B, A, M, D)"),
    ("Attention weights\nsoftmax(query · key / √D)", "(B, A, S, S)", "(B, A, M, S)"),
    ("Mix\nweighted sum of the values", "(B, A, S, D)", "(B, A, M, D)"),
    ("Output\nlinear, add the input, LayerNorm", "(B, S, H)", "(B, M, H)"),
    ("Feed-forward\nH to 4 H to H, add, LayerNorm", "(B, S, H)", "(B, M, H)"),
)


def main() -> None:
    """Write the pictures as SVG files. The run is the teacher, and it has the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--out", default="docs", help="the folder for the SVG files [docs]")
    args = parser.parse_args()
    model, tokenizer = load_pretrained(args.run)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    with style.context(["default", STYLE]):
        for name, figure in make_figures(model.eval(), tokenizer).items():
            # A date or matplotlib's version would change the bytes.
            figure.savefig(f"{args.out}/{name}.svg", metadata={"Date": None, "Creator": None})


@torch.no_grad()
def make_figures(model: MaskedLM, tokenizer: Tokenizer) -> dict[str, Figure]:
    """The five pictures by name."""
    clean, masked, position = blank(tokenizer)
    logits = model(masked[None], positions=torch.tensor([[position]])).mlm_logits[0, 0]  # (V,)
    weights = attention_weights(model, masked)
    # The head in which [MASK] looks most at the words to its right; the last token is [SEP].
    ahead = weights[:, :, position, position + 1:-1].sum(-1)  # (L, A)
    layer, head = divmod(int(ahead.argmax()), ahead.shape[1])
    names = [tokenizer.id_to_token(id) for id in masked.tolist()]
    return {"lineage": draw_lineage(), "encoder": draw_encoder(),
            "masks": draw_masks(clean, tokenizer),
            "soft-targets": draw_soft_targets(logits, int(clean[position]), tokenizer),
            "attention": draw_attention(weights[layer, head], names, position,
                                        f"layer {layer + 1} of {len(weights)}, head {head + 1}")}


def blank(tokenizer: Tokenizer) -> tuple[Tensor, Tensor, int]:
    """The sentence's tokens (S,), the same with [MASK] for the word, and the word's position.

    Raises UserError when the word is not one token of the sentence.
    """
    tokenizer.no_padding()
    clean, word = torch.tensor(tokenizer.encode(SENTENCE).ids), tokenizer.token_to_id(WORD)
    if word not in clean.tolist():
        raise UserError(f"{WORD!r} is no token of this run's vocabulary; draw with the run that "
                        "docs/lesson.md names")
    masked = clean.where(clean != word, special_ids(tokenizer).mask)
    return clean, masked, clean.tolist().index(word)


def attention_weights(model: MaskedLM, input_ids: Tensor) -> Tensor:
    """How much each token looks at each other one, in every head: (L, A, S, S), rows sum to 1.

    input_ids: (S,). Attention returns a mix of values; where the values are one-hot, the mix is
    the weights.
    """
    weights, one_hot = [], torch.eye(len(input_ids))  # (S, S)
    hidden = model.encoder.embeddings(input_ids[None])  # (B, S, H)
    for layer in model.encoder.layers:
        query = layer.attention.split_heads(layer.attention.query(hidden))  # (B, A, S, D)
        key = layer.attention.split_heads(layer.attention.key_value(hidden).chunk(2, dim=-1)[0])
        weights.append(readable_attention(query, key, one_hot)[0])
        hidden = layer(hidden, None)
    return torch.stack(weights)


def draw_lineage() -> Figure:
    """The four models as a square: the recipe changes to the right, the size downwards."""
    figure, plot = new_figure(10, 4.8, "RoBERTa trains BERT better, DistilBERT makes it smaller")
    plot.set(xlim=(0, 10), ylim=(0, 4))
    plot.axis("off")
    for name, year, x, y in (("BERT", 2018, 1.9, 3.4), ("RoBERTa", 2019, 8.1, 3.4),
                             ("DistilBERT", 2019, 1.9, 0.6), ("DistilRoBERTa", 2019, 8.1, 0.6)):
        config = ModelConfig.preset(f"{name.lower()}-base")
        with torch.device("meta"):  # shapes without memory
            count = sum(weight.numel() for weight in MaskedLM(config).parameters())
        box(plot, x, y, 3.0, f"{name} ({year})\n{config.num_hidden_layers} layers, "
            f"{count / 1e6:.0f} M parameters\nvocabulary of {config.vocab_size:,}")
    for start, end, place, side, text in ARROWS:
        plot.annotate("", end, start, arrowprops=ARROW)
        say(plot, *place, text, 0.05, ha=side, color=BLUE if side == "center" else BROWN)
    return figure


def draw_encoder() -> Figure:
    """From tokens to logits, with the shape of what flows on every arrow."""
    figure, plot = new_figure(10, 9.4, "The last block and the head run at masked tokens only")
    plot.set(xlim=(0, 10), ylim=(-0.2, 8.4))
    plot.axis("off")
    for x, start, shape, stations in ((2.2, "input_ids", "(B, S)", STATIONS),
                                      (6.9, "inside each block", "(B, S, H)", INSIDE)):
        plot.text(x, 8.1, start, ha="center", fontweight="bold")
        y, in_last_block = 8, ""
        for text, out, then in (*stations, ("", "", "")):
            plot.annotate("", (x, y - 0.55), (x, y), arrowprops=ARROW)
            plot.text(x + 0.15, y - 0.33, shape, color=BLUE, fontweight="bold")
            plot.text(x + 1.35, y - 0.33, in_last_block, color=BROWN)
            few = "M" in out  # a narrow box where only the masked tokens pass
            if text:
                box(plot, x, y - 1.0, 2.9 if few else 4.0, text, SAND if few else PALE)
            y, shape, in_last_block = y - 1.45, out, then
    plot.text(8.25, 8.1, "in block L", color=BROWN, fontweight="bold")
    base = ModelConfig.preset("bert-base")
    plot.set_title(
        "B sequences of S tokens, M of them masked; L blocks of width H, A heads of D = H / A; V "
        f"words\nBERT-base: S = {base.max_length}, M = 15% of S, L = {base.num_hidden_layers}, "
        f"H = {base.hidden_size}, A = {base.num_attention_heads}, V = {base.vocab_size:,}",
        y=-0.02, fontsize=11)
    return figure


def draw_masks(clean: Tensor, tokenizer: Tokenizer) -> Figure:
    """One sentence's masks in four epochs: two static ones on the left, new ones on the right."""
    figure, axes = new_figure(10, 7.2, "Static masks come back, dynamic masks are always new", 2)
    special, vocab_size = special_ids(tokenizer), tokenizer.get_vocab_size()
    for plot, title, masker in zip(axes, ("static (BERT), here two masks", "dynamic (RoBERTa)"),
                                   (StaticMasker(special, vocab_size, seed=0, masks=2),
                                    DynamicMasker(special, vocab_size, seed=0))):
        plot.set_title(title, fontweight="bold")
        plot.set(xlim=(-0.5, EPOCHS - 0.5), ylim=(len(clean) - 0.5, -0.5), axisbelow=True)
        plot.set_xticks(range(EPOCHS), [f"epoch {epoch + 1}" for epoch in range(EPOCHS)])
        plot.set_yticks(range(len(clean)), [tokenizer.id_to_token(id) for id in clean.tolist()])
        plot.grid(axis="y", color="0.9")
        for epoch in range(EPOCHS):
            row = clean[None]
            batch = masker(Batch(row, row, row, row, torch.tensor([SEQUENCE]), epoch))
            for position in batch.masked_positions[batch.labels != IGNORE].tolist():
                id = int(batch.input_ids[0, position])
                color = BLUE if id == special.mask else PALE if id == clean[position] else ORANGE
                plot.barh(position, 0.96, 0.9, epoch - 0.48, color=color, edgecolor=INK)
                plot.text(epoch, position, tokenizer.id_to_token(id), ha="center", va="center",
                          color="white" if color == BLUE else INK, fontsize=11)
    for color, kind in ((BLUE, "shown as [MASK]"), (ORANGE, "shown as a random word"),
                        (PALE, "left as it is")):
        axes[0].scatter([], [], 150, color, marker="s", edgecolor=INK, label=kind)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_soft_targets(logits: Tensor, label: int, tokenizer: Tokenizer) -> Figure:
    """The one-hot label of a blank, and the teacher's distribution at three temperatures.

    logits: (V,), the teacher's. label: the id of the word that was masked. A bar is as long as its
    word is likely when compared with the likeliest one, so that the panels show how T flattens.
    """
    best = logits.topk(7).indices.tolist()
    best = best if label in best else [*best[:-1], label]
    panels = {"one-hot label": (torch.arange(len(logits)) == label).float(),
              **{f"teacher, T = {T}": (logits / T).softmax(-1) for T in (1, 2, 8)}}
    figure, axes = new_figure(10, 4.4, "The label names one word, the teacher weighs them all", 4)
    for plot, (title, shares) in zip(axes, panels.items()):
        bars = plot.barh(range(len(best)), (shares[best] / shares.max()).round(decimals=3).tolist(),
                         0.7, color=[ORANGE if id == label else BLUE for id in best])
        plot.bar_label(bars, [f"{share:.1%}" for share in shares[best].tolist()], padding=5)
        plot.set_title(title, fontweight="bold")
        plot.set(xlim=(0, 1.6), xticks=[])
        plot.set_xlabel(f"all other words: {1 - shares[best].sum():.1%}")
    axes[0].set_yticks(range(len(best)), [tokenizer.id_to_token(id) for id in best])
    axes[0].invert_yaxis()
    return figure


def draw_attention(weights: Tensor, names: list[str], position: int, head: str) -> Figure:
    """One head's weights (S, S), and what a causal mask would leave of them."""
    figure, axes = new_figure(10, 6.4, "[MASK] looks ahead, which a causal mask would forbid", 2)
    # A softmax over fewer scores is the softmax over all of them, cut and scaled up. (What the
    # layers below have seen is left as it is.)
    causal = weights.tril() / weights.tril().sum(-1, keepdim=True)
    causal[torch.ones_like(causal, dtype=torch.bool).triu(1)] = torch.nan  # nothing to draw
    for plot, title, shown in zip(axes, (f"bidirectional ({head})", "the same head, causal"),
                                  (weights, causal)):
        right = shown[position, position + 1:].nansum()
        plot.set_title(f"{title}:\n{right:.0%} of [MASK]'s attention goes to the right")
        plot.imshow(shown.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="none")
        plot.set_xticks(range(len(names)), names, rotation=90)
        plot.set_yticks(range(len(names)), names)
        plot.set_xlabel("... looks at these")
        plot.barh(position, len(names), 1, -0.5, fill=False, edgecolor=ORANGE, linewidth=2.5)
    axes[0].set_ylabel("each token ...")
    axes[1].patch.set(facecolor="0.9", edgecolor="0.6", hatch="///", linewidth=0)
    return figure


def new_figure(width: float, height: float, title: str, columns: int = 1) -> tuple[Figure, Any]:
    """A figure of so many inches with a title, and its axes, side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    figure.suptitle(title)
    return figure, figure.subplots(1, columns, sharey=True)


def box(plot: Any, x: float, y: float, width: float, text: str, color: str = PALE) -> None:
    """A box with its centre at (x, y), and a text in it."""
    plot.barh(y, width, 0.9, x - width / 2, color=color, edgecolor=INK)
    say(plot, x, y + 0.1 * text.count("\n") - 0.1, text, 0.02, ha="center")


def say(plot: Any, x: float, y: float, text: str, gap: float, **options: Any) -> None:
    """A bold first line above y, the other lines below it."""
    first, rest = text.split("\n", 1)
    plot.text(x, y + gap, first, va="bottom", fontweight="bold", **options)
    plot.text(x, y - gap, rest, va="top", fontsize=11, **options)


if __name__ == "__main__":
    run_cli(main)
