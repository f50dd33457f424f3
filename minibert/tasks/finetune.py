"""Fine-tuning on a task of single texts or pairs (Devlin et al. 2018, sections 4.1 and A.3).

By default all families follow one rule: a new head on the mean of the last hidden states, every
weight trained. So none has the advantage of a [CLS] that its pretraining had taught to sum up. With
`--pooling cls` each family has its own head.
C classes (1 where the task's labels are values).
"""
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from minibert.config import FinetuneConfig, RunConfig, pick_device
from minibert.errors import UserError
from minibert.files.hub import load_pretrained
from minibert.files.run_folder import write_metrics
from minibert.losses import soft_target_loss
from minibert.masking import hash_bits
from minibert.tasks.classifier import SequenceClassifier, load_classifier, save_classifier
from minibert.tasks.tasks import FLOORS, TASKS, ChoiceData, TaskData, load_task
from minibert.tasks.zero_shot import zero_shot
from minibert.tokenizer import special_ids
from minibert.training import autocast, clipped_step, learning_rate, optimizer_groups


def finetune(run: str, tune: FinetuneConfig, data: TaskData | None = None) -> dict:
    """Train a classifier on a run's encoder and score it on the task's dev rows, beside floors.

    data: the task, if it has been read already. With tune.teacher the student is trained twice,
    with and without its soft targets. Each seed of tune.seeds gives a score, and their mean is the
    result. Writes metrics.json, and the classifier of the first seed, to tune.out; returns the
    metrics. Raises UserError when task, run or teacher cannot be used.
    """
    data = data or load_task(tune.task, tune.task_dir, tune.rows)
    out = Path(tune.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; name another folder with --out")
    pretrained, tokenizer = load_pretrained(run)
    config = dataclasses.replace(pretrained.config, next_sentence=False, hidden_dropout_prob=0.1,
                                 attention_probs_dropout_prob=0.1)
    device = pick_device(tune.device)
    encode = encoder_of(tokenizer, min(tune.max_length, config.max_length), device)
    soft, beside = None, {}
    if tune.teacher:
        teacher, its_tokenizer, metadata = load_classifier(tune.teacher)
        classes = metadata["classes"]
        if classes != data.classes or not classes:
            raise UserError(f"the teacher {tune.teacher} tells {', '.join(classes) or 'values'} "
                            f"apart, {tune.task} has {', '.join(data.classes) or 'values'}; use a "
                            "classifier of the same task")
        its_encode = encoder_of(its_tokenizer, min(tune.max_length, teacher.config.max_length),
                                device)
        teacher.to(device)
        soft = predict(teacher, its_encode, data.texts).to(device)
        beside["teacher"] = data.score(predict(teacher, its_encode, data.dev_texts)
                                       .argmax(1).numpy())

    def learn(soft: Tensor | None, seed: int) -> SequenceClassifier:
        model = SequenceClassifier(config, len(data.classes) or 1, seed, tune.pooling)
        model.encoder.load_state_dict(pretrained.encoder.state_dict())
        if tune.pooling == "cls" and pretrained.config.next_sentence:  # which taught the pooler
            model.dense.load_state_dict(pretrained.pooler.state_dict())
        return train(model.to(device), encode, data, soft, dataclasses.replace(tune, seed=seed))

    def judge(model: SequenceClassifier) -> float:
        logits = predict(model, encode, data.dev_texts)
        return data.score((logits.argmax(1) if data.classes else logits[:, 0]).numpy())

    seeds = range(tune.seed, tune.seed + tune.seeds)
    if tune.teacher:
        untaught = [judge(learn(None, seed)) for seed in seeds]
        beside["without_teacher"] = float(np.mean(untaught))
    models = [learn(soft, seed) for seed in seeds]
    scores = [judge(model) for model in models]
    metrics = {"task": data.name, "metric": data.metric, "dev_rows": len(data.dev_texts),
               "score": float(np.mean(scores)), "scores": scores, **data.floors(), **beside,
               "run": run, "settings": dataclasses.asdict(tune)}
    save_classifier(models[0].cpu(), tokenizer, out, data.classes, len(data.texts[0]))
    write_metrics(out, metrics)
    return metrics


def finetune_tasks(run: RunConfig, tasks: dict[str, TaskData | ChoiceData]) -> dict[str, dict]:
    """Score a saved run on each task, fine-tuned in a folder of its own where the task has labels.
    """
    found = {}
    for name, data in tasks.items():
        if isinstance(data, ChoiceData):
            metrics = zero_shot(run.out, data, run.device)
        else:
            out = Path(run.out) / "tasks" / name
            shutil.rmtree(out, ignore_errors=True)  # of a run that was stopped here
            # All runs have the same fine-tuning seeds, so what varies between the seeds of
            # pretraining is the pretraining. Positions beyond run.seq_length have never had a
            # gradient.
            tune = FinetuneConfig(task=name, out=str(out), device=run.device, seeds=run.task_seeds,
                                  max_length=run.seq_length)
            metrics = finetune(run.out, tune, data)
        print(f"{run.out}: {describe(metrics)}", flush=True)
        found[name] = {key: value for key, value in metrics.items()
                       if key not in ("task", "run", "settings")}
    return found


def describe(metrics: dict) -> str:
    """A task's result in one line."""
    beside = FLOORS | {"without_teacher": "without the teacher", "teacher": "the teacher itself"}
    return (f"{metrics['task']}: {metrics['metric']} {metrics['score']:.3f} on "
            f"{metrics['dev_rows']} rows (" + ", ".join(
                f"{text} {metrics[name]:.3f}" for name, text in beside.items() if name in metrics)
            + ")")


def train(model: SequenceClassifier, encode: Callable, data: TaskData, soft: Tensor | None,
          tune: FinetuneConfig) -> SequenceClassifier:
    """All weights, AdamW, linear warm-up and decay; soft: a teacher's logits (rows, C), or None.

    Paper: Hinton et al. 2015, section 2, the sum of soft and hard targets; Sanh et al. 2019,
    section 3, "an additional distillation step" while fine-tuning.
    """
    device = next(model.parameters()).device
    inputs, labels = encode(data.texts), torch.from_numpy(data.labels).to(device)
    peak = tune.learning_rate or 5e-5 * 768 / model.config.hidden_size
    epochs = tune.epochs or TASKS[tune.task].epochs
    steps = epochs * -(-len(labels) // tune.batch_size)
    schedule = RunConfig(out=tune.out, steps=steps, learning_rate=peak, warmup=tune.warmup)
    # Departure: Adam's epsilon is torch's 1e-8; BERT's is 1e-6 in fine-tuning, too.
    fused = device.type == "cuda"  # on a CPU the last digits of the scores would change
    optimizer = torch.optim.AdamW(optimizer_groups(model, 0.01), lr=0.0, fused=fused)
    model.train()
    step = 0
    with tqdm(total=steps, desc=tune.task, disable=None, unit="step") as bar:
        for epoch in range(epochs):
            order = hash_bits(tune.seed, "task order", epoch, torch.arange(len(labels))).argsort()
            for rows, batch in batches(inputs, order, tune.batch_size):
                torch.manual_seed(hash_bits(tune.seed, "task dropout", step))
                with autocast(device.type):
                    logits = model(**batch).float()
                truth = labels[rows]
                loss = (F.cross_entropy(logits, truth) if data.classes
                        else F.mse_loss(logits[:, 0], truth))
                if soft is not None:
                    kl = soft_target_loss(logits, soft[rows], tune.temperature)
                    loss = tune.alpha_kl * kl + (1 - tune.alpha_kl) * loss
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, schedule)
                clipped_step(model, loss, optimizer)
                step += 1
                bar.update()
    return model


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
        found = [(one.ids, one.attention_mask, one.type_ids)
                 for i in range(0, len(texts), 1000)  # what the tokenizer returns is large
                 for one in tokenizer.encode_batch(texts[i:i + 1000])]
        return {name: pad_sequence([torch.tensor(values) for values in column], batch_first=True,
                                   padding_value=padding[name]).to(device)
                for name, column in zip(padding, zip(*found))}
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
        found = [model(**batch).float() for _, batch in batches(inputs, order, 64)]
    return torch.cat(found).cpu()


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
    if not classes:
        return f"{' | '.join(texts)}\n  {logits.item():.3f}"
    width = max(map(len, classes))
    return "\n".join([" | ".join(texts), *(
        f"  {name:{width}}  {'#' * round(20 * share):20} {share:6.1%}"
        for name, share in zip(classes, logits.softmax(-1).tolist()))])
