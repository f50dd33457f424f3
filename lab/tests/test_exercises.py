"""The exercises: blanks that can be filled, tests that notice, questions whose flags exist."""
import doctest
import importlib
import inspect
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from lab.exercises import check
from lab.exercises.explained import EXPLAINED
from lab.exercises.pieces import PIECES
from lab.tests.test_promises import flags_in, help_of

from lab.claims import arms_of
from minibert.errors import UserError

README = (ROOT / "lab" / "exercises" / "README.md").read_text(encoding="utf-8")
STUBS = check.load(check.MINE)
theirs = {name: check.part(check.package(name), name) for name in PIECES}


def parameters(function):
    return [(one.name, one.kind, one.default)
            for one in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", PIECES)
def test_stubs_are_what_the_package_needs(name):
    """Catches a stub that asks for something else than the package needs, a worked example that
    is not true, and a stub without a hint."""
    stub = check.part(STUBS, name)
    if check.BLANK not in inspect.getsource(stub):
        pytest.skip("a learner has written it")
    assert parameters(stub) == parameters(theirs[name])
    names = {**vars(STUBS), name: getattr(check.package(name), name)}
    example = doctest.DocTestParser().get_doctest(stub.__doc__, names, name, None, None)
    assert doctest.DocTestRunner().run(example).failed == 0
    assert "Hint: " in stub.__doc__ and f"\n| {name} | {PIECES[name].module}.py |" in README


def test_blank_pieces_get_a_hint(capsys, monkeypatch):
    """Catches a greeting of failures for whoever has not begun, and more than one hint at once."""
    blanks = {name: one for name, one in check.read_answers(check.MINE).items()
              if check.BLANK in inspect.getsource(one)}
    verdicts = check.check(blanks)  # all of them, until a learner writes one
    assert all(one.state == "blank" and one.means.startswith("Hint: ") for one in verdicts.values())
    said = check.report(verdicts)
    assert said.count("Hint: ") == bool(blanks) and len(said.splitlines()) < 30
    monkeypatch.setattr(sys, "argv", ["check", "segment_pair"])
    with pytest.raises(UserError, match="no piece 'segment_pair'; take one of readable_attention"):
        check.main()


def test_every_planted_bug_of_a_piece_is_told_apart():
    """Catches a mistake that is named as another, and one that has no sentence for a student."""
    found = set()
    for name in PIECES:
        for says, given in check.known(name).items():
            assert check.mistake(name, given) == says
        assert len(check.known(name)) > 1, f"no mistake of {name} is known"
        found |= set(check.known(name)) - {""}
    assert found == EXPLAINED.keys(), "a bug is not explained, or an explanation has no bug"


def test_a_mistake_of_each_piece_is_noticed_and_named():
    """Catches a piece whose tests pass whatever is written, as they run the package's."""
    first = {name: next(says for says in check.known(name) if says) for name in PIECES}
    verdicts = check.judge({name: check.bugs(name)[first[name]] for name in PIECES})
    for name, one in verdicts.items():
        assert one.state == "wrong" and one.means == EXPLAINED[first[name]], (name, one)
    said = check.report(verdicts)
    assert "Done: 0 of 15 pieces." in said and "sqrt(D) is missing" in said


def test_package_passes():
    """Catches a piece that is never done. (The other pieces' tests run here anyway, unchanged.)"""
    quick = ("StaticMasker", "DynamicMasker", "mlm_loss", "layer_map", "optimizer_groups",
             "learning_rate")
    verdicts = check.check({name: theirs[name] for name in quick})
    assert {one.state for one in verdicts.values()} == {"done"}
    assert "Done: 6 of 6 pieces." in check.report(verdicts)


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


def answers(file, code):
    """What a learner has written into a file like mine.py."""
    file.write_text(check.MINE.read_text(encoding="utf-8") + code, encoding="utf-8")
    return check.read_answers(file)


def test_right_answers_that_are_written_otherwise_pass(tmp_path):
    """Catches an exercise that asks for the package's words, or its very draws."""
    written = answers(tmp_path / "mine.py", OTHERWISE)
    right = {name: written[name] for name in ("soft_target_loss", "layer_map")}
    code = (ROOT / "minibert" / "masking.py").read_text(encoding="utf-8")
    for key in ("choose", "hide", "word"):
        code = code.replace(f'"{key}"', f'"my {key}"')
    own_draws = check.load(ROOT / "minibert" / "masking.py", code=code)
    right["mask_tokens"] = own_draws.mask_tokens
    assert {name: one.state for name, one in check.judge(right).items()} == dict.fromkeys(
        right, "done")


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


def test_other_wrong_answers_get_a_sentence(tmp_path):
    """Catches a page of traceback; a mistake that is not named because there is another one; a
    name for what is no known mistake; and a learner's own print that nobody sees."""
    written = answers(tmp_path / "his.py", WRONG)
    verdicts = check.judge({name: written[name]
                            for name in ("layer_map", "soft_target_loss", "learning_rate")})
    assert verdicts["layer_map"].means.startswith("The first test that fails is there to notice: 0")
    assert verdicts["layer_map"].printed.startswith("from 12\n")
    assert verdicts["soft_target_loss"].means == EXPLAINED["28 KL's arguments are swapped"]
    line = 1 + (tmp_path / "his.py").read_text(encoding="utf-8").splitlines().index(
        "    return run.peak * step")
    assert verdicts["learning_rate"].means == (
        f"his.py, line {line}, ends with AttributeError: 'RunConfig' object has no attribute "
        "'peak'.")
    said = check.report(verdicts)
    assert len(said.splitlines()) < 20 and "layer_map printed:\nfrom 12" in said
    (tmp_path / "hers.py").write_text("def layer_map(:", encoding="utf-8")
    with pytest.raises(UserError, match="hers.py, line 1: invalid syntax"):
        check.read_answers(tmp_path / "hers.py")


def test_a_class_is_graded(tmp_path, monkeypatch, capsys):
    """Catches a row with the marks of another file, and a class that waits for one that hangs."""
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
    """Catches a question without a command, with nothing to predict, or with an open answer."""
    assert [question.split(".")[0] for question in QUESTIONS] == [*map(str, range(1, 11))]
    for question in QUESTIONS:
        asked, answer = question.split("<details><summary>Answer</summary>\n\n")
        answer, after = answer.split("\n\n</details>")
        assert "\npython " in asked and "\nPredict: " in asked, question
        assert len(answer) > 200 and re.search(r"\d\.\d\d", answer), question


def test_answers_add_up():
    """Catches a gain in an answer that is not the difference of the losses that stand there."""
    loss, checked = r"(\d\.\d{3})", 0
    for question in QUESTIONS:
        answer = " ".join(question.split("<details>")[1].split("</details>")[0].split())
        means = [sum(map(float, seeds)) / 3
                 for seeds in re.findall(rf"{loss}, {loss} and {loss}", answer)]
        for gain in re.findall(r"(?:gains|costs?|worth|difference of) (\d\.\d\d)\b", answer):
            differences = [abs(one - two) for one in means for two in means if one != two]
            assert any(abs(one - float(gain)) < 0.006 for one in differences), (gain, answer)
            checked += 1
    assert checked == 9


def test_settings_of_the_questions_are_known():
    """Catches a question whose command the scripts do not understand."""
    settings = dict(re.findall(r'^(SMALL|STUDENT)="(.*?)"', README, re.M | re.S))
    commands = re.findall(r"^python (\w+\.py) (.*)$", README, re.M)
    assert len(commands) == 10 + 2  # the twin of most, and the twin of the students
    for script, flags in commands:
        known = help_of(script)
        for name, value in settings.items():
            flags = flags.replace(f"${name}", value)
        assert "$" not in flags and set(flags_in(flags)) <= set(flags_in(known)), flags


def test_the_claim_of_your_own_is_a_claim():
    """Catches an example that the table of claims does not take."""
    example = re.search(r"```python\n(.*?)```", README, re.S)[1]
    names = dict(vars(importlib.import_module("lab.claims")))
    exec(example, names)
    claim = names["CLAIMS"][-1]
    assert claim.id == "rate" and "--mask-rate" in help_of(f"{claim.contrasts[0].first.script}.py")
    assert [arm.flags for arm in arms_of(claim)] == ["--mask-rate 0.4", ""]
