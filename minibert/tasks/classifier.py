"""A classifier: an encoder with a new head, its folder, its inputs and its answers.

B batch, N rows, S sequence, H hidden, C classes.
"""
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from minibert.config import ModelConfig
from minibert.errors import UserError
from minibert.files.hub import (FILES, cut_at, fill, read_folder, save_pretrained, their_names)
from minibert.model import Encoder, initialize
from minibert.tokenizer import special_ids
from minibert.training import autocast

# Of a classifier that reads the mean. `transformers` does not look for these names, and so does not
# read [CLS] in its place without a word.
MEAN_FILES = ("classifier.json", "classifier.pt")


class SequenceClassifier(nn.Module):
    """An encoder and a head: one vector for the text, dense, activation, dropout, linear.

    pooling "mean": the vector is the mean over the tokens, in all families. pooling "cls": it is
    [CLS], and each family has the head of its own authors, which `transformers` has as well. BERT's
    dense layer is its pooler. RoBERTa has dropout before it, too. DistilBERT has ReLU for tanh.
    """

    def __init__(self, config: ModelConfig, classes: int, seed: int = 0, pooling: str = "mean"):
        super().__init__()
        self.config, self.pooling = config, pooling
        family = config.model_type if pooling == "cls" else pooling
        self.encoder = Encoder(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = torch.relu if family == "distilbert" else torch.tanh
        self.dropout = nn.Dropout(0.2 if family == "distilbert" else 0.1)
        self.drops_input = family in ("mean", "roberta")
        self.classifier = nn.Linear(config.hidden_size, classes)
        initialize(self, config.initializer_range, seed)

    def forward(self, input_ids: Tensor, *, attention_mask: Tensor,
                token_type_ids: Tensor | None = None) -> Tensor:
        """Logits (B, C). input_ids, token_type_ids: (B, S) int64. attention_mask: (B, S), 1/0."""
        cls = input_ids.new_zeros(len(input_ids), 1) if self.pooling == "cls" else None
        hidden = self.encoder(input_ids, attention_mask=attention_mask,
                              token_type_ids=token_type_ids, positions=cls)  # (B, 1 or S, H)
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            # Departure: BERT classifies [CLS], which RoBERTa's pretraining gives nothing to sum up.
            weight = (attention_mask / attention_mask.sum(1, keepdim=True)).to(hidden.dtype)
            pooled = (hidden * weight[:, :, None]).sum(1)  # (B, H)
        pooled = self.dropout(pooled) if self.drops_input else pooled
        return self.classifier(self.dropout(self.activation(self.dense(pooled))))


def save_classifier(model: SequenceClassifier, tokenizer: Tokenizer, folder: Path,
                    classes: list[str], texts: int) -> None:
    """Write a folder that `load_classifier` reads and, if the model reads [CLS], `transformers`.

    tokenizer: it cuts texts as it did in training. classes: the labels' names. texts: how many the
    model judges at a time.
    """
    save_pretrained(model, tokenizer, folder, FILES if model.pooling == "cls" else MEAN_FILES,
                    texts=texts, id2label=dict(enumerate(classes)),
                    label2id={name: number for number, name in enumerate(classes)},
                    problem_type="single_label_classification")


def load_classifier(folder: str) -> tuple[SequenceClassifier, Tokenizer, dict]:
    """The model, its tokenizer, and its classes, texts and max_length, as `save_classifier` has.

    folder: one that finetune.py made, or a classifier of BERT, RoBERTa or DistilBERT that
    `transformers` wrote, where the number of texts is not known and 0. Raises UserError when a file
    is missing, broken or does not fit the others.
    """
    path = Path(folder)
    files = next((files for files in (MEAN_FILES, FILES) if (path / files[0]).exists()), None)
    fields, config, weights = read_folder(path, files) if files else ({}, ModelConfig(), {})
    head = weights.get(their_names(config, "classifier.weight")[0])
    if head is None or head.dim() != 2:
        raise UserError(f"{folder} has no classifier; make one with finetune.py")
    if fields.get("problem_type") not in ("single_label_classification", None) or len(head) < 2:
        raise UserError(f"{folder} is for {fields.get('problem_type')} with {len(head)} outputs; "
                        "use a classifier that tells classes apart")
    try:
        classes = [str(fields.get("id2label", {}).get(str(number), f"LABEL_{number}"))
                   for number in range(len(head))]
        texts = int(fields.get("texts", 0))
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path / files[0]} cannot be used ({error}); copy it again") from None
    pooling = "mean" if files == MEAN_FILES else "cls"
    model, tokenizer = fill(lambda: SequenceClassifier(config, len(head), pooling=pooling), config,
                            weights, path, set())
    return model, tokenizer, {"classes": classes, "texts": texts,
                              "max_length": cut_at(tokenizer, config)}


