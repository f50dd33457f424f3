"""What an update of each script is made of, by a second implementation of the three recipes.

The scripts run in this process, in float64, for a few steps. Here each of their steps is computed
again, in plain Python and NumPy: which sequences come, what is hidden in them, the losses, the
gradient, and the new weights. All of it is equal to 1e-10, for the recipes as they are and for
every setting that they read.
"""
import dataclasses
import importlib
import itertools
import json
import math
import runpy
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from conftest import ROOT, log

from minibert import distributed
from minibert.config import DistillConfig, ModelConfig, RunConfig
from minibert.data import make_sequences
from minibert.files.corpus import prepare
from minibert.files.hub import load_pretrained
from minibert.hashing import hash_bits
from minibert.model import MaskedLM
from minibert.student import make_student
from minibert.tokenizer import SpecialIds
from minibert.training import Training

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)

# What each paper says, in full: see the sources in the scripts.
RECIPES = {
    "train_bert": dict(
        input_format="segment-pair", short_seq_prob=0.1, nsp=True, masking="static",
        static_masks=10, mask_rate=0.15, seq_length=512, batch_size=256,
        gradient_accumulation_steps=4, learning_rate=1e-4, warmup=0.01, weight_decay=0.01,
        adam_beta2=0.999, max_grad_norm=1.0, hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1),
    "train_roberta": dict(
        tokenizer="wordpiece", input_format="full-sentences", nsp=False, masking="dynamic",
        mask_rate=0.15, seq_length=512, batch_size=8192, gradient_accumulation_steps=128,
        learning_rate=6e-4, warmup=0.048, weight_decay=0.01, adam_beta2=0.98, max_grad_norm=0.0,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1),
    "distill": dict(
        input_format="full-sentences", nsp=False, masking="dynamic", mask_rate=0.15,
        seq_length=512, batch_size=2000, gradient_accumulation_steps=50, learning_rate=5e-4,
        warmup=0.05, weight_decay=0.0, adam_beta2=0.98, max_grad_norm=5.0),
}
# The settings of these runs: small sizes, and what is no flag is changed in the recipe.
STUDENT = dict(student_layers=0, init="teacher", alpha_mlm=2.0, alpha_kl=5.0, alpha_cos=1.0,
               temperature=2.0, distill_positions="predicted")
RUN = dict(steps=4, seed=0, tokenizer="wordpiece", data_tokens=300, short_seq_prob=0.1,
           mask_rate=0.15, seq_length=24, batch_size=8, gradient_accumulation_steps=1,
           learning_rate=2e-3, warmup=0.1)
SHAPE = dict(vocab_size=70, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
             intermediate_size=12, max_position_embeddings=24, hidden_act="gelu",
             hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.2, layer_norm_eps=1e-12,
             initializer_range=0.3, attn_implementation="sdpa")

# Many settings at once, none of which is the default.
OTHERS = dict(seed=3, steps=5, data_tokens=180, mask_rate=0.4, seq_length=22, batch_size=6,
              gradient_accumulation_steps=3, learning_rate=0.01, warmup=0.5, weight_decay=0.3,
              adam_beta2=0.5, max_grad_norm=0.05)
OTHER_SHAPE = dict(vocab_size=75, hidden_size=12, num_hidden_layers=3, num_attention_heads=3,
                   intermediate_size=10, max_position_embeddings=26, hidden_act="relu",
                   hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.0, layer_norm_eps=0.1,
                   initializer_range=0.2, attn_implementation="eager")
