"""One real batch at every station from text to loss, with the file and line that makes it.

B batch, S sequence, H hidden, A heads, D head size, V vocabulary, M predicted positions.
"""
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor

from minibert import data, losses, masking, model, tokenizer
from minibert.config import DistillConfig, ModelConfig, parse_flags
from minibert.errors import UserError
from minibert.files import corpus
from minibert.files.corpus import training_part
from minibert.files.hub import load_pretrained
from minibert.files.run_folder import ROOT, read_json
from minibert.masking import IGNORE
from minibert.student import make_student
from minibert.training import mask_settings

SCRIPTS = {"bert": "train_bert", "roberta": "train_roberta", "distilbert": "distill"}
SHOWN = 5  # predictions that are shown in full


@torch.no_grad()
def walk(recipe: str, flags: list[str], run_folder: str = "", teacher_folder: str = "") -> str:
    """Show the first batch of a recipe as its script would see it, without dropout.

    recipe: bert, roberta or distilbert. flags: of its script. run_folder: a finished run, whose
    weights, text and settings to use; "" is for a new model. teacher_folder: a teacher for
    distilbert. Raises UserError when they do not belong together.
    """
    script = importlib.import_module(SCRIPTS[recipe])
    distills = recipe == "distilbert"
    if teacher_folder and not distills:
        raise UserError(f"{recipe} has no teacher; leave out --teacher, or walk distilbert")
    its_flags, its_teacher = _flags_of(run_folder, recipe) if run_folder else ([], "")
    teacher_folder = teacher_folder or its_teacher
    run, base_config = parse_flags(script.__doc__, script.RECIPE, script.STEPS,
                                   DistillConfig if distills else ModelConfig,
                                   without=("nsp", "tokenizer", "distill_positions") * distills,
                                   argv=["--out", "none", *its_flags, *flags,
                                         *["--teacher", teacher_folder or "new"] * distills])
    distill = base_config if distills else None
    base_config = ModelConfig.preset(run.preset) if distills else base_config
    given = load_pretrained(run_folder or teacher_folder) if run_folder or teacher_folder else None
    reader, text, _, _ = corpus.prepare(run.corpus, run.tokenizer, base_config.vocab_size,
                                        given and given[1])
    special = tokenizer.special_ids(reader)
    # A new teacher is a BERT.
    maker = importlib.import_module("train_bert") if distills else script
    new = lambda: model.MaskedLM(maker.make_model_config(run, base_config, special.pad), run.seed)
    teacher, net, weights = None, given and given[0], run_folder
    if distills:
        teacher, its_reader = load_pretrained(teacher_folder) if teacher_folder else (new(), reader)
        teacher.eval()
        if not run_folder:
            net, layers = make_student(teacher, distill, run.seed)
            weights = f"layers {layers} of {teacher_folder or 'a new teacher'}" if layers else ""
        if (its_reader.to_str(), teacher.config.hidden_size) != (reader.to_str(),
                                                                 net.config.hidden_size):
            raise UserError(f"{run_folder} has another vocabulary or width than its teacher "
                            f"{teacher_folder or '(a new model)'}; name its own with --teacher")
    net = (net or new()).eval()
    if run.nsp and not net.config.next_sentence:
        raise UserError(f"{run_folder} has no NSP head; add --no-nsp")
    masker = (masking.StaticMasker(run.static_masks) if run.masking == "static"
              else masking.DynamicMasker())
    text = training_part(text, run)
    batches = data.Batches(text, run, special, "cpu", masker.dupe)
    clean = next(batches)
    inputs, masked_positions, labels = masker(clean.input_ids, clean.sequence_ids,
                                              epoch=clean.epoch,
                                              **mask_settings(run, reader, "cpu"))
    batch = clean._replace(input_ids=inputs, masked_positions=masked_positions, labels=labels)
    seen = _shapes(net)
    types = batch.token_type_ids if net.config.type_vocab_size else None
    output = net(inputs, attention_mask=batch.attention_mask, token_type_ids=types,
                 positions=masked_positions)
    teacher_output = teacher and teacher(inputs, attention_mask=batch.attention_mask,
                                         positions=masked_positions)
    source = f"{SCRIPTS[recipe]}.py"
    new_weights = []
    if not weights or not (run_folder or teacher_folder):
        new_weights = ["The weights are new and have learned nothing, so the guesses below mean "
                       "nothing yet; --run FOLDER shows a trained model.", ""]
    settings = ", ".join(f"{name} {getattr(run, name)}" for name in script.RECIPE)
    return "\n".join([
        *new_weights,
        f"{source}: {inspect.getdoc(script).splitlines()[0]}", f"recipe: {settings}",
        f"weights: {weights or 'new'}",
        *_text(run.corpus, text, reader),
        *_sequences(clean, batches, text, reader, run.input_format),
        *_mask(batch, reader),
        *_forward(net, seen),
        *_predictions(output, teacher_output, batch, reader),
        *_loss(output, teacher_output, batch, distill, source, run.nsp)])


