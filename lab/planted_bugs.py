"""Planted bugs: `make mutants` makes each of these changes in a copy and runs the tests there.

A change that no test notices is a survivor, and named. The tests of the changed file run first;
what they let through meets the whole suite.
"""
import argparse
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Without the laboratory's, some of which notice that a line has changed, not what it does.
WHOLE = "tests minibert data"
TRAINING = "tests/test_training.py tests/test_scripts.py"


class Mutant(NamedTuple):
    says: str  # the bug
    file: str
    before: str  # found once in the file
    after: str
    tests: str  # the files of tests that should notice it


def of(file: str, tests: str, *bugs: tuple[str, str, str]) -> list[Mutant]:
    return [Mutant(says, file, before, after, tests) for says, before, after in bugs]


MUTANTS = [
    *of("minibert/masking.py", "tests/test_masking.py",
        ("special tokens are hidden", "candidates = ~torch.isin(input_ids, special)",
         "candidates = input_ids != pad_id"),
        ("padding is predicted", "candidates = ~torch.isin(input_ids, special)",
         "candidates = ~torch.isin(input_ids, special[1:])"),
        ("kept tokens have no label", ".where(used, IGNORE)",
         ".where(used & (one_of_ten < 9).gather(1, masked_positions), IGNORE)"),
        ("random words are .1 of the rest",
         "torch.where(one_of_ten < MASKED_OF_TEN + RANDOM_OF_TEN,",
         "torch.where((one_of_ten < MASKED_OF_TEN + RANDOM_OF_TEN) & (random_word % 10 == 0),"),
        ("all of them become [MASK]", "torch.where(one_of_ten < MASKED_OF_TEN, mask_id,",
         "torch.where(one_of_ten < 10, mask_id,"),
        ("random words may be special", "words = words[~torch.isin(words, special)]",
         "words = words[special[:1]:]"),
        ("the count is cut, not rounded", "max(1, round(rate * n))", "max(1, int(rate * n))"),
        ("short sequences predict nothing", "max(1, round(rate * n))", "round(rate * n)"),
        ("dynamic masks stay the same", "duplicate of its own.\"\"\"\n        return epoch",
         "duplicate of its own.\"\"\"\n        return 0"),
        ("the epoch is no key of the choice", "hash_bits(seed, epoch, \"choose\"",
         "hash_bits(seed, 0, \"choose\""),
        ("all sequences have one mask", "\"choose\", sequence, position",
         "\"choose\", position"),
        ("the mask depends on the batch", "sequence = sequence_ids[:, None]",
         "sequence = torch.arange(len(sequence_ids), device=device)[:, None]"),
        ("static masks are drawn again", "return epoch % self.masks", "return epoch"),
        ("one static mask too many", "return epoch % self.masks",
         "return epoch % (self.masks + 1)"),
        ("there is one static mask", "return epoch % self.masks", "return 0"),
        ("labels are what the model sees", "labels = input_ids.gather(",
         "labels = inputs.gather("),
        ("the caller's tokens are changed",
         "inputs = torch.where(chosen, shown, input_ids)",
         "original = input_ids.clone(); inputs = input_ids.copy_(torch.where(chosen, shown, "
         "input_ids)); input_ids = original"),
        ("the seed is no key", "random_key = hash_bits(seed,",
         "random_key = hash_bits(0,")),
    *of("minibert/tokenizer.py", "tests/test_tokenizer.py",
        ("Ġ is read as ##", "not token.startswith(\"Ġ\")", "token.startswith(\"Ġ\")"),
        ("another vocabulary each time", "characters = sorted(", "characters = list("),
        ("<mask> is followed by a space", "ByteLevel(add_prefix_space=False)",
         "ByteLevel(add_prefix_space=True)")),
    *of("minibert/tools/fill_mask.py", "tests/test_fill_mask.py",
        ("bytes are told apart by their looks",
         "its = id if their_tokens == tokens else their_tokens.index(word)",
         "its = their_tokens.index(word)")),
    *of("minibert/data.py", "tests/test_data.py",
        ("the label is turned round", "int(is_random)))", "int(not is_random)))"),
        ("B is from the same document", "        number += 1", "        number += 0"),
        ("B is always random", "is_random = stop - start == 1 or draw.random() < 0.5",
         "is_random = True"),
        ("what was not used is lost", "start = split  # the rest",
         "start = stop  # the rest"),
        ("cut at the end only", "front = draw.random() < 0.5", "front = False"),
        ("the shorter side is cut", "if a_end - a_start > b_end - b_start:",
         "if a_end - a_start < b_end - b_start:"),
        ("document sentences cross over", "new_document = i == first and not cross_documents",
         "new_document = False"),
        ("no block crosses over", "new_document = i == first and not cross_documents",
         "new_document = i == first"),
        ("a sentence too many", "if new_document or stop - block_start > max_tokens:",
         "if new_document or stop - block_start > max_tokens + 1:"),
        ("token types of B's [SEP]", "((p >= a + 2) & (p < length)).long()",
         "in_b.long()"),
        ("padding is attended to", "attention_mask = (p < length).long()",
         "attention_mask = torch.ones_like(ids)"),
        ("one order for all epochs", "\"order\", epoch, sequence_ids",
         "\"order\", 0, sequence_ids"),
        ("pairs ignore the masks' duplicate", "duplicate=self.duplicate_of(epoch),",
         "duplicate=epoch,"),
        ("no [SEP] between documents", "yield [*tokens, sep],", "yield tokens,")),
    *of("minibert/files/corpus.py", "tests/test_corpus.py",
        ("the vocabulary sees held-out text", "if number not in held_out]", "]"),
        ("held-out text is trained on", "HELD_OUT = 0.08", "HELD_OUT = 0.0"),
        ("another text, the same arrays", "digest.update(content.digest())", "pass")),
    *of("minibert/model.py", "tests/test_model.py",
        ("the attention mask is turned round", "(1 - attention_mask[:, None, None, :].float())",
         "attention_mask[:, None, None, :].float()"),
        ("the 0/1 mask is added as it is",
         "attention_bias = (1 - attention_mask[:, None, None, :].float()) * -10000",
         "attention_bias = attention_mask[:, None, None, :].float()"),
        ("the attention mask is ignored", "if attention_mask is not None:", "if False:"),
        ("dropout while evaluating", "self.dropout if self.training else 0.0", "self.dropout"),
        ("token types in the mask's place", "def forward(self, input_ids: Tensor, *, "
         "attention_mask: Tensor | None = None,\n                token_type_ids: Tensor | None = "
         "None,\n                positions", "def forward(self, input_ids: Tensor, attention_mask: "
         "Tensor | None = None,\n                token_type_ids: Tensor | None = None,\n"
         "                positions"),
        ("rows of a batch mix", "return self.dropout(self.norm(total))",
         "return self.dropout(self.norm(total + 0.01 * total.mean(0)))"),
        ("the decoder is not tied", "words = self.encoder.embeddings.word.weight  # (V, H)",
         "words = self.encoder.embeddings.word.weight.detach()"),
        ("the bias is added twice", "F.linear(transformed, words, self.decoder_bias)",
         "F.linear(transformed, words, self.decoder_bias) + self.decoder_bias"),
        ("RoBERTa counts from 0",
         "position_ids = is_token.cumsum(1) * is_token + self.config.pad_token_id",
         "position_ids = is_token.cumsum(1) * is_token"),
        ("RoBERTa counts padding", "is_token.cumsum(1) * is_token +",
         "torch.arange(1, input_ids.shape[1] + 1).expand_as(is_token) +"),
        ("RoBERTa counts as BERT does", "if self.config.model_type == \"roberta\":\n"
         "            # RoBERTa's fairseq", "if False:\n            # RoBERTa's fairseq"),
        ("positions off by one", "position_ids = torch.arange(input_ids.shape[1],",
         "position_ids = torch.arange(1, 1 + input_ids.shape[1],"),
        ("-1e9 in half precision", "* -10000", "* -1e9"),
        ("weights are not initialised",
         "        initialize(self, config.initializer_range, seed)",
         "        pass"),
        ("no scaling of the scores", " / math.sqrt(query.shape[-1])", ""),
        ("the scores are divided by D", " / math.sqrt(query.shape[-1])", " / query.shape[-1]"),
        ("the softmax is over the queries", "scores.softmax(-1)", "scores.softmax(-2)"),
        ("the mask is multiplied", "scores = scores + attn_mask", "scores = scores * attn_mask"),
        ("attention has no dropout", "F.dropout(scores.softmax(-1), dropout_p)",
         "scores.softmax(-1)"),
        ("token types are not read", "total + self.token_type(token_type_ids)",
         "total + self.token_type(0 * token_type_ids)"),
        ("pre-norm", "attended = self.attention_norm(query_states + attended)",
         "attended = query_states + self.attention_norm(attended)"),
        ("attention has no residual",
         "attended = self.attention_norm(query_states + attended)",
         "attended = self.attention_norm(attended)"),
        ("the pooler has no tanh", "torch.tanh(self.pooler(hidden[:, 0]))",
         "self.pooler(hidden[:, 0])"),
        ("keys only where it is read",
         "self.attention(query_states, hidden, attention_bias)",
         "self.attention(query_states, query_states, None)"),
        ("[CLS] is not read", "read_positions = F.pad(positions, (1, 0))",
         "read_positions = torch.cat([positions[:, :1], positions], 1)"),
        ("predictions off by one", "else hidden[:, 1:]", "else hidden[:, :-1]"),
        ("weights by order, not name", "hash_bits(seed, \"initial weights\", name)",
         "hash_bits(seed, \"initial weights\")"),
        ("not BERT's truncated normal", "std, -2 * std, 2 * std,", "std, -2, 2,")),
    *of("minibert/losses.py", "tests/test_losses.py",
        ("the NSP label is turned round", "F.cross_entropy(_to_float32(logits), is_random_next,",
         "F.cross_entropy(_to_float32(logits), 1 - is_random_next,"),
        ("unused slots are in the mean", "labels.flatten() != IGNORE, denominator)",
         "None, denominator)"),
        ("index 0 is ignored, too", "ignore_index=IGNORE, reduction",
         "ignore_index=0, reduction"),
        ("nothing predicted gives NaN", ".clamp(min=1)", ""),
        ("a sum and no mean", "return _mean(losses, labels.flatten() != IGNORE, denominator)",
         "return losses.sum()"),
        ("the mean of micro-batches' means", "if denominator is None:", "if True:"),
        ("the loss is computed in halves", "return values.to(torch.promote_types("
         "values.dtype, torch.float32))", "return values"),
        ("KL's arguments are swapped", "F.kl_div(student, teacher,",
         "F.kl_div(teacher, student,"),
        ("the student gives probabilities", "student = F.log_softmax(", "student = F.softmax("),
        ("cross-entropy in place of KL",
         "F.kl_div(student, teacher, reduction=\"none\", log_target=True)",
         "(-teacher.exp() * student)"),
        ("batchmean of three dimensions", "_mean(divergence, valid, denominator)",
         "divergence.sum() / len(divergence)"),
        ("the mean over the vocabulary",
         "log_target=True).sum(-1)", "log_target=True).mean(-1)"),
        ("T² is missing", "temperature**2 * _mean(divergence", "_mean(divergence"),
        ("T in place of T²", "temperature**2 * _mean(divergence",
         "temperature * _mean(divergence"),
        ("T on the student only", "_to_float32(teacher_logits) / temperature",
         "_to_float32(teacher_logits)"),
        ("positions that do not count do", "values.masked_fill(~valid, 0).sum()",
         "values.sum()"),
        ("cosine of the other sign", "distance = 1 - F.cos", "distance = 1 + F.cos")),
    *of("minibert/losses.py", "tests/test_device.py",
        ("a count is copied in each part", "values.new_ones(()) * denominator",
         "torch.as_tensor(denominator, device=values.device)")),
    *of("minibert/masking.py", "tests/test_device.py",
        ("tables are made in each step", "@lru_cache(maxsize=32)", "")),
    *of("minibert/data.py", "tests/test_data.py",
        ("blocks are made in each epoch",
         "if epoch == 0 or run.input_format == \"segment-pair\":", "if True:")),
    *of("distill.py", "tests/test_scripts.py tests/test_distill.py",
        ("T on the hard labels, too", "mlm_loss(output.mlm_logits, micro_batch.labels,",
         "mlm_loss(output.mlm_logits / distill.temperature, micro_batch.labels,"),
        ("the teacher has dropout", "teacher.to(training.device).eval()",
         "teacher.to(training.device).train()"),
        ("the teacher learns",
         "with torch.no_grad():  # the", "with torch.enable_grad():  # the"),
        ("the teacher reads clean text", "target = teacher(**inputs)",
         "target = teacher(**{**inputs, \"input_ids\": micro_batch.input_ids.scatter(1, "
         "micro_batch.masked_positions, micro_batch.labels.clamp(min=0))})"),
        ("the flag is not read", "everywhere = distill.distill_positions == \"all\"",
         "everywhere = False"),
        ("each part divides by its own count",
         "valid = compared_at(micro_batch, everywhere)",
         "valid = compared_at(micro_batch, everywhere); num_compared = valid.sum()")),
    *of("minibert/student.py", "tests/test_student.py",
        ("the first layers only", "[round(i * (teacher_layers - 1) / gaps)", "[i"),
        ("every second layer", "[round(i * (teacher_layers - 1) / gaps)",
         "[i * teacher_layers // student_layers"),
        ("the map is cut, not rounded", "[round(i *", "[int(i *"),
        ("token types are dropped",
         "position.weight += segment_a", "position.weight += 0"),
        ("--init is not read", "if distill.init == \"random\":", "if False:")),
    *of("minibert/student.py", "tests/test_scripts.py tests/test_distill.py",
        ("unused slots are compared", "else batch.labels != IGNORE",
         "else batch.labels != 12345"),
        ("padding is compared", "return batch.attention_mask.bool() if everywhere",
         "return torch.ones_like(batch.labels, dtype=torch.bool) if everywhere"),
        ("the labels are lost where all is read", ".scatter(1, batch.masked_positions,",
         ".scatter(1, 0 * batch.masked_positions,")),
    *of("minibert/training.py", TRAINING,
        ("no dropout while training", "self.module = model.to(self.device).train()",
         "self.module = model.to(self.device).eval()"),
        ("LayerNorm is decayed", "if id(parameter) in norms or name.endswith(\"bias\"):",
         "if name.endswith(\"bias\"):"),
        ("biases are decayed", "if id(parameter) in norms or name.endswith(\"bias\"):",
         "if id(parameter) in norms:"),
        ("Adam's beta 2 is not the recipe's", "betas=(0.9, run.adam_beta2)",
         "betas=(0.9, 0.999)"),
        ("no warm-up", "return run.learning_rate * step / warmup", "return run.learning_rate"),
        ("the first step is not at 0", "run.learning_rate * step / warmup",
         "run.learning_rate * (step + 1) / warmup"),
        ("the rate falls from step 0", "(run.steps - step) / (run.steps - warmup)",
         "(run.steps - step) / run.steps"),
        ("it does not end at 0", "(run.steps - step) / (run.steps - warmup)", "1.0"),
        ("the schedule runs by micro-batch",
         "group[\"lr\"] = learning_rate(self.step, self.run)", "group[\"lr\"] = learning_rate("
         "self.step // self.run.gradient_accumulation_steps, self.run)"),
        ("gradients are left over", "self.optimizer.zero_grad(set_to_none=True)", "pass"),
        ("tokens include padding", "\"tokens\": batch.attention_mask.sum(),",
         "\"tokens\": torch.tensor(batch.attention_mask.numel()),"),
        ("clipping is ignored", "self.run.max_grad_norm or math.inf",
         "math.inf"),
        ("resume with fresh dropout", "torch.manual_seed(hash_bits(self.run.seed, "
         "\"dropout\", self.step,",
         "torch.seed(); (hash_bits(self.run.seed, \"dropout\", self.step,"),
        ("resume starts the text anew",
         "self.batches.cursor, logged = tuple(state[\"cursor\"]), state",
         "_, logged = tuple(state[\"cursor\"]), state"),
        ("resume with a fresh Adam",
         "self.optimizer.load_state_dict(state[\"optimizer\"])", "pass"),
        ("a log that lost lines goes on",
         "if log.stat().st_size < logged:", "if False:"),
        ("resume logs twice", "os.truncate(log, logged)", "pass"),
        ("a loss that is no number goes on", "if not math.isfinite(loss + norm):",
         "if False:"),
        ("a gradient that is no number goes on", "if not math.isfinite(loss + norm):",
         "if not math.isfinite(loss):")),
    *of("minibert/training.py", "tests/test_distributed.py",
        ("processes average their sums", "(self.world_size * loss).backward()",
         "loss.backward()"),
        ("all processes read the same rows", "range(self.rank * size, B,",
         "range(0, B,")),
    *of("minibert/distributed.py", "tests/test_distributed.py",
        ("a signal is lost in an exchange", "dist.ReduceOp.MAX", "dist.ReduceOp.MIN"),
        ("each process logs the loss of its own rows", "    dist.all_reduce(total)\n", "")),
    *of("minibert/training.py", "tests/test_device.py",
        ("the clock does not wait for a GPU",
         "        self.seconds = time.monotonic() - self.start\n        first", "        first"),
        ("logits at all positions of all rows",
         "most = rows_at_a_time(self.module.config.vocab_size, M)", "most = size"),
        ("float64, which Apple's GPUs lack",
         "torch.stack([terms[name] for terms in self.window]).tolist()",
         "torch.stack([terms[name] for terms in self.window]).double().tolist()")),
    *of("minibert/evaluation.py", "tests/test_evaluation.py tests/test_training.py",
        ("the evaluation's masks follow the seed", "tokenizer.get_vocab_size(), seed=0)",
         "tokenizer.get_vocab_size(), seed=run.seed)"),
        ("evaluated with dropout", "    model.eval()\n", "    pass\n"),
        ("the hash does not see the targets",
         "for tensor in (batch.input_ids, batch.masked_positions, labels)",
         "for tensor in (batch.input_ids,)"),
        ("the entropy in bits", "torch.special.xlogy(frequency, frequency).sum()",
         "torch.special.xlogy(frequency, frequency).sum() / 0.6931"),
        ("the model stays in eval", "model.train(was_training)", "pass"),
        ("NaN where all pairs are random", "len(batch.is_random_next.unique()) == 2",
         "batch.is_random_next.any()"),
        ("KL the other way round",
         "soft_target_loss(output.mlm_logits, teacher_logits, 1.0,",
         "soft_target_loss(teacher_logits, output.mlm_logits, 1.0,")),
    *of("minibert/tasks/zero_shot.py", "tests/test_zero_shot.py",
        ("the word itself is shown", "rows.scatter(1, blank, special.mask)", "rows"),
        ("padding is read", "attention_mask=(rows != special.pad).long()",
         "attention_mask=None"),
        ("texts change places", "scores[rows] =", "scores[rows.sort().values] ="),
        ("the wrong text wins", "(right > wrong)", "(right < wrong)")),
    *of("minibert/tasks/classifier.py", "tests/test_classifier.py",
        ("[CLS] only", "pooled = (hidden * weight[:, :, None]).sum(1)", "pooled = hidden[:, 0]"),
        ("padding in the mean",
         "weight = (attention_mask / attention_mask.sum(1, keepdim=True))",
         "weight = (torch.ones_like(attention_mask) / attention_mask.shape[1])")),
    *of("minibert/tasks/classifier.py", "tests/test_classifier.py",
        ("one head for all that read [CLS]",
         "torch.relu if family == \"distilbert\" else torch.tanh", "torch.tanh"),
        ("BERT has dropout before its pooler", "family in (\"mean\", \"roberta\")",
         "True")),
    *of("finetune.py", "tests/test_finetune.py",
        ("BERT's pooler is thrown away",
         "if tune.pooling == \"cls\" and pretrained.config.next_sentence:", "if False:")),
    *of("finetune.py", "tests/test_finetune.py",
        ("random weights are fine-tuned",
         "model.encoder.load_state_dict(pretrained.encoder.state_dict())", "pass")),
    *of("minibert/tasks/classifier.py", "tests/test_classifier.py",
        ("predicted with dropout", "    model.eval()\n", "    pass\n")),
    *of("minibert/tasks/classifier.py", "tests/test_device.py",
        ("each batch's rows are copied to a GPU", "zip(here.split(size),",
         "zip(order.split(size),")),
    *of("minibert/tasks/tasks.py", "tests/test_tasks.py",
        ("a floor that has seen the answers",
         "bag_of_words(self.texts, self.labels, self.dev_texts)",
         "bag_of_words(self.dev_texts, self.dev_labels, self.dev_texts)")),
    *of("minibert/files/hub.py", "tests/test_hub.py",
        ("a stranger's pickle is executed", "weights_only=True)", "weights_only=False)"),
        ("weights that are not finite",
         "if not torch.isfinite(tensor).all()]", "if False]"),
        ("misshapen weights", "if ours[name].shape != expected.shape:", "if False:"),
        ("unknown weights are dropped",
         "for name in set(theirs) - ignored if", "for name in set() if"),
        ("an untied decoder is tied",
         "if words is not None and not torch.equal(", "if False and not torch.equal(")),
    *of("minibert/files/run_folder.py", TRAINING,
        ("other settings go on",
         "if name not in passed_over and before.get(name) != value:",
         "if False:"),
        ("half-written files are seen",
         "temporary = path.with_name(path.name + \".part\")",
         "temporary = path")),
    *of("distill.py", "tests/test_run_folder.py",
        ("a teacher is known by its path", "\"teacher_weights\": fingerprint_of(teacher)",
         "\"teacher_weights\": \"\"")),
    *of("minibert/files/run_folder.py", "tests/test_run_folder.py",
        ("finished before it is on the disk", "sync(*folder.rglob(\"*\"), folder)",
         "pass"),
        ("a finished run is trained again", "if finished(run, metadata):", "if False:")),
    *of("minibert/errors.py", "tests/test_config.py",
        ("bad input ends with 1", "    sys.exit(2)", "    sys.exit(1)")),
    *of("data/download.py", "tests/test_download.py",
        ("a wrong SHA-256 is accepted", "if digest.hexdigest() != sha256:", "if False:")),
    # The laboratory's own.
    *of("lab/judge.py", "lab/tests/test_judge.py lab/tests/test_compare.py",
        ("other evaluation sets are compared", "if len(hashes) > 1:", "if len(hashes) > 9:"),
        ("unequal tokens are compared", "UNEQUAL = 0.01", "UNEQUAL = 0.5"),
        ("the gain is a loss",
         "sign = 1 if contrast.measure == TASKS else -1",
         "sign = -1 if contrast.measure == TASKS else 1"),
        ("a normal, not a t interval", "half = T95[count - 2]", "half = 1.96"),
        ("the spread of n, not n - 1", "ddof=1", "ddof=0"),
        ("the plateau is compared", "PLATEAU = 0.5", "PLATEAU = 0.0"),
        ("no margin", "if -margin < low and high < margin:", "if False:"),
        ("better by less than the margin",
         "if low > (margin if question == \"better\" else -margin):",
         "if low > (0 if question == \"better\" else -margin):"),
        ("another set than is compared",
         "for scores, training in zip(arm[kind], arm[\"train_loss\"]))",
         "for scores, training in zip(arm[\"full-sentences\"], arm[\"train_loss\"]))"),
        ("one arm's plateau is overlooked",
         "for arm in (contrast.first, contrast.second)\n                     if on_plateau",
         "for arm in (contrast.first,)\n                     if on_plateau"),
        ("a sum of tokens for their mean", '(float(np.mean(arms[name]["tokens"])) for',
         '(float(np.sum(arms[name]["tokens"])) for'),
        ("one arm's scores are enough", "for name in names:\n            if not all",
         "for name in names[:1]:\n            if not all")),
    *of("lab/plan.py", "lab/tests/test_compare.py",
        ("formats get unequal tokens", "(a + b + 2 + (b > 0)).mean()",
         "(0 * a + run.seq_length).mean()"),
        ("a slice is a share of the corpus", "return round(arm.text * unit(arm, grid))",
         "return round(arm.text * 1e6)"),
        ("a student has its teacher's budget",
         "return grid.tokens * grid.student if arm.teacher else grid.tokens",
         "return grid.tokens"),
        ("tasks of another text", 'and corpus == "pydocs"', ""),
        ("every student has one teacher", "add(arm.teacher, seed) if arm.teacher",
         "add(arm.teacher, 0) if arm.teacher"),
        ("one arm's slice is looked at",
         "max(slice_tokens(arm, grid) for arm in arms_of(claim))",
         "slice_tokens(arms_of(claim)[0], grid)"),
        ("every arm has more seeds", "grid.more_seeds * (arm in MORE_SEEDS)",
         "grid.more_seeds")),
    *of("lab/judge.py", "lab/tests/test_judge.py",
        ("a gain is never early", "early = abs(gain) <",
         "early = abs(gain) < 0 *"),
        ("NSP counts as learned", "floor in zip(accuracies, without)])[1] > 0:",
         "floor in zip(accuracies, without)])[1] > -9:"),
        ("a mean of seeds that one arm lacks", "for side in zip(*pairs)))",
         "for side in values))"),
        ("points as a share of one", "{scale * (high - low) / 2:.2g}{unit}",
         "{(high - low) / 2:.2g}{unit}"),
        ("shares of raw scores", 'name: task["score"] - task["majority"] for name',
         'name: task["score"] for name')),
    *of("lab/run.py", "lab/tests/test_compare.py",
        ("students before teachers",
         "[job for job in left if not job.before or job.before.done]", "list(left)"),
        ("as many threads as there are", '"OMP_NUM_THREADS": "1", ', "")),
    *of("lab/measure.py", "lab/tests/test_compare.py",
        ("a sum for a mean loss", "float(np.mean(training[", "float(np.sum(training[")),
    *of("lab/exact.py", "lab/tests/test_exact.py",
        ("any loss is an identity", "holds = error < 1e-9 and", "holds ="),
        ("latency upside down", "[a / b for a, b in", "[b / a for a, b in")),
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
    for name in [name for name in sys.modules if name.split(".")[0] == "lab"]:
        del sys.modules[name]  # this very package was imported from here, not from the copy
    here = (str(ROOT), str(ROOT / "tests"))
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in here)]
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests.split()]))


