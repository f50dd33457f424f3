"""Every setting once: the model's shape, the run's recipe, the presets, and the flags made of them.

A setting's value is the first that is given of: its flag, the preset, the script's recipe, the
default below. The names of the model's fields are those of Hugging Face's `config.json`.
"""
import argparse
import dataclasses
from dataclasses import dataclass, field
from typing import Any, NoReturn

from minibert.errors import UserError


def setting(default: Any, help: str, allowed: "str | tuple[str, ...]" = "") -> Any:
    """A field that also becomes a flag; allowed is its choices, or an interval such as "(0, 1]"."""
    return field(default=default, metadata={"help": help, "allowed": allowed})


@dataclass(frozen=True)
class ModelConfig:
    """The shape of an encoder and its heads (Devlin et al. 2018, section 3)."""
    model_type: str = "bert"  # bert, roberta or distilbert: Hugging Face's names for the layouts
    next_sentence: bool = True  # a pooler and an NSP head, which only BERT has
    type_vocab_size: int = 2  # 0: no token types (DistilBERT); 1: a constant row (HF's RoBERTa)
    pad_token_id: int = 0
    vocab_size: int = setting(30522, "entries of the vocabulary, special ones included", "[1, inf)")
    hidden_size: int = setting(768, "width of the encoder; alone, it brings heads of 64 and a "
                               "feed-forward of 4 times that", "[1, inf)")
    num_hidden_layers: int = setting(12, "number of encoder layers", "[1, inf)")
    num_attention_heads: int = setting(12, "attention heads in each layer", "[1, inf)")
    intermediate_size: int = setting(3072, "width of the feed-forward network", "[1, inf)")
    max_position_embeddings: int = setting(512, "rows of the position table", "[1, inf)")
    hidden_act: str = setting("gelu", "activation", ("gelu", "gelu_new", "relu"))
    hidden_dropout_prob: float = setting(0.1, "dropout after embeddings and sublayers", "[0, 1)")
    attention_probs_dropout_prob: float = setting(0.1, "dropout on attention weights", "[0, 1)")
    layer_norm_eps: float = setting(1e-12, "epsilon of every LayerNorm", "(0, inf)")
    initializer_range: float = setting(0.02, "spread of the initial weights", "(0, inf)")
    attn_implementation: str = setting("sdpa", "readable or fused attention", ("eager", "sdpa"))

    def __post_init__(self):
        _check(type(self), vars(self))
        if self.model_type not in ("bert", "roberta", "distilbert"):
            raise UserError(f"model type {self.model_type!r} is not known; "
                            "use bert, roberta or distilbert")
        if not 0 <= self.pad_token_id < self.vocab_size or self.type_vocab_size < 0:
            raise UserError(f"the padding token {self.pad_token_id} or {self.type_vocab_size} "
                            "token types cannot be; change them")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"hidden size {self.hidden_size} is no multiple of "
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
        """The shape of a published model or of one of this project's budgets, by name."""
        if name not in MODEL_PRESETS:
            raise UserError(f"preset {name!r} is not known; "
                            f"choose one of {', '.join(MODEL_PRESETS)}")
        return cls(**MODEL_PRESETS[name])


def _sizes(layers: int, hidden: int, **other: Any) -> dict[str, Any]:
    """Layers and width; BERT's rules give the rest: heads of 64, a feed-forward of 4 times H."""
    return dict(num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=hidden // 64,
                intermediate_size=4 * hidden, **other)


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
    # Departure: dropout off and a wider initialisation in `tiny` and `small`. Few epochs cannot
    # overfit, and 0.02 is 0.55/sqrt(H) at H 768: at H 128 the same share of 1/sqrt(H) is 0.05.
    "tiny": _sizes(4, 128, vocab_size=4096, max_position_embeddings=128, initializer_range=0.05,
                   hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "small": _sizes(12, 384, vocab_size=8192, initializer_range=0.03,
                    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    # Departure: 6 entries more than BERT's 30,522: a GPU is faster at multiples of 64.
    "base": _sizes(12, 768, vocab_size=30528),
}

# What a preset says about the run; the scripts add its number of steps.
RUN_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(seq_length=32, batch_size=64, learning_rate=2e-3, warmup=0.1, eval_targets=20_000,
                 checkpoint_every=100, tasks="library,same-page", task_rows=1500),
    "small": dict(seq_length=128, batch_size=256, learning_rate=1e-3, warmup=0.1,
                  tasks="sst2,mrpc,cola"),
    # Departure: BERT trains on 128 tokens for nine tenths of its steps; here all have 512.
    "base": dict(seq_length=512, batch_size=256, gradient_accumulation_steps=4,
                 learning_rate=1e-4, warmup=0.01, tasks="sst2,mrpc,cola"),
}


