"""The pieces of mine.py: where each belongs, which tests hold it, and on which inputs it is tried.

A try is a generator of what a piece gives back for small inputs. By these values check.py sees
which planted bug a piece is like. Where a piece draws at random, its own keys
are as good as the package's, so what is looked at there does not depend on them.
"""
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import minibert.data
import minibert.losses
import minibert.masking
import minibert.model
import minibert.student
import minibert.training
from minibert.config import DistillConfig, ModelConfig, RunConfig
from minibert.data import TokenizedCorpus
from minibert.masking import IGNORE
from minibert.model import MaskedLM
from minibert.tokenizer import SpecialIds

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
ROBERTA = dict(model_type="roberta", next_sentence=False, type_vocab_size=1, pad_token_id=1)


@torch.no_grad()
def make_model(layers: int, **changes: Any) -> MaskedLM:
    """A tiny model in which every detail shows: no bias is 0, and no scale is 1."""
    model = MaskedLM(ModelConfig(**{**dict(
        vocab_size=50, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=14, initializer_range=0.2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), **changes}))
    draw = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter += torch.randn(parameter.shape, generator=draw) / 2
    return model


@functools.lru_cache
def models() -> list[MaskedLM]:
    """A BERT and a RoBERTa to read with, in float64, with dropout and a large epsilon."""
    return [make_model(3, attn_implementation="eager", layer_norm_eps=0.3, hidden_dropout_prob=0.2,
                       attention_probs_dropout_prob=0.2, **kind).double()
            for kind in (dict(model_type="bert"), ROBERTA)]


def try_model() -> Iterator:
    for model in models():
        pad = model.config.pad_token_id
        ids = torch.tensor([[2, 11, 12, 13, 3, 15, 16, 17, 3], [2, 21, 3, 23, 3] + [pad] * 4])
        types = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0, 0, 0]])
        given = dict(attention_mask=(ids != pad).long(), token_type_ids=types)
        for positions in (None, torch.tensor([[1, 3, 6], [1, 3, 3]])):
            yield tuple(model.eval()(ids, positions=positions, **given))
        torch.default_generator.manual_seed(0)  # that of the CPU alone, which is quicker
        logits = model.train()(ids, **given).mlm_logits
        yield logits
        model.zero_grad()
        logits.square().mean().backward()
        yield model.encoder.embeddings.word.weight.grad.clone()


def try_mask_tokens() -> Iterator:
    settings = dict(vocab_size=50, mask_id=4, special_ids=(0, 1, 2, 3, 4))
    draw = torch.Generator().manual_seed(0)
    ids, rows = torch.randint(5, 50, (1000, 40), generator=draw), torch.arange(1000)
    ids[:, 0], ids[:, 3], ids[:, 30], ids[:, 31:] = 2, 1, 3, 0  # [CLS], [UNK], [SEP] and padding

    def mask(ids, rows, seed=0, epoch=0, **more):
        return minibert.masking.mask_tokens(ids, rows, seed=seed, epoch=epoch, **settings, **more)

    # Left alone? What is chosen, and how many? Labels? Shares? Real words? Which keys?
    given = ids.clone()
    inputs, positions, labels = mask(given, rows)
    yield torch.equal(given, ids)
    used = labels != IGNORE
    there, shown = ids.gather(1, positions)[used], inputs.gather(1, positions)[used]
    yield torch.isin(there, torch.tensor([1, 2, 3])).any().item(), (there == 0).any().item()
    yield round(used.sum(1).float().mean().item(), 1)
    yield torch.equal(labels[used], there)
    kinds = shown == 4, shown == there, (shown != 4) & (shown != there)
    yield [round(20 * kind.float().mean().item()) for kind in kinds]
    yield (shown < 4).any().item()
    yield (mask(torch.tensor([[2, 9, 3]]), rows[:1])[2] != IGNORE).sum().item()
    for other in (mask(ids, rows, seed=1), mask(ids, rows, epoch=1), mask(ids, rows + 1)):
        yield torch.equal(other[1], positions)
    yield torch.equal(mask(ids[5:6], rows[5:6])[1], positions[5:6])


def try_static_masker() -> Iterator:
    for masks in (10, 3, 1):
        masker = minibert.masking.StaticMasker(SPECIAL, 50, seed=0, masks=masks)
        yield [masker.duplicate_of(epoch) for epoch in range(25)]


def try_dynamic_masker() -> Iterator:
    masker = minibert.masking.DynamicMasker(SPECIAL, 50, seed=0)
    yield [masker.duplicate_of(epoch) for epoch in range(25)]


def make_corpus(*documents: list[int]) -> TokenizedCorpus:
    """A corpus of documents that are given as the lengths of their sentences."""
    sentences, first_sentences, end = [], [0], 0
    for lengths in documents:
        for length in lengths:
            sentences.append((end, end + length))
            end += length
        first_sentences.append(len(sentences))
        end += 1  # the [SEP] after a document
    return TokenizedCorpus(np.arange(end), np.array(sentences), np.array(first_sentences))


def try_full_sentences() -> Iterator:
    for lengths in ([[3, 3], [3, 3]], [[2, 7, 4], [1], [5, 5, 3]], [[3, 25, 4], [2]]):
        for most in (9, 10, 15):
            for cross in (True, False):
                yield minibert.data.full_sentences(make_corpus(*lengths), most,
                                                   cross_documents=cross).tolist()


