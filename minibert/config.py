"""Every setting once: the model's shape, the run's recipe, the presets, and the flags made of them.

A setting's value is the first that is given of: its flag, the preset, the script's recipe, the
default below. The names of the model's fields are those of Hugging Face's `config.json`.
"""
import argparse
import dataclasses
from dataclasses import dataclass, field
from typing import Any

from minibert.errors import UserError


def setting(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field that also becomes a flag: its default, its help and what it may be."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class ModelConfig:
    """The shape of an encoder and its heads (Devlin et al. 2018, section 3)."""
    model_type: str = "bert"  # bert, roberta or distilbert: Hugging Face's names for the layouts
    next_sentence: bool = True  # a pooler and an NSP head, which only BERT has
    type_vocab_size: int = 2  # 0: no token types (DistilBERT); 1: a constant row (HF's RoBERTa)
    pad_token_id: int = 0
    vocab_size: int = setting(30522, "entries of the vocabulary, special tokens included")
    hidden_size: int = setting(768, "width of the encoder")
    num_hidden_layers: int = setting(12, "number of encoder layers")
    num_attention_heads: int = setting(12, "attention heads in each layer")
    intermediate_size: int = setting(3072, "width of the feed-forward network")
    max_position_embeddings: int = setting(512, "rows of the position table")
    hidden_act: str = setting("gelu", "activation", ("gelu", "gelu_new", "relu"))
    hidden_dropout_prob: float = setting(0.1, "dropout after embeddings and sublayers")
    attention_probs_dropout_prob: float = setting(0.1, "dropout on attention probabilities")
    layer_norm_eps: float = setting(1e-12, "epsilon of every LayerNorm")
    initializer_range: float = setting(0.02, "standard deviation of the initial weights")
    attn_implementation: str = setting("sdpa", "readable or fused attention", ("eager", "sdpa"))

    def __post_init__(self):
        _check_choices(self)
        if self.model_type not in ("bert", "roberta", "distilbert"):
            raise UserError(f"model type {self.model_type!r} is not known; "
                            "use bert, roberta or distilbert")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"hidden size {self.hidden_size} is no multiple of "
                            f"{self.num_attention_heads} attention heads; change one of them")
        sizes = (self.vocab_size, self.hidden_size, self.num_hidden_layers,
                 self.num_attention_heads, self.intermediate_size, self.max_position_embeddings)
        if min(sizes) < 1:
            raise UserError("every size of the model must be at least 1; change the one that is not")

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
        """The shape of a published model or of one of this project's budgets, by name."""
        if name not in SHAPES:
            raise UserError(f"preset {name!r} is not known; choose one of {', '.join(SHAPES)}")
        return cls(**SHAPES[name])


def _shape(layers: int, hidden: int, **other: Any) -> dict[str, Any]:
    """Layers and width; BERT's rules give the rest: heads of 64, a feed-forward of 4 times H."""
    return dict(num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=hidden // 64,
                intermediate_size=4 * hidden, **other)


_ROBERTA = dict(model_type="roberta", next_sentence=False, type_vocab_size=1, pad_token_id=1,
                vocab_size=50265, max_position_embeddings=514, layer_norm_eps=1e-5)
