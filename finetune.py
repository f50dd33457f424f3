"""Fine-tuning: a finished run learns a task through a new layer (Devlin et al. 2018, section 4)."""
import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
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
from minibert.training import autocast, clipped_step, learning_rate, optimizer_groups


@dataclass(frozen=True)
class FinetuneConfig:
    """A task, and BERT's own way to learn it (Devlin et al. 2018, appendix A.3)."""
    task: str = setting("sst2", "such as mrpc or library; text and pair read files of your own")
    task_dir: str = setting("", "folder of the task's files [downloaded, or made of pydocs]")
    out: str = setting("", "the folder of the classifier and its score [RUN/tasks/TASK]")
    epochs: int = setting(0, "passes over train.tsv; 0 means the task's own number", "[0, inf)")
    batch_size: int = setting(32, "rows in an optimizer step", "[1, inf)")
    # Departure: BERT's 5e-5 is for H = 768; narrower models need larger steps.
    learning_rate: float = setting(0.0, "peak; 0 means 5e-5 * 768 / hidden size", "[0, inf)")
    warmup: float = setting(0.1, "share of the steps in which the learning rate rises", "[0, 1)")
    rows: int = setting(0, "first rows of train.tsv to use; 0: the task's number", "[0, inf)")
    # Departure: BERT's inputs are never longer than those of its pretraining; a run of --seq-length
    # 32 is fine-tuned on up to 128, at positions that nothing has trained, unless this is 0.
    max_length: int = setting(128, "tokens of an input; 0: as in the pretraining", "[0, inf)")
    pooling: str = setting("mean", "read the mean, or [CLS] as transformers", ("mean", "cls"))
    teacher: str = setting("", "a folder that finetune made, to learn from its probabilities")
    # Paper: DistilBERT's released script for SQuAD weighs soft and hard targets alike, at T 2.
    alpha_kl: float = setting(0.5, "share of the teacher's soft targets in the loss", "[0, 1]")
    temperature: float = setting(2.0, "of the soft targets", "(0, inf)")
    seed: int = setting(0, "decides the layer's weights, order and dropout", SEEDS)
    seeds: int = setting(1, "how many seeds to fine-tune with, for a mean score", "[1, inf)")
    device: str = setting("auto", "where to compute", DEVICES)

    def __post_init__(self):
        check(self)
        if not self.teacher and (self.alpha_kl, self.temperature) != (
                FinetuneConfig.alpha_kl, FinetuneConfig.temperature):
            raise UserError("--alpha-kl and --temperature are about a teacher's probabilities; "
                            "name the teacher with --teacher")


