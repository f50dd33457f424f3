"""The fixed evaluation: losses, baselines, a teacher's nearness, what an NSP accuracy is worth."""
import dataclasses
import math

import pytest
import torch

import minibert.evaluation as evaluation_module
from minibert import MaskedLM, ModelConfig
from minibert.config import RunConfig
from minibert.data import Batch
from minibert.evaluation import evaluate, evaluation_set, nsp_scores
from minibert.files.corpus import prepare
from minibert.masking import IGNORE, DynamicMasker

RUN = RunConfig(out="-")
TOY_CONFIG = ModelConfig(vocab_size=120, hidden_size=16, num_hidden_layers=2,
                         num_attention_heads=2, intermediate_size=32, max_position_embeddings=32)

CONFIG = ModelConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                     intermediate_size=32, max_position_embeddings=16, initializer_range=0.3)


def pairs(count=40):
    """Pairs `[CLS] a.. [SEP] b.. [SEP]` whose random ones are the longer ones, and targets."""
    ids, types = torch.zeros(count, 9, dtype=torch.int64), torch.zeros(count, 9, dtype=torch.int64)
    for row in range(count):
        a, b = [10 + row % 7, 11], [20] * (2 + row % 2)
        tokens = [2, *a, 3, *b, 3]
        ids[row, :len(tokens)] = torch.tensor(tokens)
        types[row, len(a) + 2:len(tokens)] = 1
    is_random = torch.arange(count) % 2
    labels = torch.full((count, 2), IGNORE)
    labels[:, 0] = 10 + torch.arange(count) % 7
    return Batch(ids, (ids > 0).long(), types, is_random, torch.arange(count), 0,
                 torch.ones(count, 2, dtype=torch.int64), labels)


@torch.no_grad()
def test_scores_by_hand():
    """Catches sums that are divided by the slots, the rows or the batches, not by the targets; KL
    the other way round, at a temperature, or agreement with the truth instead of the teacher."""
    batch = pairs()
    model, teacher = MaskedLM(CONFIG, 1).eval(), MaskedLM(CONFIG, 2).eval()
    log_p, log_q = (one(batch.input_ids, attention_mask=batch.attention_mask,
                        token_type_ids=batch.token_type_ids, positions=batch.masked_positions)
                    .mlm_logits[:, 0].log_softmax(-1) for one in (teacher, model))
    truth = batch.labels[:, 0]  # the second slot of each row is not used
    truth[:3] = log_q.argmax(-1)[:3]  # so that some are right
    result = evaluate(model, batch, 16, teacher=teacher)
    assert result["mlm_loss"] == pytest.approx(
        -log_q.gather(1, truth[:, None]).mean().item(), rel=1e-5)
    right = (log_q.argmax(-1) == truth).double().mean().item()
    assert result["accuracy"] == pytest.approx(right) and 0 < right < 1
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    assert result["kl_to_teacher"] == pytest.approx(expected, rel=1e-5) and expected > 0.01
    same = (log_p.argmax(-1) == log_q.argmax(-1)).double().mean().item()
    assert result["agreement"] == pytest.approx(same) and same < 1
    itself = evaluate(model, batch, 16, teacher=model)
    assert itself["kl_to_teacher"] == pytest.approx(0, abs=1e-6) and itself["agreement"] == 1
    assert "kl_to_teacher" not in evaluate(model, batch)


class Judge(torch.nn.Module):
    """Answers "random" for pairs that a rule picks."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, ids, *, attention_mask, token_type_ids, positions):
        says = self.rule(ids, attention_mask, token_type_ids).long()
        return type("Output", (), {"nsp_logits": torch.nn.functional.one_hot(says, 2).float()})


@pytest.mark.parametrize("rule, accuracy, order", [
    (lambda ids, mask, types: mask.sum(1) > 7, 1.0, 0.5),  # length, which swapping leaves
    (lambda ids, mask, types: ids[:, 1] == 20, 0.5, 1.0),  # B's word in front
    (lambda ids, mask, types: torch.zeros(len(ids)), 0.5, 0.5),
])
def test_what_an_nsp_accuracy_is_worth(rule, accuracy, order):
    """Catches floors that are not those of the set, and swapped pairs that are not swapped."""
    batch = pairs()
    judge = Judge(rule)
    guesses = judge(batch.input_ids, attention_mask=batch.attention_mask,
                    token_type_ids=batch.token_type_ids, positions=None).nsp_logits.argmax(-1)
    scores = nsp_scores(judge, batch, guesses, 16)
    assert scores == {"nsp_accuracy": accuracy, "nsp_majority": 0.5, "nsp_length": 1.0,
                      "sentence_order": order}


def test_length_rule_of_either_kind():
    """Catches a length floor that only knows "random pairs are longer": in BERT's they are not."""
    batch = pairs()
    shorter = batch._replace(is_random_next=1 - batch.is_random_next)
    assert nsp_scores(Judge(lambda ids, mask, types: mask[:, 0]), shorter,
                      torch.ones(40, dtype=torch.int64), 16)["nsp_length"] == 1.0


