"""The claims that need no training: identities, sizes, and the time of one forward pass.

Each returns an id, what is claimed, what was found in a sentence, a verdict and what was published.
"""
import statistics
from functools import partial
from typing import Any

import torch

from minibert.config import ModelConfig
from minibert.losses import mlm_loss, soft_target_loss
from minibert.model import Encoder, MaskedLM
from lab.bench import take_turns

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
    size = {T: (gradient(T).norm() / matching.norm()).item() for T in (1.0, 2.0, 8.0, limit)}
    holds = error < 1e-9 and abs(size[limit] - 1) < 0.01 < abs(size[2.0] - 1)
    sizes = ", ".join(f"{ratio:.2f} at T {T:g}" for T, ratio in size.items())
    return dict(id="kl", says="KL with a one-hot target is cross-entropy; soft-target gradients "
                "scale as 1/T² only in the limit", verdict="holds" if holds else "contradicted",
                found=f"the two losses {_difference(error)}; gradient times T² against its limit: "
                f"{sizes}",
                published="an identity (Hinton et al. 2015, section 2.1)")


def _difference(error: float) -> str:
    return f"differ by {error:.0e}" if error else "are equal to the last digit"


def architecture() -> dict[str, Any]:
    """RoBERTa's encoder against BERT's: every tensor's shape, and the output for equal weights."""
    with torch.device("meta"):
        bert, roberta = (dict(Encoder(ModelConfig.preset(name)).named_parameters())
                         for name in ("bert-base", "roberta-base"))
    other = [name for name in bert if bert[name].shape != roberta[name].shape]
    tables = [f"embeddings.{kind}.weight" for kind in ("word", "position", "token_type")]

    shape = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                 intermediate_size=64, layer_norm_eps=1e-5)
    one = Encoder(ModelConfig(**shape, max_position_embeddings=16)).eval()
    two = Encoder(ModelConfig(**shape, max_position_embeddings=18, model_type="roberta",
                              next_sentence=False, type_vocab_size=1, pad_token_id=1)).eval()
    weights = one.state_dict()
    position = two.state_dict()["embeddings.position.weight"].clone()
    position[2:] = weights["embeddings.position.weight"]  # RoBERTa counts from pad + 1
    two.load_state_dict({**weights, "embeddings.position.weight": position,
                         "embeddings.token_type.weight": weights[tables[2]][:1]})
    ids = torch.randint(2, 50, (3, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        error = (one(ids, attention_mask=mask) - two(ids, attention_mask=mask)).abs().max().item()
    holds = bert.keys() == roberta.keys() and other == tables and error < 1e-6
    return dict(id="architecture", says="RoBERTa's architecture is BERT's",
                verdict="holds" if holds else "contradicted",
                found=f"{len(bert) - len(other)} of {len(bert)} tensors of the base encoders have "
                f"equal shapes, all but the tables of words, positions and token types; with equal "
                f"weights the outputs {_difference(error)}",
                published="RoBERTa section 3.1: the changes are in the recipe")


def size() -> dict[str, Any]:
    """Parameters of our constructor against the published checkpoints."""
    with torch.device("meta"):
        ours = {name: sum(p.numel() for p in MaskedLM(ModelConfig.preset(name)).parameters())
                for name in PUBLISHED}
        bert, distilbert = (sum(p.numel() for p in Encoder(ModelConfig.preset(name)).parameters())
                            for name in ("bert-base", "distilbert-base"))
    wrong = [name for name in PUBLISHED if ours[name] != PUBLISHED[name]]
    saved = 1 - distilbert / bert
    return dict(id="size", says="half the layers is about 40 % smaller, not 50 %",
                verdict="holds" if not wrong and 0.35 < saved < 0.45 else "contradicted",
                found=f"encoders of {bert / 1e6:.1f} M and {distilbert / 1e6:.1f} M parameters: "
                f"{saved:.1%} fewer; {len(ours) - len(wrong)} of {len(ours)} "
                "published models are counted to the last parameter",
                published="DistilBERT: 110 M to 66 M, 40 % smaller")


def forward_seconds(encoders: list[Encoder], device: str, batch: int = 1, rounds: int = 9
                    ) -> list[list[float]]:
    """The time of one forward pass of each encoder, in turns: `rounds` figures of each.

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
    says, verdict = [], ""
    for device, batch in (("cpu", 1), *(("cuda", 1), ("cuda", 64)) * torch.cuda.is_available()):
        slow, fast = forward_seconds(encoders, device, batch)
        low, middle, high = statistics.quantiles([a / b for a, b in zip(slow, fast)], n=4)
        verdict = verdict or ("holds" if low > FASTER else "contradicted" if high < 1
                              else "inconclusive")
        says.append(f"{middle:.2f} times as fast (middle half of {len(slow)} rounds {low:.2f} to "
                    f"{high:.2f}): {1e3 * statistics.median(slow):.0f} ms against "
                    f"{1e3 * statistics.median(fast):.0f} ms, batch {batch}, {LENGTH} tokens, "
                    f"{device}" + f", {torch.get_num_threads()} threads" * (device == "cpu"))
    return dict(id="latency", says="the halved model is much faster", verdict=verdict,
                found="; ".join(says), published="DistilBERT Table 3: 1.63 times, batch 1, CPU")


EXACT = (kl, architecture, size, latency)
