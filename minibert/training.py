"""What the three recipes share: optimizer, schedule, evaluation, log, checkpoint and resume.

A script builds a `Training` and iterates over it, which gives one Batch for each optimizer step. It
calls `backward` for each micro-batch and then `optimizer_step`; the rest happens in this file.
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

import tokenizers
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from minibert.config import RunConfig, pick_device
from minibert.data import Batch, Batches, TokenizedCorpus
from minibert.errors import UserError
from minibert.evaluation import evaluate, evaluation_set, rows_at_a_time
from minibert.files.corpus import training_part
from minibert.files.hub import save_pretrained
from minibert.files.run_folder import atomic_write, open_run, sync, write_metrics
from minibert.masking import IGNORE, hash_bits
from minibert.model import MaskedLM
from minibert.tokenizer import continuations, special_ids


TIMED = 10.0  # seconds of a run's own steps, from which it says how long all of them will take


def mask_settings(run: RunConfig, tokenizer: tokenizers.Tokenizer, device: str) -> dict[str, Any]:
    """The arguments of `mask_tokens` that stay the same for a whole run."""
    special = special_ids(tokenizer)
    return dict(seed=run.seed, vocab_size=tokenizer.get_vocab_size(), mask_id=special.mask,
                special_ids=tuple(special), pad_id=special.pad, rate=run.mask_rate,
                continues=continuations(tokenizer).to(device) if run.whole_word_masking else None)


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


def clipped_step(model: nn.Module, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Move the weights by the gradient of one loss, clipped to a norm of 1, and forget it."""
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def join_processes(device: str) -> tuple[int, int]:
    """This process's number and how many there are, from torchrun; 0 and 1 without it.

    Raises UserError where something else than torchrun has set WORLD_SIZE, as some schedulers do.
    """
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    missing = {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys()
    if missing:
        raise UserError(f"WORLD_SIZE is set, but not {', '.join(sorted(missing))}; start several "
                        "processes with torchrun, or one with WORLD_SIZE unset")
    gpu = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device == "cuda" else None
    if gpu:
        torch.cuda.set_device(gpu)
    # gloo exchanges what lies on the CPU, so that processes can agree without waiting for a GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", device_id=gpu)
    return dist.get_rank(), dist.get_world_size()


class Training:
    """One run in its folder, from its first step or from its checkpoint."""

    def __init__(self, run: RunConfig, model: MaskedLM, tokenizer: tokenizers.Tokenizer,
                 corpus: TokenizedCorpus, held_out: TokenizedCorpus, masker: Any,
                 metadata: dict[str, Any]):
        """masker: StaticMasker or DynamicMasker. metadata: what identifies the run besides its
        settings; it is written to run.json. Raises UserError where settings do not fit together,
        or another run or process has the folder.
        """
        self.run, self.out, self.tokenizer = run, Path(run.out), tokenizer
        self.device = pick_device(run.device)
        if run.seq_length > model.config.max_length:
            raise UserError(f"--seq-length {run.seq_length} is more than the model's "
                            f"{model.config.max_length} positions; use less, or a model "
                            f"made with --max-position-embeddings {run.seq_length}")
        self.rank, self.world_size = join_processes(self.device)
        if run.batch_size % (run.gradient_accumulation_steps * self.world_size):
            raise UserError(f"--batch-size {run.batch_size} does not divide into "
                            f"--gradient-accumulation-steps {run.gradient_accumulation_steps} "
                            f"equal micro-batches for each of {self.world_size} processes")
        numbers = torch.arange(1000)
        if not torch.equal(hash_bits(numbers.to(self.device)).cpu(), hash_bits(numbers)):
            raise UserError(f"the integers of --device {self.device} overflow, so that its masks "
                            "would not be those of other devices; use --device cpu")
        self.module = model.to(self.device).train()
        if run.compile:
            try:
                torch.compile(torch.neg)(torch.zeros(1, device=self.device))
            except Exception as error:  # what a compiler lacks is said in many classes
                said = str(error).partition("\n")[0]
                raise UserError(f"--compile does not work here ({said}); install g++ (for a GPU, "
                                "triton), or leave it out") from None
            for layer in model.encoder.layers:
                layer.compile()
        # The scripts call `model`, whose backward pass averages gradients over the processes.
        self.model = DistributedDataParallel(model) if self.world_size > 1 else model
        self.step, self.tokens, self.targets, self.seconds = 0, 0, 0, 0.0
        self.timed_from, self.expected = None, 0.0  # a step and its time; seconds of the whole run
        self.window: list[dict[str, Tensor]] = []  # the steps since the log's last line
        self.terms: dict[str, Tensor] = {}  # the losses of the current step
        # Whole words are chosen one by one. A GPU would need thousands of tiny operations for that,
        # so the CPU chooses them, while the GPU, for which nobody waits, is still at the last step.
        self.batches = Batches(training_part(corpus, run), run, special_ids(tokenizer),
                               "cpu" if run.whole_word_masking else self.device, masker.dupe)
        self.eval_sets = {kind: evaluation_set(held_out, kind, run, tokenizer, self.device)
                          for kind in ("full-sentences", "segment-pair")}
        targets = min(int((found.labels != IGNORE).sum()) for found in self.eval_sets.values())
        if self.rank == 0 and targets < run.eval_targets:
            print(f"{self.out}: the held-out text has {targets} tokens to predict, fewer than "
                  f"--eval-targets {run.eval_targets}, so that its scores are less exact")
        # Departure: torch's AdamW corrects the bias of Adam's first steps; BERT's own does not.
        self.optimizer = torch.optim.AdamW(
            optimizer_groups(model, run.weight_decay), lr=0.0, betas=(0.9, run.adam_beta2),
            eps=1e-6, fused=True)
        self.interrupted = 0  # a signal is only noted here; the run stops when its step is done
        if self.rank == 0:
            self.lock = open_run(run, metadata)  # the folder stays locked while this object lives
        self._received()  # no process reads the folder before the first one has it
        self._resume()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda received, _: setattr(self, "interrupted", received))

    def __iter__(self) -> Iterator[Batch]:
        """One batch for each optimizer step that is left; a signal stops the program in between."""
        self.start = time.monotonic() - self.seconds
        plain = not sys.stderr.isatty() or bool(os.environ.get("MINIBERT_PLAIN")) or self.rank > 0
        with tqdm(total=self.run.steps, initial=self.step, desc=self.out.name, disable=plain,
                  unit="step") as self.bar:
            while not (received := self._received()) and self.step < self.run.steps:
                # Dropout takes no key, so torch's own generator is seeded again in each step.
                torch.manual_seed(hash_bits(self.run.seed, "dropout", self.step, self.rank))
                yield next(self.batches)
                self.seconds = time.monotonic() - self.start
                self._after_step()
        if received:
            self._save_checkpoint()
            print(f"{self.out}: stopped at step {self.step} of {self.run.steps} and saved; run "
                  "the same command again to continue", file=sys.stderr)
            sys.exit(128 + received)

    def on_device(self, batch: Batch) -> Batch:
        """The batch on the device that trains; the first one of a run is also shown."""
        if not self.step and not self.rank:
            self._show_examples(batch)
        if self.batches.device == self.device:
            return batch
        # Only from memory that is pinned, that is, never moved, a copy does not hold up the CPU.
        pin = torch.Tensor.pin_memory if self.device == "cuda" else lambda value: value
        return Batch._make(pin(value).to(self.device, non_blocking=True)
                           if isinstance(value, Tensor) else value for value in batch)

    def _show_examples(self, batch: Batch) -> None:
        """Print three sequences; <word> is what a masked token was."""
        for ids, where, words in zip(batch.input_ids[:3].tolist(), batch.masked_positions.tolist(),
                                     batch.labels.tolist()):
            tokens = [self.tokenizer.id_to_token(id) for id in ids]
            for position, word in zip(where, words):
                if word != IGNORE:
                    tokens[position] += f"<{self.tokenizer.id_to_token(word)}>"
            pad = self.tokenizer.id_to_token(self.module.config.pad_token_id)
            tqdm.write("example: " + " ".join(token for token in tokens if token != pad))

    def micro_batches(self, batch: Batch, everywhere: bool = False) -> Iterator[Batch]:
        """This process's rows of a batch, in micro-batches that fit into the memory.

        everywhere: whether logits are wanted at all positions, so that fewer rows fit. Every
        process draws the masks of all rows, which costs next to nothing. So each knows the number
        of predictions without asking the others.
        """
        B, S = batch.input_ids.shape
        size = B // (self.run.gradient_accumulation_steps * self.world_size)
        most = rows_at_a_time(self.module.config.vocab_size, S) if everywhere else size
        # Of two processes, one takes the parts 0, 2, 4, ... and the other 1, 3, 5, ...
        starts = range(self.rank * size, B, self.world_size * size)
        pieces = [slice(first, min(first + most, start + size))
                  for start in starts for first in range(start, start + size, most)]
        for piece in pieces:
            # The processes add up their gradients once, with those of the last piece.
            alone = self.world_size == 1 or piece is pieces[-1]
            with contextlib.nullcontext() if alone else self.model.no_sync():
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

    def optimizer_step(self, batch: Batch, num_predictions: Tensor) -> None:
        """Move the weights by the gradient of a batch. num_predictions: how many targets it has."""
        if self.world_size > 1:  # each process has the terms of its own rows
            terms = torch.stack([*self.terms.values()])
            dist.all_reduce(terms)
            self.terms = dict(zip(self.terms, terms))
        limit = self.run.max_grad_norm or math.inf
        self.terms["grad_norm"] = nn.utils.clip_grad_norm_(self.module.parameters(), limit)
        self.terms |= {"tokens": batch.attention_mask.sum(), "targets": num_predictions}
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.run)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.window.append(self.terms)
        self.terms = {}

    def save(self) -> None:
        """Write the Hugging Face folder; from now on Ctrl-C and SIGTERM stop the run at once.

        Of several processes only the first returns; the others end here.
        """
        if self.world_size > 1:
            dist.destroy_process_group()
        if self.rank:
            sys.exit()
        save_pretrained(self.module, self.tokenizer, self.out)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def finish(self, tasks: dict[str, dict], teacher: MaskedLM | None = None) -> None:
        """Evaluate on both fixed sets and write metrics.json, which marks a finished run.

        tasks: the scores of the fine-tuning. teacher: to be compared with, at the same targets.
        """
        with self.autocast():
            metrics = {kind: evaluate(self.module, found, teacher=teacher)
                       for kind, found in self.eval_sets.items()}
        metrics |= {"tasks": tasks, "parameters": sum(p.numel() for p in self.module.parameters()),
                    "layers": len(self.module.encoder.layers), "steps": self.step,
                    "tokens": self.tokens, "targets": self.targets,
                    "disk": (self.out / "pytorch_model.bin").stat().st_size,  # in bytes
                    "seconds": round(self.seconds, 1)}
        write_metrics(self.out, metrics)  # written last, and before the checkpoint goes
        for name in ("checkpoint.pt", ".lock"):
            (self.out / name).unlink(missing_ok=True)
        result = metrics["full-sentences"]
        estimate = f" (the estimate was {self.expected:.0f} s)" * bool(self.expected)
        print(f"{self.out}: finished {self.step} steps in {self.seconds:.0f} s{estimate}; held-out "
              f"MLM loss {result['mlm_loss']:.3f} (unigram {result['unigram_entropy']:.3f}), "
              f"accuracy {result['accuracy']:.3f}", flush=True)

    def _after_step(self) -> None:
        self.step += 1
        self.bar.update()
        self._estimate()
        if self.step % self.run.log_every == 0 or self.step == self.run.steps:
            self._log_window()
        if self.step % self.run.eval_every == 0 and self.rank == 0:
            with self.autocast():
                result = evaluate(self.module, self.eval_sets["full-sentences"])
            self._log({"step": self.step, "eval": result})
            if self.bar.disable:
                print(f"{self.out}: step {self.step}/{self.run.steps}, held-out MLM loss "
                      f"{result['mlm_loss']:.3f}, {self.tokens / self.seconds:.0f} tokens/s",
                      flush=True)
        if self.step % self.run.checkpoint_every == 0:
            self._save_checkpoint()

    def _estimate(self) -> None:
        """Say once how long the run will take; `finish` says how long it took.

        Evaluations come seldom, and tasks afterwards, so neither is in the estimate.
        """
        self.timed_from = self.timed_from or (self.step, self.seconds)  # the first step is slower
        step, seconds = self.timed_from
        if not self.expected and not self.rank and self.seconds > seconds + TIMED:
            a_step = (self.seconds - seconds) / (self.step - step)
            self.expected = self.seconds + a_step * (self.run.steps - self.step)
            tqdm.write(f"{self.out}: {self.run.steps:,} steps will take about "
                       f"{self.expected / 60:.1f} min, as {self.step - step:,} of them show")

    def _received(self) -> int:
        """The signal that this process or another one received, or 0; all stop at the same step.

        They ask each other before every step, because torchrun gives them 30 seconds to end, and
        because only the first one logs, evaluates and saves. Raises UserError where one has ended.
        """
        received = torch.tensor(self.interrupted)  # on the CPU, so that no GPU is waited for
        if self.world_size > 1:
            try:
                dist.all_reduce(received, dist.ReduceOp.MAX)
            except RuntimeError:
                raise UserError("another process has ended, and its own message says why; then "
                                "run the same command again") from None
        return int(received)

    def _log_window(self) -> None:
        """Log the means of the steps since the last line."""
        values = self._read_window()
        self.tokens += sum(values.pop("tokens"))
        self.targets += sum(values.pop("targets"))
        means = {name: sum(value) / len(value) for name, value in values.items()}
        self._log({"step": self.step, "epoch": self.batches.started_epoch, **means,
                   "learning_rate": learning_rate(self.step - 1, self.run), "tokens": self.tokens,
                   "targets": self.targets, "seconds": round(self.seconds, 2)})
        self.bar.set_postfix(loss=f"{means['loss']:.3f}",
                             tokens_per_s=f"{self.tokens / self.seconds:.0f}")
        self.window = []

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
                self._log({"step": step, "loss": loss, "grad_norm": norm})  # for the doctor
                raise UserError(f"the loss of step {step} is {loss}, its gradient's norm {norm}; "
                                "start again, in another folder, with a lower --learning-rate")
        return values

    def _log(self, line: dict[str, Any]) -> None:
        if self.rank:
            return
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def _save_checkpoint(self) -> None:
        if self.window:
            self._read_window()
        if self.rank:
            return
        state = {"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict(),
                 "step": self.step, "cursor": self.batches.cursor, "tokens": self.tokens,
                 "targets": self.targets, "seconds": self.seconds, "window": self.window}
        sync(self.out / "log.jsonl")  # which a resume goes on with
        with atomic_write(self.out / "checkpoint.pt") as temporary, open(temporary, "wb") as file:
            torch.save(state, file)

    def _resume(self) -> None:
        path, log, kept = self.out / "checkpoint.pt", self.out / "log.jsonl", []
        if path.exists():
            try:
                state = torch.load(path, map_location=self.device, weights_only=True)
            except Exception as error:  # torch raises many classes for broken files
                raise UserError(f"{path} cannot be read ({error}); delete it to start again") \
                    from None
            self.module.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.batches.cursor = tuple(state["cursor"])
            for name in ("step", "tokens", "targets", "seconds", "window"):
                setattr(self, name, state[name])
            if self.rank:
                return
            print(f"{self.out}: continues at step {self.step} of {self.run.steps}", flush=True)
            for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
                with contextlib.suppress(ValueError):  # of a line that a kill cut short
                    # What was logged after the checkpoint will be logged again.
                    if json.loads(line)["step"] <= self.step:
                        kept.append(line)
            windows = math.ceil((self.step - len(self.window)) / self.run.log_every)
            if len(kept) != windows + self.step // self.run.eval_every:
                raise UserError(f"{log} has lost lines about the {self.step} steps that are done; "
                                f"put it back, or delete {path} to start again")
        if self.rank == 0:
            with atomic_write(log) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