SHAPES: dict[str, dict[str, Any]] = {
    "bert-base": _shape(12, 768), "bert-large": _shape(24, 1024),
    "bert-base-cased": _shape(12, 768, vocab_size=28996),
    # The small models of Turc et al. 2019 (arXiv:1908.08962).
    "bert-tiny": _shape(2, 128), "bert-mini": _shape(4, 256),
    "bert-small": _shape(4, 512), "bert-medium": _shape(8, 512),
    "roberta-base": _shape(12, 768, **_ROBERTA), "roberta-large": _shape(24, 1024, **_ROBERTA),
    "distilroberta-base": _shape(6, 768, **_ROBERTA),
    "distilbert-base": _shape(6, 768, model_type="distilbert", next_sentence=False,
                              type_vocab_size=0),
    # Departure: dropout off and a wider initialisation in `tiny` and `small`. Few epochs cannot
    # overfit, and 0.02 is 0.55/sqrt(H) at H 768: at H 128 the same share of 1/sqrt(H) is 0.05.
    "tiny": _shape(4, 128, vocab_size=4096, max_position_embeddings=128, initializer_range=0.05,
                   hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "small": _shape(12, 384, vocab_size=8192, initializer_range=0.03,
                    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "base": _shape(12, 768),
}

# What a preset says about the run; the scripts add its number of steps.
BUDGETS: dict[str, dict[str, Any]] = {
    "tiny": dict(seq_length=32, batch_size=64, learning_rate=2e-3, warmup=0.1, eval_targets=20_000),
    "small": dict(seq_length=128, batch_size=256, learning_rate=1e-3, warmup=0.1),
    "base": dict(seq_length=512, batch_size=256, accumulation=4, learning_rate=1e-4, warmup=0.01),
}


@dataclass(frozen=True)
class RunConfig:
    """One training run: its text, its recipe and its budget."""
    corpus: str = setting("pydocs", "a name in data/ (pydocs, wikitext2, wikitext103) or a path")
    preset: str = setting("auto", "shape and budget; auto: tiny, on a GPU small",
                          ("auto", *BUDGETS))
    out: str = setting("", "the run folder; a Hugging Face folder when it is done")
    steps: int = setting(0, "updates of the weights")
    seed: int = setting(0, "of initial weights, order, pairs, masks and dropout")
    device: str = setting("auto", "where to compute", ("auto", "cpu", "cuda", "mps"))
    data_fraction: float = setting(1.0, "share of the training text that is used")
    tokenizer: str = setting("wordpiece", "BERT's WordPiece, uncased, or RoBERTa's byte-level BPE",
                             ("wordpiece", "bpe"))
    input_format: str = setting("full-sentences", "how text becomes sequences",
                                ("segment-pair", "full-sentences", "doc-sentences"))
    nsp: bool = setting(False, "learn next sentence prediction (needs segment-pair)")
    short_seq_prob: float = setting(0.1, "share of documents cut to shorter segment pairs")
    masking: str = setting("dynamic", "masks that repeat or new ones each epoch",
                           ("static", "dynamic"))
    static_masks: int = setting(10, "how many different static masks (BERT's dupe_factor)")
    mask_rate: float = setting(0.15, "share of tokens to predict")
    whole_word_masking: bool = setting(False, "choose whole words instead of single tokens")
    seq_length: int = setting(128, "tokens in a sequence, special tokens included")
    batch_size: int = setting(256, "sequences in an update")
    accumulation: int = setting(1, "parts into which an update is cut to fit the memory")
    learning_rate: float = setting(1e-4, "peak, reached after the warm-up")
    warmup: float = setting(0.1, "share of the steps that warm up")
    weight_decay: float = setting(0.01, "decoupled; not on LayerNorms and biases")
    adam_beta2: float = setting(0.999, "decay of Adam's second moment")
    max_grad_norm: float = setting(1.0, "clip the gradient to this norm; 0: never")
    eval_targets: int = setting(50_000, "masked tokens in the fixed evaluation set")
    log_every: int = setting(50, "steps between lines of log.jsonl")
    eval_every: int = setting(500, "steps between evaluations")
    checkpoint_every: int = setting(500, "steps between checkpoints")

    def __post_init__(self):
        _check_choices(self)
        if not self.out:
            raise UserError("--out is missing; name a folder for the run")
        positive = ("steps", "static_masks", "batch_size", "accumulation", "eval_targets",
                    "log_every", "eval_every", "checkpoint_every", "learning_rate")
        for name in positive:
            if getattr(self, name) <= 0:
                raise UserError(f"{_flag(name)} must be above 0; it is {getattr(self, name)}")
        for name in ("data_fraction", "mask_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{_flag(name)} must be above 0 and at most 1")
        for name in ("warmup", "short_seq_prob", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{_flag(name)} must be at least 0 and below 1")
        if self.seq_length < 8:
            raise UserError(f"--seq-length must be at least 8; it is {self.seq_length}")
        if self.batch_size % self.accumulation:
            raise UserError(f"--batch-size {self.batch_size} does not divide into "
                            f"--accumulation {self.accumulation} equal parts; change one of them")
        if self.nsp and self.input_format != "segment-pair":
            raise UserError("--nsp needs pairs to judge; add --input-format segment-pair "
                            "or leave --nsp out")


@dataclass(frozen=True)
class DistillConfig:
    """What distillation adds (Sanh et al. 2019, section 3)."""
    teacher: str = setting("", "the folder of a run or of a Hugging Face model")
    student_layers: int = setting(0, "layers of the student; 0: half the teacher's")
    init: str = setting("teacher", "where the student's weights come from", ("teacher", "random"))
    # Paper: DistilBERT's released training command; section 3 of the paper names no weights.
    alpha_kl: float = setting(5.0, "weight of the soft targets; 0 turns the term off")
    alpha_mlm: float = setting(2.0, "weight of the hard labels; 0 turns the term off")
    alpha_cos: float = setting(1.0, "weight of the hidden states' cosine; 0 turns the term off")
    temperature: float = setting(2.0, "of the soft targets")
    distill_positions: str = setting("predicted", "where teacher and student are compared",
                                     ("predicted", "all"))

    def __post_init__(self):
        _check_choices(self)
        if not self.teacher:
            raise UserError("--teacher is missing; name the folder of a trained run")
        if self.temperature <= 0:
            raise UserError(f"--temperature must be above 0; it is {self.temperature}")
        alphas = (self.alpha_kl, self.alpha_mlm, self.alpha_cos)
        if min(alphas) < 0 or not any(alphas):
            raise UserError("the three --alpha weights must not be negative and not all 0")


def parse_flags(doc: str, recipe: dict[str, Any], steps: dict[str, int], other: type,
                without: tuple[str, ...] = (), argv: list[str] | None = None
                ) -> tuple[RunConfig, dict[str, Any]]:
    """Read the command line of a training script.

    doc: the script's docstring. recipe: what the script sets apart from RunConfig's defaults.
    steps: number of steps by preset. other: the config class that gives further flags. without:
    settings that would have no effect in this script. Returns the RunConfig and the other class's
    fields, as far as the preset or a flag says them. Raises UserError on a value that cannot be.
    """
    parser = _Parser(description=doc.strip().splitlines()[0], allow_abbrev=False)
    for config in (RunConfig, other):
        group = parser.add_argument_group(config.__doc__.splitlines()[0])
        for item in dataclasses.fields(config):
            if item.metadata and item.name not in without:
                _add_flag(group, item, recipe.get(item.name, item.default))
    given = vars(parser.parse_args(argv))
    preset = pick_preset(given.get("preset", "auto"), given.get("device", "auto"))
    chosen = {**recipe, **SHAPES[preset], **BUDGETS[preset], "steps": steps[preset], **given,
              "preset": preset}
    take = lambda config: {item.name: chosen[item.name] for item in dataclasses.fields(config)
                           if item.name in chosen}
    return RunConfig(**take(RunConfig)), take(other)


def pick_preset(name: str, device: str = "auto") -> str:
    """The preset's name, `auto` resolved to what the device can do in an hour: tiny or small."""
    if name == "auto":
        return "small" if pick_device(device) == "cuda" else "tiny"
    return name


def pick_device(name: str) -> str:
    """The device's name, `auto` resolved to the best at hand: cuda, mps or cpu."""
    import torch  # here, so that `--help` answers at once

    at_hand = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
               "cpu": True}
    if name == "auto":
        return next(device for device, there in at_hand.items() if there)
    if not at_hand[name]:
        raise UserError(f"--device {name} is not at hand on this machine; use --device auto")
    return name


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):  # argparse prints the whole usage first; one line says more
        raise UserError(f"{message}; see --help")


def _add_flag(group: Any, item: dataclasses.Field, default: Any) -> None:
    kind = type(item.default)
    shown = "" if default in ("", 0) else f" [{default}]"
    options: dict[str, Any] = dict(default=argparse.SUPPRESS, help=item.metadata["help"] + shown)
    if kind is bool:
        group.add_argument(_flag(item.name), action=argparse.BooleanOptionalAction, **options)
    else:
        group.add_argument(_flag(item.name), type=kind, choices=item.metadata["choices"] or None,
                           metavar=None if item.metadata["choices"] else kind.__name__.upper(),
                           **options)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_choices(config: Any) -> None:
    for item in dataclasses.fields(config):
        value, choices = getattr(config, item.name), item.metadata.get("choices")
        if choices and value not in choices:
            raise UserError(f"{_flag(item.name)} {value!r} is not known; "
                            f"choose one of {', '.join(choices)}")
