"""Hugging Face folders, both ways: the same weights under `transformers`' names.

The tables map this package's module names to theirs; {} is the layer's number. Their separate key
and value projections are one matrix here, so that entry holds two names.
"""
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from minibert.config import ModelConfig
from minibert.errors import UserError
from minibert.files.run_folder import write_json
from minibert.model import MaskedLM
from minibert.tokenizer import load_tokenizer, special_ids

_BERT_ENCODER = {
    "encoder.embeddings.word": "embeddings.word_embeddings",
    "encoder.embeddings.position": "embeddings.position_embeddings",
    "encoder.embeddings.token_type": "embeddings.token_type_embeddings",
    "encoder.embeddings.norm": "embeddings.LayerNorm",
    "encoder.layers.{}.attention.query": "encoder.layer.{}.attention.self.query",
    "encoder.layers.{}.attention.key_value": ("encoder.layer.{}.attention.self.key",
                                              "encoder.layer.{}.attention.self.value"),
    "encoder.layers.{}.attention.output": "encoder.layer.{}.attention.output.dense",
    "encoder.layers.{}.attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "encoder.layers.{}.intermediate": "encoder.layer.{}.intermediate.dense",
    "encoder.layers.{}.output": "encoder.layer.{}.output.dense",
    "encoder.layers.{}.output_norm": "encoder.layer.{}.output.LayerNorm",
    "pooler": "pooler.dense",
}
_DISTILBERT_ENCODER = {
    "encoder.embeddings.word": "embeddings.word_embeddings",
    "encoder.embeddings.position": "embeddings.position_embeddings",
    "encoder.embeddings.norm": "embeddings.LayerNorm",
    "encoder.layers.{}.attention.query": "transformer.layer.{}.attention.q_lin",
    "encoder.layers.{}.attention.key_value": ("transformer.layer.{}.attention.k_lin",
                                              "transformer.layer.{}.attention.v_lin"),
    "encoder.layers.{}.attention.output": "transformer.layer.{}.attention.out_lin",
    "encoder.layers.{}.attention_norm": "transformer.layer.{}.sa_layer_norm",
    "encoder.layers.{}.intermediate": "transformer.layer.{}.ffn.lin1",
    "encoder.layers.{}.output": "transformer.layer.{}.ffn.lin2",
    "encoder.layers.{}.output_norm": "transformer.layer.{}.output_layer_norm",
}
_HEADS = {
    "bert": {"transform": "cls.predictions.transform.dense",
             "transform_norm": "cls.predictions.transform.LayerNorm",
             "decoder_bias": "cls.predictions.bias", "nsp_head": "cls.seq_relationship"},
    "roberta": {"transform": "lm_head.dense", "transform_norm": "lm_head.layer_norm",
                "decoder_bias": "lm_head.bias"},
    "distilbert": {"transform": "vocab_transform", "transform_norm": "vocab_layer_norm",
                   "decoder_bias": "vocab_projector.bias"},
}
# The tied decoder under its own name, and what `transformers` writes beside it.
_DECODERS = {"bert": "cls.predictions.decoder", "roberta": "lm_head.decoder",
             "distilbert": "vocab_projector"}
_DISTILBERT_FIELDS = {"hidden_size": "dim", "num_hidden_layers": "n_layers",
                      "num_attention_heads": "n_heads", "intermediate_size": "hidden_dim",
                      "hidden_act": "activation", "hidden_dropout_prob": "dropout",
                      "attention_probs_dropout_prob": "attention_dropout"}
_OURS_ONLY = ("next_sentence", "attn_implementation")


def their_names(config: ModelConfig, name: str) -> tuple[str, ...]:
    """What `transformers` calls one of our parameters; two names where ours is two of theirs.

    >>> their_names(ModelConfig(), "encoder.layers.3.attention_norm.bias")
    ('bert.encoder.layer.3.attention.output.LayerNorm.bias',)
    """
    if name == "decoder_bias":
        return (_HEADS[config.model_type][name],)
    module, kind = name.rsplit(".", 1)
    if module in _HEADS[config.model_type]:
        return (f"{_HEADS[config.model_type][module]}.{kind}",)
    number = next((part for part in module.split(".") if part.isdigit()), "")
    table = _DISTILBERT_ENCODER if config.model_type == "distilbert" else _BERT_ENCODER
    theirs = table[module.replace(f".{number}.", ".{}.", 1) if number else module]
    theirs = (theirs,) if isinstance(theirs, str) else theirs
    return tuple(f"{config.model_type}.{one.format(number)}.{kind}" for one in theirs)


