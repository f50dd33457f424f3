"""What the three recipes share: optimizer, schedule, evaluation, log, checkpoint and resume.

A script builds a `Training` and iterates over it, which gives one Batch for each optimizer step. It
calls `backward` for each micro-batch and then `update`; the rest happens in this file.
"""
import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from minibert import distributed
from minibert.config import RunConfig, pick_device
from minibert.data import Batch, Batches, TokenizedCorpus
from minibert.errors import UserError
from minibert.evaluation import evaluate, evaluation_set, rows_at_a_time
from minibert.files.corpus import training_part
from minibert.files.hub import save_pretrained
from minibert.files.run_folder import atomic_write, open_run, sync, write_metrics
from minibert.hashing import hash_bits
from minibert.masking import IGNORE, DynamicMasker, StaticMasker
from minibert.model import MaskedLM
from minibert.tokenizer import special_ids

# What a checkpoint holds besides weights, moments, and the places in the text and in the log.
COUNTED = ("step", "tokens", "targets", "seconds", "window")
SAID_EVERY = 30.0  # seconds between lines about the progress, where there is no bar


def optimizer_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Each parameter in one of two groups: with weight decay, or without.

    Why biases and LayerNorms are not decayed: decay draws weights towards 0, so that a matrix does
    not rely on a few large ones. Biases and LayerNorms only shift and scale. They are too few to
    overfit, and a LayerNorm does nothing at a scale of 1, not of 0. They are found by the module's
    type, because names differ from model to model.
    Paper: google-research/bert, optimization.py; the embeddings are decayed there, too.
    Departure: RoBERTa's fairseq decays every parameter, biases and LayerNorms as well.
    """
    norms = {id(parameter) for module in model.modules() if isinstance(module, nn.LayerNorm)
             for parameter in module.parameters()}
    decay, no_decay = [], []
    for name, parameter in model.named_parameters():
        if id(parameter) in norms or name.endswith("bias"):
            no_decay.append(parameter)
        else:
            decay.append(parameter)
    return [dict(params=decay, weight_decay=weight_decay), dict(params=no_decay, weight_decay=0.0)]


def learning_rate(step: int, run: RunConfig) -> float:
    """The rate rises linearly from 0 to its peak during the warm-up, then falls linearly to 0.

    Why a warm-up: at first, Adam knows the size of a gradient from a few steps only, and the layers
    close to the output of a post-norm encoder have large gradients. Full steps could throw the
    weights to where they do not recover from (Xiong et al. 2020, arXiv:2002.04745).
    Departure: google-research/bert decays from step 0, so that its rate drops when warm-up ends.
    """
    warmup = max(1, round(run.warmup * run.steps)) if run.warmup else 0
    if step < warmup:
        return run.learning_rate * step / warmup
    return run.learning_rate * (run.steps - step) / (run.steps - warmup)


def autocast(device: str) -> contextlib.AbstractContextManager:
    """bfloat16 for a forward pass on CUDA, where it is fast; elsewhere it can be far slower."""
    if device == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return contextlib.nullcontext()


class Training:
    """One run in its folder, from its first step or from its checkpoint."""

    def __init__(self, run: RunConfig, model: MaskedLM, tokenizer: Tokenizer,
                 corpus: TokenizedCorpus, held_out: TokenizedCorpus,
                 masker: StaticMasker | DynamicMasker, metadata: dict[str, Any]):
        """masker: decides which duplicate of the text an epoch shows. metadata: what identifies the
        run besides its settings; it is written to run.json. Raises UserError where settings do not
        fit together, or another run or process has the folder.
        """
        self.run, self.out, self.tokenizer = run, Path(run.out), tokenizer
        self.device = pick_device(run.device)
        if run.seq_length > model.config.max_length:
            raise UserError(f"--seq-length {run.seq_length} is more than the model's "
                            f"{model.config.max_length} positions; use less")
        self.rank, self.world_size = distributed.join(self.device)
        if run.batch_size % (run.gradient_accumulation_steps * self.world_size):
            raise UserError(f"--batch-size {run.batch_size} does not divide into "
                            f"--gradient-accumulation-steps {run.gradient_accumulation_steps} "
                            f"equal micro-batches for each of {self.world_size} processes")
        self.module = model.to(self.device).train()
        if run.compile:
            for layer in model.encoder.layers:
                layer.compile()
        self.model = distributed.wrap(model)
        self.batches = Batches(training_part(corpus, run), run, special_ids(tokenizer),
                               self.device, masker.duplicate_of)
        self.eval_sets = {kind: evaluation_set(held_out, kind, run, tokenizer, self.device)
                          for kind in ("full-sentences", "segment-pair")}
        # Departure: torch's AdamW corrects the bias of Adam's first steps; BERT's own does not.
        self.optimizer = torch.optim.AdamW(
            optimizer_groups(model, run.weight_decay), lr=0.0, betas=(0.9, run.adam_beta2),
            eps=1e-6, fused=True)
        self.step, self.tokens, self.targets, self.seconds = 0, 0, 0, 0.0
        self.window: list[dict[str, Tensor]] = []  # the steps since the log's last line
        self.terms: dict[str, Tensor] = {}  # the losses of the current step
        self.received = 0  # a signal is only noted here; the run stops when its step is done
        if self.rank == 0:
            self.lock = open_run(run, metadata)  # the folder stays locked while this object lives
            targets = min(int((batch.labels != IGNORE).sum()) for batch in self.eval_sets.values())
            if targets < run.eval_targets:
                print(f"{self.out}: the held-out text has {targets} tokens to predict, fewer than "
                      f"--eval-targets {run.eval_targets}, so that its scores are less exact")
        distributed.largest(0)  # no process reads the folder before the first one has it
        self._resume()

    def __iter__(self) -> Iterator[Batch]:
        """One batch for each optimizer step that is left; a signal stops the program in between."""
        note = lambda number, _: setattr(self, "received", number)
        handlers = {number: signal.signal(number, note)
                    for number in (signal.SIGINT, signal.SIGTERM)}
        self.start, self.said = time.monotonic() - self.seconds, time.monotonic()
        plain = not sys.stderr.isatty() or bool(os.environ.get("MINIBERT_PLAIN")) or self.rank > 0
        try:
            with tqdm(total=self.run.steps, initial=self.step, desc=self.out.name, disable=plain,
                      unit="step") as self.bar:
                # All processes stop at the same step: they ask each other before every one.
                while not (received := distributed.largest(self.received)) \
                        and self.step < self.run.steps:
                    # Dropout takes no key, so torch's generator is seeded again in each step.
                    torch.manual_seed(hash_bits(self.run.seed, "dropout", self.step, self.rank))
                    yield next(self.batches)
                    self._after_step()
            if received:
                self._save_checkpoint()  # before a second signal can end the program
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        self.model = self.module  # for the wrapped one holds on to the processes
        distributed.leave()
        if received:
            print(f"{self.out}: stopped at step {self.step} of {self.run.steps} and saved; run "
                  "the same command again to continue", file=sys.stderr)
            sys.exit(128 + received)

    def micro_batches(self, batch: Batch) -> Iterator[Batch]:
        """This process's rows of a masked batch, in micro-batches that fit into the memory."""
        self.counts = {"tokens": batch.attention_mask.sum(),
                       "targets": (batch.labels != IGNORE).sum()}
        B, M = batch.labels.shape
        size = B // (self.run.gradient_accumulation_steps * self.world_size)
        most = rows_at_a_time(self.module.config.vocab_size, M)
        # Of two processes, one takes the parts 0, 2, 4, ... and the other 1, 3, 5, ...
        starts = range(self.rank * size, B, self.world_size * size)
        pieces = [slice(first, min(first + most, start + size))
                  for start in starts for first in range(start, start + size, most)]
        for piece in pieces:
            # The processes add up their gradients once, with those of the last piece.
            is_last = piece is pieces[-1]
            with contextlib.nullcontext() if is_last else distributed.alone(self.model):
                yield Batch._make(value[piece] if isinstance(value, Tensor) else value
                                  for value in batch)

    def autocast(self) -> contextlib.AbstractContextManager:
        """The precision of every forward pass, in training and in evaluation."""
        return autocast(self.device)

    def backward(self, loss: Tensor, **terms: Tensor) -> None:
        """Add the gradient of one micro-batch; terms: parts of the loss, to be logged by name."""
        (self.world_size * loss).backward()  # so that the average over processes becomes the sum
        for name, term in {"loss": loss, **terms}.items():
            self.terms[name] = self.terms.get(name, 0) + term.detach()

    def update(self) -> None:
        """Move the weights by the gradient of the whole batch, clipped, at the step's rate."""
        norm = nn.utils.clip_grad_norm_(self.module.parameters(),
                                        self.run.max_grad_norm or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.run)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.window.append({**distributed.add_up(self.terms), "grad_norm": norm, **self.counts})
        self.terms = {}

    def finish(self, teacher: MaskedLM | None = None) -> None:
        """Write the Hugging Face folder, the scores on both fixed sets, and metrics.json.

        teacher: to be compared with, at the same targets. metrics.json marks a finished run. Of
        several processes, the first does all this.
        """
        if self.rank:
            return
        save_pretrained(self.module, self.tokenizer, self.out)
        with self.autocast():
            metrics = {kind: evaluate(self.module, batch, teacher=teacher)
                       for kind, batch in self.eval_sets.items()}
        metrics |= {"parameters": sum(p.numel() for p in self.module.parameters()),
                    "layers": len(self.module.encoder.layers), "steps": self.step,
                    "tokens": self.tokens, "targets": self.targets,
                    "disk": (self.out / "pytorch_model.bin").stat().st_size,  # in bytes
                    "seconds": round(self.seconds, 1)}
        write_metrics(self.out, metrics)  # written last, and before the checkpoint goes
        for name in ("checkpoint.pt", ".lock"):
            (self.out / name).unlink(missing_ok=True)
        result = metrics["full-sentences"]
        print(f"{self.out}: finished {self.step} steps in {self.seconds:.0f} s; held-out MLM loss "
              f"{result['mlm_loss']:.3f} (unigram {result['unigram_entropy']:.3f}), accuracy "
              f"{result['accuracy']:.3f}", flush=True)

    def _after_step(self) -> None:
        self.step += 1
        self.seconds = time.monotonic() - self.start
        self.bar.update()
        if self.step % self.run.log_every == 0 or self.step == self.run.steps:
            self._log_window()
        if self.step % self.run.eval_every == 0 and self.rank == 0:
            with self.autocast():
                result = evaluate(self.module, self.eval_sets["full-sentences"])
            self._log({"step": self.step, "eval": result})
            tqdm.write(f"{self.out}: step {self.step} of {self.run.steps}, held-out MLM loss "
                       f"{result['mlm_loss']:.3f}")
        if self.step % self.run.checkpoint_every == 0:
            self._save_checkpoint()

    def _log_window(self) -> None:
        """Log the means of the steps since the last line."""
        values = self._read_window()
        self.window = []
        self.tokens += sum(values.pop("tokens"))
        self.targets += sum(values.pop("targets"))
        means = {name: sum(value) / len(value) for name, value in values.items()}
        self._log({"step": self.step, "epoch": self.batches.started_epoch, **means,
                   "learning_rate": learning_rate(self.step - 1, self.run), "tokens": self.tokens,
                   "targets": self.targets, "seconds": round(self.seconds, 2)})
        speed = self.tokens / self.seconds
        self.bar.set_postfix(loss=f"{means['loss']:.3f}", tokens_per_s=f"{speed:.0f}")
        if self.bar.disable and self.rank == 0 and time.monotonic() > self.said + SAID_EVERY:
            self.said = time.monotonic()
            minutes = self.seconds / self.step * (self.run.steps - self.step) / 60
            print(f"{self.out}: step {self.step} of {self.run.steps}, loss {means['loss']:.3f}, "
                  f"{speed:.0f} tokens/s, {minutes:.0f} minutes left", flush=True)

    def _read_window(self) -> dict[str, list[Any]]:
        """The losses and counts of the steps since the log's last line, by name.

        A GPU lags behind Python, and only here it is waited for, so only then does the clock say
        how long the steps took. Raises UserError when a loss or a gradient is NaN or infinite,
        before a checkpoint can hold what it made of the weights.
        """
        values = {name: torch.stack([terms[name] for terms in self.window]).tolist()
                  for name in self.window[0]}
        self.seconds = time.monotonic() - self.start
        first = self.step - len(self.window) + 1
        for step, (loss, norm) in enumerate(zip(values["loss"], values["grad_norm"]), first):
            if not math.isfinite(loss + norm):
                self._log({"step": step, "loss": loss, "grad_norm": norm})  # where the run ended
                raise UserError(f"the loss of step {step} is {loss}, its gradient's norm {norm}; "
                                "start again, in another folder, with a lower --learning-rate")
        return values

    def _log(self, line: dict[str, Any]) -> None:
        if self.rank == 0:
            with open(self.out / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")

    def _save_checkpoint(self) -> None:
        if self.window:
            self._read_window()
        if self.rank:
            return
        log = self.out / "log.jsonl"
        sync(log)  # a resume goes on with it
        state = {"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict(),
                 "cursor": self.batches.cursor, "logged": log.stat().st_size,
                 **{name: getattr(self, name) for name in COUNTED}}
        with atomic_write(self.out / "checkpoint.pt") as temporary, open(temporary, "wb") as file:
            torch.save(state, file)

    def _resume(self) -> None:
        """Go on from the checkpoint, and with the log as it was then; what it lacks comes again."""
        path, log, logged = self.out / "checkpoint.pt", self.out / "log.jsonl", 0
        if path.exists():
            try:
                state = torch.load(path, map_location=self.device, weights_only=True)
                self.module.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.batches.cursor, logged = tuple(state["cursor"]), state["logged"]
                for name in COUNTED:
                    setattr(self, name, state[name])
            except Exception as error:  # torch raises many classes for broken files
                raise UserError(f"{path} cannot be read ({error}); delete it to start again") \
                    from None
        if self.rank:
            return
        log.touch()
        if log.stat().st_size < logged:
            raise UserError(f"{log} has lost lines about the {self.step} steps that are done; put "
                            f"it back, or delete {path} to start again")
        os.truncate(log, logged)
        if path.exists():
            print(f"{self.out}: continues at step {self.step} of {self.run.steps}", flush=True)