def first_failure(folder: Path, tests: str, seconds: int) -> str:
    """The first test that fails, "" where all pass."""
    forks = multiprocessing.get_context("forkserver")
    process = forks.Process(target=run_pytest, args=(folder, tests, seconds))
    process.start()
    process.join()
    if process.exitcode == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", (folder / "output").read_text(), re.M)
    return failed[1] if failed else f"pytest ended with {process.exitcode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="bugs whose name or file holds this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if args.only in f"{mutant.file} {mutant.says}"]
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.splitlines()
    os.environ["OMP_NUM_THREADS"] = "1"
    # Each test run is forked from a process that has imported already what takes long to import.
    multiprocessing.set_forkserver_preload(["numpy", "pytest", "tokenizers", "torch"])

    def noticed_by(mutant: Mutant | None, tests: str) -> str:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file in files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / file, folder / file)
            if mutant is None:
                return first_failure(folder, tests, 180)
            plant(mutant, folder)
            return first_failure(folder, tests, 180) or first_failure(folder, WHOLE, 900)

    survivors = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for test in pool.map(lambda tests: noticed_by(None, tests),
                             sorted({mutant.tests for mutant in chosen})):
            if test:
                sys.exit(f"error: without any bug {test} fails; mend it, then plant again")
        tests = pool.map(noticed_by, chosen, [mutant.tests for mutant in chosen])
        for mutant, test in zip(chosen, tests):
            survivors += not test
            print(f"{'killed' if test else 'SURVIVED':9}{mutant.file:24}{mutant.says:46}  {test}",
                  flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} planted bugs were noticed")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
