"""Time our steps beside those of `transformers` and of torch's own encoder, for docs/speed.md.

B batch, S sequence.
"""
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lab.bench import (SPECIAL, BenchConfig, bench, clipped_step, our_step, random_text,
                       speed_table, take_turns)
from minibert.config import ModelConfig, Parser, RunConfig, add_flags
from minibert.data import Batches
from minibert.errors import run_cli
from minibert.files.run_folder import ROOT, write_json
from minibert.masking import IGNORE, DynamicMasker, StaticMasker
from minibert.training import autocast


def transformers_step(config: ModelConfig, B: int, S: int, dropout: float, device: str
                      ) -> Callable[[], None]:
    """One step of `transformers`: its BertForMaskedLM and its collator, in a plain loop."""
    import transformers

    model = transformers.BertForMaskedLM(transformers.BertConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers, num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout)).to(device).train()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {name: number for number, name in enumerate(
        names + [f"w{number}" for number in range(config.vocab_size - len(names))])}
    collator = transformers.DataCollatorForLanguageModeling(
        transformers.BertTokenizer(vocab=words), mlm_probability=0.15)
    rows = np.random.default_rng(0).integers(5, config.vocab_size, (64 * B, S))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        chosen = rows[np.arange(number * B, (number + 1) * B) % len(rows)]
        batch = collator([{"input_ids": row} for row in chosen.tolist()]).to(device)
        with autocast(device):
            loss = model(**batch).loss
        clipped_step(model, loss, optimizer)
    return step


def torch_step(config: ModelConfig, B: int, S: int, device: str) -> Callable[[], None]:
    """One step of torch.nn.TransformerEncoder and a tied head at all positions, as tutorials do."""
    word = nn.Embedding(config.vocab_size, config.hidden_size)
    position = nn.Embedding(S, config.hidden_size)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(
        config.hidden_size, config.num_attention_heads, config.intermediate_size, dropout=0.0,
        activation="gelu", batch_first=True), config.num_hidden_layers, enable_nested_tensor=False)
    model = nn.ModuleList([word, position, encoder]).to(device).train()
    nn.init.normal_(word.weight, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    ids = torch.randint(5, config.vocab_size, (B, S), device=device)
    hidden = torch.rand(B, S, device=device) < 0.15

    def step() -> None:
        with autocast(device):
            states = encoder(word(torch.where(hidden, SPECIAL.mask, ids)) + position.weight)
            logits = F.linear(states, word.weight)
            loss = F.cross_entropy(logits.flatten(0, 1).float(),
                                   torch.where(hidden, ids, IGNORE).flatten(), ignore_index=IGNORE)
        clipped_step(model, loss, optimizer)
    return step


def rivals(config: ModelConfig, B: int, S: int, device: str) -> dict[str, Callable[[], None]]:
    """The steps of other code by name, as `bench` takes them, and of ours with their dropout."""
    dropout = replace(config, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    run = RunConfig(out="none", seq_length=S, batch_size=B)
    steps = {"RoBERTa, dropout .1": our_step(dropout, run, device),
             "torch.nn.TransformerEncoder": torch_step(config, B, S, device)}
    try:
        for name, rate in (("dropout 0", 0.0), ("as shipped", 0.1)):
            steps[f"transformers, {name}"] = transformers_step(config, B, S, rate, device)
    except ImportError:
        print("to time transformers as well, pip install transformers", file=sys.stderr)
    return steps


def masking(bench: BenchConfig, device: str) -> list[dict[str, Any]]:
    """The drawing of one batch's masks by our code, static and dynamic."""
    maskers = {"static masks": StaticMasker(SPECIAL, bench.vocab_size, seed=0),
               "dynamic masks": DynamicMasker(SPECIAL, bench.vocab_size, seed=0)}
    run = RunConfig(out="none", seq_length=bench.seq_length, batch_size=bench.batch_size)
    text = random_text(bench.vocab_size, bench.seq_length - 2)
    batch = next(Batches(text, run, SPECIAL, device, maskers["dynamic masks"].duplicate_of))
    seconds = take_turns({name: partial(masker, batch) for name, masker in maskers.items()},
                         20 * bench.rounds, device)
    return [{"name": name, "seconds": by_round} for name, by_round in seconds.items()]


def speed_lines(timings: dict[str, Any]) -> list[str]:
    """What the timings come to: ratios of the same round, the middle one and the middle half."""
    timed = {row["name"]: np.array(row["seconds"])
             for row in [*timings["steps"], *timings["masking"]] if "seconds" in row}
    share = {row["name"]: row.get("share_of_peak") for row in timings["steps"]}

    def ratio(slow: str, fast: str, unit: str) -> str:
        low, middle, high = np.percentile(timed[slow] / timed[fast], [25, 50, 75])
        return f"{middle:.2f} times {unit} (middle half of the rounds {low:.2f} to {high:.2f})"

    peers = [("RoBERTa", "transformers, dropout 0"), ("RoBERTa", "transformers, as shipped"),
             ("RoBERTa, dropout .1", "transformers, as shipped"),
             ("RoBERTa", "torch.nn.TransformerEncoder")]
    return [*(f"{ours} against {peer}: {ratio(peer, ours, 'as fast')}"
              for ours, peer in peers if peer in timed),
            f"RoBERTa: {share['RoBERTa']:.0%} of the machine's matrix products",
            "a distilled student's step: "
            f"{ratio('student, distilled', 'student, untaught', 'an untaught one')}",
            *(f"{name}: {min(timed[name]) / min(timed['RoBERTa']):.2%} of the time of a step of "
              "RoBERTa" for name in ("static masks", "dynamic masks"))]


def main() -> None:
    """Write results/NAME/bench.json, and print what it comes to."""
    parser = Parser(description=__doc__)
    parser.add_argument("--name", required=True, help="the folder in results/")
    add_flags(parser, BenchConfig)
    flags = vars(parser.parse_args())
    folder = ROOT / "results" / flags.pop("name")
    settings = BenchConfig(**flags)
    timings = bench(settings, rivals)
    timings["masking"] = masking(settings, timings["device"])
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "bench.json", timings)
    print(speed_table([*timings["steps"], *timings["masking"]]), "", *speed_lines(timings),
          sep="\n")


if __name__ == "__main__":
    run_cli(main)