def main() -> None:
    run, tune = read_flags()
    pretrained, tokenizer = load_pretrained(run)
    origin = {"run": run, "weights": fingerprint_of(pretrained),
              "settings": dataclasses.asdict(tune)}
    if finished(tune, origin):
        return
    model = None
    if tune.task in CHOICES:  # these ask what the masked words are, so there is nothing to learn
        choices = load_choices(tune.task, tune.task_dir)
        metrics = zero_shot(pretrained, tokenizer, choices, pick_device(tune.device))
    else:
        data = load_task(tune.task, tune.task_dir, tune.rows)
        model, metrics = finetune(pretrained, tokenizer, tune, data)
    # Everything is written next to the folder, which is there when it is whole.
    aside = Path(f"{tune.out}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    if model:
        save_classifier(model.cpu(), tokenizer, aside, data.classes, len(data.texts[0]))
    write_metrics(aside, {**metrics, **origin})
    aside.rename(tune.out)
    print(f"{run}: {describe(metrics)}")


def finetune(pretrained: MaskedLM, tokenizer: Tokenizer, tune: FinetuneConfig, data: TaskData
             ) -> tuple[SequenceClassifier, dict]:
    """Train a classifier on a pretrained encoder with every seed, and score it on the dev rows.

    With tune.teacher, the student is trained twice, with and without its soft targets. Returns the
    classifier of the first seed, and the mean score beside what needs no model. Raises UserError
    where the teacher cannot be used.
    """
    device = pick_device(tune.device)
    max_length = min(tune.max_length, pretrained.config.max_length)
    encode = encoder_of(tokenizer, max_length, device)
    seeds = range(tune.seed, tune.seed + tune.seeds)

    def learn(soft: Tensor | None) -> tuple[list[SequenceClassifier], list[float]]:
        models = [train(new_classifier(pretrained, len(data.classes), seed, tune.pooling)
                        .to(device), encode, data, soft, dataclasses.replace(tune, seed=seed))
                  for seed in seeds]
        guesses = [predict(model, encode, data.dev_texts).argmax(1).numpy() for model in models]
        return models, [data.score(guess) for guess in guesses]

    beside, soft = {}, None
    if tune.teacher:
        soft, beside["teacher"] = ask_teacher(tune, data, device)
        beside["without_teacher"] = float(np.mean(learn(None)[1]))
    models, scores = learn(soft)
    return models[0], {"task": data.name, "metric": data.metric, "dev_rows": len(data.dev_texts),
                       "score": float(np.mean(scores)), "scores": scores, **data.floors(), **beside}


def new_classifier(pretrained: MaskedLM, classes: int, seed: int, pooling: str
                   ) -> SequenceClassifier:
    """The pretrained encoder under a new head of random weights, with dropout of 0.1.

    Paper: Devlin et al. 2018, section 4.1: the only new weights are those of the last layer. BERT's
    pooler below it was trained by NSP, so --pooling cls takes it over.
    """
    config = dataclasses.replace(pretrained.config, next_sentence=False, hidden_dropout_prob=0.1,
                                 attention_probs_dropout_prob=0.1)
    model = SequenceClassifier(config, classes, seed, pooling)
    model.encoder.load_state_dict(pretrained.encoder.state_dict())
    if pooling == "cls" and pretrained.config.next_sentence:
        model.dense.load_state_dict(pretrained.pooler.state_dict())
    return model


def train(model: SequenceClassifier, encode: Callable, data: TaskData, soft: Tensor | None,
          tune: FinetuneConfig) -> SequenceClassifier:
    """Train all weights with AdamW, a linear warm-up and a linear decay.

    encode: from rows of texts to a model's inputs. soft: a teacher's logits, (N, C) float32, or
    None.
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
                loss = F.cross_entropy(logits, labels[rows])
                if soft is not None:
                    kl = soft_target_loss(logits, soft[rows], tune.temperature)
                    loss = tune.alpha_kl * kl + (1 - tune.alpha_kl) * loss
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, schedule)
                clipped_step(model, loss, optimizer)
                step += 1
                bar.update()
    return model


def ask_teacher(tune: FinetuneConfig, data: TaskData, device: str) -> tuple[Tensor, float]:
    """A fine-tuned teacher's logits for the training rows, (N, C) float32, and its own score.

    Raises UserError where the teacher tells other classes apart.
    """
    teacher, tokenizer, metadata = load_classifier(tune.teacher)
    if metadata["classes"] != data.classes:
        raise UserError(f"the teacher {tune.teacher} tells {', '.join(metadata['classes'])} apart, "
                        f"{tune.task} has {', '.join(data.classes)}; use a classifier of the same "
                        "task")
    encode = encoder_of(tokenizer, min(tune.max_length, teacher.config.max_length), device)
    teacher.to(device)
    guesses = predict(teacher, encode, data.dev_texts).argmax(1).numpy()
    return predict(teacher, encode, data.texts).to(device), data.score(guesses)


def read_flags() -> tuple[str, FinetuneConfig]:
    """The run's folder and the settings of this program's command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the folder of a run or a Hugging Face model")
    add_flags(parser, FinetuneConfig)
    given = vars(parser.parse_args())
    run = given.pop("run")
    given["out"] = given["out"] or str(Path(run) / "tasks" / given["task"])
    if not given["max_length"]:
        trained = read_json(Path(run) / "run.json", "is missing; give --max-length a number")
        given["max_length"] = trained["settings"]["seq_length"]
    return run, FinetuneConfig(**given)


def finished(tune: FinetuneConfig, origin: dict) -> bool:
    """Whether the folder holds this very fine-tuning and it is done, which is then printed.

    Raises UserError where the folder holds something else.
    """
    out = Path(tune.out)
    if not out.exists():
        return False
    there = read_json(out / "metrics.json", f"is missing, so {out} is not a finished fine-tuning; "
                      "name another folder with --out, or delete this one")
    if there.get("weights") != origin["weights"]:
        raise UserError(f"{out} was made from other weights than {origin['run']} has; delete it, "
                        "or name another folder with --out")
    for name, value in origin["settings"].items():
        before = there["settings"].get(name)
        if name not in ("out", "device") and before != value:
            raise UserError(f"{out} was made with {name} {before!r}, not {value!r}; give it the "
                            "same settings or another --out")
    print(f"{out}: finished before; nothing to do\n{origin['run']}: {describe(there)}")
    return True


def describe(metrics: dict) -> str:
    """A task's result in one line."""
    beside = FLOORS | {"without_teacher": "without the teacher", "teacher": "the teacher itself"}
    values = [f"{text} {metrics[name]:.3f}" for name, text in beside.items() if name in metrics]
    return (f"{metrics['task']}: {metrics['metric']} {metrics['score']:.3f} on "
            f"{metrics['dev_rows']} rows ({', '.join(values)})")


if __name__ == "__main__":
    run_cli(main)
