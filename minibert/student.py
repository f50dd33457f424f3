"""A student made of its teacher: its shape, and the layers that it starts from."""
import dataclasses

import torch

from minibert.config import DistillConfig
from minibert.errors import UserError
from minibert.model import MaskedLM


def layer_map(teacher_layers: int, student_layers: int) -> list[int]:
    """The teacher's layers that a student starts from: evenly spaced, from the first to the last.

    For 12 to 6 that is the published list; a single layer is the first.
    >>> layer_map(12, 6), layer_map(8, 4), layer_map(4, 2), layer_map(4, 1)
    ([0, 2, 4, 7, 9, 11], [0, 2, 5, 7], [0, 3], [0])
    """
    gaps = max(1, student_layers - 1)
    return [round(i * (teacher_layers - 1) / gaps) for i in range(student_layers)]


def make_student(teacher: MaskedLM, distill: DistillConfig, seed: int
                 ) -> tuple[MaskedLM, list[int]]:
    """A model of the teacher's width and fewer layers, and which of the teacher's it starts from.

    No pooler, no NSP head and, for BERT, no token types: Hugging Face's DistilBERT. Raises
    UserError when it would be deeper than the teacher, or have no layer.
    """
    config = teacher.config
    depth = distill.student_layers or config.num_hidden_layers // 2
    if not 1 <= depth <= config.num_hidden_layers:
        raise UserError(f"a student of {depth} layers cannot be made of a teacher with "
                        f"{config.num_hidden_layers}; choose --student-layers between 1 and that")
    changes = dict(num_hidden_layers=depth, next_sentence=False)
    if config.model_type == "bert":
        changes |= dict(model_type="distilbert", type_vocab_size=0)
    student = MaskedLM(dataclasses.replace(config, **changes), seed)
    if distill.init == "random":
        return student, []
    theirs, ours = teacher.encoder, student.encoder
    student.load_state_dict(teacher.state_dict(), strict=False)  # what it has no place for is left
    layers = layer_map(config.num_hidden_layers, depth)
    for layer, number in zip(ours.layers, layers):
        layer.load_state_dict(theirs.layers[number].state_dict())
    if config.model_type == "bert":
        # Departure: the released code drops the token types; every input of the student is
        # segment A, so its row is a constant that belongs to the positions.
        with torch.no_grad():
            ours.embeddings.position.weight += theirs.embeddings.token_type.weight[0]
    return student, layers
