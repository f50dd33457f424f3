"""Planted bugs: `make mutants` makes each of these changes in a copy and runs the tests there.

A change that no test notices is a survivor, and named. The tests of the changed file run first;
what they let through meets the whole suite. The numbers are those of the traps that the papers'
readers fall into, "contract" is a promise of this project's own.
"""
import argparse
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Without the tests of the README, which notice that lines were added, not what they do.
WHOLE = "tests minibert data --ignore=lab/tests/test_promises.py"
# The quickest of the tests that train.
TRAINING = "tests/test_scripts.py " + " ".join(f"tests/test_training.py::test_{name}" for name in (
    "trap_25_schedule", "finished_run_is_not_repeated", "loss_that_is_no_number",
    "log_that_lost_lines", "unfinished_run_with_other_settings", "killed_run_goes_on_bit_for_bit"))


def wiring(script: str) -> str:
    """The tests of the scripts, without the updates of the other two."""
    others = {"train_bert", "train_roberta", "distill"} - {script}
    return "tests/test_scripts.py " + " ".join(
        f"--deselect=tests/test_scripts.py::test_updates_are_the_recipe_s[{other}-"
        for other in sorted(others))


class Mutant(NamedTuple):
    says: str  # the bug
    file: str
    before: str  # found once in the file
    after: str
    tests: str  # pytest's arguments for the tests that should notice it


def of(file: str, tests: str, *bugs: tuple[str, str, str]) -> list[Mutant]:
    return [Mutant(says, file, before, after, tests) for says, before, after in bugs]


