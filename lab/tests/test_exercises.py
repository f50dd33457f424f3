"""The exercises: blanks that can be filled, tests that notice, questions whose flags exist."""
import doctest
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from itertools import combinations

import pytest
from conftest import ROOT

from lab.exercises import check
from lab.exercises.explained import EXPLAINED
from lab.exercises.pieces import PIECES
from minibert.errors import UserError

README = (ROOT / "lab" / "exercises" / "README.md").read_text(encoding="utf-8")
STUBS = check.load(check.MINE)
theirs = {name: check.part(check.package(name), name) for name in PIECES}


def parameters(function):
    return [(parameter.name, parameter.kind, parameter.default)
            for parameter in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", PIECES)
def test_stubs_are_what_the_package_needs(name):
    """A stub with other parameters, or with an example that is not true, could never be done."""
    stub = check.part(STUBS, name)
    if check.BLANK not in inspect.getsource(stub):
        pytest.skip("a learner has written it")
    assert parameters(stub) == parameters(theirs[name])
    names = {**vars(STUBS), name: getattr(check.package(name), name)}
    example = doctest.DocTestParser().get_doctest(stub.__doc__, names, name, None, None)
    assert doctest.DocTestRunner().run(example).failed == 0
    assert "Hint: " in stub.__doc__ and f"\n| {name} | {PIECES[name].module}.py |" in README


def test_blank_pieces_get_a_hint(capsys, monkeypatch):
    """Whoever has not begun would be greeted by fifteen failures, or by all hints at once."""
    blanks = {name: answer for name, answer in check.read_answers(check.MINE).items()
              if check.BLANK in inspect.getsource(answer)}
    verdicts = check.check(blanks)  # all of them, until a learner writes one
    assert all(verdict.state == "blank" and verdict.means.startswith("Hint: ")
               for verdict in verdicts.values())
    shown = check.report(verdicts)
    assert shown.count("Hint: ") == bool(blanks) and len(shown.splitlines()) < 30
    monkeypatch.setattr(sys, "argv", ["check", "segment_pair"])
    with pytest.raises(UserError, match="no piece 'segment_pair'; take one of readable_attention"):
        check.main()


def test_every_planted_bug_of_a_piece_is_told_apart():
    """A student would be told of a mistake that is not theirs, or get no sentence for a known one.
    """
    named = set()
    for name in PIECES:
        for says, given in check.known(name).items():
            assert check.mistake(name, given) == says
        assert len(check.known(name)) > 1, f"no mistake of {name} is known"
        named |= set(check.known(name)) - {""}
    assert named == EXPLAINED.keys(), "a bug is not explained, or an explanation has no bug"


def test_a_mistake_of_each_piece_is_noticed_and_named():
    """If the package's piece were tested in place of the student's, every answer would pass."""
    first = {name: next(says for says in check.known(name) if says) for name in PIECES}
    verdicts = check.judge({name: check.bugs(name)[first[name]] for name in PIECES})
    for name, verdict in verdicts.items():
        assert verdict.state == "wrong" and verdict.means == EXPLAINED[first[name]], (name, verdict)
    assert "Done: 0 of 15 pieces." in check.report(verdicts)


def test_the_package_passes():
    """A piece that is never done would keep everybody at it."""
    quick = ("DynamicMasker", "full_sentences", "mlm_loss", "layer_map", "learning_rate")
    verdicts = check.check({name: theirs[name] for name in quick})
    assert {verdict.state for verdict in verdicts.values()} == {"done"}
    assert "Done: 5 of 5 pieces." in check.report(verdicts)


def test_a_piece_that_no_test_judges_is_not_done(monkeypatch):
    """When tests are renamed, a piece without any would pass whatever was written."""
    monkeypatch.setitem(PIECES, "layer_map", PIECES["layer_map"]._replace(tests="test_hashing.py",
                                                                         named=True))
    with pytest.raises(UserError, match="no test in tests/test_hashing.py has judged layer_map"):
        check.judge({"layer_map": theirs["layer_map"]})


OTHERWISE = '''
def soft_target_loss(student_logits, teacher_logits, temperature, valid=None, denominator=None):
    p = (teacher_logits.float() / temperature).softmax(-1)
    q = (student_logits.float() / temperature).log_softmax(-1)
    each = torch.special.xlogy(p, p).sum(-1) - (p * q).sum(-1)
    if valid is not None:
        each = each.where(valid, each.new_zeros(()))
    if denominator is None:
        denominator = each.numel() if valid is None else valid.sum()
    return each.sum() * temperature**2 / max(1, denominator)


def layer_map(teacher_layers, student_layers):
    return np.linspace(0, teacher_layers - 1, student_layers).round().astype(int).tolist()
'''
WRONG = '''
def layer_map(teacher_layers, student_layers):
    print("from", teacher_layers)
    return [0] * student_layers


def soft_target_loss(student_logits, teacher_logits, temperature, valid=None, denominator=None):
    q = (student_logits / temperature).log_softmax(-1)
    p = (teacher_logits / temperature).log_softmax(-1)
    return (q.exp() * (q - p)).sum(-1).mean()


def learning_rate(step, run):
    return run.peak * step
'''


def answers(file, code):
    """What a learner has written into a file like mine.py."""
    file.write_text(check.MINE.read_text(encoding="utf-8") + code, encoding="utf-8")
    return check.read_answers(file)


def test_right_answers_that_are_written_otherwise_pass(tmp_path):
    """A student with other words, or with random draws of their own, would be told to copy ours."""
    written = answers(tmp_path / "mine.py", OTHERWISE)
    right = {name: written[name] for name in ("soft_target_loss", "layer_map")}
    code = (ROOT / "minibert" / "masking.py").read_text(encoding="utf-8")
    for key in ("choose", "hide", "word"):
        code = code.replace(f'"{key}"', f'"my {key}"')
    right["mask_tokens"] = check.load(ROOT / "minibert" / "masking.py", code=code).mask_tokens
    verdicts = check.judge(right)
    assert {name: verdict.state for name, verdict in verdicts.items()} == dict.fromkeys(
        right, "done"), verdicts


def test_other_wrong_answers_get_a_sentence(tmp_path):
    """A student would get a page of traceback, the name of a mistake that is not theirs, or never
    see what their own print says."""
    written = answers(tmp_path / "his.py", WRONG)
    verdicts = check.judge({name: written[name]
                            for name in ("layer_map", "soft_target_loss", "learning_rate")})
    assert verdicts["layer_map"].means.startswith("The first test that fails says why")
    assert verdicts["layer_map"].printed.startswith("from 12\n")
    assert verdicts["soft_target_loss"].means == EXPLAINED["KL's arguments are swapped"]
    line = 1 + (tmp_path / "his.py").read_text(encoding="utf-8").splitlines().index(
        "    return run.peak * step")
    assert verdicts["learning_rate"].means == (
        f"his.py, line {line}, ends with AttributeError: 'RunConfig' object has no attribute "
        "'peak'.")
    shown = check.report(verdicts)
    assert len(shown.splitlines()) < 25 and "layer_map printed:\nfrom 12" in shown
    (tmp_path / "hers.py").write_text("def layer_map(:", encoding="utf-8")
    with pytest.raises(UserError, match="hers.py, line 1: invalid syntax"):
        check.read_answers(tmp_path / "hers.py")


def test_a_class_is_graded(tmp_path, monkeypatch, capsys):
    """A lecturer would give a student another one's marks, or wait for a file that hangs."""
    def run(command, timeout, **_):
        if "hangs" in command[-1]:
            raise subprocess.TimeoutExpired(command, timeout)
        assert command[:3] == [sys.executable, "-m", "lab.exercises.check"]
        states = "done wrong blank" if "anna" in command[-1] else "done done wrong"
        rows = "".join(f"{name:20}{state}\n" for name, state in zip(PIECES, states.split()))
        return subprocess.CompletedProcess(command, 1, rows, "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["check", "--mine", "anna.py", "hangs.py", "ben.py"])
    check.main()
    assert capsys.readouterr().out.endswith(
        "+-.   1  anna.py\nhangs.py does not end\n++-   2  ben.py\n")


QUESTIONS = README.split("\n### ")[1:]


def test_ten_questions_have_a_prediction_and_a_folded_answer():
    """An open answer would take from a reader the chance to be wrong first."""
    assert [question.split(".")[0] for question in QUESTIONS] == [*map(str, range(1, 11))]
    for question in QUESTIONS:
        asked, answer = question.split("<details><summary>Answer</summary>\n\n")
        assert "\npython " in asked and "\nPredict: " in asked, question
        assert re.search(r"\d\.\d\d", answer.split("\n\n</details>")[0]), question


def test_answers_add_up():
    """A gain that is not the difference of the losses beside it would teach the wrong size."""
    loss, checked = r"(\d\.\d{3})", 0
    for question in QUESTIONS:
        answer = " ".join(question.split("<details>")[1].split("</details>")[0].split())
        means = [sum(map(float, seeds)) / 3
                 for seeds in re.findall(rf"{loss}, {loss} and {loss}", answer)]
        for gain in re.findall(r"(?:gains?|costs?|worth|difference of) (\d\.\d\d)\b", answer):
            differences = [abs(first - second) for first, second in combinations(means, 2)]
            assert any(abs(difference - float(gain)) < 0.006 for difference in differences), answer
            checked += 1
    assert checked >= 9


def test_the_commands_of_the_questions_are_understood(monkeypatch):
    """A question whose command ends in an error could not be answered by a run."""
    monkeypatch.syspath_prepend(str(ROOT))
    settings = dict(re.findall(r'^([A-Z]+)="(.*?)"', README, re.M | re.S))
    commands = re.findall(r"^python (\w+)\.py (.*)$", README, re.M)
    assert len(commands) == 10 + 2  # the twin of most, and the twin of the students
    for script, flags in commands:
        for name, value in settings.items():
            flags = flags.replace(f"${name}", value)
        run, _ = importlib.import_module(script).read_flags(shlex.split(flags))
        assert run.out.startswith("runs/q")


def test_the_claim_of_your_own_is_a_claim():
    """An example that the table of claims does not take would end a reader's first own claim."""
    names = dict(vars(importlib.import_module("lab.claims")))
    exec(re.search(r"```python\n(.*?)```", README, re.S)[1], names)
    claim = names["CLAIMS"][-1]
    first, second = claim.contrasts[0].first, claim.contrasts[0].second
    assert (claim.id, first.flags, second.flags) == ("rate", "--mask-rate 0.4", "")
