"""Distillation: what teacher and student are asked for, and what is made of their answers.

The tests run `distill.main()` in this process, on a text and teachers of a few kilobytes, and note
every call of the two models and of the two losses.
"""
import itertools
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_student import BERT, ROBERTA, TINY, make_teacher

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the scripts are
import distill  # noqa: E402
from minibert.config import DistillConfig  # noqa: E402
from minibert.errors import UserError  # noqa: E402
from minibert.files.hub import load_pretrained, save_pretrained  # noqa: E402
from minibert.tokenizer import special_ids, train_tokenizer  # noqa: E402


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
    mask_id = special_ids(seen.tokenizer).mask
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
    all_positions = run("--distill-positions", "all")
    assert DistillConfig(teacher="-").distill_positions == "predicted"
    assert default.log[0]["kl"] == predicted.log[0]["kl"]
    assert default.teacher_calls[0].positions.shape == (8, 2)  # round(0.15 * 16) predictions
    assert all_positions.teacher_calls[0].positions is None
    for term in ("kl", "cos"):
        assert all_positions.log[0][term] != pytest.approx(default.log[0][term], rel=1e-3)
    # The hard labels are at the predictions either way.
    assert all_positions.log[0]["mlm"] == pytest.approx(default.log[0]["mlm"], rel=1e-5)


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
    """Would catch trap 26: the mean of micro-batches' means, where they hold different counts."""
    whole = run("--distill-positions", where).log[0]
    accumulated = run("--distill-positions", where, "--gradient-accumulation-steps", "4").log[0]
    for term in ("loss", "mlm", "kl", "cos", "grad_norm"):
        assert accumulated[term] == pytest.approx(whole[term], rel=1e-4), term


def test_slices_change_no_loss(run, monkeypatch):
    """Would catch: rows left out, or doubled, where soft targets at all positions are in slices."""
    whole = run("--distill-positions", "all").log[0]
    monkeypatch.setattr("minibert.evaluation.MOST_LOGITS", 3 * 16 * TINY["vocab_size"])
    sliced = run("--distill-positions", "all", "--gradient-accumulation-steps", "2")
    assert len(sliced.student_calls) == 8  # two steps of two parts, each of three rows and one
    for term in ("loss", "mlm", "kl", "cos", "grad_norm"):
        assert sliced.log[0][term] == pytest.approx(whole[term], rel=1e-4), term


def test_a_finished_run_of_other_settings_is_refused(run):
    """Would catch: an arm with other weights that is taken for the one in its folder."""
    out = str(run("--alpha-kl", "5").out)
    with pytest.raises(UserError, match="alpha_kl"):
        run("--alpha-kl", "0", "--out", out)


def test_a_finished_run_on_another_text_is_refused(run, monkeypatch):
    """Would catch: a student of the text as it was, taken for one of the text as it is."""
    out = str(run().out)
    prepare = distill.prepare
    monkeypatch.setattr(distill, "prepare", lambda *given, **named: (
        *prepare(*given, **named)[:3], "another text"))
    with pytest.raises(UserError, match="another text"):
        run("--out", out)