def _flags_of(folder: str, recipe: str) -> tuple[list[str], str]:
    """The flags by which a run reads its text and weighs its losses, and its teacher's folder.

    For a folder without run.json there are none. Raises UserError when it is a run of another
    recipe.
    """
    if not (Path(folder) / "run.json").exists():
        return [], ""
    metadata = read_json(Path(folder) / "run.json", "")
    its = "distilbert" if "distill" in metadata else metadata["model"]["model_type"]
    if its != recipe:
        raise UserError(f"{folder} is a run of {its}; python -m minibert walk {its} --run {folder}")
    settings = {**metadata["settings"], **metadata.get("distill", {})}
    names = ["corpus", "preset", "seed", "data_fraction", "data_tokens", "input_format",
             "short_seq_prob", "masking", "static_masks", "mask_rate", "whole_word_masking",
             "seq_length", "batch_size", *(["alpha_kl", "alpha_mlm", "alpha_cos", "temperature"]
                             if its == "distilbert" else ["nsp", "tokenizer"])]
    flags = []
    for name in names:
        flag, value = name.replace("_", "-"), settings[name]
        flags += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [
            f"--{flag}", str(value)]
    return flags, settings.get("teacher", "")


def _text(name: str, text: data.TokenizedCorpus, reader: tokenizers.Tokenizer) -> list[str]:
    """The corpus, shown by its first sentence."""
    first = data.sentences_of(next(corpus.read_documents(corpus.corpus_path(name))))[0]
    ids = next(data.tokenize(iter([[first]]), reader))[0]
    return [
        *_station("text", data.sentences_of, f"There are {len(text.documents) - 1:,} "
                  "documents to train on. The first sentence of the file is", repr(first)),
        *_station("tokens", data.tokenize, f"On disk they are {len(text.tokens):,} tokens, "
                  f"numbers below V = {reader.get_vocab_size():,}. That sentence becomes",
                  " ".join(_names(ids, reader)))]


def _sequences(batch: data.Batch, batches: data.Batches, text: data.TokenizedCorpus,
               reader: tokenizers.Tokenizer, input_format: str) -> list[str]:
    """From tokens to the batch, shown by its first sequence."""
    a_start, a_end, b_start, b_end, is_random = batches.spans[batch.sequence_ids[0]].tolist()
    say = lambda start, end: repr(reader.decode(text.tokens[start:end].tolist()))
    if input_format == "segment-pair":
        made, follows = data.segment_pairs, ("follows A", "is from another document")[is_random]
        spans = [f"A: tokens {a_start:,} to {a_end:,}; B: tokens {b_start:,} to {b_end:,}",
                 f"B {follows}, so the label for NSP is {is_random}"]
        said = [f"A: {say(a_start, a_end)}", f"B: {say(b_start, b_end)}"]
    else:
        made, said = data.full_sentences, [say(a_start, a_end)]
        spans = [f"tokens {a_start:,} to {a_end:,}: whole sentences, one after another"]
    B, S = batch.input_ids.shape
    return [
        *_station("sequences", made, f"{len(batches.spans):,} sequences are made of "
                  f"{len(text.bounds):,} sentences. This is number "
                  f"{int(batch.sequence_ids[0]):,}:", *spans, *said),
        *_station("batch", data.assemble, f"input_ids, attention_mask and token_type_ids "
                  f"are (B, S) = ({B}, {S})", " ".join(_names(batch.input_ids[0], reader)),
                  f"{int(batch.attention_mask[0].sum())} of them are tokens, the rest is padding; "
                  f"{int(batch.token_type_ids[0].sum())} are in segment B")]


def _mask(batch: data.Batch, reader: tokenizers.Tokenizer) -> list[str]:
    used = batch.labels != IGNORE
    shown = batch.input_ids.gather(1, batch.masked_positions)[used]
    masked = int((shown == tokenizer.special_ids(reader).mask).sum())
    kept = int((shown == batch.labels[used]).sum())
    return _station(
        "mask", masking.mask_tokens, f"{len(shown):,} of {int(batch.attention_mask.sum()):,} "
        f"tokens are to be predicted: {masked} become [MASK], {kept} stay as they are, "
        f"{len(shown) - masked - kept} are random words",
        f"masked_positions and labels are (B, M) = {tuple(used.shape)}; "
        f"{int((~used).sum())} slots are not used", " ".join(_names(batch.input_ids[0], reader)))


