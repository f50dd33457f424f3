"""Fine-tuning: a finished run learns a task through a new layer (Devlin et al. 2018, section 4)."""
import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from minibert.config import (DEVICES, SEEDS, Parser, RunConfig, add_flags, check, pick_device,
                             setting)
from minibert.errors import UserError, run_cli
from minibert.files.hub import fingerprint_of, load_pretrained
from minibert.files.run_folder import read_json, write_metrics
from minibert.hashing import hash_bits
from minibert.losses import soft_target_loss
from minibert.model import MaskedLM
from minibert.tasks.classifier import (SequenceClassifier, batches, encoder_of, load_classifier,
                                       predict, save_classifier)
from minibert.tasks.tasks import CHOICES, FLOORS, TASKS, TaskData, load_choices, load_task
from minibert.tasks.zero_shot import zero_shot
from minibert.training import autocast, learning_rate, optimizer_groups

# Paper: Devlin et al. 2018, appendix A.3, keeps all as in the pretraining, but for the settings
# below and the length of the training.
DROPOUT = 0.1  # appendix A.3: "always kept at 0.1"
WEIGHT_DECAY = 0.01  # appendix A.2
MAX_GRAD_NORM = 1.0  # google-research/bert, optimization.py
# Departure: Adam's epsilon is torch's 1e-8; BERT's is 1e-6 in fine-tuning, too.
ADAM_EPSILON = 1e-8


@dataclass(frozen=True)
class FinetuneConfig:
    """A task, and BERT's own way to learn it (Devlin et al. 2018, appendix A.3)."""
    task: str = setting("sst2", "such as mrpc or library; text and pair read files of your own")
    task_dir: str = setting("", "folder of the task's files [downloaded, or made of pydocs]")
    out: str = setting("", "the folder of the classifier and its score [RUN/tasks/TASK]")
    # Paper: 3 for GLUE's tasks (section 4.1), which is what TASKS has for them.
    epochs: int = setting(0, "passes over train.tsv; 0: the task's number", "[0, inf)")
    batch_size: int = setting(32, "rows in an optimizer step", "[1, inf)")  # Paper: section 4.1
    # Departure: BERT's 5e-5 is for H = 768; narrower models need larger steps.
    # Departure: BERT's authors chose the best of four rates for each task by its dev rows; here
    # there is one for all, so that nothing is fitted to the rows that give the score.
    learning_rate: float = setting(0.0, "peak; 0: 5e-5 * 768 / hidden size", "[0, inf)")
    # Paper: google-research/bert, run_classifier.py.
    warmup: float = setting(0.1, "share of the steps in which the learning rate rises", "[0, 1)")
    rows: int = setting(0, "first rows of train.tsv to use; 0: the task's number", "[0, inf)")
    # Positions beyond the sequences of the pretraining have never had a gradient.
    max_length: int = setting(0, "tokens of an input; 0: as in the pretraining", "[0, inf)")
    pooling: str = setting("mean", "read the mean, or [CLS] as transformers", ("mean", "cls"))
    teacher: str = setting("", "a folder that finetune.py made, to learn from its probabilities")
    # Paper: DistilBERT's released script for SQuAD weighs soft and hard targets alike, at T 2.
    alpha_kl: float = setting(0.5, "share of the teacher's soft targets in the loss", "[0, 1]")
    temperature: float = setting(2.0, "of the soft targets", "(0, inf)")
    seed: int = setting(0, "decides the new weights, order and dropout", SEEDS)
    seeds: int = setting(1, "how many seeds to fine-tune with, for a mean score", "[1, inf)")
    device: str = setting("auto", "where to compute", DEVICES)

    def __post_init__(self):
        check(self)
        if 0 < self.max_length < 8:
            raise UserError(f"--max-length {self.max_length} leaves next to nothing of a text; "
                            "give 8 or more, or 0 for the length of the pretraining")
        if not self.teacher and (self.alpha_kl, self.temperature) != (
                FinetuneConfig.alpha_kl, FinetuneConfig.temperature):
            raise UserError("--alpha-kl and --temperature are about a teacher's probabilities; "
                            "name the teacher with --teacher")


