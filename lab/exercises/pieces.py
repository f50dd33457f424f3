"""The pieces of mine.py: where each belongs, which tests hold it, and on which inputs it is tried.

A try is a generator of what a piece gives back for small inputs. By these values check.py sees
which planted bug a piece is like. Where a piece draws at random, its own keys
are as good as the package's, so what is looked at there does not depend on them.
"""
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

import minibert.data
import minibert.losses
import minibert.masking
import minibert.model
import minibert.student
import minibert.training
from minibert.config import DistillConfig, RunConfig
from minibert.masking import IGNORE

# The tests' own helpers are imported late: pytest has to be the first to import a test file, or
# its assertions would not say what they compared.


@functools.lru_cache
def models() -> list[nn.Module]:
    """A BERT and a RoBERTa in which every detail shows, with dropout."""
    import test_model as tests
    return [tests.shaken("eager", hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2, **kind)
            for kind in (tests.BERT, tests.ROBERTA)]


def try_model() -> Iterator:
    import test_model as tests
    for model in models():
        ids, mask = tests.awkward(model.config)
        given = dict(attention_mask=mask, token_type_ids=tests.TYPES)
        for positions in (None, tests.POSITIONS):
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

    # Left alone? What is chosen, and how many? Labels? Shares? Real words? Which keys? Whole words?
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
    words = torch.tensor([[2] + [10, 41] * 12 + [3]] * 50)
    positions = mask(words, rows[:50], continues=torch.arange(50) > 40)[1]
    yield torch.equal(positions[:, ::2] + 1, positions[:, 1::2])


def try_static_masker() -> Iterator:
    for masks in (10, 3, 1):
        yield [minibert.masking.StaticMasker(masks).dupe(epoch) for epoch in range(25)]


def try_dynamic_masker() -> Iterator:
    yield [minibert.masking.DynamicMasker().dupe(epoch) for epoch in range(25)]


def try_full_sentences() -> Iterator:
    import test_data as tests
    for lengths in ([[3, 3], [3, 3]], [[2, 7, 4], [1], [5, 5, 3]], [[3, 25, 4], [2]]):
        for most in (9, 10, 15):
            for cross in (True, False):
                yield minibert.data.full_sentences(tests.make_text(*lengths), most,
                                                   cross_documents=cross).tolist()


def try_segment_pairs() -> Iterator:
    import test_data as tests

    def pairs(*lengths, most, seed=0, dupes=20):
        text = tests.make_text(*lengths)
        return text, [pair for dupe in range(dupes) for pair in minibert.data.segment_pairs(
            text, most, seed=seed, dupe=dupe, short_seq_prob=0).tolist()]

    # Labels? Other documents? How many are random? The seed? All of the text? Which side is cut?
    equal = [[3] * 7] * 10
    text, found = pairs(*equal, most=12)
    yield all((a_end == b_start) == (label == 0) for _, a_end, b_start, _, label in found)
    yield any(tests.document_of(text, a_start) == tests.document_of(text, b_start)
              for a_start, a_end, b_start, *_ in found if a_end != b_start)
    yield round(10 * sum(pair[4] for pair in found) / len(found))
    yield found == pairs(*equal, most=12, seed=1)[1]
    seen = [p for a_start, a_end, _, b_end, label in pairs(*equal, most=12, dupes=1)[1]
            for p in range(a_start, a_end if label else b_end)]
    yield len(seen), len(set(seen))
    text, found = pairs([30, 30], [30, 30], most=30)
    yield all(a_start in text.bounds[:, 0] for a_start, *_ in found)
    found = pairs([5, 50], [5, 50], most=20)[1]
    yield sorted({(pair[1] - pair[0], pair[3] - pair[2]) for pair in found})


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
    import test_student as tests
    for kind in (tests.BERT, tests.ROBERTA):
        teacher = tests.make_teacher(num_hidden_layers=6, **kind)
        for init in ("teacher", "random"):
            student, layers = minibert.student.make_student(
                teacher, DistillConfig(teacher="-", init=init, student_layers=4), 0)
            yield layers
            for part in (student.encoder.embeddings.position, student.encoder.layers[1].output):
                yield part.weight.detach()


def try_optimizer_groups() -> Iterator:
    import test_model as tests
    for model in (tests.tiny(), nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))):
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
    tests: str  # the file of tests that holds it,
    words: str  # words of which the tests' names have one, or "" for all tests,
    tried: Callable[[], Iterator]
    method: str = ""  # where the piece is a class, what of it is written


# So few tests that nobody waits, and enough to notice each mistake that explained.py explains.
PIECES = {
    "readable_attention": Piece("model", "test_model.py", "eager readable", try_model),
    "Embeddings": Piece("model", "test_model.py", "eager longest learns", try_model, "forward"),
    "Block": Piece("model", "test_model.py", "eager reading learns", try_model, "forward"),
    "MaskedLM": Piece("model", "test_model.py", "eager reading learns decoder named", try_model,
                      "forward"),
    "mask_tokens": Piece("masking", "test_masking.py", "", try_mask_tokens),
    "StaticMasker": Piece("masking", "test_masking.py", "static copies", try_static_masker, "dupe"),
    "DynamicMasker": Piece("masking", "test_masking.py", "dynamic copies", try_dynamic_masker,
                           "dupe"),
    "full_sentences": Piece("data", "test_data.py", "full block separator long_sentence use_the",
                            try_full_sentences),
    "segment_pairs": Piece("data", "test_data.py", "label pair random_b one_document one_sentence "
                           "every_sentence ends_are longer_side tie short", try_segment_pairs),
    "mlm_loss": Piece("losses", "test_losses.py", "mlm ignored predictions denominator micro "
                      "float32", try_mlm_loss),
    "soft_target_loss": Piece("losses", "test_losses.py", "soft kl predictions valid denominator "
                              "micro float32", try_soft_target_loss),
    "layer_map": Piece("student", "test_student.py", "layer_map", try_layer_map),
    "make_student": Piece("student", "test_student.py", "student depths", try_make_student),
    "optimizer_groups": Piece("training", "test_training.py", "decayed", try_optimizer_groups),
    "learning_rate": Piece("training", "test_training.py", "trap_25", try_learning_rate),
}
