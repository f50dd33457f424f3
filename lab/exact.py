"""The claims that need no training: identities, sizes, and the time of one forward pass.

Each is measured once, and judged and told in words when it is shown.
"""
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from lab.bench import take_turns
from lab.claims import Claim
from minibert.config import ModelConfig
from minibert.losses import mlm_loss, soft_target_loss
from minibert.model import Encoder, MaskedLM

# Parameters of the published checkpoints, decoder tied: with pooler and NSP head for BERT.
PUBLISHED = {
    "bert-base": 110_106_428, "bert-base-cased": 108_932_934, "bert-large": 336_226_108,
    "bert-tiny": 4_433_468, "bert-mini": 11_267_900, "bert-small": 29_058_876,
    "bert-medium": 41_668_412, "distilbert-base": 66_985_530, "roberta-base": 124_697_433,
    "roberta-large": 355_412_057, "distilroberta-base": 82_170_201,
}
LENGTH = 32  # tokens of the texts that are timed
FASTER = 1.3  # a ratio of times that counts as much faster


@dataclass(frozen=True)
class Exact:
    """A claim without arms: how it is measured, and how what was measured is judged and told."""
    claim: Claim
    measure: Callable[[], dict[str, Any]]
    # Returns the kind of verdict, what to quote in a table, and a sentence.
    tell: Callable[[dict[str, Any]], tuple[str, str, str]]


def kl(vocab_size: int = 2000, limit: float = 1000.0) -> dict[str, Any]:
    """KL against one-hot targets is cross-entropy; T² keeps the gradient only for large T.

    Returns the difference of the two losses, and by T the gradient times T² against its limit.
    Paper: Hinton et al. 2015, section 2.1: for T -> inf the gradient times T² is that of
    1/2V (z - v)², z and v the zero-mean logits of student and teacher.
    """
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 64, vocab_size, dtype=torch.float64, generator=generator)
    words = torch.randint(vocab_size, (64,), generator=generator)
    certain = torch.full_like(student, -1e4).scatter(1, words[:, None], 1e4)
    error = abs(soft_target_loss(student, certain, 1.0) - mlm_loss(student, words)).item()
    student.requires_grad_()

    def gradient(temperature: float) -> torch.Tensor:  # the loss has the T² in it
        return torch.autograd.grad(soft_target_loss(student, teacher, temperature), student)[0]

    centred = lambda logits: logits - logits.mean(-1, keepdim=True)
    matching = (centred(student) - centred(teacher)).detach() / vocab_size / len(words)
    return {"error": error, "gradients": [[T, (gradient(T).norm() / matching.norm()).item()]
                                          for T in (1.0, 2.0, 8.0, limit)]}


def tell_kl(measured: dict[str, Any]) -> tuple[str, str, str]:
    """Whether the losses are equal and only the gradient of the largest T has reached its limit."""
    error, sizes = measured["error"], dict(measured["gradients"])
    holds = error < 1e-9 and abs(sizes[max(sizes)] - 1) < 0.01 < abs(sizes[2.0] - 1)
    told = ", ".join(f"{ratio:.2f} at T {T:g}" for T, ratio in sizes.items())
    return ("holds" if holds else "contradicted", _difference(error).removeprefix("are "),
            f"the two losses {_difference(error)}; gradient times T² against its limit: {told}")


