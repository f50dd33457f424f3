"""Distillation: which weights the student starts from, and what both models are asked for.

The tests of single steps run `distill.main()` in this process, on a text and teachers of a few
kilobytes, and note every call of the two models and of the two losses.
"""
import copy
import itertools
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the scripts are
import distill  # noqa: E402
from minibert.config import DistillConfig, ModelConfig  # noqa: E402
from minibert.errors import UserError  # noqa: E402
from minibert.hub import load_pretrained, save_pretrained  # noqa: E402
from minibert.model import MaskedLM  # noqa: E402
from minibert.tokenizer import specials, train_tokenizer  # noqa: E402

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


def make_student(teacher, seed=0, **settings):
    return distill.make_student(teacher, DistillConfig(teacher="-", **settings), seed)


# Which layers, and what is copied

def test_layer_map_is_the_published_one():
    """Would catch trap 34: 0, 2, 4, 6, 8, 10, which leaves the teacher's last layer out."""
    assert distill.layer_map(12, 6) == [0, 2, 4, 7, 9, 11]
    assert distill.layer_map(8, 4) == [0, 2, 5, 7]
    assert distill.layer_map(4, 2) == [0, 3]
    assert distill.layer_map(4, 1) == [0]


def test_layer_maps_rise_from_the_first_to_the_last_layer():
    """Would catch trap 34: a rule that fits 12 to 6 only, or takes one layer twice."""
    for teacher in range(1, 25):
        assert distill.layer_map(teacher, teacher) == list(range(teacher))
        for student in range(2, teacher + 1):
            layers = distill.layer_map(teacher, student)
            assert len(layers) == student and layers[0] == 0 and layers[-1] == teacher - 1
            assert all(a < b for a, b in zip(layers, layers[1:]))


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_student_starts_as_the_teachers_layers(kind):
    """Would catch trap 34: a layer, an embedding or the head that is not the teacher's."""
    teacher = make_teacher(num_hidden_layers=5, **kind)
    student, layers = make_student(teacher, student_layers=3)
    assert layers == [0, 2, 4] and student.config.num_hidden_layers == 3
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
    """Would catch trap 34: tensors that are not copied, or token types folded in in place."""
    teacher = make_teacher(**kind)
    before = copy.deepcopy(teacher.state_dict())
    student, _ = make_student(teacher, student_layers=2)
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    student(IDS).mlm_logits.square().sum().backward()
    optimizer.step()
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_student_of_all_layers_is_its_teacher(kind):
    """Would catch trap 33: token types that are dropped, not folded into the positions."""
    teacher = make_teacher(**kind)
    student, layers = make_student(teacher, student_layers=2)
    assert layers == [0, 1]
    mine, theirs = student(IDS, attention_mask=MASK), teacher(IDS, attention_mask=MASK)
    torch.testing.assert_close(mine.hidden, theirs.hidden, rtol=0, atol=1e-5)
    torch.testing.assert_close(mine.mlm_logits, theirs.mlm_logits, rtol=0, atol=1e-5)


def test_student_of_bert_is_a_distilbert():
    """Would catch: a student with a pooler, an NSP head or token types, which none of it needs."""
    student, _ = make_student(make_teacher())
    assert student.config.model_type == "distilbert" and student.config.num_hidden_layers == 1
    assert not student.config.next_sentence and not student.config.type_vocab_size
    parts = " ".join(student.state_dict())
    assert "pooler" not in parts and "nsp_head" not in parts and "token_type" not in parts
    student, _ = make_student(make_teacher(**ROBERTA))
    assert student.config.model_type == "roberta" and student.config.type_vocab_size == 1


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_random_student_is_a_new_model(kind):
    """Would catch: `--init random` that copies all the same, or draws by another seed."""
    teacher = make_teacher(**kind)
    student, _ = make_student(teacher, seed=7, init="random")
    copied, _ = make_student(teacher, seed=7)
    fresh = MaskedLM(student.config, 7).state_dict()
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, fresh[name]), name
        assert not torch.equal(tensor, copied.state_dict()[name]), name


@pytest.mark.parametrize("teacher_layers, student_layers", [(2, 3), (2, -1), (1, 0)])
def test_impossible_depths_are_refused(teacher_layers, student_layers):
    """Would catch: a student deeper than its teacher, or one of no layers at all."""
    teacher = make_teacher(num_hidden_layers=teacher_layers)
    with pytest.raises(UserError, match="student-layers"):
        make_student(teacher, student_layers=student_layers)


