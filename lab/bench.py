"""How fast our steps are; docs/speed.py times those of other code beside them.

All cases take turns in one process, so that a busy minute slows all of them; only figures of one
run are compared. The arithmetic of a step is what its recipe needs, even where code computes more.
B batch, S sequence, H hidden, I feed-forward, V vocabulary, M predictions in a sequence.
"""
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minibert.config import (DEVICES, ModelConfig, RunConfig, check, pick_device, setting,
                             sizes_of_width)
from minibert.data import Batches, TokenizedCorpus
from minibert.files.run_folder import machine
from minibert.losses import cosine_loss, mlm_loss, soft_target_loss
from minibert.masking import IGNORE, DynamicMasker
from minibert.model import MaskedLM
from minibert.tokenizer import SpecialIds
from minibert.tools.table import markdown
from minibert.training import autocast, optimizer_groups

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)


@dataclass(frozen=True)
class BenchConfig:
    """What is timed, and how often."""
    num_hidden_layers: int = setting(4, "layers; a student has half of them", "[1, inf)")
    hidden_size: int = setting(256, "width; heads of 64 and a feed-forward of 4 H", "[64, inf)")
    vocab_size: int = setting(8192, "entries of the vocabulary", "[100, inf)")
    seq_length: int = setting(128, "tokens in a sequence", "[8, inf)")
    batch_size: int = setting(32, "sequences in an optimizer step", "[1, inf)")
    rounds: int = setting(6, "how often each case is timed", "[1, inf)")
    compile: bool = setting(False, "compile our blocks")
    device: str = setting("auto", "where to compute", DEVICES)

    def __post_init__(self):
        check(self)


def take_turns(calls: dict[str, Callable], rounds: int, device: str) -> dict[str, list[float]]:
    """Make each call in turn, `rounds` times, after two rounds to warm up: their seconds by name.
    """
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device, lambda: None)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 2):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: taken[2:] for name, taken in seconds.items()}


def flops_of(config: ModelConfig, B: int, S: int, M: int, training: bool = True) -> float:
    """The operations of one step; what is read at M positions counts at those only.

    A multiplication with an addition counts as two, the backward pass as two forward passes.
    """
    H, I, V = config.hidden_size, config.intermediate_size, config.vocab_size
    full = S * (8 * H * H + 4 * H * I + 4 * S * H)  # query, key, value, output; scores and mixing
    last = S * 4 * H * H + M * (4 * H * H + 4 * H * I + 4 * S * H)  # keys and values of all
    head = M * (2 * H * H + 2 * H * V)
    return B * (full * (config.num_hidden_layers - 1) + last + head) * (3 if training else 1)


def random_text(vocab_size: int, sentence: int, sentences: int = 20_000) -> TokenizedCorpus:
    """Long documents of sentences of one length, so that there is no padding."""
    starts = np.arange(sentences) * sentence + np.arange(sentences) // 200
    tokens = np.random.default_rng(0).integers(5, vocab_size, int(starts[-1]) + sentence + 1)
    return TokenizedCorpus(tokens.astype(np.uint16), np.stack([starts, starts + sentence], 1),
                           np.arange(0, sentences + 1, 200))