def _forward(net: model.MaskedLM, seen: dict[str, tuple[int, ...]]) -> list[str]:
    config = net.config
    H, A = config.hidden_size, config.num_attention_heads
    tables = "words + positions" + " + token types" * bool(config.type_vocab_size)
    first = "encoder.layers.0"
    attention = (f"queries are (B, S, H) = {seen[first + '.attention.query']}, keys and values "
                 f"{seen[first + '.attention.key_value']}, for A = {A} heads of D = {H // A}")
    lines = [*_station("embeddings", model.Embeddings, f"{tables}, normalised, are (B, S, H) = "
                       f"{seen['encoder.embeddings']}"),
             *_station("attention", model.Attention, attention)]
    for number in range(config.num_hidden_layers):
        name = f"encoder.layers.{number}"
        wide = seen[f"{name}.intermediate"]
        lines += _station(f"layer {number + 1}", model.Block, f"the feed-forward network is "
                          f"{wide}, the result {seen[name]}")
    first_token = "[CLS] and " * config.next_sentence
    return [*lines, f"    (of the last layer, only {first_token}the predictions are read)"]


def _predictions(output: model.MaskedLMOutput, teacher_output: "model.MaskedLMOutput | None",
                 batch: data.Batch, reader: tokenizers.Tokenizer) -> list[str]:
    """What the model expects in the first sequence's blanks."""
    lines = _station("logits", model.MaskedLM.forward, "the decoder is the table of words; the "
                     f"logits are (B, M, V) = {tuple(output.mlm_logits.shape)}")
    for slot in (batch.labels[0] != IGNORE).nonzero().flatten().tolist()[:SHOWN]:
        word = int(batch.labels[0, slot])
        for who, found in (("teacher: ", teacher_output), ("", output)):
            if found is not None:
                logits = found.mlm_logits
                shares = logits[0, slot].softmax(-1)
                best = ", ".join(f"{reader.id_to_token(int(id))} {shares[id]:.1%}"
                                 for id in shares.topk(4).indices)
                lines.append(f"    position {int(batch.masked_positions[0, slot]):3}, {who}{best}; "
                             f"{reader.id_to_token(word)!r} has {shares[word]:.1%}, "
                             f"-log p = {-shares[word].log():.3f}")
    return lines


def _loss(output: model.MaskedLMOutput, teacher_output: "model.MaskedLMOutput | None",
          batch: data.Batch, distill: DistillConfig | None, source: str, nsp: bool) -> list[str]:
    """Each term, computed by the functions that the scripts call, and their sum."""
    mlm = losses.mlm_loss(output.mlm_logits, batch.labels)
    lines = _station("loss", losses.mlm_loss, f"mlm: the mean of all predictions in the batch is "
                     f"{mlm:.4f}; if all words had equal shares it would be "
                     f"{torch.tensor(output.mlm_logits.shape[-1]).log():.4f}")
    total, weights = mlm, "mlm"
    if nsp:
        next_sentence = losses.nsp_loss(output.nsp_logits, batch.is_random_next)
        share = F.softmax(output.nsp_logits[0], -1)[1]
        lines += _station("loss", losses.nsp_loss, f"nsp: {next_sentence:.4f}; the model gives "
                          f"{share:.1%} to a random B in this sequence")
        total, weights = mlm + next_sentence, "mlm + nsp"
    if distill:
        valid = batch.labels != IGNORE
        kl = losses.soft_target_loss(output.mlm_logits, teacher_output.mlm_logits,
                                     distill.temperature, valid)
        cos = losses.cosine_loss(output.hidden, teacher_output.hidden, valid)
        lines += _station("loss", losses.soft_target_loss, f"kl: {kl:.4f}, at temperature "
                          f"{distill.temperature:g}")
        lines += _station("loss", losses.cosine_loss, f"cos: {cos:.4f}, of the last hidden states")
        a, b, c = distill.alpha_mlm, distill.alpha_kl, distill.alpha_cos
        total, weights = a * mlm + b * kl + c * cos, f"{a:g} mlm + {b:g} kl + {c:g} cos"
    return [*lines, *_station("sum", (source, "training.backward("), f"{weights} = {total:.4f}")]


def _names(ids: Any, reader: tokenizers.Tokenizer) -> list[str]:
    pad = tokenizer.special_ids(reader).pad
    return [reader.id_to_token(int(id)) for id in ids if id != pad]


def _shapes(net: model.MaskedLM) -> dict[str, tuple[int, ...]]:
    """The shape of what each module returns, by the module's name; a call of the model fills it."""
    seen: dict[str, tuple[int, ...]] = {}
    for name, module in net.named_modules():
        module.register_forward_hook(lambda module, given, result, name=name: seen.update(
            {name: tuple(result.shape)} if isinstance(result, Tensor) else {}))
    return seen


def _station(name: str, made_by: "Callable | tuple[str, str]", *lines: str) -> list[str]:
    """A heading with a place in the code, a function or a line of a file, and what is there."""
    if isinstance(made_by, tuple):
        file, wanted = made_by
        code = (ROOT / file).read_text(encoding="utf-8").splitlines()
        number = next(number for number, line in enumerate(code, 1) if wanted in line)
        place = f"{file}:{number}"
    else:
        file = Path(inspect.getsourcefile(made_by)).relative_to(ROOT).as_posix()
        place = f"{file}:{inspect.getsourcelines(made_by)[1]} {made_by.__qualname__}"
    return ["", f"{name:12}{place}", *(f"    {line}" for line in lines)]
