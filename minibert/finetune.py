"""Fine-tuning on a task of single texts or pairs (Devlin et al. 2018, sections 4.1 and A.3).

All families follow one rule: a new head on the mean of the last hidden states, every weight
trained. So none has the advantage of a [CLS] that its pretraining had taught to sum up.
B batch, S sequence, H hidden, C classes.
"""
import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from minibert.config import FinetuneConfig, ModelConfig, RunConfig, pick_device
from minibert.errors import UserError
from minibert.hub import load_pretrained
from minibert.masking import hash_bits
from minibert.model import Encoder, initialize
from minibert.run_folder import write_json
from minibert.tokenizer import load_tokenizer, specials
from minibert.training import learning_rate, optimizer_groups


@dataclass(frozen=True)
class Task:
    """Where a task's texts and labels stand in its train.tsv and dev.tsv, and how it is scored."""
    texts: tuple[str, ...]  # names of columns, or numbers where the file has no header
    label: str
    metric: str = "accuracy"
    header: bool = True


TASKS = {
    "sst2": Task(("sentence",), "label"),
    "cola": Task(("3",), "1", "matthews", header=False),
    "mrpc": Task(("#1 String", "#2 String"), "Quality", "f1"),
    "rte": Task(("sentence1", "sentence2"), "label"),
    "text": Task(("text",), "label"),  # a task of one's own, with these columns
    "pair": Task(("text_a", "text_b"), "label"),
}


class SequenceClassifier(nn.Module):
    """An encoder and a new head: the mean over the tokens, dense, tanh, dropout, linear."""

    def __init__(self, config: ModelConfig, classes: int, seed: int = 0):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(config.hidden_size, classes)
        initialize(self, config.initializer_range, seed)

    def forward(self, input_ids: Tensor, *, attention_mask: Tensor,
                token_type_ids: Tensor | None = None) -> Tensor:
        """Logits (B, C). input_ids, token_type_ids: (B, S) int64. attention_mask: (B, S), 1/0."""
        hidden = self.encoder(input_ids, attention_mask=attention_mask,
                              token_type_ids=token_type_ids)  # (B, S, H)
        # Departure: BERT classifies [CLS], which RoBERTa's pretraining gives nothing to sum up.
        weight = (attention_mask / attention_mask.sum(1, keepdim=True)).to(hidden.dtype)
        mean = (hidden * weight[:, :, None]).sum(1)  # (B, H)
        return self.classifier(self.dropout(torch.tanh(self.dense(self.dropout(mean)))))


def read_task(path: Path, task: Task) -> tuple[list[tuple[str, ...]], list[str]]:
    """Texts and labels of a tab-separated file; quotes are text, as in GLUE.

    Raises UserError when the file is missing, empty, not UTF-8 or lacks a column.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; name the folder that holds it with --task-dir") \
            from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}); convert it first") from None
    rows = [line.rstrip("\r").split("\t") for line in lines if line.strip()]
    if len(rows) <= task.header:
        raise UserError(f"{path} holds no rows; give it some")
    names = rows[0] if task.header else [str(column) for column in range(len(rows[0]))]
    wanted = (*task.texts, task.label)
    if missing := [name for name in wanted if name not in names]:
        raise UserError(f"{path} has no column {missing[0]!r}; it has {', '.join(names)}")
    columns = [names.index(name) for name in wanted]
    for number, row in enumerate(rows[task.header:], task.header + 1):
        if len(row) <= max(columns):
            raise UserError(f"{path}: row {number} has {len(row)} columns, too few; "
                            "separate them by single tabs")
    cells = [[row[column] for column in columns] for row in rows[task.header:]]
    return [tuple(row[:-1]) for row in cells], [row[-1] for row in cells]


def score(metric: str, guesses: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy, F1 of class 1, or Matthews' correlation of two classes; (N,) int64 each.

    >>> guesses, labels = np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0])
    >>> [round(score(metric, guesses, labels), 3) for metric in ("accuracy", "f1", "matthews")]
    [0.75, 0.667, 0.577]
    """
    if metric == "accuracy":
        return float((guesses == labels).mean())
    both, guessed, true = (int(x.sum()) for x in (guesses & labels, guesses, labels))
    if metric == "f1":
        return 2 * both / max(1, guessed + true)
    n = len(labels)
    below = guessed * (n - guessed) * true * (n - true)
    return (n * both - guessed * true) / below**0.5 if below else 0.0


def bag_of_words(texts: list[tuple[str, ...]], labels: np.ndarray,
                 tests: list[tuple[str, ...]]) -> np.ndarray:
    """The floor: naive Bayes on words and word pairs, in no order (labels 0..C-1); (tests,)."""
    def grams(row: tuple[str, ...]) -> list[str]:
        words = " ".join(row).lower().split()
        return words + [f"{a} {b}" for a, b in zip(words, words[1:])]

    counts = [Counter() for _ in range(labels.max() + 1)]
    for row, label in zip(texts, labels):
        counts[label].update(grams(row))
    known = set().union(*counts)
    totals = [sum(count.values()) + len(known) for count in counts]
    prior = np.log(np.bincount(labels) / len(labels))
    return np.array([np.argmax([prior[c] + sum(np.log((counts[c][g] + 1) / totals[c])
                                               for g in grams(row) if g in known)
                                for c in range(len(counts))]) for row in tests])