CASES = [
    ("train_bert", {}),
    ("train_bert", OTHERS | OTHER_SHAPE | dict(short_seq_prob=0.9)),
    ("train_bert", dict(masking="dynamic", static_masks=1, mask_rate=0.3,
                        gradient_accumulation_steps=2)),
    ("train_bert", dict(static_masks=1)),
    ("train_bert", dict(nsp=False)),
    ("train_bert", dict(nsp=False, input_format="full-sentences")),
    ("train_bert", dict(nsp=False, input_format="doc-sentences", masking="dynamic")),
    ("train_roberta", {}),
    ("train_roberta", OTHERS | OTHER_SHAPE),
    ("train_roberta", dict(gradient_accumulation_steps=2, tokenizer="bpe", vocab_size=300)),
    ("distill", {}),
    ("distill", OTHERS | dict(teacher="roberta")),
    ("distill", dict(alpha_mlm=0.5, alpha_kl=0.0, alpha_cos=3.0, student_layers=3)),
    ("distill", dict(alpha_mlm=0.0, alpha_kl=0.7, alpha_cos=0.0, temperature=3.0)),
    ("distill", dict(alpha_kl=0.0, alpha_cos=0.0, init="random", seed=3)),
    ("distill", dict(distill_positions="all", teacher="roberta", gradient_accumulation_steps=4)),
]
# Settings that say where something is or what is written down; an update does not depend on them.
ELSEWHERE = {"corpus", "preset", "out", "device", "compile", "eval_targets", "log_every",
             "eval_every", "checkpoint_every"}
# Settings that a script fixes.
SENTENCES = {"input_format", "short_seq_prob", "nsp", "masking", "static_masks"}
FIXED = {"train_bert": {"tokenizer"}, "train_roberta": SENTENCES,
         "distill": {"tokenizer", *SENTENCES}}


@pytest.mark.parametrize("script", RECIPES)
def test_every_setting_is_tried(script):
    """Of a new setting, no case below would notice whether the script reads it."""
    configs = (RunConfig, DistillConfig if script == "distill" else ModelConfig)
    settings = {item.name for config in configs for item in dataclasses.fields(config)
                if item.metadata}
    tried = {name for its_script, changes in CASES for name in changes if its_script == script}
    assert settings - ELSEWHERE - FIXED[script] == tried


# ---- one step, again


def sequences(settings, corpus):
    """The batches of a run without end: for each row, its number and where its tokens are.

    With them come the epoch, and the duplicate of the text, by which pairs and masks are drawn.
    """
    for epoch in itertools.count():
        duplicate = epoch % settings.static_masks if settings.masking == "static" else epoch
        spans = make_sequences(corpus, settings.input_format, settings.seq_length,
                               seed=settings.seed, duplicate=duplicate,
                               short_seq_prob=settings.short_seq_prob)
        order = sorted(range(len(spans)),
                       key=lambda number: hash_bits(settings.seed, "order", epoch, number))
        B = settings.batch_size
        for start in range(0, len(order) - B + 1, B):  # what does not fill a batch is left out
            yield epoch, duplicate, [(number, spans[number].tolist())
                                    for number in order[start:start + B]]


def sequence_of(tokens, span, length):
    """[CLS] A [SEP] or [CLS] A [SEP] B [SEP] with its padding, attention mask and token types."""
    a_start, a_end, b_start, b_end, _ = span
    ids = [SPECIAL.cls, *tokens[a_start:a_end], SPECIAL.sep]
    types = [0] * len(ids)
    if b_end > b_start:
        ids += [*tokens[b_start:b_end], SPECIAL.sep]
        types += [1] * (b_end - b_start + 1)
    padding = [0] * (length - len(ids))
    return ids + padding, [1] * len(ids) + padding, types + padding


def draw_dropout(x, rate):
    """What torch's generator drops next: the rest is scaled up, so that the mean stays."""
    return x * F.dropout(torch.ones(x.shape, dtype=torch.float64), rate).numpy()


def hide(ids, number, duplicate, settings):
    """What a model sees in the place of some tokens, and for each slot a position and a label.

    Slots that are not used, at the end, have position 0 and the label None.
    """
    def draw(purpose, position):
        return hash_bits(settings.seed, duplicate, purpose, number, position)

    words = [position for position, token in enumerate(ids) if token not in SPECIAL]
    length = sum(token != SPECIAL.pad for token in ids)
    count = max(1, round(settings.mask_rate * length))
    chosen = sorted(words, key=lambda position: draw("choose", position))[:count]

    seen, real_words = list(ids), range(len(SPECIAL), settings.vocab_size)
    for position in chosen:
        one_of_ten = draw("hide", position) % 10
        if one_of_ten < 8:
            seen[position] = SPECIAL.mask
        elif one_of_ten == 8:
            seen[position] = real_words[draw("word", position) % len(real_words)]
    slots = [(position, ids[position]) for position in sorted(chosen)]
    M = max(1, round(settings.mask_rate * settings.seq_length))
    return seen, slots + [(0, None)] * (M - len(slots))