@dataclass(frozen=True)
class RunConfig:
    """One training run: its text, its recipe and its budget."""
    corpus: str = setting("pydocs", "a name in data/ (pydocs, wikitext2, wikitext103) or a path")
    preset: str = setting("auto", "shape and budget; auto: tiny, on a GPU small",
                          ("auto", *RUN_PRESETS))
    out: str = setting("", "the run folder; a Hugging Face folder when it is done")
    steps: int = setting(1, "optimizer steps: updates of the weights", "[1, inf)")
    seed: int = setting(0, "of initial weights, order, pairs, masks and dropout", "[0, inf)")
    device: str = setting("auto", "where to compute", ("auto", "cpu", "cuda", "mps"))
    compile: bool = setting(False, "compile the blocks: faster on a GPU after a minute or so")
    data_fraction: float = setting(1.0, "share of the training text that is used", "(0, 1]")
    tokenizer: str = setting("wordpiece", "BERT's WordPiece, uncased, or RoBERTa's byte-level BPE",
                             ("wordpiece", "bpe"))
    input_format: str = setting("full-sentences", "how text becomes sequences",
                                ("segment-pair", "full-sentences", "doc-sentences"))
    nsp: bool = setting(False, "learn next sentence prediction (needs segment-pair)")
    short_seq_prob: float = setting(0.1, "share of documents cut to shorter segment pairs",
                                    "[0, 1)")
    masking: str = setting("dynamic", "masks that repeat or new ones each epoch",
                           ("static", "dynamic"))
    static_masks: int = setting(10, "how many different static masks (BERT's dupe_factor)",
                                "[1, inf)")
    mask_rate: float = setting(0.15, "share of tokens to predict", "(0, 1]")
    whole_word_masking: bool = setting(False, "choose whole words instead of single tokens")
    seq_length: int = setting(128, "tokens in a sequence, special tokens included", "[8, inf)")
    batch_size: int = setting(256, "sequences in an optimizer step", "[1, inf)")
    gradient_accumulation_steps: int = setting(1, "micro-batches that a batch is cut into, to fit "
                                               "the memory", "[1, inf)")
    learning_rate: float = setting(1e-4, "peak, reached after the warm-up", "(0, inf)")
    warmup: float = setting(0.1, "share of the steps that warm up", "[0, 1)")
    weight_decay: float = setting(0.01, "decoupled; not on LayerNorms and biases", "[0, inf)")
    adam_beta2: float = setting(0.999, "decay of Adam's second moment", "[0, 1)")
    max_grad_norm: float = setting(1.0, "clip the gradient to this norm; 0: never", "[0, inf)")
    eval_targets: int = setting(50_000, "masked tokens in the fixed evaluation set", "[1, inf)")
    log_every: int = setting(50, "steps between lines of log.jsonl", "[1, inf)")
    eval_every: int = setting(500, "steps between evaluations", "[1, inf)")
    checkpoint_every: int = setting(500, "steps between checkpoints", "[1, inf)")
    tasks: str = setting("none", "fine-tune on these at the end, with commas between; none: on "
                         "none; the preset names some")
    task_dir: str = setting("", "the folder that holds the tasks' folders, in GLUE's layout "
                            "[downloaded, or made of pydocs]")
    task_rows: int = setting(0, "use the first rows of each train.tsv only; 0: all", "[0, inf)")

    def __post_init__(self):
        _check(type(self), vars(self))
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
    student_layers: int = setting(0, "layers of the student; 0: half the teacher's", "[0, inf)")
    init: str = setting("teacher", "where the student's weights come from", ("teacher", "random"))
    # Paper: DistilBERT's released training command; section 3 of the paper names no weights.
    alpha_kl: float = setting(5.0, "weight of the soft targets; 0 turns the term off", "[0, inf)")
    alpha_mlm: float = setting(2.0, "weight of the hard labels; 0 turns the term off", "[0, inf)")
    alpha_cos: float = setting(1.0, "weight of the hidden states' cosine; 0 turns the term off",
                               "[0, inf)")
    temperature: float = setting(2.0, "of the soft targets", "(0, inf)")
    distill_positions: str = setting("predicted", "where teacher and student are compared",
                                     ("predicted", "all"))

    def __post_init__(self):
        _check(type(self), vars(self))
        if not self.teacher:
            raise UserError("--teacher is missing; name the folder of a trained run")
        if not (self.alpha_kl or self.alpha_mlm or self.alpha_cos):
            raise UserError("nothing is left to learn from; give one of the three --alpha weights "
                            "a value above 0")


