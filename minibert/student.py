"""A student made from its teacher: its sizes, its first weights, and where the two are compared.

B batch, S sequence, M masked positions.
"""
import dataclasses

import torch
from torch import Tensor

from minibert.config import DistillConfig
from minibert.data import Batch
from minibert.errors import UserError
from minibert.masking import IGNORE
from minibert.model import MaskedLM


def layer_map(teacher_layers: int, student_layers: int) -> list[int]:
    """The teacher's layers that a student starts from, evenly spaced from the first to the last.

    For 12 and 6 layers that is the list of DistilBERT's released code. A single layer is the first.
    >>> layer_map(12, 6), layer_map(8, 4), layer_map(4, 2), layer_map(4, 1)
    ([0, 2, 4, 7, 9, 11], [0, 2, 5, 7], [0, 3], [0])
    """
    gaps = max(1, student_layers - 1)
    return [round(i * (teacher_layers - 1) / gaps) for i in range(student_layers)]


def make_student(teacher: MaskedLM, distill: DistillConfig, seed: int
                 ) -> tuple[MaskedLM, list[int]]:
    """A model as wide as its teacher with fewer layers, and which layers it starts from.

    Fewer layers, not narrower ones: only a layer of the same width can start from the teacher's.
    As in Hugging Face's DistilBERT it has no pooler, no NSP head and, if the teacher is a BERT, no
    token types. Raises UserError when it would be deeper than its teacher, or have no layer, or
    when its teacher's LayerNorms have an epsilon that no DistilBERT can have.
    """
    config = teacher.config
    depth = distill.student_layers or config.num_hidden_layers // 2
    if not 1 <= depth <= config.num_hidden_layers:
        raise UserError(f"a student of {depth} layers cannot be made from a teacher with "
                        f"{config.num_hidden_layers}; choose --student-layers between 1 and that")
    changes = dict(num_hidden_layers=depth, next_sentence=False)
    if config.model_type == "bert":
        if config.layer_norm_eps != 1e-12:  # it would be saved, and read again, as another model
            raise UserError(f"the teacher's --layer-norm-eps is {config.layer_norm_eps}, and that "
                            "of a DistilBERT is always 1e-12; use a teacher with 1e-12")
        changes |= dict(model_type="distilbert", type_vocab_size=0)
    student = MaskedLM(dataclasses.replace(config, **changes), seed)
    if distill.init == "random":
        return student, []
    # Embeddings and the MLM head; strict=False skips what the student does not have.
    student.load_state_dict(teacher.state_dict(), strict=False)
    layers = layer_map(config.num_hidden_layers, depth)
    for layer, number in zip(student.encoder.layers, layers):
        layer.load_state_dict(teacher.encoder.layers[number].state_dict())
    if config.model_type == "bert":
        # Departure: the released code drops the token types. But BERT adds the row of segment A to
        # each token of a single text, so here the student's positions take it up.
        with torch.no_grad():
            segment_a = teacher.encoder.embeddings.token_type.weight[0]
            student.encoder.embeddings.position.weight += segment_a
    return student, layers


def read_everywhere(batch: Batch) -> Batch:
    """A masked batch whose logits are read at all S positions instead of the M masked ones.

    Its masked_positions and labels become (B, S) int64; a position that was not masked has no label
    of the text, only the teacher's soft targets. In a sequence of six tokens, position 3 was
    masked; the second slot is not used:

    >>> row = torch.tensor([[2, 11, 12, 4, 14, 3]])
    >>> batch = Batch(row, row, row, row, row, epoch=0, masked_positions=torch.tensor([[3, 0]]),
    ...               labels=torch.tensor([[13, IGNORE]]))
    >>> read = read_everywhere(batch)
    >>> read.masked_positions.tolist(), read.labels.tolist()
    ([[0, 1, 2, 3, 4, 5]], [[-100, -100, -100, 13, -100, -100]])
    """
    positions = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    # An unused slot writes IGNORE to position 0, a [CLS], which is never masked.
    labels = torch.full_like(batch.input_ids, IGNORE).scatter(1, batch.masked_positions,
                                                              batch.labels)
    return batch._replace(masked_positions=positions.expand_as(labels), labels=labels)


def compared_at(batch: Batch, everywhere: bool) -> Tensor:
    """Where student and teacher are compared, as bool in the shape of the batch's labels.

    everywhere: at all tokens but the padding, of a batch from `read_everywhere`; otherwise where
    the text has a label.
    """
    return batch.attention_mask.bool() if everywhere else batch.labels != IGNORE