def batch_of(epoch, duplicate, rows, settings, corpus):
    """Arrays of what the model sees, the labels, and by what the losses of the batch divide."""
    made = []
    for number, span in rows:
        ids, mask, types = sequence_of(corpus.tokens.tolist(), span, settings.seq_length)
        seen, slots = hide(ids, number, duplicate, settings)
        positions, labels = zip(*slots)
        made.append((seen, mask, types, positions, labels, span[4]))
    seen, mask, types, positions, labels, is_random = zip(*made)
    predictions = sum(label is not None for row in labels for label in row)
    return SimpleNamespace(input_ids=np.array(seen), attention_mask=np.array(mask),
                           token_type_ids=np.array(types), positions=np.array(positions),
                           labels=labels, is_random=is_random, predictions=predictions,
                           tokens=int(np.sum(mask)), epoch=epoch)


def micro_batches(batch, count):
    """The batch in so many parts; each knows the counts of the whole."""
    size = len(batch.labels) // count
    return [SimpleNamespace(**{name: value if isinstance(value, int) else value[start:start + size]
                               for name, value in vars(batch).items()})
            for start in range(0, len(batch.labels), size)]


def pretraining_losses(student, config, parts, settings):
    """The loss of some micro-batches, and its terms: nats per prediction, and per pair."""
    losses = dict(mlm=0.0)
    if settings.nsp:
        losses["nsp"] = 0.0
    for part in parts:
        logits, nsp_logits, _ = reference.masked_lm(
            student, config, part.input_ids, part.attention_mask, part.token_type_ids,
            part.positions, draw_dropout)
        losses["mlm"] += mlm(logits, part.labels) / part.predictions
        if settings.nsp:
            says = reference.log_softmax(nsp_logits)
            losses["nsp"] -= sum(row[truth] for row, truth in zip(says, part.is_random)) \
                / settings.batch_size
    return sum(losses.values()), losses


def distillation_losses(student, config, parts, settings, teacher, teacher_config):
    """A student's loss, a weighted sum, and its terms (Sanh et al. 2019, section 3)."""
    T, everywhere = settings.temperature, settings.distill_positions == "all"
    asked = bool(settings.alpha_kl or settings.alpha_cos)
    losses = dict(mlm=0.0, **(dict(kl=0.0, cos=0.0) if asked else {}))
    for part in parts:
        given = part.input_ids, part.attention_mask, None, None if everywhere else part.positions
        logits, _, hidden = reference.masked_lm(student, config, *given, draw_dropout)
        used = [[label is not None for label in row] for row in part.labels]
        at_slots = logits
        if everywhere:
            used = part.attention_mask == 1
            at_slots = np.stack([row[where] for row, where in zip(logits, part.positions)])
        losses["mlm"] += mlm(at_slots, part.labels) / part.predictions
        if not asked:
            continue
        their_logits, _, their_hidden = reference.masked_lm(teacher, teacher_config, *given)
        log_p, log_q = (reference.log_softmax(each / T) for each in (their_logits, logits))
        divergence = (np.exp(log_p) * (log_p - log_q)).sum(-1)
        length = lambda x: np.sqrt((x**2).sum(-1))
        cosine = (hidden * their_hidden).sum(-1) / (length(hidden) * length(their_hidden))
        count = part.tokens if everywhere else part.predictions
        losses["kl"] += T**2 * divergence[np.array(used)].sum() / count
        losses["cos"] += (1 - cosine)[np.array(used)].sum() / count
    return sum(getattr(settings, f"alpha_{name}") * loss for name, loss in losses.items()), losses


def mlm(logits, labels):
    """The sum of -log p of what stood in the slots that are used."""
    says = reference.log_softmax(logits)
    return -sum(says[row, slot, label] for row, of_row in enumerate(labels)
                for slot, label in enumerate(of_row) if label is not None)


