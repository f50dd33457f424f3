"""A classifier: an encoder, a new head, and the two kinds of folder that both are kept in.

B batch, S sequence, H hidden, C classes (1 where the labels are values).
"""
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from minibert.config import ModelConfig
from minibert.errors import UserError
from minibert.files.hub import (FILES, cut_at, fill, read_folder, save_pretrained, their_names)
from minibert.model import Encoder, initialize

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

    tokenizer: it cuts texts as it did in training. classes: the labels' names, none where they are
    values. texts: how many the model judges at a time.
    """
    names = classes or ["value"]
    save_pretrained(model, tokenizer, folder, FILES if model.pooling == "cls" else MEAN_FILES,
                    texts=texts, id2label=dict(enumerate(names)),
                    label2id={name: number for number, name in enumerate(names)},
                    problem_type="single_label_classification" if classes else "regression")


def load_classifier(folder: str) -> tuple[SequenceClassifier, Tokenizer, dict]:
    """The model, its tokenizer, and its classes, texts and max_length, as `save_classifier` has.

    folder: one that finetune made, or a classifier of BERT, RoBERTa or DistilBERT that
    `transformers` wrote, where the number of texts is not known and 0. Raises UserError when a file
    is missing, broken or does not fit the others.
    """
    path = Path(folder)
    files = next((files for files in (MEAN_FILES, FILES) if (path / files[0]).exists()), None)
    fields, config, weights = read_folder(path, files) if files else ({}, ModelConfig(), {})
    head = weights.get(their_names(config, "classifier.weight")[0])
    if head is None or head.dim() != 2:
        raise UserError(f"{folder} has no classifier; make one with python -m minibert finetune")
    kind = "regression" if len(head) == 1 else "single_label_classification"
    if fields.get("problem_type") not in (kind, None):
        raise UserError(f"{folder} is for {fields['problem_type']} with {len(head)} outputs; use a "
                        "classifier that tells classes apart, or one with a single output")
    try:
        classes = [str(fields.get("id2label", {}).get(str(number), f"LABEL_{number}"))
                   for number in range(len(head)) if len(head) > 1]
        texts = int(fields.get("texts", 0))
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path / files[0]} cannot be used ({error}); copy it again") from None
    pooling = "mean" if files == MEAN_FILES else "cls"
    model, tokenizer = fill(lambda: SequenceClassifier(config, len(head), pooling=pooling), config,
                            weights, path, set())
    return model, tokenizer, {"classes": classes, "texts": texts,
                              "max_length": cut_at(tokenizer, config)}
