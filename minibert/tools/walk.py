"""One real batch at every station from text to loss, with the file and line that makes it.

B batch, S sequence, H hidden, A heads, D head size, V vocabulary, M predicted positions.
"""
import importlib
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from minibert import data, losses, masking, model
from minibert.config import ModelConfig, RunConfig
from minibert.errors import UserError
from minibert.files import corpus
from minibert.files.hub import load_pretrained
from minibert.files.run_folder import ROOT, read_json
from minibert.masking import IGNORE, DynamicMasker, StaticMasker
from minibert.model import MaskedLM, MaskedLMOutput
from minibert.student import make_student
from minibert.tokenizer import special_ids

SCRIPTS = {"bert": "train_bert", "roberta": "train_roberta", "distilbert": "distill"}
SHOWN = 5  # predictions that are shown in full


@torch.no_grad()
def walk(recipe: str, flags: list[str], folder: str = "") -> str:
    """Show the first batch of a recipe as its script would see it, without dropout.

    recipe: bert, roberta or distilbert. flags: of its script. folder: a finished run, whose
    weights, text and settings to use; "" is for a new model. Raises UserError when they do not
    belong together.
    """
    script, distills = importlib.import_module(SCRIPTS[recipe]), recipe == "distilbert"
    # Of a student, `sizes` is a DistillConfig.
    run, sizes = script.read_flags(["--out", "none", *flags], _settings_of(folder, recipe))
    net, reader = load_pretrained(folder) if folder else (None, None)
    teacher, weights = None, folder
    if distills:
        teacher, teacher_reader = load_pretrained(sizes.teacher)
        if net is None:
            (net, layers), reader = make_student(teacher, sizes, run.seed), teacher_reader
            weights = f"layers {layers} of {sizes.teacher}" if layers else ""
        if (teacher_reader.to_str(), teacher.config.hidden_size) != (reader.to_str(),
                                                                     net.config.hidden_size):
            raise UserError(f"{folder} has another vocabulary or width than its teacher "
                            f"{sizes.teacher}; name its own with --teacher")
        teacher.eval()
    size = 0 if distills else sizes.vocab_size
    reader, text, _, _ = corpus.prepare(run.corpus, run.tokenizer, size, reader)
    special = special_ids(reader)
    if net is None:
        net = MaskedLM(script.make_model_config(run, sizes, special.pad), run.seed)
    if run.nsp and not net.config.next_sentence:
        raise UserError(f"{folder} has no NSP head; add --no-nsp")
    net.eval()
    masker = DynamicMasker(special, reader.get_vocab_size(), run.seed, run.mask_rate)
    if run.masking == "static":
        masker = StaticMasker(special, reader.get_vocab_size(), run.seed, run.mask_rate,
                              run.static_masks)
    text = corpus.training_part(text, run)
    batches = data.Batches(text, run, special, "cpu", masker.duplicate_of)
    clean = next(batches)
    batch = masker(clean)
    shapes = _shapes(net)
    inputs = dict(input_ids=batch.input_ids, attention_mask=batch.attention_mask,
                  positions=batch.masked_positions)
    output = net(**inputs, token_type_ids=(batch.token_type_ids if net.config.type_vocab_size
                                           else None))
    taught = teacher and teacher(**inputs)
    lines = []
    if not weights:
        lines.append("The weights are new and have learned nothing, so the guesses below mean "
                     "nothing yet; --run FOLDER shows a trained model.\n")
    return "\n".join([
        *lines, f"{SCRIPTS[recipe]}.py: {inspect.getdoc(script).splitlines()[0]}",
        "recipe: " + ", ".join(f"{name} {getattr(run, name)}" for name in script.RECIPE
                               if hasattr(run, name)),
        f"weights: {weights or 'new'}",
        *_text(run.corpus, text, reader),
        *_sequences(clean, batches, reader),
        *_mask(batch, reader),
        *_forward(net.config, shapes),
        *_predictions(output, taught, batch, reader),
        *_loss(output, taught, batch, run, sizes, script.main)])