@dataclass(frozen=True)
class FinetuneConfig:
    """A task, and BERT's own way to learn it (Devlin et al. 2018, appendix A.3)."""
    task: str = setting("sst2", "what the columns are; text and pair: a task of your own, with "
                        "text (or text_a and text_b) and label",
                        ("sst2", "cola", "mrpc", "rte", "stsb", "library", "same-page", "text",
                         "pair"))
    task_dir: str = setting("", "the folder with train.tsv and dev.tsv, or with GLUE's folders "
                            "[downloaded, or made of pydocs]")
    out: str = setting("", "the folder for the classifier and its scores")
    epochs: int = setting(3, "passes over train.tsv", "[1, inf)")
    batch_size: int = setting(32, "rows in an optimizer step", "[1, inf)")
    # Departure: BERT's 5e-5 is for H 768; narrower models need larger steps.
    learning_rate: float = setting(0.0, "peak; 0: 5e-5 * 768 / hidden size", "[0, inf)")
    warmup: float = setting(0.1, "share of the steps that warm up", "[0, 1)")
    rows: int = setting(0, "use the first rows of train.tsv only; 0: all", "[0, inf)")
    max_length: int = setting(128, "tokens of an input; the rest is cut off", "[8, inf)")
    teacher: str = setting("", "a folder that finetune made: learn from its probabilities, too")
    # Paper: DistilBERT's released script for SQuAD weighs soft and hard targets alike, at T 2.
    alpha_kl: float = setting(0.5, "share of the teacher's soft targets in the loss", "[0, 1]")
    temperature: float = setting(2.0, "of the soft targets", "(0, inf)")
    seed: int = setting(0, "of the head's weights, order and dropout", "[0, inf)")
    device: str = setting("auto", "where to compute", ("auto", "cpu", "cuda", "mps"))

    def __post_init__(self):
        _check(type(self), vars(self))
        if not self.out:
            raise UserError("--out is missing; name a folder for the classifier")
        if not self.teacher and (self.alpha_kl, self.temperature) != (
                FinetuneConfig.alpha_kl, FinetuneConfig.temperature):
            raise UserError("--alpha-kl and --temperature are about a teacher's probabilities; "
                            "name the teacher with --teacher")


@dataclass(frozen=True)
class BenchConfig:
    """What is timed, and how often."""
    num_hidden_layers: int = setting(4, "layers of the encoder; a student has half", "[1, inf)")
    hidden_size: int = setting(256, "width; heads of 64, a feed-forward of 4 times that",
                               "[64, inf)")
    vocab_size: int = setting(8192, "entries of the vocabulary", "[100, inf)")
    seq_length: int = setting(128, "tokens in a sequence", "[8, inf)")
    batch_size: int = setting(32, "sequences in an optimizer step", "[1, inf)")
    rounds: int = setting(6, "how often each case is timed", "[1, inf)")
    threads: int = setting(0, "threads on a CPU; 0: one a core", "[0, inf)")
    compile: bool = setting(False, "compile our blocks")
    only: str = setting("steps,masking,latency,growth,corpus", "parts, with commas between")
    device: str = setting("auto", "where to compute", ("auto", "cpu", "cuda", "mps"))

    def __post_init__(self):
        _check(type(self), vars(self))