def main() -> None:
    run, tune = read_flags()
    pretrained, tokenizer = load_pretrained(run)
    origin = {"run": run, "weights": fingerprint_of(pretrained),
              "settings": dataclasses.asdict(tune)}
    if finished(tune.out, origin):
        return
    device = pick_device(tune.device)
    part = Path(tune.out + ".part")
    shutil.rmtree(part, ignore_errors=True)  # of a command that was killed

    if tune.task in CHOICES:
        # Which of two texts is likelier? The pretraining has taught to guess words, and that is
        # enough to say it, so there is no new layer and nothing to learn.
        metrics = zero_shot(pretrained, tokenizer, load_choices(tune.task, tune.task_dir), device)
    else:
        data = load_task(tune.task, tune.task_dir, tune.rows)
        encode = encoder_of(tokenizer, min(tune.max_length, pretrained.config.max_length), device)
        seeds = range(tune.seed, tune.seed + tune.seeds)
        soft_targets, compared = None, data.floors()
        if tune.teacher:
            soft_targets, compared["teacher"] = ask_teacher(tune, data, device)
            compared["without_teacher"] = float(np.mean([
                finetune(pretrained, encode, data, None, tune, seed)[1] for seed in seeds]))
        models, scores = zip(*(finetune(pretrained, encode, data, soft_targets, tune, seed)
                               for seed in seeds))
        metrics = {"task": data.name, "metric": data.metric, "dev_rows": len(data.dev_texts),
                   "score": float(np.mean(scores)), "scores": scores, **compared}
        save_classifier(models[0].cpu(), tokenizer, part, data.classes, len(data.texts[0]))

    part.mkdir(parents=True, exist_ok=True)
    write_metrics(part, {**metrics, **origin})
    part.rename(tune.out)  # so that the folder is whole, or not there
    print(f"{run}: {describe(metrics)}")


def finetune(pretrained: MaskedLM, encode: Callable, data: TaskData, soft_targets: Tensor | None,
             tune: FinetuneConfig, seed: int) -> tuple[SequenceClassifier, float]:
    """Train a classifier on a pretrained encoder; return it, and its score on the dev rows.

    encode: from texts to a model's inputs. soft_targets: a teacher's logits for the training rows,
    (N, C) float32, or None.
    """
    # Paper: section 4.1: the classification layer is the only new one, and all weights are trained.
    # (Where the mean is read, the dense layer below it is new as well.)
    config = dataclasses.replace(pretrained.config, next_sentence=False,
                                 hidden_dropout_prob=DROPOUT, attention_probs_dropout_prob=DROPOUT)
    model = SequenceClassifier(config, len(data.classes), seed, tune.pooling)
    model.encoder.load_state_dict(pretrained.encoder.state_dict())
    if tune.pooling == "cls" and pretrained.config.next_sentence:  # NSP has trained BERT's pooler
        model.dense.load_state_dict(pretrained.pooler.state_dict())

    inputs = encode(data.texts)
    device = inputs["input_ids"].device
    labels = torch.from_numpy(data.labels).to(device)
    model.to(device).train()
    epochs = tune.epochs or TASKS[tune.task].epochs
    schedule = RunConfig(out=tune.out, steps=epochs * -(-len(labels) // tune.batch_size),
                         learning_rate=tune.learning_rate or 5e-5 * 768 / config.hidden_size,
                         warmup=tune.warmup)
    optimizer = torch.optim.AdamW(
        optimizer_groups(model, WEIGHT_DECAY), lr=0.0, eps=ADAM_EPSILON,
        fused=device.type == "cuda")  # on a CPU the last digits of the scores would change
    bar = tqdm(total=schedule.steps, desc=f"{tune.task}, seed {seed}", disable=None, unit="step")
    step = 0
    for epoch in range(epochs):
        order = hash_bits(seed, "task order", epoch, torch.arange(len(labels))).argsort()
        for rows, batch in batches(inputs, order, tune.batch_size):
            torch.manual_seed(hash_bits(seed, "task dropout", step))
            with autocast(device.type):
                logits = model(**batch).float()
            loss = F.cross_entropy(logits, labels[rows])  # the mean over the rows of the batch
            if soft_targets is not None:
                # Paper: Hinton et al. 2015, section 2, add up soft and hard targets; Sanh et al.
                # 2019, section 4.1, do so while fine-tuning: "another step of distillation".
                kl = soft_target_loss(logits, soft_targets[rows], tune.temperature)
                loss = tune.alpha_kl * kl + (1 - tune.alpha_kl) * loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, schedule)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            bar.update()
    bar.close()

    guesses = predict(model, encode, data.dev_texts).argmax(1)
    return model, data.score(guesses.numpy())