MUTANTS = [
    *of("minibert/masking.py", "tests/test_masking.py",
        ("5 special tokens are hidden", "candidates = ~torch.isin(input_ids, special)",
         "candidates = input_ids != pad_id"),
        ("6 padding is predicted", "candidates = ~torch.isin(input_ids, special)",
         "candidates = ~torch.isin(input_ids, special[1:])"),
        ("7 kept tokens have no label", ".where(used, IGNORE)",
         ".where(used & (one_of_ten < 9).gather(1, masked_positions), IGNORE)"),
        ("8 random words are .1 of the rest",
         "torch.where(one_of_ten < MASKED_OF_TEN + RANDOM_OF_TEN,",
         "torch.where((one_of_ten < MASKED_OF_TEN + RANDOM_OF_TEN) & (random_word % 10 == 0),"),
        ("8 all of them become [MASK]", "torch.where(one_of_ten < MASKED_OF_TEN, mask_id,",
         "torch.where(one_of_ten < 10, mask_id,"),
        ("9 random words may be special", "words = words[~torch.isin(words, special)]",
         "words = words[special[:1]:]"),
        ("10 the count is cut, not rounded", "max(1, round(rate * n))", "max(1, int(rate * n))"),
        ("10 short sequences predict nothing", "max(1, round(rate * n))", "round(rate * n)"),
        ("11 dynamic masks stay the same", "duplicate of its own.\"\"\"\n        return epoch",
         "duplicate of its own.\"\"\"\n        return 0"),
        ("11 the epoch is no key of the choice", "hash_bits(seed, epoch, \"choose\"",
         "hash_bits(seed, 0, \"choose\""),
        ("12 all sequences have one mask", "\"choose\", sequence, position",
         "\"choose\", position"),
        ("12 the mask depends on the batch", "sequence = sequence_ids[:, None]",
         "sequence = torch.arange(len(sequence_ids), device=device)[:, None]"),
        ("13 static masks are drawn again", "return epoch % self.masks", "return epoch"),
        ("13 one static mask too many", "return epoch % self.masks",
         "return epoch % (self.masks + 1)"),
        ("13 there is one static mask", "return epoch % self.masks", "return 0"),
        ("14 labels are what the model sees", "labels = input_ids.gather(",
         "labels = inputs.gather("),
        ("15 the caller's tokens are changed",
         "inputs = torch.where(chosen, shown, input_ids)",
         "original = input_ids.clone(); inputs = input_ids.copy_(torch.where(chosen, shown, "
         "input_ids)); input_ids = original"),
        ("contract: the seed is no key", "random_key = hash_bits(seed,",
         "random_key = hash_bits(0,"),
        ("42 words are cut after all", "first = candidates & ~(continues & after_candidate)",
         "first = candidates")),
    *of("minibert/tokenizer.py", "tests/test_corpus.py",
        ("42 Ġ is read as ##", "not token.startswith(\"Ġ\")", "token.startswith(\"Ġ\")"),
        ("contract: another vocabulary each time", "characters = sorted(", "characters = list("),
        ("contract: <mask> is followed by a space", "ByteLevel(add_prefix_space=False)",
         "ByteLevel(add_prefix_space=True)")),
    *of("minibert/tools/fill_mask.py", "tests/test_fill_mask.py",
        ("contract: bytes are told apart by their looks",
         "its = id if their_tokens == tokens else their_tokens.index(word)",
         "its = their_tokens.index(word)")),
    *of("minibert/data.py", "tests/test_data.py",
        ("1 the label is turned round", "int(is_random)))", "int(not is_random)))"),
        ("2 B is from the same document", "        other += 1", "        other += 0"),
        ("2 B is always random", "is_random = stop - start == 1 or draw.random() < 0.5",
         "is_random = True"),
        ("3 what was not used is lost", "start = a_end  # the rest",
         "start = stop  # the rest"),
        ("4 cut at the end only", "front = draw.random() < 0.5", "front = False"),
        ("4 the shorter side is cut", "if a_end - a_start > b_end - b_start:",
         "if a_end - a_start < b_end - b_start:"),
        ("38 document sentences cross over", "new_document = i == first and not cross_documents",
         "new_document = False"),
        ("38 no block crosses over", "new_document = i == first and not cross_documents",
         "new_document = i == first"),
        ("38 a sentence too many", "if new_document or stop - block_start > max_tokens:",
         "if new_document or stop - block_start > max_tokens + 1:"),
        ("contract: token types of B's [SEP]", "((p >= a + 2) & (p < length)).long()",
         "in_b.long()"),
        ("contract: padding is attended to", "attention_mask = (p < length).long()",
         "attention_mask = torch.ones_like(ids)"),
        ("contract: one order for all epochs", "\"order\", epoch, sequence_ids",
         "\"order\", 0, sequence_ids"),
        ("contract: pairs ignore the masks' duplicate", "dupe=self.dupe(epoch),", "dupe=epoch,"),
        ("contract: no [SEP] between documents", "yield [*tokens, sep],", "yield tokens,")),
    *of("minibert/files/corpus.py", "tests/test_corpus.py",
        ("41 the vocabulary sees held-out text", "if number not in held_out]", "]"),
        ("41 held-out text is trained on", "HELD_OUT = 0.08", "HELD_OUT = 0.0"),
        ("contract: another text, the same arrays", "digest.update(content.digest())", "pass")),
    *of("minibert/model.py", "tests/test_model.py",
        ("17 the attention mask is turned round", "(1 - attention_mask[:, None, None, :].float())",
         "attention_mask[:, None, None, :].float()"),
        ("17 the 0/1 mask is added as it is",
         "attention_bias = (1 - attention_mask[:, None, None, :].float()) * -10000",
         "attention_bias = attention_mask[:, None, None, :].float()"),
        ("17 the attention mask is ignored", "if attention_mask is not None:", "if False:"),
        ("18 dropout while evaluating", "self.dropout if self.training else 0.0", "self.dropout"),
        ("19 token types in the mask's place", "def forward(self, input_ids: Tensor, *, "
         "attention_mask: Tensor | None = None,\n                token_type_ids: Tensor | None = "
         "None,\n                positions", "def forward(self, input_ids: Tensor, attention_mask: "
         "Tensor | None = None,\n                token_type_ids: Tensor | None = None,\n"
         "                positions"),
        ("20 rows of a batch mix", "return self.dropout(self.norm(total))",
         "return self.dropout(self.norm(total + 0.01 * total.mean(0)))"),
        ("21 the decoder is not tied", "words = self.encoder.embeddings.word.weight  # (V, H)",
         "words = self.encoder.embeddings.word.weight.detach()"),
        ("21 the bias is added twice", "F.linear(transformed, words, self.decoder_bias)",
         "F.linear(transformed, words, self.decoder_bias) + self.decoder_bias"),
        ("22 RoBERTa counts from 0",
         "position_ids = is_token.cumsum(1) * is_token + self.config.pad_token_id",
         "position_ids = is_token.cumsum(1) * is_token"),
        ("22 RoBERTa counts padding", "is_token.cumsum(1) * is_token +",
         "torch.arange(1, input_ids.shape[1] + 1).expand_as(is_token) +"),
        ("22 RoBERTa counts as BERT does", "if self.config.model_type == \"roberta\":\n"
         "            # RoBERTa's fairseq", "if False:\n            # RoBERTa's fairseq"),
        ("22 positions off by one", "position_ids = torch.arange(input_ids.shape[1],",
         "position_ids = torch.arange(1, 1 + input_ids.shape[1],"),
        ("27 -1e9 in half precision", "* -10000", "* -1e9"),
        ("36 weights are not initialised",
         "        initialize(self, config.initializer_range, seed)",
         "        pass"),
        ("36 no scaling of the scores", " / math.sqrt(query.shape[-1])", ""),
        ("36 the scores are divided by D", " / math.sqrt(query.shape[-1])", " / query.shape[-1]"),
        ("36 the softmax is over the queries", "scores.softmax(-1)", "scores.softmax(-2)"),
        ("17 the mask is multiplied", "scores = scores + attn_mask", "scores = scores * attn_mask"),
        ("18 attention has no dropout", "F.dropout(scores.softmax(-1), dropout_p)",
         "scores.softmax(-1)"),
        ("19 token types are not read", "total + self.token_type(token_type_ids)",
         "total + self.token_type(0 * token_type_ids)"),
        ("contract: pre-norm", "attended = self.attention_norm(query_states + attended)",
         "attended = query_states + self.attention_norm(attended)"),
        ("contract: attention has no residual",
         "attended = self.attention_norm(query_states + attended)",
         "attended = self.attention_norm(attended)"),
        ("contract: the pooler has no tanh", "torch.tanh(self.pooler(hidden[:, 0]))",
         "self.pooler(hidden[:, 0])"),
        ("contract: keys only where it is read",
         "self.attention(query_states, hidden, attention_bias)",
         "self.attention(query_states, query_states, None)"),
        ("contract: [CLS] is not read", "read_positions = F.pad(positions, (1, 0))",
         "read_positions = torch.cat([positions[:, :1], positions], 1)"),
        ("contract: predictions off by one", "else hidden[:, 1:]", "else hidden[:, :-1]"),
        ("contract: weights by order, not name", "hash_bits(seed, \"initial weights\", name)",
         "hash_bits(seed, \"initial weights\")"),
        ("contract: not BERT's truncated normal", "std, -2 * std, 2 * std,", "std, -2, 2,")),
    *of("minibert/losses.py", "tests/test_losses.py",
        ("1 the NSP label is turned round", "F.cross_entropy(_to_float32(logits), is_random_next,",
         "F.cross_entropy(_to_float32(logits), 1 - is_random_next,"),
        ("7 unused slots are in the mean", "labels.flatten() != IGNORE, denominator)",
         "None, denominator)"),
        ("7 index 0 is ignored, too", "ignore_index=IGNORE, reduction",
         "ignore_index=0, reduction"),
        ("10 nothing predicted gives NaN", ".clamp(min=1)", ""),
        ("10 a sum and no mean", "return _mean(losses, labels.flatten() != IGNORE, denominator)",
         "return losses.sum()"),
        ("26 the mean of micro-batches' means", "if denominator is None:", "if True:"),
        ("27 the loss is computed in halves", "return values.to(torch.promote_types("
         "values.dtype, torch.float32))", "return values"),
        ("28 KL's arguments are swapped", "F.kl_div(student, teacher,",
         "F.kl_div(teacher, student,"),
        ("28 the student gives probabilities", "student = F.log_softmax(", "student = F.softmax("),
        ("28 cross-entropy in place of KL",
         "F.kl_div(student, teacher, reduction=\"none\", log_target=True)",
         "(-teacher.exp() * student)"),
        ("29 batchmean of three dimensions", "_mean(divergence, valid, denominator)",
         "divergence.sum() / len(divergence)"),
        ("29 the mean over the vocabulary",
         "log_target=True).sum(-1)", "log_target=True).mean(-1)"),
        ("30 T² is missing", "temperature**2 * _mean(divergence", "_mean(divergence"),
        ("30 T in place of T²", "temperature**2 * _mean(divergence",
         "temperature * _mean(divergence"),
        ("30 T on the student only", "_to_float32(teacher_logits) / temperature",
         "_to_float32(teacher_logits)"),
        ("31 positions that do not count do", "values.masked_fill(~valid, 0).sum()",
         "values.sum()"),
        ("33 cosine of the other sign", "distance = 1 - F.cos", "distance = 1 + F.cos")),
    *of("minibert/losses.py", "tests/test_device.py",
        ("contract: a count is copied in each part", "values.new_ones(()) * denominator",
         "torch.as_tensor(denominator, device=values.device)")),
    *of("minibert/masking.py", "tests/test_device.py",
        ("contract: tables are made in each step", "@lru_cache(maxsize=32)", "")),
    *of("minibert/data.py", "tests/test_data.py",
        ("contract: blocks are made in each epoch",
         "if epoch == 0 or run.input_format == \"segment-pair\":", "if True:")),
    *of("distill.py", wiring("distill") + " tests/test_distill.py",
        ("30 T on the hard labels, too", "mlm_loss(logits, micro_batch.labels, num_predictions)",
         "mlm_loss(logits / distill.temperature, micro_batch.labels, num_predictions)"),
        ("31 the teacher has dropout", "teacher.to(training.device).eval()",
         "teacher.to(training.device).train()"),
        ("31 the teacher learns",
         "with torch.no_grad():  # the", "with torch.enable_grad():  # the"),
        ("31 the teacher reads clean text", "teacher_output = teacher(micro_batch.input_ids,",
         "teacher_output = teacher(micro_batch.input_ids.scatter(1, micro_batch.masked_positions, "
         "micro_batch.labels.clamp(min=0)),"),
        ("31 unused slots are compared", "micro_batch.labels != IGNORE",
         "micro_batch.labels != 12345"),
        ("32 the flag is not read", "all_positions = distill.distill_positions == \"all\"",
         "all_positions = False")),
    *of("minibert/student.py", "tests/test_student.py",
        ("34 the first layers only", "[round(i * (teacher_layers - 1) / gaps)", "[i"),
        ("34 every second layer", "[round(i * (teacher_layers - 1) / gaps)",
         "[i * teacher_layers // student_layers"),
        ("34 the map is cut, not rounded", "[round(i *", "[int(i *"),
        ("contract: token types are dropped",
         "position.weight += segment_a", "position.weight += 0"),
        ("contract: --init is not read", "if distill.init == \"random\":", "if False:")),
    *of("minibert/training.py", TRAINING,
        ("18 no dropout while training", "self.module = model.to(self.device).train()",
         "self.module = model.to(self.device).eval()"),
        ("23 LayerNorm is decayed", "if id(parameter) in norms or name.endswith(\"bias\"):",
         "if name.endswith(\"bias\"):"),
        ("23 biases are decayed", "if id(parameter) in norms or name.endswith(\"bias\"):",
         "if id(parameter) in norms:"),
        ("24 Adam's beta 2 is not the recipe's", "betas=(0.9, run.adam_beta2)",
         "betas=(0.9, 0.999)"),
        ("25 no warm-up", "return run.learning_rate * step / warmup", "return run.learning_rate"),
        ("25 the first step is not at 0", "run.learning_rate * step / warmup",
         "run.learning_rate * (step + 1) / warmup"),
        ("25 the rate falls from step 0", "(run.steps - step) / (run.steps - warmup)",
         "(run.steps - step) / run.steps"),
        ("25 it does not end at 0", "(run.steps - step) / (run.steps - warmup)", "1.0"),
        ("25 the schedule runs by micro-batch",
         "group[\"lr\"] = learning_rate(self.step, self.run)", "group[\"lr\"] = learning_rate("
         "self.step // self.run.gradient_accumulation_steps, self.run)"),
        ("26 gradients are left over", "self.optimizer.zero_grad(set_to_none=True)", "pass"),
        ("39 tokens include padding", "batch.attention_mask.sum(), \"targets\"",
         "batch.attention_mask.new_tensor(batch.attention_mask.numel()), \"targets\""),
        ("contract: clipping is ignored", "limit = self.run.max_grad_norm or math.inf",
         "limit = math.inf"),
        ("contract: resume with fresh dropout", "torch.manual_seed(hash_bits(self.run.seed, "
         "\"dropout\", self.step,",
         "torch.seed(); (hash_bits(self.run.seed, \"dropout\", self.step,"),
        ("contract: resume starts the text anew",
         "self.batches.cursor = tuple(state[\"cursor\"])",
         "pass"),
        ("contract: resume with a fresh Adam",
         "self.optimizer.load_state_dict(state[\"optimizer\"])", "pass"),
        ("contract: a log that lost lines goes on",
         "if len(kept) != windows + self.step // self.run.eval_every:", "if False:"),
        ("contract: resume logs twice", "if json.loads(line)[\"step\"] <= self.step:",
         "if json.loads(line):"),
        ("contract: a loss that is no number goes on", "if not math.isfinite(loss + norm):",
         "if False:"),
        ("contract: a gradient that is no number goes on", "if not math.isfinite(loss + norm):",
         "if not math.isfinite(loss):")),
    *of("minibert/training.py", "tests/test_parallel.py",
        ("contract: processes average their sums", "(self.world_size * loss).backward()",
         "loss.backward()"),
        ("contract: all processes read the same rows", "range(self.rank * size, B,",
         "range(0, B,"),
        ("contract: a signal is lost in an exchange", "        return int(received)",
         "        self.interrupted = int(received)\n        return self.interrupted")),
    *of("minibert/training.py", "tests/test_device.py",
        ("contract: the clock does not wait for a GPU",
         "        self.seconds = time.monotonic() - self.start\n        first", "        first"),
        ("contract: logits at all positions of all rows", "if everywhere else size",
         "if False else size"),
        ("contract: another device's masks are other ones",
         "if not torch.equal(hash_bits(numbers.to(self.device)).cpu(), hash_bits(numbers)):",
         "if False:"),
        ("contract: float64, which Apple's GPUs lack",
         "torch.stack([terms[name] for terms in self.window]).tolist()",
         "torch.stack([terms[name] for terms in self.window]).double().tolist()"),
        ("contract: a copy that holds up each step", "pin(value).to(", "value.to(")),
    *of("minibert/evaluation.py", "tests/test_evaluation.py "
        "tests/test_training.py::test_trap_16_evaluation_is_fixed "
        "tests/test_training.py::test_trap_37_hash_sees_every_part",
        ("16 the evaluation's masks follow the seed", "rows, seed=0, epoch=0,",
         "rows, seed=run.seed, epoch=0,"),
        ("18 evaluated with dropout", "    model.eval()\n", "    pass\n"),
        ("37 the hash does not see the targets",
         "for tensor in (batch.input_ids, batch.masked_positions, labels)",
         "for tensor in (batch.input_ids,)"),
        ("37 the entropy in bits", "torch.special.xlogy(frequency, frequency).sum()",
         "torch.special.xlogy(frequency, frequency).sum() / 0.6931"),
        ("contract: the model stays in eval", "model.train(was_training)", "pass"),
        ("contract: NaN where all pairs are random", "len(batch.is_random_next.unique()) == 2",
         "batch.is_random_next.any()"),
        ("contract: KL the other way round",
         "soft_target_loss(output.mlm_logits, teacher_logits, 1.0,",
         "soft_target_loss(teacher_logits, output.mlm_logits, 1.0,")),
    *of("lab/judge.py", "lab/tests/test_judge.py lab/tests/test_compare.py",
        ("37 other evaluation sets are compared", "if len(hashes) > 1:", "if len(hashes) > 9:"),
        ("39 unequal tokens are compared", "UNEQUAL = 0.01", "UNEQUAL = 0.5"),
        ("contract: the gain is a loss",
         "sign = 1 if contrast.measure == TASKS else -1",
         "sign = -1 if contrast.measure == TASKS else 1"),
        ("contract: a normal, not a t interval", "half = T95[count - 2]", "half = 1.96"),
        ("contract: the spread of n, not n - 1", "ddof=1", "ddof=0"),
        ("contract: the plateau is compared", "PLATEAU = 0.5", "PLATEAU = 0.0"),
        ("contract: no margin", "if -margin < low and high < margin:", "if False:"),
        ("contract: better by less than the margin",
         "if low > (margin if question == \"better\" else -margin):",
         "if low > (0 if question == \"better\" else -margin):"),
        ("contract: another set than is compared",
         "for scores, training in zip(arm[kind], arm[\"train_loss\"]))",
         "for scores, training in zip(arm[\"full-sentences\"], arm[\"train_loss\"]))"),
        ("claims: one arm's plateau is overlooked",
         "for arm in (contrast.first, contrast.second)\n                     if on_plateau",
         "for arm in (contrast.first,)\n                     if on_plateau"),
        ("claims: a sum of tokens for their mean", '(float(np.mean(arms[name]["tokens"])) for',
         '(float(np.sum(arms[name]["tokens"])) for'),
        ("claims: one arm's scores are enough", "for name in names:\n            if not all",
         "for name in names[:1]:\n            if not all")),
    *of("lab/plan.py", "lab/tests/test_compare.py",
        ("39 formats get unequal tokens", "(a + b + 2 + (b > 0)).mean()",
         "(0 * a + run.seq_length).mean()"),
        ("claims: a slice is a share of the corpus", "return round(arm.text * unit(arm, grid))",
         "return round(arm.text * 1e6)"),
        ("claims: a student has its teacher's budget",
         "return grid.tokens * grid.student if arm.teacher else grid.tokens",
         "return grid.tokens"),
        ("claims: tasks of another text", 'and corpus == "pydocs"', ""),
        ("claims: every student has one teacher", "add(arm.teacher, seed) if arm.teacher",
         "add(arm.teacher, 0) if arm.teacher"),
        ("claims: one arm's slice is looked at",
         "max(slice_tokens(arm, grid) for arm in arms_of(claim))",
         "slice_tokens(arms_of(claim)[0], grid)"),
        ("claims: every arm has more seeds", "grid.more_seeds * (arm in MORE_SEEDS)",
         "grid.more_seeds")),
    *of("lab/judge.py", "lab/tests/test_judge.py",
        ("claims: a gain is never early", "early = abs(gain) <",
         "early = abs(gain) < 0 *"),
        ("claims: NSP counts as learned", "floor in zip(accuracies, without)])[1] > 0:",
         "floor in zip(accuracies, without)])[1] > -9:"),
        ("claims: a mean of seeds that one arm lacks", "for side in zip(*pairs)))",
         "for side in values))"),
        ("claims: points as a share of one", "{scale * (high - low) / 2:.2g}{unit}",
         "{(high - low) / 2:.2g}{unit}"),
        ("claims: shares of raw scores", 'name: task["score"] - task["majority"] for name',
         'name: task["score"] for name')),
    *of("minibert/tasks/zero_shot.py", "tests/test_zero_shot.py",
        ("choices: the word itself is shown", "rows.scatter(1, blank, special.mask)", "rows"),
        ("choices: padding is read", "attention_mask=(rows != special.pad).long()",
         "attention_mask=None"),
        ("choices: texts change places", "scores[rows] =", "scores[rows.sort().values] ="),
        ("choices: the wrong text wins", "(right > wrong)", "(right < wrong)")),
    *of("lab/run.py", "lab/tests/test_compare.py",
        ("contract: students before teachers",
         "[job for job in left if not job.before or job.before.done]", "list(left)"),
        ("claims: as many threads as there are", '"OMP_NUM_THREADS": "1", ', "")),
    *of("lab/measure.py", "lab/tests/test_compare.py",
        ("claims: a sum for a mean loss", "float(np.mean(training[", "float(np.sum(training[")),
    *of("minibert/tasks/classifier.py", "tests/test_finetune.py",
        ("40 [CLS] only", "pooled = (hidden * weight[:, :, None]).sum(1)", "pooled = hidden[:, 0]"),
        ("40 padding in the mean",
         "weight = (attention_mask / attention_mask.sum(1, keepdim=True))",
         "weight = (torch.ones_like(attention_mask) / attention_mask.shape[1])")),
    *of("minibert/tasks/classifier.py", "tests/test_classifier.py",
        ("contract: one head for all that read [CLS]",
         "torch.relu if family == \"distilbert\" else torch.tanh", "torch.tanh"),
        ("contract: BERT has dropout before its pooler", "family in (\"mean\", \"roberta\")",
         "True")),
    *of("minibert/tasks/finetune.py", "tests/test_classifier.py",
        ("contract: BERT's pooler is thrown away",
         "if tune.pooling == \"cls\" and pretrained.config.next_sentence:", "if False:")),
    *of("minibert/tasks/finetune.py", "tests/test_finetune.py",
        ("contract: predicted with dropout", "    model.eval()\n", "    pass\n"),
        ("contract: random weights are fine-tuned",
         "model.encoder.load_state_dict(pretrained.encoder.state_dict())", "pass")),
    *of("minibert/tasks/finetune.py", "tests/test_device.py",
        ("contract: each batch's rows are copied to a GPU", "zip(here.split(size),",
         "zip(order.split(size),")),
    *of("minibert/tasks/tasks.py", "tests/test_tasks.py",
        ("contract: a floor that has seen the answers",
         "bag_of_words(self.texts, self.labels, self.dev_texts)",
         "bag_of_words(self.dev_texts, self.dev_labels, self.dev_texts)")),
    *of("minibert/files/hub.py", "tests/test_hub.py",
        ("contract: a stranger's pickle is executed", "weights_only=True)", "weights_only=False)"),
        ("contract: weights that are not finite",
         "if not torch.isfinite(tensor).all()]", "if False]"),
        ("contract: misshapen weights", "if ours[name].shape != expected.shape:", "if False:"),
        ("contract: unknown weights are dropped",
         "for name in set(theirs) - ignored if", "for name in set() if"),
        ("contract: an untied decoder is tied",
         "if words is not None and not torch.equal(", "if False and not torch.equal(")),
    *of("minibert/files/run_folder.py", TRAINING,
        ("contract: other settings go on",
         "if name not in passed_over and before.get(name) != value:",
         "if False:"),
        ("contract: half-written files are seen",
         "temporary = path.with_name(path.name + \".part\")",
         "temporary = path")),
    *of("distill.py", "tests/test_run_folder.py",
        ("contract: a teacher is known by its path", "\"teacher_weights\": fingerprint_of(teacher)",
         "\"teacher_weights\": \"\"")),
    *of("minibert/files/run_folder.py", "tests/test_run_folder.py",
        ("contract: finished before it is on the disk", "sync(*folder.rglob(\"*\"), folder)",
         "pass"),
        ("contract: a finished run is trained again", "if finished(run, metadata):", "if False:")),
    *of("minibert/errors.py", "tests/test_config.py",
        ("contract: bad input ends with 1", "    sys.exit(2)", "    sys.exit(1)")),
    *of("data/download.py", "tests/test_download.py",
        ("contract: a wrong SHA-256 is accepted", "if digest.hexdigest() != sha256:", "if False:"),
        ("contract: members outside the folder", "or \"..\" in name.split(\"/\")", ""),
        ("contract: a zip bomb is unpacked", "if opened.getinfo(name).file_size > limit:",
         "if False:")),
    *of("lab/exact.py", "lab/tests/test_exact.py",
        ("contract: any loss is an identity", "holds = error < 1e-9 and", "holds ="),
        ("contract: latency upside down", "[a / b for a, b in", "[b / a for a, b in")),
]