def finetune(run: str, tune: FinetuneConfig) -> dict:
    """Train a classifier on a run's encoder and score it on dev.tsv beside its floors.

    Writes metrics.json, predictions.tsv and the classifier to tune.out; returns the metrics.
    Raises UserError when texts, labels or the run's folder cannot be used.
    """
    out, folder, task = Path(tune.out), Path(tune.task_dir), TASKS[tune.task]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; name another folder with --out")
    texts, names = read_task(folder / "train.tsv", task)
    texts, names = texts[:tune.rows or None], names[:tune.rows or None]
    tests, test_names = read_task(folder / "dev.tsv", task)
    classes = sorted(set(names))
    if unseen := sorted(set(test_names) - set(classes)):
        raise UserError(f"{folder}/dev.tsv has the label {unseen[0]!r}, which train.tsv lacks; "
                        "give both files the same labels")
    if len(classes) < 2 or (task.metric != "accuracy" and len(classes) > 2):
        raise UserError(f"{folder}/train.tsv has {len(classes)} different labels; {tune.task} "
                        f"needs two{' or more' * (task.metric == 'accuracy')}")
    labels, test_labels = (np.array([classes.index(name) for name in some])
                           for some in (names, test_names))

    pretrained, tokenizer = load_pretrained(run)
    config = dataclasses.replace(pretrained.config, next_sentence=False, hidden_dropout_prob=0.1,
                                 attention_probs_dropout_prob=0.1)
    model = SequenceClassifier(config, len(classes), tune.seed)
    model.encoder.load_state_dict(pretrained.encoder.state_dict())
    device = pick_device(tune.device)
    encode = encoder_of(tokenizer, config.max_length, device)
    train(model.to(device), encode, texts, torch.from_numpy(labels).to(device), tune)

    probabilities = predict(model, encode, tests)
    guesses = probabilities.argmax(1)
    found = {"score": guesses, "majority": np.full(len(tests), np.bincount(labels).argmax()),
             "bag_of_words": bag_of_words(texts, labels, tests)}
    metrics = {"task": tune.task, "metric": task.metric, "dev_rows": len(tests),
               **{name: score(task.metric, them, test_labels) for name, them in found.items()},
               "accuracy": score("accuracy", guesses, test_labels), "run": run,
               "settings": dataclasses.asdict(tune)}
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    torch.save(model.cpu().state_dict(), out / "classifier.pt")
    write_json(out / "classifier.json", {"classes": classes, "model": dataclasses.asdict(config)})
    rows = [[name, classes[guess], *(f"{share:.4f}" for share in shares)]
            for name, guess, shares in zip(test_names, guesses, probabilities)]
    table = "\n".join("\t".join(row) for row in [["label", "guess", *classes], *rows])
    (out / "predictions.tsv").write_text(table + "\n", encoding="utf-8")
    write_json(out / "metrics.json", metrics)
    return metrics


def train(model: SequenceClassifier, encode: Callable, texts: list[tuple[str, ...]],
          labels: Tensor, tune: FinetuneConfig) -> None:
    """All weights, AdamW, linear warm-up and decay; labels: (rows,) int64."""
    peak = tune.learning_rate or 5e-5 * 768 / model.config.hidden_size
    steps = tune.epochs * -(-len(texts) // tune.batch_size)
    schedule = RunConfig(out=tune.out, steps=steps, learning_rate=peak, warmup=tune.warmup)
    optimizer = torch.optim.AdamW(optimizer_groups(model, 0.01), lr=0.0)
    model.train()
    step = 0
    with tqdm(total=steps, desc=tune.task, disable=None, unit="step") as bar:
        for epoch in range(tune.epochs):
            order = hash_bits(tune.seed, "task order", epoch, torch.arange(len(texts))).argsort()
            for rows in order.split(tune.batch_size):
                torch.manual_seed(hash_bits(tune.seed, "task dropout", step))
                logits = model(**encode([texts[row] for row in rows.tolist()]))
                F.cross_entropy(logits.float(), labels[rows.to(labels.device)]).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, schedule)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                bar.update()


def encoder_of(tokenizer: Tokenizer, max_length: int, device: str) -> Callable:
    """From rows of one or two texts to padded inputs of a model, each cut to max_length."""
    pad = specials(tokenizer).pad
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad))

    def encode(rows: list[tuple[str, ...]]) -> dict[str, Tensor]:
        found = tokenizer.encode_batch([row[0] if len(row) == 1 else row for row in rows])
        columns = {"input_ids": "ids", "attention_mask": "attention_mask",
                   "token_type_ids": "type_ids"}
        return {name: torch.tensor([getattr(one, column) for one in found], device=device)
                for name, column in columns.items()}
    return encode


@torch.no_grad()
def predict(model: SequenceClassifier, encode: Callable, rows: list[tuple[str, ...]]) -> np.ndarray:
    """Probabilities of the classes, (rows, C)."""
    model.eval()
    found = [model(**encode(rows[i:i + 64])).softmax(-1).cpu() for i in range(0, len(rows), 64)]
    return torch.cat(found).numpy()


def classify(folder: str, texts: list[tuple[str, ...]]) -> str:
    """The whole distribution over a fine-tuned model's classes for each row of texts, as bars."""
    path = Path(folder)
    try:
        about = json.loads((path / "classifier.json").read_text(encoding="utf-8"))
        weights = torch.load(path / "classifier.pt", map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{folder} has no classifier; make one with python -m minibert finetune") \
            from None
    model = SequenceClassifier(ModelConfig(**about["model"]), len(about["classes"]))
    model.load_state_dict(weights)
    tokenizer = load_tokenizer(path / "tokenizer.json")
    rows = predict(model, encoder_of(tokenizer, model.config.max_length, "cpu"), texts)
    width = max(map(len, about["classes"]))
    return "\n".join("\n".join([" | ".join(row), *(
        f"  {name:{width}}  {'#' * round(20 * share):20} {share:6.1%}"
        for name, share in zip(about["classes"], shares))]) for row, shares in zip(texts, rows))
