"""The likeliest words for a blank, from several models side by side, as teacher and student."""
from functools import cache
from pathlib import Path

import tokenizers
import torch

from minibert.data import TokenizedCorpus
from minibert.errors import UserError
from minibert.files.hub import load_pretrained
from minibert.masking import hash_bits
from minibert.tokenizer import continuations, special_ids

BAR = 20  # characters of a bar that means 100 %


def fill_mask(folders: list[str], text: str, top: int = 5, names: list[str] | None = None) -> str:
    """The first model's `top` words for each blank, with every model's probability as a bar.

    folders: runs or Hugging Face folders. text: it holds [MASK] (or <mask>) at least once. names:
    headings to use instead of the folders' names. Raises UserError when there is no [MASK], or
    when the text is longer than a model allows.
    """
    guesses = [_probabilities(folder, text) for folder in folders]
    names = names or [Path(folder).name for folder in folders]
    lines = [text]
    for blank, (first, tokens) in enumerate(guesses[0]):
        ids = first.topk(min(top, len(first))).indices.tolist()
        width = max(len(tokens[id]) for id in ids)
        heads = "  ".join(name.ljust(BAR + 7) for name in names)
        lines += ["", f"{' ' * width}  {heads}".rstrip()]
        for id in ids:
            word, cells = tokens[id], []
            for probabilities, their_tokens in (guess[blank] for guess in guesses):
                if word in their_tokens:
                    # In one vocabulary the number tells: a byte may look like another as a word.
                    its = id if their_tokens == tokens else their_tokens.index(word)
                    share = probabilities[its].item()
                    cells.append(f"{'#' * round(BAR * share):{BAR}} {share:6.1%}")
                else:
                    cells.append("not in its vocabulary".ljust(BAR + 7))
            lines.append(f"{word:{width}}  {'  '.join(cells)}".rstrip())
    return "\n".join(lines)


@torch.no_grad()
def _probabilities(folder: str, text: str) -> list[tuple[torch.Tensor, list[str]]]:
    """For each blank, the distribution over the vocabulary, (V,), and the tokens' names."""
    model, tokenizer, tokens = _load(folder)
    mask = special_ids(tokenizer).mask
    text = text.replace("[MASK]", tokens[mask]).replace("<mask>", tokens[mask])
    ids = tokenizer.encode(text).ids
    blanks = [position for position, id in enumerate(ids) if id == mask]
    if not blanks:
        raise UserError(f"there is no [MASK] in {text!r}; put one where a word is to be guessed")
    logits = model(torch.tensor([ids]), positions=torch.tensor([blanks])).mlm_logits[0]
    return [(row, tokens) for row in logits.softmax(-1)]


@cache
def _load(folder: str):
    model, tokenizer = load_pretrained(folder)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    names = [tokenizer.id_to_token(id) or "" for id in range(model.config.vocab_size)]
    if not isinstance(tokenizer.model, tokenizers.models.WordPiece):
        # Byte-level BPE marks the start of a word; write it as WordPiece does, with ## on the rest.
        names = ["##" * continues + tokenizer.decode([id], skip_special_tokens=False).strip()
                 for id, continues in enumerate(continuations(tokenizer).tolist())]
    return model.eval(), tokenizer, names


def blanks(held_out: TokenizedCorpus, tokenizer: tokenizers.Tokenizer, count: int = 4
           ) -> list[tuple[str, str]]:
    """Held-out sentences with [MASK] for a word, and that word; the same for all runs on a corpus.

    The sentences have 12 to 24 tokens, and the word is the one in the middle: a single token of at
    least four letters.
    """
    continues, found = continuations(tokenizer), []
    for number in hash_bits("blanks", torch.arange(len(held_out.sentences))).argsort().tolist():
        start, end = held_out.sentences[number]
        ids = held_out.tokens[start:end].tolist()
        middle = len(ids) // 2
        word = tokenizer.decode(ids[middle:middle + 1]).strip()
        whole = not continues[ids[middle]] and not continues[ids[(middle + 1) % len(ids)]]
        if 12 <= len(ids) <= 24 and whole and len(word) >= 4 and word.isalpha():
            left, right = tokenizer.decode(ids[:middle]), tokenizer.decode(ids[middle + 1:])
            found.append((f"{left.strip()} [MASK] {right.strip()}", word))
    return found[:count]