def plant(mutant: Mutant, folder: Path) -> None:
    """Make the change in a copy of the project. Raises ValueError where it does not apply."""
    text = (folder / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.before) != 1:
        raise ValueError(f"{mutant.file} holds {mutant.before!r} {text.count(mutant.before)} times")
    (folder / mutant.file).write_text(text.replace(mutant.before, mutant.after), encoding="utf-8")


def run_pytest(folder: Path, tests: str, seconds: int) -> None:
    """Run tests in this process, which ends with pytest's exit code; `output` says what it said."""
    import resource  # which Windows lacks, where the rest of this file is read by the tests
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))  # a changed loop may never end,
    resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32))  # or collect things until it does
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    os.environ |= {"PYTHONPATH": str(folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    here = (str(ROOT), str(ROOT / "tests"))
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in here)]
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests.split()]))


def fails(folder: Path, tests: str, seconds: int) -> str:
    """The first test that fails, "" where all pass."""
    forks = multiprocessing.get_context("forkserver")
    process = forks.Process(target=run_pytest, args=(folder, tests, seconds))
    process.start()
    process.join()
    if process.exitcode == 0:
        return ""
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", (folder / "output").read_text(), re.M)
    return found[1] if found else f"pytest ended with {process.exitcode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="bugs whose name or file holds this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if args.only in f"{mutant.file} {mutant.says}"]
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.splitlines()
    survivors: list[Mutant] = []
    unsound: list[str] = []  # what fails without any bug
    lock = threading.Lock()
    os.environ["OMP_NUM_THREADS"] = "1"
    # Each test run is forked from a process that has imported already what takes long to import.
    multiprocessing.set_forkserver_preload(["numpy", "pytest", "tokenizers", "torch"])

    def try_one(mutant: Mutant | None, tests: str) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file in files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / file, folder / file)
            if mutant is None:
                unsound.append(fails(folder, tests, 180))
                return
            plant(mutant, folder)
            found = fails(folder, tests, 180) or fails(folder, WHOLE, 900)
        with lock:
            if not found:
                survivors.append(mutant)
            print(f"{'killed' if found else 'SURVIVED':9}{mutant.file:24}{mutant.says:46}  {found}",
                  flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(try_one, None, tests) for tests in {one.tests for one in chosen}]
        jobs += [pool.submit(try_one, mutant, mutant.tests) for mutant in chosen]
        for job in jobs:
            job.result()
    if any(unsound):
        failing = ", ".join(filter(None, unsound))
        sys.exit(f"error: without any bug {failing} fails; mend it, then plant again")
    for mutant in survivors:
        print(f"survived: {mutant.file}: {mutant.says}")
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} planted bugs were noticed")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