def ask_teacher(tune: FinetuneConfig, data: TaskData, device: str) -> tuple[Tensor, float]:
    """A fine-tuned teacher's logits for the training rows, (N, C) float32, and its own score.

    The teacher reads the texts with its own tokenizer, so it may be of another family. Raises
    UserError where it tells other classes apart.
    """
    teacher, tokenizer, metadata = load_classifier(tune.teacher)
    if metadata["classes"] != data.classes:
        raise UserError(f"the teacher {tune.teacher} tells {', '.join(metadata['classes'])} apart, "
                        f"{tune.task} has {', '.join(data.classes)}; use a classifier of the same "
                        "task")
    encode = encoder_of(tokenizer, min(tune.max_length, teacher.config.max_length), device)
    teacher.to(device)
    guesses = predict(teacher, encode, data.dev_texts).argmax(1)
    return predict(teacher, encode, data.texts).to(device), data.score(guesses.numpy())


def read_flags() -> tuple[str, FinetuneConfig]:
    """The run's folder, and the settings of this program's command line with all blanks filled."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the folder of a run or a Hugging Face model")
    add_flags(parser, FinetuneConfig)
    given = vars(parser.parse_args())
    run = given.pop("run")
    tune = FinetuneConfig(**given)
    trained = Path(run) / "run.json"
    pretraining = read_json(trained, "is missing").get("settings", {}) if trained.exists() else {}
    # Nobody has noted the sequences of a model that comes from elsewhere.
    max_length = tune.max_length or pretraining.get("seq_length", 128)
    out = Path(tune.out) if tune.out else Path(run) / "tasks" / tune.task
    return run, dataclasses.replace(tune, out=str(out), max_length=max_length)


def finished(out: str, origin: dict) -> bool:
    """Whether a folder holds this very fine-tuning, which is then printed.

    origin: the run, a fingerprint of its weights, and all settings. Raises UserError where the
    folder holds something else.
    """
    if not Path(out).exists():
        return False
    there = read_json(Path(out) / "metrics.json", f"is missing, so {out} is no fine-tuning; name "
                      "another folder with --out")
    if "settings" not in there:
        raise UserError(f"{out} is no fine-tuning; name another folder with --out")
    if there.get("weights") != origin["weights"]:
        raise UserError(f"{out} was made from other weights than those of {origin['run']}; delete "
                        "it, or name another folder with --out")
    for name, value in origin["settings"].items():
        before = there["settings"].get(name)
        if name not in ("out", "device") and before != value:
            raise UserError(f"{out} was made with {name} {before!r}, not {value!r}; give it the "
                            "same settings or another --out")
    print(f"{out}: finished before; nothing to do\n{origin['run']}: {describe(there)}")
    return True


def describe(metrics: dict) -> str:
    """A task's result in one line."""
    names = FLOORS | {"without_teacher": "without the teacher", "teacher": "the teacher itself"}
    compared = [f"{text} {metrics[name]:.3f}" for name, text in names.items() if name in metrics]
    return (f"{metrics['task']}: {metrics['metric']} {metrics['score']:.3f} on "
            f"{metrics['dev_rows']} rows ({', '.join(compared)})")


if __name__ == "__main__":
    run_cli(main)
