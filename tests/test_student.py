"""The student: which layers it has, and which weights it starts from."""
import copy
import dataclasses

import numpy as np
import pytest
import reference
import torch

from minibert.config import DistillConfig, ModelConfig
from minibert.errors import UserError
from minibert.model import MaskedLM
from minibert.student import layer_map, make_student

TINY = dict(vocab_size=80, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=24, initializer_range=0.2,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
BERT = dict(model_type="bert")
ROBERTA = dict(model_type="roberta", next_sentence=False, type_vocab_size=1)
DISTILBERT = dict(model_type="distilbert", next_sentence=False, type_vocab_size=0)
KINDS = [BERT, ROBERTA, DISTILBERT]
NAMES = ["bert", "roberta", "distilbert"]
IDS = torch.tensor([[2, 11, 12, 13, 3], [2, 21, 22, 3, 0]])
MASK = (IDS != 0).long()


def make_teacher(seed=1, **changes):
    """A teacher whose biases and LayerNorms are not as they start, so that a copy shows."""
    teacher = MaskedLM(ModelConfig(**{**TINY, **changes}), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return teacher


def student_of(teacher, seed=0, **settings):
    return make_student(teacher, DistillConfig(teacher="-", **settings), seed)


def test_layer_map_is_the_published_one():
    """Would catch: 0, 2, 4, 6, 8, 10, which leaves the teacher's last layer out."""
    assert layer_map(12, 6) == [0, 2, 4, 7, 9, 11]
    assert layer_map(8, 4) == [0, 2, 5, 7]
    assert layer_map(4, 2) == [0, 3]
    assert layer_map(4, 1) == [0]


def test_layer_maps_rise_from_the_first_to_the_last_layer():
    """Would catch: a rule that fits 12 to 6 only, or takes one layer twice."""
    for teacher in range(1, 25):
        assert layer_map(teacher, teacher) == list(range(teacher))
        for student in range(2, teacher + 1):
            layers = layer_map(teacher, student)
            assert len(layers) == student and layers[0] == 0 and layers[-1] == teacher - 1
            assert all(a < b for a, b in zip(layers, layers[1:]))


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_student_starts_as_the_teachers_layers(kind):
    """Would catch: a layer, an embedding or the head that is not the teacher's."""
    teacher = make_teacher(num_hidden_layers=6, **kind)
    student, layers = student_of(teacher, student_layers=4)
    assert layers == [0, 2, 3, 5] and student.config.num_hidden_layers == 4
    theirs = teacher.state_dict()
    for name, tensor in student.state_dict().items():
        for mine, layer in enumerate(layers):
            if name.startswith(f"encoder.layers.{mine}."):
                name = f"encoder.layers.{layer}." + name.split(".", 3)[3]
                break
        expected = theirs[name]
        if name == "encoder.embeddings.position.weight" and kind is BERT:
            expected = expected + theirs["encoder.embeddings.token_type.weight"][0]
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_student_does_not_share_the_teachers_weights(kind):
    """Would catch: tensors that are not copied, or token types folded in in place."""
    teacher = make_teacher(**kind)
    before = copy.deepcopy(teacher.state_dict())
    student, _ = student_of(teacher, student_layers=2)
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    student(IDS).mlm_logits.square().sum().backward()
    optimizer.step()
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("depth, layers", [(4, [0, 1, 2, 3]), (2, [0, 3])])
def test_student_equals_the_numpy_code(kind, depth, layers, float64):
    """Would catch: a student that is not its teacher with layers left out. For the student
    of a BERT, whose token types are folded into its positions, all of the text is segment A."""
    # A DistilBERT's epsilon is always 1e-12, so a BERT that becomes one has it, too.
    teacher = make_teacher(num_hidden_layers=4, **kind,
                           layer_norm_eps=1e-12 if kind is BERT else 0.1)
    student, chosen = student_of(teacher, student_layers=depth)
    assert chosen == layers
    weights = {name: tensor.numpy() for name, tensor in teacher.state_dict().items()}
    for mine, theirs in enumerate(layers):
        for name in [name for name in weights if name.startswith(f"encoder.layers.{theirs}.")]:
            weights[name.replace(f".{theirs}.", f".{mine}.", 1)] = weights[name]
    shallow = dataclasses.replace(teacher.config, num_hidden_layers=depth)
    expected = reference.masked_lm(weights, shallow, IDS.numpy(), MASK.numpy())
    found = student(IDS, attention_mask=MASK, token_type_ids=torch.ones_like(IDS))
    for ours, theirs in ((found.mlm_logits, expected[0]), (found.hidden, expected[2])):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=1e-10)


def test_student_of_bert_is_a_distilbert():
    """Would catch: a student with a pooler, an NSP head or token types, which none of it needs."""
    student, _ = student_of(make_teacher())
    assert student.config.model_type == "distilbert" and student.config.num_hidden_layers == 1
    assert not student.config.next_sentence and not student.config.type_vocab_size
    parts = " ".join(student.state_dict())
    assert "pooler" not in parts and "nsp_head" not in parts and "token_type" not in parts
    student, _ = student_of(make_teacher(**ROBERTA))
    assert student.config.model_type == "roberta" and student.config.type_vocab_size == 1


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_random_student_is_a_new_model(kind):
    """Would catch: `--init random` that copies all the same, or draws by another seed."""
    teacher = make_teacher(**kind)
    student, layers = student_of(teacher, seed=7, init="random")
    assert layers == []
    copied, _ = student_of(teacher, seed=7)
    fresh = MaskedLM(student.config, 7).state_dict()
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, fresh[name]), name
        assert not torch.equal(tensor, copied.state_dict()[name]), name


@pytest.mark.parametrize("teacher_layers, student_layers", [(2, 3), (2, -1), (1, 0)])
def test_impossible_depths_are_refused(teacher_layers, student_layers):
    """Would catch: a student deeper than its teacher, or one of no layers at all."""
    teacher = make_teacher(num_hidden_layers=teacher_layers)
    with pytest.raises(UserError, match="student-layers"):
        student_of(teacher, student_layers=student_layers)


def test_a_student_is_saved_as_it_was_trained():
    """Would catch: a student that is trained with its teacher's epsilon and read with another:
    DistilBERT's config has no field for it."""
    with pytest.raises(UserError, match="layer-norm-eps is 0.001, and that of a DistilBERT"):
        student_of(make_teacher(layer_norm_eps=1e-3, **BERT))
    student, _ = student_of(make_teacher(layer_norm_eps=1e-3, **ROBERTA))
    assert student.config.layer_norm_eps == 1e-3