# Single steps of distill.main()

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that runs distill.py with some flags and tells what happened."""
    folder = tmp_path_factory.mktemp("distill")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=3)) for _ in range(40)]
    sentence = lambda: " ".join(draw.choices(words, k=draw.randint(2, 9))) + "."
    documents = ["\n".join(sentence() for _ in range(8)) for _ in range(12)]
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    tokenizer = train_tokenizer(lambda: documents, "wordpiece", TINY["vocab_size"])
    dropout = dict(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    for name, shape in (("bert", BERT), ("roberta", ROBERTA), ("dropout", dropout)):
        save_pretrained(make_teacher(**shape), tokenizer, folder / name)
    numbers = itertools.count()
    return lambda *flags, teacher="bert": run_distill(
        folder, folder / f"run{next(numbers)}", folder / teacher, flags)


def run_distill(folder, out, teacher, flags):
    """Run distill.main() and note what the models and the losses were called with, and the log."""
    seen = SimpleNamespace(teacher_calls=[], student_calls=[], losses=[], teacher_folder=teacher,
                           out=out)

    def watch(model, calls):
        def note(module, inputs, named, output):
            if not inputs:
                return  # an evaluation, which names all of its arguments
            calls.append(SimpleNamespace(ids=inputs[0], output=output, training=module.training,
                                         gradient=torch.is_grad_enabled(), **named))
        model.register_forward_hook(note, with_kwargs=True)
        return model

    def load(path):
        seen.teacher, seen.tokenizer = load_pretrained(path)
        return watch(seen.teacher, seen.teacher_calls), seen.tokenizer

    make = distill.make_student

    def make_and_watch(*arguments):
        student, layers = make(*arguments)
        return watch(student, seen.student_calls), layers

    def watch_loss(loss):
        def noted(student, teacher, *others):
            seen.losses.append((loss, student, teacher, others))
            return loss(student, teacher, *others)
        return noted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signal.signal", lambda *_: None)
        patch.setattr(distill, "load_pretrained", load)
        patch.setattr(distill, "make_student", make_and_watch)
        patch.setattr(distill, "soft_target_loss", watch_loss(distill.soft_target_loss))
        patch.setattr(distill, "cosine_loss", watch_loss(distill.cosine_loss))
        patch.setattr(sys, "argv", [
            "distill.py", "--corpus", str(folder / "text.txt"), "--teacher", str(teacher),
            "--out", str(out), "--preset", "tiny", "--device", "cpu", "--steps", "2",
            "--batch-size", "8", "--seq-length", "16", "--input-format", "doc-sentences",
            "--eval-targets", "20", "--log-every", "1", *flags])
        distill.main()
    lines = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
    seen.log = [line for line in lines if "loss" in line]
    return seen


BOTH = pytest.mark.parametrize("where", ["predicted", "all"])


@BOTH
def test_both_models_read_the_same_corrupted_input(run, where):
    """Would catch trap 31: a teacher that is given the clean text, or another mask."""
    seen = run("--distill-positions", where)
    mask_id = specials(seen.tokenizer).mask
    assert len(seen.teacher_calls) == len(seen.student_calls) == 2
    for teacher, student in zip(seen.teacher_calls, seen.student_calls):
        assert teacher.ids is student.ids and (teacher.ids == mask_id).any()
        assert teacher.attention_mask is student.attention_mask
        assert teacher.positions is student.positions
        assert (teacher.attention_mask == 0).any()  # some rows are padded: the mask is needed


def test_teacher_is_in_eval_mode(run):
    """Would catch trap 31: a teacher with dropout on, whose targets are noise."""
    seen = run("--eval-every", "1", teacher="dropout")
    assert seen.teacher.config.hidden_dropout_prob == 0.1
    assert not any(call.training for call in seen.teacher_calls)
    assert all(call.training for call in seen.student_calls)  # also after an evaluation
    first = seen.teacher_calls[0]
    again = seen.teacher(first.ids, attention_mask=first.attention_mask, positions=first.positions)
    assert torch.equal(again.mlm_logits, first.output.mlm_logits)


def test_teacher_does_not_learn(run):
    """Would catch trap 31: gradients that flow into the teacher, or a teacher that is stepped."""
    seen = run()
    assert all(parameter.grad is None for parameter in seen.teacher.parameters())
    assert not any(call.output.mlm_logits.requires_grad for call in seen.teacher_calls)
    weights = load_pretrained(seen.teacher_folder)[0].state_dict()
    for name, tensor in seen.teacher.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


@BOTH
def test_padding_is_not_compared(run, where):
    """Would catch trap 31: soft targets and cosine at padding, or at slots with no prediction."""
    seen = run("--distill-positions", where)
    assert len(seen.losses) == 4  # two steps, two losses
    for call, (loss, student, teacher, others) in zip(repeated(seen.student_calls), seen.losses):
        used = call.attention_mask.bool()
        if where == "predicted":
            used = call.positions > 0  # position 0 is [CLS], which is never predicted
        assert not used.all() and student.shape[:2] == used.shape
        value = loss(student, teacher, *others)
        assert torch.equal(loss(student + noise(student, ~used), teacher, *others), value)
        assert torch.equal(loss(student, teacher + noise(teacher, ~used), *others), value)
        for place in used.nonzero().tolist():
            one = torch.zeros_like(used)
            one[tuple(place)] = True
            assert loss(student + noise(student, one), teacher, *others) != value
        assert others[-1] == used.sum()


def repeated(calls):
    """Each call once for each of the two losses."""
    return [call for call in calls for _ in range(2)]


def noise(values, places):
    generator = torch.Generator().manual_seed(0)
    return places[:, :, None] * torch.randn(values.shape, generator=generator)


def test_predictions_are_compared_by_default(run):
    """Would catch trap 32: comparing everywhere, where the teacher never learned to answer."""
    default, predicted = run(), run("--distill-positions", "predicted")
    everywhere = run("--distill-positions", "all")
    assert DistillConfig(teacher="-").distill_positions == "predicted"
    assert default.log[0]["kl"] == predicted.log[0]["kl"]
    assert default.teacher_calls[0].positions.shape == (8, 2)  # round(0.15 * 16) predictions
    assert everywhere.teacher_calls[0].positions is None
    for term in ("kl", "cos"):
        assert everywhere.log[0][term] != pytest.approx(default.log[0][term], rel=1e-3)
    # The hard labels are at the predictions either way.
    assert everywhere.log[0]["mlm"] == pytest.approx(default.log[0]["mlm"], rel=1e-5)


@BOTH
@pytest.mark.parametrize("teacher", ["bert", "roberta"])
def test_student_like_its_teacher_is_not_moved(run, teacher, where):
    """Would catch trap 33: two models of the same weights that are asked different things."""
    seen = run("--student-layers", "2", "--alpha-mlm", "0", "--distill-positions", where,
               "--steps", "1", teacher=teacher)
    first = seen.log[0]
    assert first["kl"] == pytest.approx(0, abs=1e-5) and first["cos"] == pytest.approx(0, abs=1e-5)
    assert first["grad_norm"] < 1e-4 and first["mlm"] > 1


def test_temperature_is_for_the_soft_targets_only(run):
    """Would catch trap 30: T on the hard labels' logits, or T squared on their loss."""
    one, four = run("--temperature", "1").log[0], run("--temperature", "4").log[0]
    assert one["mlm"] == four["mlm"] and one["cos"] == four["cos"]
    assert one["kl"] != pytest.approx(four["kl"], rel=1e-3)


