"""How fast the recipes' steps are, next to those of `transformers` and of torch's own encoder.

All cases take turns in one process, so that a busy minute slows all of them; only figures of one
run are compared. The arithmetic of a step is what its recipe needs, even where code computes more.
B batch, S sequence, H hidden, I feed-forward, V vocabulary, M predictions in a sequence.
"""
import dataclasses
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minibert.config import BenchConfig, ModelConfig, RunConfig, pick_device, sizes_of_width
from minibert.data import Batches, TokenizedCorpus
from minibert.errors import UserError
from minibert.files.corpus import DATA, corpus_path
from minibert.files.run_folder import machine
from minibert.losses import cosine_loss, mlm_loss, nsp_loss, soft_target_loss
from minibert.masking import IGNORE, DynamicMasker, StaticMasker
from minibert.model import Encoder, MaskedLM
from minibert.tokenizer import SpecialIds
from minibert.tools.peers import torch_step, transformers_step
from minibert.training import autocast, clipped_step, optimizer_groups

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
MASKS = dict(seed=0, mask_id=SPECIAL.mask, special_ids=tuple(SPECIAL), pad_id=SPECIAL.pad)


@dataclass
class Case:
    """Something to time: a call, how many tokens it reads, and how much arithmetic it needs."""
    name: str
    call: Callable[[], Any]
    tokens: int = 0
    flops: float = 0.0
    first: float = 0.0  # seconds of the first call, which includes any compiling
    seconds: list[float] = dataclasses.field(default_factory=list)
    memory: float | None = None  # peak on a GPU, in MB; a CPU's is the whole process's


def take_turns(cases: list[Case], rounds: int, device: str) -> None:
    """Call each case in turn, `rounds` times, after two rounds to warm up."""
    cuda = device == "cuda"
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device, lambda: None)
    for number in range(rounds + 2):
        for case in cases:
            wait()
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            case.call()
            wait()
            seconds = time.perf_counter() - start
            if number == 0:
                case.first = seconds
            if number >= 2:
                case.seconds.append(seconds)
            if cuda:
                case.memory = torch.cuda.max_memory_allocated() / 2**20


def flops_of(config: ModelConfig, B: int, S: int, M: int, training: bool = True) -> float:
    """The operations of one step; what is read at M positions counts at those only.

    A multiplication with an addition counts as two, the backward pass as two forward passes.
    """
    H, I, V = config.hidden_size, config.intermediate_size, config.vocab_size
    queries = M + config.next_sentence  # of the last layer, which reads [CLS] for NSP
    full = S * (8 * H * H + 4 * H * I + 4 * S * H)  # query, key, value, output; scores and mixing
    last = S * 4 * H * H + queries * (4 * H * H + 4 * H * I + 4 * S * H)  # keys and values of all
    head = M * (2 * H * H + 2 * H * V)
    return B * (full * (config.num_hidden_layers - 1) + last + head) * (3 if training else 1)


def random_text(vocab_size: int, sentence: int, sentences: int = 20_000) -> TokenizedCorpus:
    """Long documents of sentences of one length, so that there is hardly any padding."""
    starts = np.arange(sentences) * sentence + np.arange(sentences) // 200
    tokens = np.random.default_rng(0).integers(5, vocab_size, int(starts[-1]) + sentence + 1)
    return TokenizedCorpus(tokens.astype(np.uint16), np.stack([starts, starts + sentence], 1),
                np.arange(0, sentences + 1, 200))


def our_step(config: ModelConfig, run: RunConfig, device: str, teacher: MaskedLM | None = None
             ) -> Callable[[], None]:
    """One optimizer step as in the scripts, from spans of text to moved weights."""
    model = MaskedLM(config).to(device).train()
    if run.compile:
        for layer in model.encoder.layers:
            layer.compile()
    sentence = run.seq_length - 2 if run.input_format == "full-sentences" else run.seq_length // 5
    masker = StaticMasker(10) if run.masking == "static" else DynamicMasker()
    batches = Batches(random_text(config.vocab_size, sentence), run, SPECIAL, device, masker.dupe)
    optimizer = torch.optim.AdamW(optimizer_groups(model, 0.01), lr=1e-4, eps=1e-6, fused=True)

    def step() -> None:
        batch = next(batches)
        inputs, masked_positions, labels = masker(batch.input_ids, batch.sequence_ids,
                                                  epoch=batch.epoch,
                                                  vocab_size=config.vocab_size, **MASKS)
        num_predictions = (labels != IGNORE).sum()
        types = batch.token_type_ids if config.type_vocab_size else None
        with autocast(device):
            output = model(inputs, attention_mask=batch.attention_mask, token_type_ids=types,
                           positions=masked_positions)
            loss = mlm_loss(output.mlm_logits, labels, num_predictions)
            if output.nsp_logits is not None:
                loss = loss + nsp_loss(output.nsp_logits, batch.is_random_next, run.batch_size)
            if teacher is not None:
                with torch.no_grad():
                    teacher_output = teacher(inputs, attention_mask=batch.attention_mask,
                                             positions=masked_positions)
                valid = labels != IGNORE
                kl = soft_target_loss(output.mlm_logits, teacher_output.mlm_logits, 2.0, valid,
                                      num_predictions)
                cos = cosine_loss(output.hidden, teacher_output.hidden, valid, num_predictions)
                loss = 2 * loss + 5 * kl + cos
        clipped_step(model, loss, optimizer)
    return step