def save_pretrained(model: MaskedLM, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write config.json, pytorch_model.bin and the tokenizer, as `transformers` reads them."""
    folder, config, weights = Path(folder), model.config, {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, parameter in model.state_dict().items():
        theirs = their_names(config, name)
        for their_name, part in zip(theirs, parameter.cpu().chunk(len(theirs))):
            weights[their_name] = part.clone()
    decoder = _DECODERS[config.model_type]
    weights[f"{decoder}.weight"] = model.encoder.embeddings.word.weight.detach().cpu().clone()
    weights[f"{decoder}.bias"] = model.decoder_bias.detach().cpu().clone()
    torch.save(weights, folder / "pytorch_model.bin")

    fields = {name: value for name, value in dataclasses.asdict(config).items()
              if name not in _OURS_ONLY}
    architecture = "BertForPreTraining" if config.next_sentence else {
        "bert": "BertForMaskedLM", "roberta": "RobertaForMaskedLM",
        "distilbert": "DistilBertForMaskedLM"}[config.model_type]
    special = special_ids(tokenizer)
    fields |= {"architectures": [architecture], "tie_word_embeddings": True,
               "bos_token_id": special.cls, "eos_token_id": special.sep}
    if config.model_type == "distilbert":
        fields = {_DISTILBERT_FIELDS.get(name, name): value for name, value in fields.items()}
        fields |= {"tie_weights_": True, "sinusoidal_pos_embds": False}
    write_json(folder / "config.json", fields)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{role}_token": tokenizer.id_to_token(id) for role, id in special._asdict().items()}
    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * (config.type_vocab_size == 2)
    write_json(folder / "tokenizer_config.json",
                {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs,
                 "model_max_length": config.max_length, **names})


def load_pretrained(folder: str | Path) -> tuple[MaskedLM, Tokenizer]:
    """Read a model and its tokenizer from a run's folder or one that `transformers` wrote.

    Raises UserError when a file is missing or broken, and when a weight is missing, unknown or of
    another shape; nothing that a file holds is executed.
    """
    folder = Path(folder)
    if (folder / "classifier.pt").exists():
        raise UserError(f"{folder} is a fine-tuned classifier, which has no head for words; name "
                        "the run that it was made from")
    theirs = _read_weights(folder)
    config = _read_config(folder, "cls.seq_relationship.weight" in theirs)
    model = build_on_meta(lambda: MaskedLM(config), config, theirs, folder)
    decoder = _DECODERS[config.model_type]
    ignored = {f"{decoder}.weight", f"{decoder}.bias", "bert.embeddings.position_ids",
               "roberta.embeddings.position_ids", "roberta.pooler.dense.weight",
               "roberta.pooler.dense.bias"}
    if not config.next_sentence:
        ignored |= {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    ours = {}
    for name, expected in model.state_dict().items():
        names = their_names(config, name)
        if missing := [one for one in names if one not in theirs]:
            raise UserError(f"{folder} lacks the weight {missing[0]}; copy the folder again")
        ours[name] = torch.cat([theirs.pop(one) for one in names])
        if ours[name].shape != expected.shape:
            raise UserError(f"{folder}: {names[0]} does not have the shape that config.json says; "
                            "copy the folder again")
    if unknown := sorted(set(theirs) - ignored):
        raise UserError(f"{folder} holds the weight {unknown[0]}, which this model has no place "
                        "for; use a masked language model of BERT, RoBERTa or DistilBERT")
    words = theirs.get(f"{decoder}.weight")
    if words is not None and not torch.equal(words, ours["encoder.embeddings.word.weight"]):
        raise UserError(f"{folder}: {decoder}.weight is not the word embeddings; use a model whose "
                        "decoder is tied to them")
    model.load_state_dict(ours, assign=True)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise UserError(f"{folder}: the tokenizer knows {tokenizer.get_vocab_size()} tokens, the "
                        f"model {config.vocab_size}; they do not belong together")
    return model, tokenizer


def build_on_meta(make: Callable[[], nn.Module], config: ModelConfig,
                  weights: dict[str, Tensor], folder: str | Path) -> nn.Module:
    """What `make` makes of a stranger's config, without memory: the file's tensors become weights.

    Raises UserError when the config asks for more layers than there are weights, or sizes that no
    tensor has.
    """
    if config.num_hidden_layers > len(weights):
        raise UserError(f"{folder} lacks weights: {config.num_hidden_layers} layers are more than "
                        f"its {len(weights)} tensors; copy the folder again")
    try:
        with torch.device("meta"):
            return make()
    except RuntimeError as error:
        raise UserError(f"{folder} asks for an impossible model ({error}); copy it again") from None


def _read_config(folder: Path, next_sentence: bool) -> ModelConfig:
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if fields.get("model_type") == "distilbert":
            ours = {theirs: name for name, theirs in _DISTILBERT_FIELDS.items()}
            fields = {ours.get(name, name): value for name, value in fields.items()}
            fields |= {"type_vocab_size": 0, "layer_norm_eps": 1e-12}  # DistilBERT fixes both
        known = {item.name for item in dataclasses.fields(ModelConfig)} - set(_OURS_ONLY)
        return ModelConfig(next_sentence=next_sentence,
                           **{name: fields[name] for name in known if name in fields})
    except FileNotFoundError:
        raise UserError(f"{folder}/config.json is missing; name the folder of a finished run or "
                        "of a Hugging Face model") from None
    except (ValueError, AttributeError, TypeError, UserError) as error:  # of a field, too
        raise UserError(f"{folder}/config.json cannot be used ({error}); copy it again") from None


def _read_weights(folder: Path) -> dict[str, Tensor]:
    safe, plain = folder / "model.safetensors", folder / "pytorch_model.bin"
    weights = read_tensors(safe if safe.exists() and not plain.exists() else plain)
    return {_modern(name): tensor for name, tensor in weights.items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a pickle in which nothing is executed, by name.

    Raises UserError when the file is missing, broken, holds anything else, or numbers that are
    not finite.
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
    except Exception as error:  # torch and safetensors name many kinds of broken files
        raise UserError(f"{path} cannot be read ({error}); copy it again") from None
    if bad:
        raise UserError(f"{path}: the weight {bad[0]} is not finite; copy it again")
    return weights


def _modern(name: str) -> str:
    """The first BERT checkpoints call LayerNorm's weight gamma and its bias beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta",
                                                                       "LayerNorm.bias")