def assert_is_gradient(gradients, loss, weights):
    """Whether these are the derivatives of loss(weights), for every weight.

    A step of ih in a direction d of the weights gives loss + ih (gradient · d), to all digits: that
    is the complex step of Squire and Trapp (1998). In a random d, no weight can hide.
    """
    draw, h = np.random.default_rng(0), 1e-30
    directions = {name: draw.standard_normal(value.shape) for name, value in weights.items()}

    def slope(names):  # of the loss, where only these weights move
        return loss({name: value + 1j * h * directions[name] if name in names else value
                     for name, value in weights.items()}).imag / h

    def expected(names):
        return sum((gradients[name] * directions[name]).sum() for name in names)

    if abs(slope(weights) - expected(weights)) > 1e-10:
        wrong = [name for name in weights if abs(slope([name]) - expected([name])) > 1e-10]
        raise AssertionError(f"the gradient is wrong in {', '.join(wrong)}")


def updated(weights, gradients, moments, step, settings):
    """The weights after AdamW's step (Loshchilov and Hutter 2019), and the gradient's norm."""
    norm = math.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    scale = 1.0
    if settings.max_grad_norm:  # torch adds 1e-6, so that no division is by 0
        scale = min(1.0, settings.max_grad_norm / (norm + 1e-6))
    warmup = max(1, round(settings.warmup * settings.steps))
    share = step / warmup if step < warmup else (settings.steps - step) / (settings.steps - warmup)
    rate, beta1, beta2 = share * settings.learning_rate, 0.9, settings.adam_beta2
    new = {}
    for name, weight in weights.items():
        first, second = moments.get(name, (0.0, 0.0))
        first = beta1 * first + (1 - beta1) * scale * gradients[name]
        second = beta2 * second + (1 - beta2) * (scale * gradients[name])**2
        moments[name] = first, second
        first, second = first / (1 - beta1**(step + 1)), second / (1 - beta2**(step + 1))
        decay = settings.weight_decay if weight.ndim == 2 else 0.0  # no bias, and no LayerNorm
        new[name] = weight - rate * (decay * weight + first / (np.sqrt(second) + 1e-6))
    return new, norm


# ---- against the scripts


def config_of(script, settings):
    """The model that a script makes of the sizes."""
    sizes = {name: getattr(settings, name) for name in SHAPE}
    if script == "train_roberta":  # its positions count from pad + 1
        sizes["max_position_embeddings"] += 1
        return ModelConfig(model_type="roberta", next_sentence=False, type_vocab_size=1, **sizes)
    return ModelConfig(model_type="bert", next_sentence=settings.nsp, type_vocab_size=2, **sizes)


def arrays(named_tensors):
    return {name: tensor.detach().numpy().copy() for name, tensor in named_tensors}


@pytest.fixture
def steps(monkeypatch):
    """Of each step that a script makes: weights, gradient as it is before clipping, new weights."""
    seen, update = [], Training.update

    def watched(training):
        named = list(training.module.named_parameters())
        before, gradients = arrays(named), arrays((name, weight.grad) for name, weight in named)
        update(training)
        seen.append((before, gradients, arrays(named)))

    monkeypatch.setattr(Training, "update", watched)
    return seen


def flags_of(settings):
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            yield flag if value else flag.replace("--", "--no-", 1)
        else:
            yield from (flag, value)