def _settings_of(folder: str, recipe: str) -> dict[str, Any]:
    """The settings of a run; none where there is no run.json.

    Raises UserError when it is a run of another recipe.
    """
    if not (Path(folder) / "run.json").exists():
        return {}
    run = read_json(Path(folder) / "run.json", "")
    made_by = "distilbert" if "distill" in run else run["model"]["model_type"]
    if made_by != recipe:
        raise UserError(f"{folder} is a run of {made_by}; "
                        f"python -m minibert walk {made_by} --run {folder}")
    settings = {**run["model"], **run["settings"], **run.get("distill", {}), "out": "none"}
    return {**settings, "distill_positions": "predicted"}  # of "all", there is nothing to be seen


def _text(name: str, text: data.TokenizedCorpus, reader: Tokenizer) -> list[str]:
    """The corpus, shown by its first sentence."""
    first = data.sentences_of(next(corpus.read_documents(corpus.corpus_path(name))))[0]
    ids = next(data.tokenize(iter([[first]]), reader))[0]
    return [
        *_station("text", data.sentences_of, f"There are {text.num_documents:,} "
                  "documents to train on. The first sentence of the file is", repr(first)),
        *_station("tokens", data.tokenize, f"On disk they are {len(text.tokens):,} tokens, "
                  f"numbers below V = {reader.get_vocab_size():,}. That sentence becomes",
                  _names(ids, reader))]


def _sequences(batch: data.Batch, batches: data.Batches, reader: Tokenizer) -> list[str]:
    """From tokens to the batch, shown by its first sequence."""
    text, number = batches.corpus, int(batch.sequence_ids[0])
    a_start, a_end, b_start, b_end, is_random = batches.spans[number].tolist()
    say = lambda start, end: repr(reader.decode(text.tokens[start:end].tolist()))
    if batches.run.input_format == "segment-pair":
        made, follows = data.segment_pairs, ("follows A", "is from another document")[is_random]
        spans = [f"A: tokens {a_start:,} to {a_end:,}; B: tokens {b_start:,} to {b_end:,}",
                 f"B {follows}, so the label for NSP is {is_random}",
                 f"A: {say(a_start, a_end)}", f"B: {say(b_start, b_end)}"]
    else:
        made = data.full_sentences
        spans = [f"tokens {a_start:,} to {a_end:,}: whole sentences, one after another",
                 say(a_start, a_end)]
    B, S = batch.input_ids.shape
    return [
        *_station("sequences", made, f"{len(batches.spans):,} sequences are made of "
                  f"{len(text.sentences):,} sentences. This is number {number:,}:", *spans),
        *_station("batch", data.assemble, f"input_ids, attention_mask and token_type_ids "
                  f"are (B, S) = ({B}, {S})", _names(batch.input_ids[0], reader),
                  f"{int(batch.attention_mask[0].sum())} of them are tokens, the rest is padding; "
                  f"{int(batch.token_type_ids[0].sum())} are in segment B")]


def _mask(batch: data.Batch, reader: Tokenizer) -> list[str]:
    """What the masker did to the batch."""
    used = batch.labels != IGNORE
    shown = batch.input_ids.gather(1, batch.masked_positions)[used]
    masked = int((shown == special_ids(reader).mask).sum())
    kept = int((shown == batch.labels[used]).sum())
    return _station(
        "mask", masking.mask_tokens, f"{len(shown):,} of {int(batch.attention_mask.sum()):,} "
        f"tokens are to be predicted: {masked} become [MASK], {kept} stay as they are, "
        f"{len(shown) - masked - kept} are random words",
        f"masked_positions and labels are (B, M) = {tuple(used.shape)}; "
        f"{int((~used).sum())} slots are not used", _names(batch.input_ids[0], reader))


