"""The claims that need no training: identities, sizes, and the time of one forward pass.

Each returns the kind of its verdict, what to quote in a table, and what was measured, by name.
"""
import statistics
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


def kl(vocab_size: int = 2000, limit: float = 1000.0) -> dict[str, Any]:
    """KL against one-hot targets is cross-entropy; T² keeps the gradient only for large T.

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
    sizes = {T: (gradient(T).norm() / matching.norm()).item() for T in (1.0, 2.0, 8.0, limit)}
    holds = error < 1e-9 and abs(sizes[limit] - 1) < 0.01 < abs(sizes[2.0] - 1)
    return {"kind": "holds" if holds else "contradicted",
            "short": f"differ by {error:.0e}" if error else "equal to the last digit",
            "measured": {"difference of the two losses": error, **{
                f"gradient times T² against its limit, at T {T:g}": size
                for T, size in sizes.items()}}}


def architecture() -> dict[str, Any]:
    """RoBERTa's encoder against BERT's: every tensor's shape, and the output for equal weights.

    Only the tables of words, positions and token types may differ.
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
    apart = [name for name in {**bert, **roberta} if bert.get(name) != roberta.get(name)]
    tables = [f"embeddings.{kind}.weight" for kind in ("word", "position", "token_type")]
    holds, equal = apart == tables and error < 1e-6, len(bert) - len(apart)
    return {"kind": "holds" if holds else "contradicted",
            "short": f"{equal} of {len(bert)} tensors",
            "measured": {"tensors of the base encoders": len(bert), "of equal shapes": equal,
                         "difference of the outputs, with equal weights": error.item()}}


def size() -> dict[str, Any]:
    """Parameters of our constructor against the published checkpoints."""
    with torch.device("meta"):
        counted = [sum(p.numel() for p in MaskedLM(ModelConfig.preset(name)).parameters()) == count
                   for name, count in PUBLISHED.items()]
        bert, distilbert = (sum(p.numel() for p in Encoder(ModelConfig.preset(name)).parameters())
                            for name in ("bert-base", "distilbert-base"))
    saved = 1 - distilbert / bert
    return {"kind": "holds" if all(counted) and 0.35 < saved < 0.45 else "contradicted",
            "short": f"{saved:.1%} fewer",
            "measured": {"parameters of the encoder of BERT base": bert,
                         "of DistilBERT base": distilbert, "published models": len(counted),
                         "counted to the last parameter": sum(counted)}}


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
    """Base-size encoders of 12 and 6 layers, in turns in one process: one text on the CPU, which
    decides, as published; where there is a GPU also one and 64 there."""
    encoders = [Encoder(ModelConfig.preset(name)) for name in ("bert-base", "distilbert-base")]
    kind = short = ""
    measured: dict[str, float] = {"tokens": LENGTH, "threads": torch.get_num_threads()}
    for device, batch in (("cpu", 1), *(("cuda", 1), ("cuda", 64)) * torch.cuda.is_available()):
        slow, fast = forward_seconds(encoders, device, batch)
        low, middle, high = statistics.quantiles([a / b for a, b in zip(slow, fast)], n=4)
        kind = kind or ("holds" if low > FASTER else "contradicted" if high < 1
                        else "inconclusive")
        short = short or f"{middle:.2f} times as fast"
        measured |= {f"{name} ({device}, batch {batch})": value for name, value in (
            ("ms of the whole", 1000 * statistics.median(slow)),
            ("ms of the half", 1000 * statistics.median(fast)), ("times as fast", middle),
            ("lower quartile", low), ("upper quartile", high))}
    return {"kind": kind, "short": short, "measured": measured}


EXACT = {claim.id: (claim, measure) for claim, measure in (
    (Claim("kl", "KL with a one-hot target is cross-entropy; soft-target gradients scale as 1/T² "
          "only in the limit", (), "an identity (Hinton et al. 2015, section 2.1)", "",
          asks="Is KL with a one-hot target cross-entropy?", paper="an identity"), kl),
    (Claim("architecture", "RoBERTa's architecture is BERT's", (),
          "RoBERTa section 3.1: the changes are in the recipe", "",
          asks="Is RoBERTa's architecture BERT's?", paper="only the recipe changes"),
     architecture),
    (Claim("size", "half the layers is about 40 % smaller, not 50 %", (),
          "DistilBERT: 110 M to 66 M, 40 % smaller", "",
          asks="How much smaller are half the layers?", paper="40 % smaller"), size),
    (Claim("latency", "the halved model is much faster", (),
          "DistilBERT Table 3: 1.63 times, batch 1, CPU", "",
          asks="How much faster are half the layers?", paper="1.63 times as fast"),
     latency))}