def architecture() -> dict[str, Any]:
    """RoBERTa's encoder against BERT's: every tensor's shape, and the output for equal weights.

    Returns BERT's number of tensors, the names of those in which the two differ, and the largest
    difference of the outputs.
    """
    with torch.device("meta"):
        bert, roberta = ({name: tensor.shape for name, tensor in
                          Encoder(ModelConfig.preset(preset)).named_parameters()}
                         for preset in ("bert-base", "roberta-base"))
    shape = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                 intermediate_size=64, layer_norm_eps=1e-5)
    ours = Encoder(ModelConfig(**shape, max_position_embeddings=16)).eval()
    theirs = Encoder(ModelConfig(**shape, max_position_embeddings=18, model_type="roberta",
                                 next_sentence=False, type_vocab_size=1, pad_token_id=1)).eval()
    weights = ours.state_dict()
    position = theirs.state_dict()["embeddings.position.weight"].clone()
    position[2:] = weights["embeddings.position.weight"]  # RoBERTa counts from pad + 1
    theirs.load_state_dict({**weights, "embeddings.position.weight": position,
                            "embeddings.token_type.weight":
                            weights["embeddings.token_type.weight"][:1]})
    ids = torch.randint(2, 50, (3, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        error = (ours(ids, attention_mask=mask) - theirs(ids, attention_mask=mask)).abs().max()
    return {"tensors": len(bert), "error": error.item(),
            "apart": [name for name in {**bert, **roberta} if bert.get(name) != roberta.get(name)]}


def tell_architecture(measured: dict[str, Any]) -> tuple[str, str, str]:
    """Whether the encoders differ in the tables of words, positions and token types alone."""
    tables = [f"embeddings.{kind}.weight" for kind in ("word", "position", "token_type")]
    holds = measured["apart"] == tables and measured["error"] < 1e-6
    equal = f"{measured['tensors'] - len(measured['apart'])} of {measured['tensors']} tensors"
    return ("holds" if holds else "contradicted", equal,
            f"{equal} of the base encoders have equal shapes, all but the tables of words, "
            f"positions and token types; with equal weights the outputs "
            f"{_difference(measured['error'])}")


def size() -> dict[str, Any]:
    """Parameters of our constructor against the published checkpoints.

    Returns those of the encoders of BERT base and DistilBERT base, and how many of the published
    models are counted rightly.
    """
    with torch.device("meta"):
        counted = [sum(p.numel() for p in MaskedLM(ModelConfig.preset(name)).parameters()) == count
                   for name, count in PUBLISHED.items()]
        encoders = [sum(p.numel() for p in Encoder(ModelConfig.preset(name)).parameters())
                    for name in ("bert-base", "distilbert-base")]
    return {"encoders": encoders, "counted": sum(counted), "published": len(counted)}


def tell_size(measured: dict[str, Any]) -> tuple[str, str, str]:
    """Whether all counts are right, and the student has about 40 % fewer parameters."""
    bert, distilbert = measured["encoders"]
    counted, published, saved = measured["counted"], measured["published"], 1 - distilbert / bert
    return ("holds" if counted == published and 0.35 < saved < 0.45 else "contradicted",
            f"{saved:.1%} fewer",
            f"encoders of {bert / 1e6:.1f} M and {distilbert / 1e6:.1f} M parameters: {saved:.1%} "
            f"fewer; {counted} of {published} published models are counted to the last parameter")


def forward_seconds(encoders: list[Encoder], device: str, batch: int = 1, rounds: int = 9
                    ) -> list[list[float]]:
    """Return the seconds of one forward pass of each encoder, in turns: `rounds` of each.

    On a GPU the encoders become bfloat16, once: autocast would cast all weights in every call.
    """
    ids = torch.randint(5, 30, (batch, LENGTH), generator=torch.Generator().manual_seed(0))
    ids, dtype = ids.to(device), torch.bfloat16 if device == "cuda" else torch.float32
    calls = {str(number): partial(encoder.to(device, dtype).eval(), ids,
                                  attention_mask=torch.ones_like(ids))
             for number, encoder in enumerate(encoders)}
    with torch.no_grad():
        return list(take_turns(calls, rounds, device).values())


def latency() -> dict[str, Any]:
    """Base-size encoders of 12 and 6 layers, in turns in one process: one text on the CPU, and
    where there is a GPU one and 64 there.

    Returns for each the quartiles of the ratio of both times, and their medians in milliseconds.
    """
    encoders = [Encoder(ModelConfig.preset(name)) for name in ("bert-base", "distilbert-base")]
    timed = []
    for device, batch in (("cpu", 1), *(("cuda", 1), ("cuda", 64)) * torch.cuda.is_available()):
        slow, fast = forward_seconds(encoders, device, batch)
        timed.append({"device": device, "batch": batch, "tokens": LENGTH,
                      "threads": torch.get_num_threads(), "rounds": len(slow),
                      "ratio": statistics.quantiles([a / b for a, b in zip(slow, fast)], n=4),
                      "ms": [1000 * statistics.median(seconds) for seconds in (slow, fast)]})
    return {"timed": timed}


def tell_latency(measured: dict[str, Any]) -> tuple[str, str, str]:
    """Whether the half is much faster for one text on a CPU, as published."""
    told = []
    for case in measured["timed"]:
        (low, middle, high), (slow, fast) = case["ratio"], case["ms"]
        told.append(f"{middle:.2f} times as fast (middle half of {case['rounds']} rounds {low:.2f} "
                    f"to {high:.2f}): {slow:.0f} ms against {fast:.0f} ms, batch {case['batch']}, "
                    f"{case['tokens']} tokens, {case['device']}"
                    + f", {case['threads']} threads" * (case["device"] == "cpu"))
    low, middle, high = measured["timed"][0]["ratio"]
    return ("holds" if low > FASTER else "contradicted" if high < 1 else "inconclusive",
            f"{middle:.2f} times as fast", "; ".join(told))


def _difference(error: float) -> str:
    return f"differ by {error:.0e}" if error else "are equal to the last digit"


def _claim(id: str, says: str, published: str, asks: str, paper: str) -> Claim:
    return Claim(id, says, (), published, "", asks=asks, paper=paper)


EXACT = {exact.claim.id: exact for exact in (
    Exact(_claim("kl", "KL with a one-hot target is cross-entropy; soft-target gradients scale as "
                 "1/T² only in the limit", "an identity (Hinton et al. 2015, section 2.1)",
                 "Is KL with a one-hot target cross-entropy?", "an identity"), kl, tell_kl),
    Exact(_claim("architecture", "RoBERTa's architecture is BERT's",
                 "RoBERTa section 3.1: the changes are in the recipe",
                 "Is RoBERTa's architecture BERT's?", "only the recipe changes"),
          architecture, tell_architecture),
    Exact(_claim("size", "half the layers is about 40 % smaller, not 50 %",
                 "DistilBERT: 110 M to 66 M, 40 % smaller",
                 "How much smaller are half the layers?", "40 % smaller"), size, tell_size),
    Exact(_claim("latency", "the halved model is much faster",
                 "DistilBERT Table 3: 1.63 times, batch 1, CPU",
                 "How much faster are half the layers?", "1.63 times as fast"),
          latency, tell_latency))}