def model_config(bench: BenchConfig, **other: Any) -> ModelConfig:
    """The model that is timed, without dropout."""
    values = dict(vocab_size=bench.vocab_size, num_hidden_layers=bench.num_hidden_layers,
                  max_position_embeddings=max(512, bench.seq_length), next_sentence=False,
                  hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return ModelConfig(**{**sizes_of_width(bench.hidden_size), **values, **other})


def steps(bench: BenchConfig, device: str) -> list[dict[str, Any]]:
    """One optimizer step by each recipe and by each peer, as a share of plain matrix products."""
    B, S = bench.batch_size, bench.seq_length
    M = max(1, round(0.15 * S))
    run = RunConfig(out="none", seq_length=S, batch_size=B, compile=bench.compile)
    pairs = dataclasses.replace(run, input_format="segment-pair", nsp=True, masking="static",
                                short_seq_prob=0.0)
    bert, plain = model_config(bench, next_sentence=True), model_config(bench)
    student = model_config(bench, num_hidden_layers=max(1, bench.num_hidden_layers // 2))
    teacher = MaskedLM(plain).to(device).eval()
    dropout = model_config(bench, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    full, half = flops_of(plain, B, S, M), flops_of(student, B, S, M)
    taught = half + flops_of(plain, B, S, M, training=False)
    cases = [
        Case("BERT", our_step(bert, pairs, device), B * S, flops_of(bert, B, S, M)),
        Case("RoBERTa", our_step(plain, run, device), B * S, full),
        Case("RoBERTa, dropout .1", our_step(dropout, run, device), B * S, full),
        Case("student, untaught", our_step(student, run, device), B * S, half),
        Case("student, distilled", our_step(student, run, device, teacher), B * S, taught),
        Case("torch.nn.TransformerEncoder", torch_step(plain, B, S, device), B * S, full)]
    try:
        for name, rate in (("dropout 0", 0.0), ("as shipped", 0.1)):
            theirs = transformers_step(plain, B, S, rate, device)
            cases.append(Case(f"transformers, {name}", theirs, B * S, full))
    except ImportError:
        print("to time transformers as well, pip install transformers", file=sys.stderr)
    return relative_to_products(cases, bench, device)


def relative_to_products(cases: list[Case], bench: BenchConfig, device: str
                         ) -> list[dict[str, Any]]:
    """Time steps and plain matrix products in turns, and give each step as a share of those."""
    products = matrix_products(bench, device)
    take_turns([*cases, *products], bench.rounds, device)
    peak = max(case.flops / min(case.seconds) for case in products)
    found = [{"name": case.name, "first_call": case.first, "seconds": case.seconds,
              "flops": case.flops, "tokens_per_second": case.tokens / min(case.seconds),
              "flops_per_second": case.flops / min(case.seconds), "peak_mb": case.memory,
              "share_of_peak": case.flops / min(case.seconds) / peak} for case in cases]
    return [*found, {"name": "matrix products", "flops_per_second": peak}]


def matrix_products(bench: BenchConfig, device: str) -> list[Case]:
    """The machine's own speed: products of the largest shapes in a step, and of a square."""
    rows, H = bench.batch_size * bench.seq_length, bench.hidden_size
    dtype, side = (torch.bfloat16, 8192) if device == "cuda" else (torch.float32, 2048)
    cases = []
    for m, k, n in ((rows, H, 4 * H), (rows, 4 * H, H), (side, side, side)):
        a, b = (torch.randn(size, dtype=dtype, device=device) for size in ((m, k), (k, n)))
        cases.append(Case(f"{m} x {k} x {n}", lambda a=a, b=b: a @ b, flops=2.0 * m * k * n))
    return cases


def masking(bench: BenchConfig, device: str) -> list[dict[str, Any]]:
    """Time the drawing of one batch's masks, static and dynamic."""
    B, S = bench.batch_size, bench.seq_length
    ids = torch.randint(5, bench.vocab_size, (B, S), device=device)
    sequence_ids = torch.arange(B, device=device)
    draw = lambda masker: lambda: masker(ids, sequence_ids, epoch=3, vocab_size=bench.vocab_size,
                                         **MASKS)
    cases = [Case(f"{name} masks", draw(masker))
             for name, masker in (("static", StaticMasker(10)), ("dynamic", DynamicMasker()))]
    take_turns(cases, 20 * bench.rounds, device)
    return [{"name": case.name, "seconds": case.seconds} for case in cases]


def forward(encoder: Encoder, B: int, S: int, device: str) -> Callable[[], None]:
    """A forward pass of B texts of S tokens."""
    ids = torch.randint(5, 30, (B, S), generator=torch.Generator().manual_seed(0)).to(device)
    encoder, mask = encoder.to(device).eval(), torch.ones_like(ids)

    def call() -> None:
        with torch.no_grad(), autocast(device):
            encoder(ids, attention_mask=mask)
    return call


def latency(bench: BenchConfig, device: str) -> list[dict[str, Any]]:
    """Time base-size encoders of 12 and 6 layers, with one text at a time and with 64."""
    cases = []
    for compiled in (False, True) if bench.compile else (False,):
        for name in ("bert-base", "distilbert-base"):
            encoder = Encoder(ModelConfig.preset(name))
            if compiled:
                encoder.compile()
            cases += [Case(f"{name}, batch {B}" + ", compiled" * compiled,
                           forward(encoder, B, 32, device)) for B in (1, 64)]
    take_turns(cases, bench.rounds, device)
    return [{"name": case.name, "seconds": case.seconds,
             **({"first_call": case.first} if bench.compile else {})} for case in cases]


def growth(bench: BenchConfig, device: str) -> list[dict[str, Any]]:
    """Time the RoBERTa step at other batch sizes, lengths and depths, one changed at a time."""
    changes = [{"batch_size": bench.batch_size * factor // 4} for factor in (1, 2, 8)]
    changes += [{"seq_length": S, "batch_size": max(1, bench.batch_size * bench.seq_length // S)}
                for S in (32, 512)]
    changes += [{"num_hidden_layers": max(1, bench.num_hidden_layers * factor // 2)}
                for factor in (1, 4)]
    cases = []
    for change in [{}, *changes]:
        one = dataclasses.replace(bench, **change)
        config, B, S = model_config(one), one.batch_size, one.seq_length
        run = RunConfig(out="none", seq_length=S, batch_size=B, compile=bench.compile)
        name = ", ".join(f"{name} {value}" for name, value in change.items()) or "base"
        flops = flops_of(config, B, S, max(1, round(0.15 * S)))
        cases.append(Case(name, our_step(config, run, device), B * S, flops))
    return relative_to_products(cases, bench, device)


def corpus(bench: BenchConfig, device: str) -> list[dict[str, Any]]:
    """Time the preparation of 1, 10 and 100 MB of text; on Linux, give its peak of memory, too.

    Each runs in a process of its own. The text is `pydocs`, repeated.
    """
    documents = corpus_path("pydocs").read_text(encoding="utf-8").split("\n\n")
    found = []
    for megabytes in (1, 10, 100):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text.txt"
            with open(path, "w", encoding="utf-8") as file:
                for document in itertools.cycle(documents):
                    if file.tell() > megabytes * 2**20:
                        break
                    file.write(document + "\n\n")
            program = ("import sys, time; from pathlib import Path; start = time.perf_counter();"
                       "from minibert.files.corpus import prepare;"
                       f"prepare(sys.argv[1], 'wordpiece', {bench.vocab_size});"
                       "status = Path('/proc/self/status');"
                       "print(time.perf_counter() - start, status.read_text().split('VmHWM:')[1]"
                       ".split()[0] if status.exists() else 0)")
            done = subprocess.run(
                [sys.executable, "-c", program, str(path)],
                env={**os.environ, "MINIBERT_PREPARED": folder, "PYTHONPATH": str(DATA.parent)},
                check=True, capture_output=True, text=True)
        # Not by getrusage, whose peak for a new process begins with its parent's.
        seconds, memory = map(float, done.stdout.split()[-2:])
        found.append({"name": f"{megabytes} MB", "seconds": [seconds], "peak_mb": memory / 1024})
    return found


PARTS = {part.__name__: part for part in (steps, masking, latency, growth, corpus)}


def bench(bench: BenchConfig) -> dict[str, Any]:
    """Time the parts that bench.only names, and return every repetition's seconds.

    Raises UserError when there is no such part.
    """
    device = pick_device(bench.device)
    torch.set_num_threads(bench.threads or os.cpu_count() or 1)
    chosen = bench.only.split(",")
    if unknown := sorted(set(chosen) - set(PARTS)):
        raise UserError(f"there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    return {"settings": dataclasses.asdict(bench), **machine(), "device": device,
            **{name: PARTS[name](bench, device) for name in chosen}}