def encoder_of(tokenizer: Tokenizer, max_length: int, device: str) -> Callable:
    """From rows of one or two texts to inputs of a model, cut to max_length and padded alike."""
    tokenizer.encode_special_tokens = True  # a text's "[SEP]" is text, as in pretraining
    # Departure: the longer text of a pair is cut at its end until both fit, as by BERT; but where
    # they share an odd number of tokens, the second keeps one more, and BERT's first does.
    tokenizer.enable_truncation(max_length)
    tokenizer.no_padding()
    padding = {"input_ids": special_ids(tokenizer).pad, "attention_mask": 0, "token_type_ids": 0}

    def encode(rows: list[tuple[str, ...]]) -> dict[str, Tensor]:
        texts = [row[0] if len(row) == 1 else row for row in rows]
        encoded = [(row.ids, row.attention_mask, row.type_ids)
                   for i in range(0, len(texts), 1000)  # what the tokenizer returns is large
                   for row in tokenizer.encode_batch(texts[i:i + 1000])]
        return {name: pad_sequence([torch.tensor(values) for values in column], batch_first=True,
                                   padding_value=padding[name]).to(device)
                for name, column in zip(padding, zip(*encoded))}
    return encode


def batches(inputs: dict[str, Tensor], order: Tensor, size: int
            ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """So many rows of a model's inputs (N, S) at a time, and each time as long as the longest.

    order: (N,) int64, on the CPU. Yields the rows' numbers, on the device, and their inputs. Only
    before the first a GPU is waited for.
    """
    lengths = inputs["attention_mask"].sum(1).cpu()[order]
    here = order.to(inputs["input_ids"].device)
    for rows, length in zip(here.split(size), lengths.split(size)):
        yield rows, {name: column[rows, :int(length.max())] for name, column in inputs.items()}


@torch.no_grad()
def predict(model: SequenceClassifier, encode: Callable, rows: list[tuple[str, ...]]) -> Tensor:
    """Logits without dropout, (rows, C) float32 on the CPU."""
    model.eval()
    inputs, order = encode(rows), torch.arange(len(rows))
    with autocast(inputs["input_ids"].device.type):
        logits = [model(**batch).float() for _, batch in batches(inputs, order, 64)]
    return torch.cat(logits).cpu()


def classify(folder: str, texts: tuple[str, ...]) -> str:
    """A text or a pair, and the whole distribution over a fine-tuned model's classes, as bars.

    Raises UserError when there are more or fewer texts than the task's rows have.
    """
    model, tokenizer, metadata = load_classifier(folder)
    count, classes = metadata["texts"], metadata["classes"]
    if len(texts) not in ((count,) if count else (1, 2)):
        raise UserError(f"{folder} judges {count or '1 or 2'} text{'s' * (count != 1)} at a time, "
                        f"not {len(texts)}; give a pair as two arguments")
    encode = encoder_of(tokenizer, min(metadata["max_length"], model.config.max_length), "cpu")
    [logits] = predict(model, encode, [texts])
    width = max(map(len, classes))
    return "\n".join([" | ".join(texts), *(
        f"  {name:{width}}  {'#' * round(20 * share):20} {share:6.1%}"
        for name, share in zip(classes, logits.softmax(-1).tolist()))])