class SecondRun:
    """A run of a script, computed a second time: its model, its batches and its losses."""

    def __init__(self, script, changes, toy_text, teachers, monkeypatch):
        given = {**RUN, **changes} if script == "distill" else {**RUN, **SHAPE, **changes}
        self.settings = settings = SimpleNamespace(
            **{**SHAPE, **STUDENT, "static_masks": 10, **RECIPES[script], **given})
        if script == "distill":
            given["teacher"] = teachers / given.get("teacher", "bert")
            teacher, tokenizer = load_pretrained(given["teacher"])
            prepared = prepare(str(toy_text), tokenizer=tokenizer)
            self.model, self.teacher_layers = make_student(teacher, DistillConfig(
                teacher="-", student_layers=settings.student_layers, init=settings.init),
                settings.seed)
            self.losses_of = lambda *given: distillation_losses(
                *given, arrays(teacher.named_parameters()), teacher.config)
        else:
            prepared = prepare(str(toy_text), settings.tokenizer, settings.vocab_size)
            self.model = MaskedLM(config_of(script, settings), settings.seed)
            self.losses_of = pretraining_losses
        self.tokenizer, self.corpus, _, self.fingerprint = prepared
        # With the preset `base`, the recipe decides on all that is no flag.
        monkeypatch.syspath_prepend(str(ROOT))
        module = importlib.import_module(script)
        monkeypatch.setattr(module, "RECIPE", {**module.RECIPE, **given})
        flags = {item.name for config in (RunConfig, DistillConfig, ModelConfig)
                 for item in dataclasses.fields(config) if item.metadata.get("help")}
        given = {name: value for name, value in given.items()
                 if name in flags - FIXED[script]}
        self.flags = [*flags_of(given), "--corpus", toy_text, "--preset", "base", "--device", "cpu",
                      "--log-every", 1, "--eval-every", 2, "--eval-targets", 1]

    def batches(self):
        """One batch after the other."""
        corpus = self.corpus.first_tokens(self.settings.data_tokens)
        for epoch, duplicate, rows in sequences(self.settings, corpus):
            yield batch_of(epoch, duplicate, rows, self.settings, corpus)

    def losses(self, weights, batch, step, rank=0, processes=1):
        """The loss of the micro-batches of one process, and its terms."""
        parts = micro_batches(batch, processes * self.settings.gradient_accumulation_steps)
        torch.manual_seed(hash_bits(self.settings.seed, "dropout", step, rank))
        return self.losses_of(weights, self.model.config, parts[rank::processes], self.settings)


@pytest.mark.parametrize("script, changes", CASES, ids=[
    f"{script}-{' '.join(changes) if len(changes) < 6 else len(changes)}"
    for script, changes in CASES])
def test_updates_are_the_recipe_s(script, changes, toy_text, teachers, tmp_path, run_script, steps,
                                  capsys, monkeypatch, float64):
    """Each of these would make our numbers those of another recipe, without any error: an argument
    that is not passed on, a flag that is not read, a loss that is divided by something else,
    padding or an unused slot that counts, dropout in the teacher, another optimizer, schedule or
    clipping."""
    second = SecondRun(script, changes, toy_text, teachers, monkeypatch)
    out, settings = tmp_path / "run", second.settings
    run_script(script, *second.flags, "--out", out)

    expected, moments = arrays(second.model.named_parameters()), {}
    tokens, targets, padded, unused = 0, 0, False, False
    logged = [line for line in log(out) if "loss" in line]
    assert len(steps) == len(logged) == settings.steps
    for step, (batch, (before, gradients, after)) in enumerate(zip(second.batches(), steps)):
        assert_same_arrays(before, expected)
        loss, terms = second.losses(before, batch, step)
        assert_is_gradient(
            gradients, lambda weights: second.losses(weights, batch, step)[0], before)
        expected, norm = updated(before, gradients, moments, step, settings)
        assert_same_arrays(after, expected)
        line = logged[step]
        for name, value in dict(terms, loss=loss, grad_norm=norm).items():
            assert line[name] == pytest.approx(value, rel=0, abs=1e-10), name
        tokens, targets = tokens + batch.tokens, targets + batch.predictions
        assert (line["tokens"], line["targets"]) == (tokens, targets)
        padded |= batch.tokens < batch.input_ids.size
        unused |= batch.predictions < batch.positions.size
    # Otherwise the test could not see that these do not count, or that masks repeat.
    assert padded and unused and batch.epoch > 0
    saved, _ = load_pretrained(out)
    assert_same_arrays(arrays(saved.named_parameters()), expected)
    metadata = json.loads((out / "run.json").read_text())
    assert metadata["model"] == dataclasses.asdict(second.model.config)
    assert metadata["corpus_fingerprint"] == second.fingerprint
    noted = metadata["settings"] | (metadata["distill"] if script == "distill" else {})
    for name, value in noted.items():
        assert name in {*ELSEWHERE, "teacher"} or getattr(settings, name) == value, name
    metrics = json.loads((out / "metrics.json").read_text())
    assert ("kl_to_teacher" in metrics["full-sentences"]) == (script == "distill")
    said = capsys.readouterr().out
    if script == "distill":
        assert metadata["teacher_layers"] == second.teacher_layers
        started = f"starts from the teacher's layers {second.teacher_layers}\n"
        assert (started in said) == (settings.init == "teacher")


