"""Every setting, defined once: the model's sizes, the run's settings, the presets and the flags.

Four places may set a value. In order of priority they are the flag, the preset, the script's
recipe, and the default below; --help shows what a flag's value is without it. The names of the
model's fields are those of Hugging Face's `config.json`.
"""
import argparse
import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Any, NoReturn

from minibert.errors import UserError


def setting(default: Any, help: str = "", allowed: "str | tuple[str, ...]" = "") -> Any:
    """A field whose values are checked, and which becomes a flag where it has a help text.

    allowed: the field's choices, or an interval such as "(0, 1]".
    """
    return field(default=default, metadata={"help": help, "allowed": allowed})


DEVICES = ("auto", "cpu", "cuda", "mps")
SEEDS = "[0, 4294967296)"  # random draws are keyed by 32 bits; larger seeds would repeat these


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of an encoder and its heads (Devlin et al. 2018, section 3)."""
    model_type: str = "bert"  # bert, roberta or distilbert: Hugging Face's names for the layouts
    next_sentence: bool = True  # a pooler and an NSP head, which only BERT has
    type_vocab_size: int = 2  # 0: none (DistilBERT); 1: a constant row (HF's RoBERTa)
    pad_token_id: int = 0
    vocab_size: int = setting(30522, "entries of the vocabulary, with the special ones", "[1, inf)")
    hidden_size: int = setting(768, "width; gives heads of 64, a feed-forward of 4 H", "[1, inf)")
    num_hidden_layers: int = setting(12, "layers of the encoder", "[1, inf)")
    num_attention_heads: int = setting(12, "attention heads in each layer", "[1, inf)")
    intermediate_size: int = setting(3072, "width of the feed-forward network", "[1, inf)")
    max_position_embeddings: int = setting(512, allowed="[1, inf)")  # rows of the position table
    hidden_act: str = setting("gelu", allowed=("gelu", "gelu_new", "relu"))
    hidden_dropout_prob: float = setting(0.1, "dropout after embeddings and sublayers", "[0, 1)")
    attention_probs_dropout_prob: float = setting(0.1, allowed="[0, 1)")
    layer_norm_eps: float = setting(1e-12, allowed="(0, inf)")
    initializer_range: float = setting(0.02, "spread of the initial weights", "(0, inf)")
    attn_implementation: str = setting("sdpa", allowed=("eager", "sdpa"))  # to read, or fused

    def __post_init__(self):
        check(self)
        if self.model_type not in ("bert", "roberta", "distilbert"):
            raise UserError(f"model type {self.model_type!r} is not known; "
                            "use bert, roberta or distilbert")
        if not 0 <= self.pad_token_id < self.vocab_size or self.type_vocab_size < 0:
            raise UserError(f"a model cannot have the padding token {self.pad_token_id} or "
                            f"{self.type_vocab_size} token types; change them")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"hidden size {self.hidden_size} is not a multiple of "
                            f"{self.num_attention_heads} attention heads; change one of them")

    @property
    def first_position(self) -> int:
        """The row of the position table that the first token reads: 0, or past RoBERTa's pad."""
        return self.pad_token_id + 1 if self.model_type == "roberta" else 0

    @property
    def max_length(self) -> int:
        """The longest input, in tokens."""
        return self.max_position_embeddings - self.first_position

    @classmethod
    def preset(cls, name: str) -> "ModelConfig":
        """The sizes of a published model, or those of a preset for runs, by name."""
        if name not in MODEL_PRESETS:
            raise UserError(f"preset {name!r} is not known; "
                            f"choose one of {', '.join(MODEL_PRESETS)}")
        return cls(**MODEL_PRESETS[name])