def clipped_step(model: nn.Module, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Move the weights by the gradient of one loss, clipped to a norm of 1, and forget it."""
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def our_step(config: ModelConfig, run: RunConfig, device: str, teacher: MaskedLM | None = None
             ) -> Callable[[], None]:
    """One optimizer step of RoBERTa or of a student, from spans of text to moved weights."""
    model = MaskedLM(config).to(device).train()
    if run.compile:
        for layer in model.encoder.layers:
            layer.compile()
    masker = DynamicMasker(SPECIAL, config.vocab_size, seed=0)
    text = random_text(config.vocab_size, run.seq_length - 2)
    batches = Batches(text, run, SPECIAL, device, masker.duplicate_of)
    optimizer = torch.optim.AdamW(optimizer_groups(model, 0.01), lr=1e-4, eps=1e-6, fused=True)

    def step() -> None:
        batch = masker(next(batches))
        inputs = dict(input_ids=batch.input_ids, attention_mask=batch.attention_mask,
                      positions=batch.masked_positions)
        valid = batch.labels != IGNORE
        num_predictions = valid.sum()
        with autocast(device):
            output = model(**inputs)
            loss = mlm_loss(output.mlm_logits, batch.labels, num_predictions)
            if teacher is not None:
                with torch.no_grad():
                    teacher_output = teacher(**inputs)
                kl = soft_target_loss(output.mlm_logits, teacher_output.mlm_logits, 2.0, valid,
                                      num_predictions)
                cos = cosine_loss(output.hidden, teacher_output.hidden, valid, num_predictions)
                loss = 2 * loss + 5 * kl + cos
        clipped_step(model, loss, optimizer)
    return step


def model_config(bench: BenchConfig, layers: int) -> ModelConfig:
    """The model that is timed, with so many layers and without dropout."""
    return ModelConfig(**sizes_of_width(bench.hidden_size), num_hidden_layers=layers,
                       vocab_size=bench.vocab_size, next_sentence=False,
                       max_position_embeddings=max(512, bench.seq_length),
                       hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def steps(bench: BenchConfig, device: str, rivals: Callable) -> list[dict[str, Any]]:
    """One optimizer step of each kind, as a share of plain matrix products."""
    B, S = bench.batch_size, bench.seq_length
    M = max(1, round(0.15 * S))
    run = RunConfig(out="none", seq_length=S, batch_size=B, compile=bench.compile)
    plain = model_config(bench, bench.num_hidden_layers)
    student = model_config(bench, max(1, bench.num_hidden_layers // 2))
    teacher = MaskedLM(plain).to(device).eval()
    full, half = flops_of(plain, B, S, M), flops_of(student, B, S, M)
    taught = half + flops_of(plain, B, S, M, training=False)
    cases = {  # by name: the call, and how much arithmetic it needs
        "RoBERTa": (our_step(plain, run, device), full),
        "student, untaught": (our_step(student, run, device), half),
        "student, distilled": (our_step(student, run, device, teacher), taught)}
    cases |= {name: (step, full) for name, step in rivals(plain, B, S, device).items()}
    products = matrix_products(bench, device)
    timed = cases | products
    seconds = take_turns({name: call for name, (call, _) in timed.items()}, bench.rounds, device)
    speed = {name: flops / min(seconds[name]) for name, (_, flops) in timed.items()}
    peak = max(speed[name] for name in products)
    rows = [{"name": name, "seconds": seconds[name],
             "tokens_per_second": B * S / min(seconds[name]),
             "flops_per_second": speed[name], "share_of_peak": speed[name] / peak}
            for name in cases]
    return [*rows, {"name": "matrix products", "flops_per_second": peak}]


def matrix_products(bench: BenchConfig, device: str) -> dict[str, tuple[Callable, float]]:
    """The machine's own speed: products of the largest shapes in a step, and of a square."""
    rows, H = bench.batch_size * bench.seq_length, bench.hidden_size
    dtype, side = (torch.bfloat16, 8192) if device == "cuda" else (torch.float32, 2048)
    cases = {}
    for m, k, n in ((rows, H, 4 * H), (rows, 4 * H, H), (side, side, side)):
        a, b = (torch.randn(size, dtype=dtype, device=device) for size in ((m, k), (k, n)))
        cases[f"{m} x {k} x {n}"] = (partial(torch.matmul, a, b), 2.0 * m * k * n)
    return cases


def bench(bench: BenchConfig, rivals: Callable = lambda *_: {}) -> dict[str, Any]:
    """Time steps, and return every repetition's seconds.

    rivals: returns steps of other code by name, for a model's config, B, S and a device.
    """
    device = pick_device(bench.device)
    return {"settings": dataclasses.asdict(bench), **machine(), "device": device,
            "steps": steps(bench, device, rivals)}


def speed_table(rows: list[dict[str, Any]]) -> str:
    """What was timed: the fastest repetition and, in brackets, the middle one."""
    columns = {
        "seconds": ("ms", lambda value: f"{1e3 * min(value):,.2f} ({1e3 * np.median(value):,.2f})"),
        "tokens_per_second": ("tokens/s", lambda value: f"{value:,.0f}"),
        "flops_per_second": ("GFLOP/s", lambda value: f"{value / 1e9:,.1f}"),
        "share_of_peak": ("of the peak", lambda value: f"{value:.0%}")}
    return markdown(["", *(heading for heading, _ in columns.values())], [
        [row["name"], *(show(row[key]) if key in row else "" for key, (_, show) in columns.items())]
        for row in rows])
