"""Tasks without training: which of two texts does a masked language model find likelier?

A model that was never fine-tuned has no head to judge with, but it can say how likely each word is
among the others. Nothing is learned here, so no labels are needed, and no seed adds noise.
B texts, S sequence, R blanks in all the texts, V vocabulary.
"""
import torch
from tokenizers import Tokenizer
from torch import Tensor

from minibert.model import MaskedLM
from minibert.tasks.tasks import ChoiceData
from minibert.tokenizer import special_ids


def zero_shot(model: MaskedLM, tokenizer: Tokenizer, data: ChoiceData, device: str) -> dict:
    """Return how often a model finds the right text likelier, and the scores that need no model.

    A tie counts half.
    """
    model.to(device).eval()
    tokenizer.enable_truncation(model.config.max_length)
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a task's "[MASK]" is text, as in pretraining
    texts = [scored_positions(words, choice.scored, tokenizer)
             for choice in data.choices for words in (choice.right, choice.wrong)]
    # Texts of about one length are read at a time, so that there is little padding.
    order = torch.tensor([len(ids) for ids, _ in texts]).argsort(stable=True)
    scores = torch.empty(len(texts))
    for rows in order.split(16):
        scores[rows] = pseudo_log_likelihood(model, [texts[i] for i in rows], tokenizer)
    right, wrong = scores[::2], scores[1::2]
    won = ((right > wrong) + 0.5 * (right == wrong)).sum().item()
    return {"task": data.name, "metric": "accuracy", "score": won / len(data.choices),
            "dev_rows": len(data.choices), **data.floors}


def scored_positions(words: list[str], scored: slice, tokenizer: Tokenizer
                     ) -> tuple[list[int], list[int]]:
    """Return a text's token ids, special tokens included, and the positions of its scored words."""
    # To byte-level BPE the space before a word is a part of it.
    spaced = [*words[:1], *(f" {word}" for word in words[1:])]
    encoded = tokenizer.encode(spaced, is_pretokenized=True)
    wanted = range(len(words))[scored]
    return encoded.ids, [i for i, word in enumerate(encoded.word_ids) if word in wanted]


@torch.no_grad()
def pseudo_log_likelihood(model: MaskedLM, texts: list[tuple[list[int], list[int]]],
                          tokenizer: Tokenizer) -> Tensor:
    """Return for each text the log-probability of its scored tokens, each masked in turn, in nats.

    texts: B times token ids and the positions that are scored. Returns (B,) float32. Each token is
    predicted from all the others, on both sides, so the sum is not a probability of the text; but
    it ranks texts well. Paper: Salazar et al. 2020 (arXiv:1910.14659), section 2.
    """
    device, special = next(model.parameters()).device, special_ids(tokenizer)
    longest = max(len(ids) for ids, _ in texts)
    padded = torch.tensor([ids + [special.pad] * (longest - len(ids)) for ids, _ in texts])
    # A copy of the text for each of its blanks.
    owner = torch.tensor([text for text, (_, positions) in enumerate(texts) for _ in positions])
    blank = torch.tensor([[at] for _, positions in texts for at in positions], device=device)
    rows = padded[owner].to(device)  # (R, S)
    words = rows.gather(1, blank)  # (R, 1)
    output = model(rows.scatter(1, blank, special.mask), positions=blank,
                   attention_mask=(rows != special.pad).long())
    scores = output.mlm_logits[:, 0].float().log_softmax(-1).gather(1, words)[:, 0].cpu()
    return torch.zeros(len(texts)).index_add(0, owner, scores)