def test_loss_is_the_weighted_sum_of_three(run):
    """Would catch: weights that are swapped, or not the 5, 2 and 1 of the released command."""
    for first in (run().log[0], run("--alpha-kl", "5", "--alpha-mlm", "2").log[0]):
        assert first["loss"] == pytest.approx(5 * first["kl"] + 2 * first["mlm"] + first["cos"])
    first = run("--alpha-kl", "0.5", "--alpha-mlm", "0.25", "--alpha-cos", "3").log[0]
    assert first["loss"] == pytest.approx(
        0.5 * first["kl"] + 0.25 * first["mlm"] + 3 * first["cos"])


def test_without_soft_targets_the_teacher_is_not_asked(run):
    """Would catch: a baseline arm that pays for a teacher it does not use."""
    seen = run("--alpha-kl", "0", "--alpha-cos", "0")
    assert seen.teacher_calls == [] and len(seen.student_calls) == 2
    assert seen.log[0]["loss"] == pytest.approx(2 * seen.log[0]["mlm"])


@BOTH
def test_accumulation_changes_no_loss(run, where):
    """Would catch trap 26: the mean of the parts' means, where the parts hold different counts."""
    whole = run("--distill-positions", where).log[0]
    parts = run("--distill-positions", where, "--accumulation", "4").log[0]
    for term in ("loss", "mlm", "kl", "cos", "grad_norm"):
        assert parts[term] == pytest.approx(whole[term], rel=1e-4), term


def test_a_finished_run_of_other_settings_is_refused(run):
    """Would catch: an arm with other weights that is taken for the one in its folder."""
    out = str(run("--alpha-kl", "5").out)
    with pytest.raises(UserError, match="alpha_kl"):
        run("--alpha-kl", "0", "--out", out)


def test_a_finished_run_on_another_text_is_refused(run, monkeypatch):
    """Would catch: a student of the text as it was, taken for one of the text as it is."""
    out = str(run().out)
    prepare = distill.prepare
    monkeypatch.setattr(distill, "prepare", lambda *given: (*prepare(*given)[:3], "another text"))
    with pytest.raises(UserError, match="another text"):
        run("--out", out)
