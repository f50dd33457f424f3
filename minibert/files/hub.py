"""Hugging Face folders, written and read: the same weights under the names of `transformers`.

The tables map this package's module names to theirs. They have separate key and value projections,
which are one matrix here, so that entry holds two names.
"""
import dataclasses
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from minibert.config import ModelConfig
from minibert.errors import UserError
from minibert.files.run_folder import read_json, write_json
from minibert.model import MaskedLM
from minibert.tokenizer import load_tokenizer, special_ids

# Outside the layers, with names that all families share where they have the module.
_ENCODER = {
    "encoder.embeddings.word": "embeddings.word_embeddings",
    "encoder.embeddings.position": "embeddings.position_embeddings",
    "encoder.embeddings.token_type": "embeddings.token_type_embeddings",
    "encoder.embeddings.norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
}
# In a layer: what BERT and RoBERTa call our module, and what DistilBERT does.
_LAYER = {
    "attention.query": ("attention.self.query", "attention.q_lin"),
    "attention.key_value": ("attention.self.key attention.self.value",
                            "attention.k_lin attention.v_lin"),
    "attention.output": ("attention.output.dense", "attention.out_lin"),
    "attention_norm": ("attention.output.LayerNorm", "sa_layer_norm"),
    "intermediate": ("intermediate.dense", "ffn.lin1"),
    "output": ("output.dense", "ffn.lin2"),
    "output_norm": ("output.LayerNorm", "output_layer_norm"),
}
# `transformers` also writes the tied decoder, under a name of its own. The last two are those of a
# classifier that reads [CLS].
_HEADS = {
    "bert": {"transform": "cls.predictions.transform.dense",
             "transform_norm": "cls.predictions.transform.LayerNorm",
             "decoder": "cls.predictions.decoder", "decoder_bias": "cls.predictions.bias",
             "nsp_head": "cls.seq_relationship",
             "dense": "bert.pooler.dense", "classifier": "classifier"},
    "roberta": {"transform": "lm_head.dense", "transform_norm": "lm_head.layer_norm",
                "decoder": "lm_head.decoder", "decoder_bias": "lm_head.bias",
                "dense": "classifier.dense", "classifier": "classifier.out_proj"},
    "distilbert": {"transform": "vocab_transform", "transform_norm": "vocab_layer_norm",
                   "decoder": "vocab_projector", "decoder_bias": "vocab_projector.bias",
                   "dense": "pre_classifier", "classifier": "classifier"},
}
_DISTILBERT_FIELDS = {"hidden_size": "dim", "num_hidden_layers": "n_layers",
                      "num_attention_heads": "n_heads", "intermediate_size": "hidden_dim",
                      "hidden_act": "activation", "hidden_dropout_prob": "dropout",
                      "attention_probs_dropout_prob": "attention_dropout"}
FILES = ("config.json", "pytorch_model.bin")
_OURS_ONLY = ("next_sentence", "attn_implementation")
_CLASSES = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}


def their_names(config: ModelConfig, name: str) -> tuple[str, ...]:
    """What `transformers` calls one of our parameters; two names where it has two for our one.

    >>> their_names(ModelConfig(), "encoder.layers.3.attention_norm.bias")
    ('bert.encoder.layer.3.attention.output.LayerNorm.bias',)
    """
    heads, distilbert = _HEADS[config.model_type], config.model_type == "distilbert"
    if name == "decoder_bias":
        return (heads[name],)
    module, kind = name.rsplit(".", 1)
    if module in heads:
        return (f"{heads[module]}.{kind}",)
    if module in _ENCODER:
        return (f"{config.model_type}.{_ENCODER[module]}.{kind}",)
    _, _, number, part = module.split(".", 3)  # encoder.layers.3.attention.query
    layer = f"{config.model_type}.{'transformer' if distilbert else 'encoder'}.layer.{number}"
    return tuple(f"{layer}.{their_part}.{kind}" for their_part in _LAYER[part][distilbert].split())