@pytest.mark.parametrize("script", RECIPES)
def test_two_processes_share_an_update(script, toy_text, teachers, tmp_path, run_script, steps,
                                       monkeypatch, capsys, float64):
    """Under torchrun, one process's dropout in both, rows that are learned twice, or a loss that is
    divided by one process's counts would make two GPUs another experiment than one. Both processes
    are run here, one after the other; torch's part, the mean of their gradients, is by hand."""
    second = SecondRun(script, dict(steps=1, gradient_accumulation_steps=2), toy_text, teachers,
                       monkeypatch)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "join", lambda device, rank=rank: (rank, 2))
        run_script(script, *second.flags, "--out", tmp_path / str(rank))
    (before, first, _), (_, second_gradients, _) = steps
    assert not (tmp_path / "1").exists()  # only the first process writes
    assert capsys.readouterr().out.count("starts from") == (script == "distill")
    batch = next(second.batches())
    mean = {name: (first[name] + second_gradients[name]) / 2 for name in first}
    assert_is_gradient(mean, lambda weights: sum(
        second.losses(weights, batch, 0, rank, 2)[0] for rank in (0, 1)), before)


def assert_same_arrays(actual, expected):
    assert actual.keys() == expected.keys()
    for name in actual:
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("script", RECIPES)
def test_a_script_is_a_command(script, monkeypatch, capsys):
    """A script would do nothing when it is started, or end in a traceback."""
    monkeypatch.setattr("sys.argv", [f"{script}.py", "--out", ""])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    assert capsys.readouterr().err.startswith("error: --out is missing")


def test_recipes_and_budgets_stand_in_the_scripts(monkeypatch):
    """A number that is not the paper's, or the budget of another preset, could not be seen in a few
    steps; and where a recipe rests on a default, a reader would not find all of it in the script.
    """
    monkeypatch.syspath_prepend(str(ROOT))
    budgets = dict(train_bert={"tiny": 3000, "small": 20_000, "base": 1_000_000},
                   train_roberta={"tiny": 3000, "small": 20_000, "base": 500_000},
                   distill={"tiny": 800, "small": 10_000, "base": 32_000})
    for script, recipe in RECIPES.items():
        module = importlib.import_module(script)
        assert (module.RECIPE, module.STEPS) == (recipe, budgets[script])


def test_a_family_is_its_own_whatever_the_sizes_say(monkeypatch):
    """A script that takes over the family, the token types or the padding of the sizes that it is
    given would train another network than its name says; and a sequence longer than the table of
    positions would end in an error of torch's."""
    monkeypatch.syspath_prepend(str(ROOT))
    sizes = ModelConfig(model_type="distilbert", next_sentence=False, type_vocab_size=0)
    bert = dataclasses.replace(sizes, model_type="bert", type_vocab_size=2, pad_token_id=3)
    roberta = dataclasses.replace(sizes, model_type="roberta", type_vocab_size=1, pad_token_id=3)
    pairs = RunConfig(out="-", nsp=True, input_format="segment-pair")
    make = importlib.import_module("train_bert").make_model_config
    assert make(pairs, sizes, 3) == dataclasses.replace(bert, next_sentence=True)
    for length, rows in ((128, 512), (600, 600)):
        run = RunConfig(out="-", seq_length=length)
        for script, config, more in (("train_bert", bert, 0), ("train_roberta", roberta, 4)):
            make = importlib.import_module(script).make_model_config
            assert make(run, sizes, 3) == dataclasses.replace(config,
                                                              max_position_embeddings=rows + more)