def _forward(config: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """The shapes that pass through the encoder."""
    H, A = config.hidden_size, config.num_attention_heads
    tables = "words + positions" + " + token types" * bool(config.type_vocab_size)
    first = "encoder.layers.0.attention"
    lines = [*_station("embeddings", model.Embeddings, f"{tables}, normalised, are (B, S, H) = "
                       f"{shapes['encoder.embeddings']}"),
             *_station("attention", model.Attention, "queries are (B, S, H) = "
                       f"{shapes[first + '.query']}, keys and values "
                       f"{shapes[first + '.key_value']}, for A = {A} heads of D = {H // A}")]
    for number in range(config.num_hidden_layers):
        name = f"encoder.layers.{number}"
        lines += _station(f"layer {number + 1}", model.Block, "the feed-forward network is "
                          f"{shapes[name + '.intermediate']}, the result {shapes[name]}")
    read = "[CLS] and the predictions" if config.next_sentence else "the predictions"
    return [*lines, f"    (of the last layer, only {read} are read)"]


def _predictions(output: MaskedLMOutput, taught: MaskedLMOutput | None, batch: data.Batch,
                 reader: Tokenizer) -> list[str]:
    """What the teacher and the model expect in the first sequence's blanks."""
    lines = _station("logits", MaskedLM.forward, "the decoder is the table of words; the logits "
                     f"are (B, M, V) = {tuple(output.mlm_logits.shape)}")
    for slot in (batch.labels[0] != IGNORE).nonzero().flatten().tolist()[:SHOWN]:
        word = int(batch.labels[0, slot])
        for who, found in (("teacher: ", taught), ("", output)):
            if found is not None:
                shares = found.mlm_logits[0, slot].softmax(-1)
                best = ", ".join(f"{reader.id_to_token(int(id))} {shares[id]:.1%}"
                                 for id in shares.topk(4).indices)
                lines.append(f"    position {int(batch.masked_positions[0, slot]):3}, {who}{best}; "
                             f"{reader.id_to_token(word)!r} has {shares[word]:.1%}, "
                             f"-log p = {-shares[word].log():.3f}")
    return lines


def _loss(output: MaskedLMOutput, taught: MaskedLMOutput | None, batch: data.Batch,
          run: RunConfig, distill: Any, main: Callable) -> list[str]:
    """Each term, computed by the functions that the scripts call, and their sum.

    distill: a DistillConfig where there is a teacher. main: the script's, which adds the terms up.
    """
    mlm = losses.mlm_loss(output.mlm_logits, batch.labels)
    total, weights = mlm, "mlm"
    lines = _station("loss", losses.mlm_loss, f"mlm: the mean of all predictions in the batch is "
                     f"{mlm:.4f}; if all words had equal shares it would be "
                     f"{math.log(output.mlm_logits.shape[-1]):.4f}")
    if run.nsp:
        nsp = losses.nsp_loss(output.nsp_logits, batch.is_random_next)
        total, weights = mlm + nsp, "mlm + nsp"
        lines += _station("loss", losses.nsp_loss, f"nsp: {nsp:.4f}; the model gives "
                          f"{output.nsp_logits[0].softmax(-1)[1]:.1%} to a random B in this "
                          "sequence")
    if taught:
        valid = batch.labels != IGNORE
        kl = losses.soft_target_loss(output.mlm_logits, taught.mlm_logits, distill.temperature,
                                     valid)
        cos = losses.cosine_loss(output.hidden, taught.hidden, valid)
        a, b, c = distill.alpha_mlm, distill.alpha_kl, distill.alpha_cos
        total, weights = a * mlm + b * kl + c * cos, f"{a:g} mlm + {b:g} kl + {c:g} cos"
        lines += _station("loss", losses.soft_target_loss, f"kl: {kl:.4f}, at temperature "
                          f"{distill.temperature:g}")
        lines += _station("loss", losses.cosine_loss, f"cos: {cos:.4f}, of the last hidden states")
    return [*lines, *_station("sum", main, f"{weights} = {total:.4f}")]


def _names(ids: Any, reader: Tokenizer) -> str:
    """Tokens as text, without padding."""
    pad = special_ids(reader).pad
    return " ".join(reader.id_to_token(int(id)) for id in ids if id != pad)


def _shapes(net: MaskedLM) -> dict[str, tuple[int, ...]]:
    """The shape of what each module returns, by the module's name; a call of the model fills it."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, result: Any) -> None:
        if isinstance(result, Tensor):
            shapes[name] = tuple(result.shape)

    for name, module in net.named_modules():
        module.register_forward_hook(lambda _, given, result, name=name: note(name, result))
    return shapes


def _station(name: str, made_by: Callable, *lines: str) -> list[str]:
    """A heading with a place in the code, and what is there."""
    file = Path(inspect.getsourcefile(made_by)).relative_to(ROOT).as_posix()
    place = f"{file}:{inspect.getsourcelines(made_by)[1]} {made_by.__qualname__}"
    return ["", f"{name:12}{place}", *(f"    {line}" for line in lines)]