def save_pretrained(model: nn.Module, tokenizer: Tokenizer, folder: str | Path,
                    files: tuple[str, str] = FILES, **fields: Any) -> None:
    """Write config.json, pytorch_model.bin and the tokenizer, for `transformers` to read.

    model: a MaskedLM or, with `fields`, a classifier; they are what config.json says of its labels.
    files: other names, for a model that `transformers` cannot compute.
    """
    folder, config, weights = Path(folder), model.config, {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, parameter in model.state_dict().items():
        theirs = their_names(config, name)
        for their_name, part in zip(theirs, parameter.cpu().chunk(len(theirs))):
            weights[their_name] = part.clone()
    head = "PreTraining" if config.next_sentence else "MaskedLM"
    if fields:
        head = "SequenceClassification"
    else:
        decoder = _HEADS[config.model_type]["decoder"]
        weights[f"{decoder}.weight"] = model.encoder.embeddings.word.weight.detach().cpu().clone()
        weights[f"{decoder}.bias"] = model.decoder_bias.detach().cpu().clone()
    torch.save(weights, folder / files[1])

    special = special_ids(tokenizer)
    fields = {name: value for name, value in dataclasses.asdict(config).items()
              if name not in _OURS_ONLY} | fields
    fields |= {"architectures": [f"{_CLASSES[config.model_type]}For{head}"],
               "tie_word_embeddings": True,
               "bos_token_id": special.cls, "eos_token_id": special.sep}
    if config.model_type == "distilbert":
        fields = {_DISTILBERT_FIELDS.get(name, name): value for name, value in fields.items()}
        fields |= {"tie_weights_": True, "sinusoidal_pos_embds": False}
    write_json(folder / files[0], fields)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    names = {f"{role}_token": tokenizer.id_to_token(id) for role, id in special._asdict().items()}
    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * (config.type_vocab_size == 2)
    write_json(folder / "tokenizer_config.json",
               {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs,
                "model_max_length": cut_at(tokenizer, config), **names})


def cut_at(tokenizer: Tokenizer, config: ModelConfig) -> int:
    """The length to which a tokenizer cuts texts, or else the longest that a model can read."""
    return (tokenizer.truncation or {}).get("max_length", config.max_length)


def load_pretrained(folder: str | Path) -> tuple[MaskedLM, Tokenizer]:
    """Read a model and its tokenizer from a run's folder, or from one that `transformers` wrote.

    Nothing that a file holds is executed. Raises UserError when a file is missing or broken, or
    when a weight is missing, unknown or of another shape.
    """
    folder, no_words = Path(folder), ("which has no head for words; name a masked language model, "
                                      "such as the run that it was made from")
    if (folder / "classifier.pt").exists():
        raise UserError(f"{folder} holds a fine-tuned classifier, {no_words}")
    fields, config, theirs = read_folder(folder)
    if their_names(config, "transform.weight")[0] not in theirs:
        kind = str(fields.get("architectures", "another model")).strip("[]'")
        raise UserError(f"{folder} holds {kind}, {no_words}")
    decoder, family = _HEADS[config.model_type]["decoder"], config.model_type
    poolers = [f"{family}.pooler.dense.{kind}" for kind in ("weight", "bias")]
    model, tokenizer = fill(lambda: MaskedLM(config), config, theirs, folder,
                            {f"{decoder}.weight", f"{decoder}.bias", *poolers})
    words = theirs.get(f"{decoder}.weight")
    if words is not None and not torch.equal(words, model.encoder.embeddings.word.weight):
        raise UserError(f"{folder}: {decoder}.weight is not the word embeddings; use a model whose "
                        "decoder is tied to them")
    return model, tokenizer


def fingerprint_of(model: nn.Module) -> str:
    """A hash of a model's weights, by which they are known wherever and however they are stored."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(name.encode() + weight.float().numpy().tobytes())
    return digest.hexdigest()[:16]


def fill(make: Callable[[], nn.Module], config: ModelConfig, theirs: dict[str, Tensor],
         folder: Path, ignored: set[str]) -> tuple[nn.Module, Tokenizer]:
    """Return the model that `make` builds, with a folder's weights, and the folder's tokenizer.

    theirs: the weights by the names of `transformers`; what is used is taken out. ignored: names
    that need no place in the model. Raises UserError when weights, tokenizer and config.json do not
    fit together.
    """
    if config.num_hidden_layers > len(theirs):
        raise UserError(f"{folder} lacks weights: {config.num_hidden_layers} layers are more than "
                        f"its {len(theirs)} tensors; make or copy it again")
    try:
        with torch.device("meta"):  # no memory is taken yet, so a stranger's sizes cannot fill it
            model = make()
    except RuntimeError as error:  # sizes that no tensor can have
        raise UserError(f"{folder} asks for an impossible model ({error}); copy it again") from None
    ours = {}
    for name, expected in model.state_dict().items():
        names = their_names(config, name)
        if missing := [their_name for their_name in names if their_name not in theirs]:
            raise UserError(f"{folder} lacks the weight {missing[0]}; make or copy it again")
        ours[name] = torch.cat([theirs.pop(their_name) for their_name in names])
        if ours[name].shape != expected.shape:
            raise UserError(f"{folder}: {names[0]} does not have the shape that its settings give; "
                            "make or copy it again")
    # position_ids are 0, 1, 2, ... and no weights.
    if unknown := sorted(name for name in set(theirs) - ignored if "position_ids" not in name):
        raise UserError(f"{folder} holds the weight {unknown[0]}, which this model has no place "
                        "for; use a model of BERT, RoBERTa or DistilBERT")
    model.load_state_dict(ours, assign=True)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise UserError(f"{folder}: the tokenizer knows {tokenizer.get_vocab_size()} tokens, the "
                        f"model {config.vocab_size}; they do not belong together")
    if special_ids(tokenizer).pad != config.pad_token_id:
        raise UserError(f"{folder}: padding is token {special_ids(tokenizer).pad} to the tokenizer "
                        f"and {config.pad_token_id} to the model; they do not belong together")
    return model, tokenizer


def read_folder(folder: Path, files: tuple[str, str] = FILES
                ) -> tuple[dict[str, Any], ModelConfig, dict[str, Tensor]]:
    """What config.json says, what we make of it, and the weights by the names of `transformers`.

    Raises UserError when a file is missing or broken, or when the model is none of ours.
    """
    safe, plain = folder / "model.safetensors", folder / files[1]
    weights = read_tensors(safe if safe.exists() and not plain.exists() else plain)
    # The first BERT checkpoints say gamma and beta in their LayerNorms.
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
    fields = read_json(folder / files[0], "is missing; name the folder of a finished run or "
                       "of a Hugging Face model")
    known = fields
    if fields.get("model_type") == "distilbert":
        ours = {theirs: name for name, theirs in _DISTILBERT_FIELDS.items()}
        known = {ours.get(name, name): value for name, value in fields.items()}
        known |= {"type_vocab_size": 0, "layer_norm_eps": 1e-12}  # fixed in DistilBERT
    names = {item.name for item in dataclasses.fields(ModelConfig)} - set(_OURS_ONLY)
    try:
        return fields, ModelConfig(next_sentence="cls.seq_relationship.weight" in weights,
                                   **{name: known[name] for name in names & set(known)}), weights
    except UserError as error:
        raise UserError(f"{folder}/{files[0]} asks for a model that is not supported ({error}); "
                        "use another one") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a pickle, by name; no code in it is executed.

    Raises UserError when the file is missing or broken, or holds anything else than tensors of
    finite numbers.
    """
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file as read
        except ImportError:
            raise UserError(f"{path} needs the safetensors package; pip install safetensors") \
                from None
    else:
        read = lambda path: torch.load(path, map_location="cpu", weights_only=True)
    try:
        weights = {str(name): tensor for name, tensor in read(path).items()}
        bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    except FileNotFoundError:
        raise UserError(f"{path} is missing; name the folder of a finished run") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path} holds more than tensors and is not read: it could run code; "
                        "get the model from a source you trust, as safetensors") from None
    except Exception as error:  # torch and safetensors raise many classes for broken files
        raise UserError(f"{path} cannot be read ({error}); copy it again") from None
    if bad:
        raise UserError(f"{path}: the weight {bad[0]} is not finite; copy it again")
    return weights