def try_segment_pairs() -> Iterator:
    def pairs(corpus, most, seed=0, duplicates=20):
        return [pair for duplicate in range(duplicates) for pair in minibert.data.segment_pairs(
            corpus, most, seed=seed, duplicate=duplicate, short_seq_prob=0).tolist()]

    # Labels? Other documents? How many are random? The seed? All of the text? Which side is cut?
    corpus = make_corpus(*[[3] * 7] * 10)
    drawn = pairs(corpus, 12)
    yield all((a_end == b_start) == (label == 0) for _, a_end, b_start, _, label in drawn)
    ends = corpus.sentences[corpus.first_sentences[1:] - 1, 1]  # of each document
    yield any(np.searchsorted(ends, a_start, "right") == np.searchsorted(ends, b_start, "right")
              for a_start, a_end, b_start, *_ in drawn if a_end != b_start)
    yield round(10 * sum(pair[4] for pair in drawn) / len(drawn))
    yield drawn == pairs(corpus, 12, seed=1)
    seen = [p for a_start, a_end, _, b_end, label in pairs(corpus, 12, duplicates=1)
            for p in range(a_start, a_end if label else b_end)]
    yield len(seen), len(set(seen))
    corpus = make_corpus([30, 30], [30, 30])
    yield all(a_start in corpus.sentences[:, 0] for a_start, *_ in pairs(corpus, 30))
    drawn = pairs(make_corpus([5, 50], [5, 50]), 20)
    yield sorted({(pair[1] - pair[0], pair[3] - pair[2]) for pair in drawn})


def draw_logits(seed: int) -> torch.Tensor:
    return 2 * torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(seed))


def try_mlm_loss() -> Iterator:
    logits, labels = draw_logits(0), torch.full((3, 4), IGNORE)
    labels[0, 0], labels[1, 0], labels[1, 2], labels[1, 3] = 5, 2, 0, 7
    yield minibert.losses.mlm_loss(logits, labels)
    yield minibert.losses.mlm_loss(logits, labels, 8)
    yield minibert.losses.mlm_loss(logits, torch.full((3, 4), IGNORE))
    half = minibert.losses.mlm_loss(logits.bfloat16(), labels)
    yield half.dtype, half.float()


def try_soft_target_loss() -> Iterator:
    soft_target_loss = minibert.losses.soft_target_loss
    student, teacher = draw_logits(0), draw_logits(1)
    valid = torch.arange(12).view(3, 4) % 3 == 0
    yield soft_target_loss(student, teacher, 1.0)
    yield soft_target_loss(student, teacher, 2.0)
    yield soft_target_loss(student, teacher, 3.0, valid)
    yield soft_target_loss(student, teacher, 1.0, valid, 8)
    yield soft_target_loss(student, teacher, 1.0, valid & False)
    half = soft_target_loss(student.bfloat16(), teacher.bfloat16(), 1.0)
    yield half.dtype, half.float()


def try_layer_map() -> Iterator:
    for teacher, student in ((12, 6), (8, 4), (6, 3), (4, 2), (4, 4), (4, 1)):
        yield minibert.student.layer_map(teacher, student)


def try_make_student() -> Iterator:
    for kind in (dict(model_type="bert"), ROBERTA):
        teacher = make_model(6, **kind)
        for init in ("teacher", "random"):
            student, layers = minibert.student.make_student(
                teacher, DistillConfig(teacher="-", init=init, student_layers=4), 0)
            yield layers
            for part in (student.encoder.embeddings.position, student.encoder.layers[1].output):
                yield part.weight.detach()


def try_optimizer_groups() -> Iterator:
    for model in (make_model(2), nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))):
        decay = {id(parameter): group["weight_decay"]
                 for group in minibert.training.optimizer_groups(model, 0.1)
                 for parameter in group["params"]}
        for part in (nn.Linear, nn.LayerNorm, nn.Embedding):
            yield [decay.get(id(parameter)) for module in model.modules()
                   if isinstance(module, part) for parameter in module.parameters()]


def try_learning_rate() -> Iterator:
    run = RunConfig(out="-", steps=20, warmup=0.2, learning_rate=1.0)
    for steps in (range(4), range(4, 21)):
        yield [minibert.training.learning_rate(step, run) for step in steps]
    yield [minibert.training.learning_rate(step, dataclasses.replace(run, warmup=0.0))
           for step in range(21)]


class Piece(NamedTuple):
    module: str  # of the package
    tests: str  # the file of tests that holds it
    tried: Callable[[], Iterator]
    method: str = ""  # where the piece is a class, what of it is written
    named: bool = False  # whether only tests that name it are run, because the others train


PIECES = {
    "readable_attention": Piece("model", "test_model.py", try_model),
    "Embeddings": Piece("model", "test_model.py", try_model, "forward"),
    "Block": Piece("model", "test_model.py", try_model, "forward"),
    "MaskedLM": Piece("model", "test_model.py", try_model, "forward"),
    "mask_tokens": Piece("masking", "test_masking.py", try_mask_tokens),
    "StaticMasker": Piece("masking", "test_masking.py", try_static_masker, "duplicate_of"),
    "DynamicMasker": Piece("masking", "test_masking.py", try_dynamic_masker, "duplicate_of"),
    "full_sentences": Piece("data", "test_data.py", try_full_sentences),
    "segment_pairs": Piece("data", "test_data.py", try_segment_pairs),
    "mlm_loss": Piece("losses", "test_losses.py", try_mlm_loss),
    "soft_target_loss": Piece("losses", "test_losses.py", try_soft_target_loss),
    "layer_map": Piece("student", "test_student.py", try_layer_map),
    "make_student": Piece("student", "test_student.py", try_make_student),
    "optimizer_groups": Piece("training", "test_training.py", try_optimizer_groups, named=True),
    "learning_rate": Piece("training", "test_training.py", try_learning_rate, named=True),
}