def parse_flags(doc: str, recipe: dict[str, Any], steps: dict[str, int], other: type,
                without: tuple[str, ...] = (), argv: list[str] | None = None
                ) -> tuple[RunConfig, Any]:
    """Read the command line of a training script.

    doc: the script's docstring. recipe: what the script sets apart from RunConfig's defaults.
    steps: number of steps by preset. other: the config class that gives further flags. without:
    settings that would have no effect in this script. Returns a RunConfig and one of the other
    class. Raises UserError on a value that cannot be.
    """
    parser = Parser(description=doc.strip().splitlines()[0])
    by_preset = {"steps"}.union(*(MODEL_PRESETS[name] for name in RUN_PRESETS),
                                *RUN_PRESETS.values())
    for config in (RunConfig, other):
        add_flags(parser, config, {**recipe, **dict.fromkeys(by_preset, "by preset")}, without)
    given = vars(parser.parse_args(argv))
    preset = pick_preset(given.get("preset", "auto"), given.get("device", "auto"))
    chosen = {**recipe, **MODEL_PRESETS[preset], **RUN_PRESETS[preset], "steps": steps[preset],
              **given, "preset": preset}
    if H := given.get("hidden_size"):  # the rest of the shape follows, as in BERT
        chosen |= {"num_attention_heads": max(1, H // 64), "intermediate_size": 4 * H, **given}
    if "tasks" not in given:
        chosen["tasks"] = preset_tasks(preset, chosen.get("corpus", "pydocs"))
    make = lambda config: config(**{item.name: chosen[item.name]
                                    for item in dataclasses.fields(config) if item.name in chosen})
    return make(RunConfig), make(other)


def preset_tasks(preset: str, corpus: str) -> str:
    """The tasks that a run ends with: the preset's, but those made of pydocs for pydocs only."""
    return "none" if preset == "tiny" and corpus != "pydocs" else RUN_PRESETS[preset]["tasks"]


def pick_preset(name: str, device: str = "auto") -> str:
    """The preset's name, `auto` resolved to what the device can do in an hour: tiny or small."""
    return name if name != "auto" else "small" if pick_device(device) == "cuda" else "tiny"


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


class Parser(argparse.ArgumentParser):
    """argparse, with our one line for what is wrong; flags are written out."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:  # argparse prints the usage first; this says more
        raise UserError(f"{message}; see --help")


def add_flags(parser: Parser, config: type, recipe: dict[str, Any] | None = None,
              without: tuple[str, ...] = ()) -> None:
    """A flag for each setting of a config class; only those that are given reach the namespace."""
    group = parser.add_argument_group(config.__doc__.splitlines()[0])
    for item in dataclasses.fields(config):
        if item.metadata and item.name not in without:
            _add_flag(group, item, (recipe or {}).get(item.name, item.default))


def _add_flag(group: Any, item: dataclasses.Field, default: Any) -> None:
    kind, allowed = type(item.default), item.metadata["allowed"]
    shown = "" if default in ("", 0) else f" [{default}]"
    options: dict[str, Any] = dict(default=argparse.SUPPRESS, help=item.metadata["help"] + shown)
    if kind is bool:
        group.add_argument(_flag(item.name), action=argparse.BooleanOptionalAction, **options)
    elif isinstance(allowed, tuple):
        group.add_argument(_flag(item.name), choices=allowed, **options)
    else:
        group.add_argument(_flag(item.name), type=kind, metavar=kind.__name__.upper(), **options)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check(config: type, values: dict[str, Any]) -> None:
    """Raise UserError at the first value that its field does not allow."""
    for item in dataclasses.fields(config):
        allowed, value = item.metadata.get("allowed"), values.get(item.name, item.default)
        if type(value) not in ((int, float) if item.type is float else (item.type,)):
            raise UserError(f"{_flag(item.name)} must be {item.type.__name__}; it is {value!r}")
        if not allowed or item.name not in values:
            continue
        if isinstance(allowed, tuple):
            if value not in allowed:
                raise UserError(f"{_flag(item.name)} {value!r} is not known; "
                                f"choose one of {', '.join(allowed)}")
            continue
        low, high = map(float, allowed[1:-1].split(","))
        above = low <= value if allowed[0] == "[" else low < value
        below = value <= high if allowed[-1] == "]" else value < high
        if not (above and below):  # which is so for nan, too
            raise UserError(f"{_flag(item.name)} must be in {allowed}; it is {value}")