def sizes_of_width(hidden: int) -> dict[str, int]:
    """A width, and what follows from it by BERT's rules: heads of 64, a feed-forward of 4 H."""
    return dict(hidden_size=hidden, num_attention_heads=max(1, hidden // 64),
                intermediate_size=4 * hidden)


def _sizes(layers: int, hidden: int, **more: Any) -> dict[str, Any]:
    return dict(num_hidden_layers=layers, **sizes_of_width(hidden), **more)


_ROBERTA = dict(model_type="roberta", next_sentence=False, type_vocab_size=1, pad_token_id=1,
                vocab_size=50265, max_position_embeddings=514, layer_norm_eps=1e-5)
MODEL_PRESETS: dict[str, dict[str, Any]] = {
    "bert-base": _sizes(12, 768), "bert-large": _sizes(24, 1024),
    "bert-base-cased": _sizes(12, 768, vocab_size=28996),
    # The small models of Turc et al. 2019 (arXiv:1908.08962).
    "bert-tiny": _sizes(2, 128), "bert-mini": _sizes(4, 256),
    "bert-small": _sizes(4, 512), "bert-medium": _sizes(8, 512),
    "roberta-base": _sizes(12, 768, **_ROBERTA), "roberta-large": _sizes(24, 1024, **_ROBERTA),
    "distilroberta-base": _sizes(6, 768, **_ROBERTA),
    "distilbert-base": _sizes(6, 768, model_type="distilbert", next_sentence=False,
                              type_vocab_size=0),
    # Departure: `tiny` and `small` switch dropout off, because few epochs cannot overfit. `tiny`
    # has larger initial weights: 0.02 is 0.55/sqrt(H) for H = 768, which is 0.05 for H = 128. In
    # twelve layers, large weights make the positions more alike (docs/measuring.md).
    "tiny": _sizes(4, 128, vocab_size=4096, max_position_embeddings=128, initializer_range=0.05,
                   hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "small": _sizes(12, 384, vocab_size=8192,
                    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    # Departure: 6 entries more than BERT's 30,522, because a GPU is faster at multiples of 64.
    "base": _sizes(12, 768, vocab_size=30528),
}

# The budget that goes with a preset's sizes; each script adds its number of steps. A small budget
# needs a higher rate, so tiny and small replace the rate, warm-up, batch and length of the recipe.
RUN_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(seq_length=32, batch_size=64, gradient_accumulation_steps=1, learning_rate=2e-3,
                 warmup=0.1, eval_targets=20_000, checkpoint_every=100),
    # The rate of ELECTRA-small, 12 layers of H = 256 (Clark et al. 2020, arXiv:2003.10555, app. A).
    "small": dict(seq_length=128, batch_size=256, gradient_accumulation_steps=1, learning_rate=5e-4,
                  warmup=0.1),
    # The papers' size, so that the whole recipe is that of the paper.
    "base": {},
}


@dataclass(frozen=True)
class RunConfig:
    """One training run: its text, its recipe and its budget."""
    corpus: str = setting("pydocs", "the text: pydocs, wikitext2, wikitext103 or a path")
    preset: str = setting("auto", "sizes and budget; auto is tiny, and small on a GPU",
                          ("auto", *RUN_PRESETS))
    out: str = setting("", "the run's folder, which becomes a Hugging Face folder")
    steps: int = setting(1, "updates of the weights; 0 leaves them as they start", "[0, inf)")
    seed: int = setting(0, "decides initial weights, order, pairs, masks and dropout", SEEDS)
    device: str = setting("auto", "where to compute", DEVICES)
    compile: bool = setting(False, "compile the blocks: after a minute or so, a GPU is faster")
    data_tokens: int = setting(0, "tokens of text to train on; 0 means all", "[0, inf)")
    tokenizer: str = setting("wordpiece", "BERT's or RoBERTa's own kind", ("wordpiece", "bpe"))
    input_format: str = setting("full-sentences", "how text becomes sequences",
                                ("segment-pair", "full-sentences", "doc-sentences"))
    short_seq_prob: float = setting(0.1, allowed="[0, 1)")  # documents cut into shorter pairs
    nsp: bool = setting(False, "learn next sentence prediction; needs segment-pair")
    masking: str = setting("dynamic", "masks that repeat, or new ones", ("static", "dynamic"))
    static_masks: int = setting(10, "static masks of each sequence: dupe_factor", "[1, inf)")
    mask_rate: float = setting(0.15, "share of tokens to predict", "(0, 1]")
    seq_length: int = setting(128, "tokens in a sequence, special tokens included", "[8, inf)")
    batch_size: int = setting(256, "sequences in an optimizer step", "[1, inf)")
    gradient_accumulation_steps: int = setting(1, "parts of a batch, to save memory", "[1, inf)")
    learning_rate: float = setting(1e-4, "peak, reached at the end of the warm-up", "(0, inf)")
    warmup: float = setting(0.1, allowed="[0, 1)")  # share of the steps in which the rate rises
    weight_decay: float = setting(0.01, allowed="[0, inf)")
    adam_beta2: float = setting(0.999, "decay of Adam's second moment", "[0, 1)")
    max_grad_norm: float = setting(1.0, "clip the gradient to this norm; 0 means never", "[0, inf)")
    eval_targets: int = setting(50_000, "masked tokens in the fixed evaluation set", "[1, inf)")
    log_every: int = setting(50, "steps between lines of log.jsonl", "[1, inf)")
    eval_every: int = setting(500, "steps between evaluations", "[1, inf)")
    checkpoint_every: int = setting(500, "steps between checkpoints", "[1, inf)")

    def __post_init__(self):
        check(self)
        if not self.out:
            raise UserError("--out is missing; name a folder for the run")
        if self.batch_size % self.gradient_accumulation_steps:
            raise UserError(f"--batch-size {self.batch_size} does not divide into "
                            f"--gradient-accumulation-steps {self.gradient_accumulation_steps} "
                            "equal micro-batches; change one of them")
        if self.nsp and self.input_format != "segment-pair":
            raise UserError("--nsp needs pairs to judge; add --input-format segment-pair "
                            "or --no-nsp")


@dataclass(frozen=True)
class DistillConfig:
    """What distillation adds (Sanh et al. 2019, section 3)."""
    teacher: str = setting("", "the folder of a run or of a Hugging Face model")
    student_layers: int = setting(0, "layers; 0 means half of the teacher's", "[0, inf)")
    init: str = setting("teacher", "where the student's weights come from", ("teacher", "random"))
    # Paper: these are the weights of DistilBERT's released command; its section 3 names none.
    alpha_kl: float = setting(5.0, "weight of the soft targets; 0 for none", "[0, inf)")
    alpha_mlm: float = setting(2.0, "weight of the hard labels; 0 for none", "[0, inf)")
    alpha_cos: float = setting(1.0, "weight of the hidden states' cosine; 0 for none", "[0, inf)")
    temperature: float = setting(2.0, "of the soft targets; 1 does not soften", "(0, inf)")
    distill_positions: str = setting("predicted", "where both are compared", ("predicted", "all"))

    def __post_init__(self):
        check(self)
        if not self.teacher:
            raise UserError("--teacher is missing; name the folder of a trained run")
        if not (self.alpha_kl or self.alpha_mlm or self.alpha_cos):
            raise UserError("nothing is left to learn from; give one of the three --alpha weights "
                            "a value above 0")


def parse_flags(doc: str, recipe: dict[str, Any], steps: dict[str, int], model: type,
                without: tuple[str, ...] = (), argv: list[str] | None = None,
                saved: dict[str, Any] | None = None) -> tuple[RunConfig, Any]:
    """Read the command line of a training script.

    doc: the script's docstring. recipe: the paper's values of any settings. steps: the number of
    steps by preset. model: ModelConfig or DistillConfig, whose fields become flags besides those of
    RunConfig. without: fields that would have no effect in this script. argv: the flags, by default
    those of the program. saved: the settings of a finished run, which count more than the preset's.
    Returns a RunConfig and a `model`. Raises UserError on a value that is not allowed.
    """
    argv = sys.argv[1:] if argv is None else argv
    # Two flags decide on the defaults of others, so they are read first.
    first = Parser(add_help=False)
    first.add_argument("--preset", default="auto", choices=("auto", *RUN_PRESETS))
    first.add_argument("--device", default="auto", choices=DEVICES)
    first.add_argument("--hidden-size", type=int)
    early = first.parse_known_args(argv)[0]
    preset = pick_preset(early.preset, early.device)
    of_preset = {**MODEL_PRESETS[preset], **RUN_PRESETS[preset], "steps": steps[preset]}
    of_width = sizes_of_width(early.hidden_size) if early.hidden_size else {}
    parser = Parser(description=doc.strip().splitlines()[0])
    for config in (RunConfig, model):
        add_flags(parser, config, without)
    parser.set_defaults(**{**recipe, **of_preset, **of_width, **(saved or {})})
    values = {**vars(parser.parse_args(argv)), "preset": preset}
    return tuple(config(**{item.name: values.get(item.name, item.default)
                           for item in dataclasses.fields(config)})
                 for config in (RunConfig, model))


def pick_preset(name: str, device: str = "auto") -> str:
    """The preset's name; `auto` becomes what the device can do in an hour: tiny or small."""
    if name != "auto":
        return name
    return "small" if pick_device(device) == "cuda" else "tiny"


def pick_device(name: str) -> str:
    """The device's name; `auto` becomes the best that there is: cuda, mps or cpu."""
    import torch  # here, so that `--help` answers at once

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
                 "cpu": True}
    if name == "auto":
        return next(device for device, is_there in available.items() if is_there)
    if not available[name]:
        raise UserError(f"--device {name} is not available on this machine; use --device auto")
    return name


class Parser(argparse.ArgumentParser):
    """argparse, with errors in our one line; flags cannot be abbreviated."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise UserError, where argparse would print its whole usage first."""
        raise UserError(f"{message}; see --help")


def add_flags(parser: argparse.ArgumentParser, config: type, without: tuple[str, ...] = ()) -> None:
    """Add a flag for each field of a config class that has a help text and is not in `without`."""
    group = parser.add_argument_group(config.__doc__.splitlines()[0].rstrip("."))
    for item in dataclasses.fields(config):
        if not item.metadata.get("help") or item.name in without:
            continue
        kind, allowed = type(item.default), item.metadata["allowed"]
        if kind is bool:
            how = dict(action=argparse.BooleanOptionalAction)
        elif isinstance(allowed, tuple):
            how = dict(choices=allowed)
        else:
            how = dict(type=kind, metavar=kind.__name__.upper())
        default = "" if item.default == "" else " [%(default)s]"
        group.add_argument(_flag(item.name), default=item.default,
                           help=item.metadata["help"] + default, **how)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check(config: Any) -> None:
    """Raise UserError at the first value of a config object that its field does not allow."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        name = _flag(item.name) if item.metadata.get("help") else item.name
        allowed = item.metadata.get("allowed")
        types = (int, float) if item.type is float else (item.type,)
        if type(value) not in types:  # not isinstance, which takes True for a number
            raise UserError(f"{name} must be of type {item.type.__name__}; it is {value!r}")
        if isinstance(allowed, tuple):
            if value not in allowed:
                raise UserError(f"{name} {value!r} is not known; "
                                f"choose one of {', '.join(allowed)}")
        elif allowed and not _is_within(value, allowed):
            raise UserError(f"{name} must be in {allowed}; it is {value}")


def _is_within(value: float, interval: str) -> bool:
    """Whether a number lies in an interval; NaN lies in none.

    >>> _is_within(1, "(0, 1]"), _is_within(0, "(0, 1]"), _is_within(float("nan"), "[0, inf)")
    (True, False, False)
    """
    low, high = map(float, interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    below = value <= high if interval[-1] == "]" else value < high
    return above and below