@pytest.mark.parametrize("kind", [0, 1])
def test_pairs_of_one_kind_tell_nothing(kind):
    """Catches a NaN, which no JSON may hold, where the set has no true pair, as short ones have."""
    batch = pairs()
    result = evaluate(MaskedLM(CONFIG), batch._replace(is_random_next=torch.full((40,), kind)))
    assert all(value == value for value in result.values()) and "nsp_accuracy" not in result
    assert "sentence_order" in evaluate(MaskedLM(CONFIG), batch)


@pytest.fixture
def held_out(toy_text):
    tokenizer, _, text, _ = prepare(str(toy_text), "wordpiece", 70)
    return tokenizer, text


def test_evaluation_is_fixed(held_out):
    """Catches masks redrawn at each evaluation, and dropout left on."""
    tokenizer, text = held_out
    run = dataclasses.replace(RUN, seq_length=16, eval_targets=20)
    model = MaskedLM(TOY_CONFIG).train()
    results = [evaluate(model, evaluation_set(text, "full-sentences",
                                              dataclasses.replace(run, seed=seed, batch_size=b),
                                              tokenizer, "cpu"), size)
               for seed, b, size in ((0, 8, 256), (1, 16, 256), (2, 32, 3))]
    assert model.training
    assert results[0] == results[1]
    assert results[0]["hash"] == results[2]["hash"]
    assert results[0]["mlm_loss"] == pytest.approx(results[2]["mlm_loss"], abs=1e-5)
    assert 20 <= results[0]["targets"] <= 22


def test_evaluation_in_slices_is_the_same(held_out, monkeypatch):
    """Catches rows that are lost or doubled where few are masked, or evaluated, at a time."""
    tokenizer, text = held_out
    run = dataclasses.replace(RUN, seq_length=16, eval_targets=15)
    model = MaskedLM(TOY_CONFIG)
    whole = evaluation_set(text, "segment-pair", run, tokenizer, "cpu")
    result = evaluate(model, whole, teacher=model)
    masked, mask = [], DynamicMasker.__call__
    monkeypatch.setattr(DynamicMasker, "__call__", lambda self, batch: (
        masked.append(len(batch.input_ids)), mask(self, batch))[1])
    monkeypatch.setattr(evaluation_module, "MASKED_AT_A_TIME", 3)
    sliced = evaluation_set(text, "segment-pair", run, tokenizer, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(whole, sliced) if isinstance(a, torch.Tensor))
    assert sum(masked) - 3 < len(sliced.labels) <= sum(masked) < 15 and set(masked) == {3}
    monkeypatch.setattr(evaluation_module, "MOST_LOGITS", 3 * 2 * TOY_CONFIG.vocab_size)
    rows = []
    model.register_forward_hook(lambda _, given, output: rows.append(len(output.hidden)))
    again = evaluate(model, sliced, teacher=model)
    close = {name: pytest.approx(value, abs=1e-6) if isinstance(value, float) else value
             for name, value in result.items()}
    assert max(rows) == 3 and again == close


def test_hash_sees_every_part(held_out):
    """Catches losses that count as comparable though another token was asked for, at another
    place, or beside other words."""
    tokenizer, text = held_out
    run = dataclasses.replace(RUN, seq_length=16, eval_targets=20)
    model = MaskedLM(TOY_CONFIG)
    batch = evaluation_set(text, "full-sentences", run, tokenizer, "cpu")
    hashes = {evaluate(model, batch)["hash"]}
    for part in (batch.input_ids, batch.masked_positions, batch.labels):
        part[0, 0] += 1
        hashes.add(evaluate(model, batch)["hash"])
    assert len(hashes) == 4


def test_unigram_entropy_and_accuracy(held_out):
    """Catches a floor that is not the entropy of the evaluation targets."""
    tokenizer, text = held_out
    run = dataclasses.replace(RUN, seq_length=16, eval_targets=50)
    batch = evaluation_set(text, "segment-pair", run, tokenizer, "cpu")
    result = evaluate(MaskedLM(TOY_CONFIG), batch)
    targets = batch.labels[batch.labels != IGNORE].tolist()
    shares = [targets.count(word) / len(targets) for word in set(targets)]
    assert result["unigram_entropy"] == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert result["targets"] == len(targets)
    random_share = batch.is_random_next.float().mean().item()
    assert result["nsp_majority"] == pytest.approx(max(random_share, 1 - random_share))
