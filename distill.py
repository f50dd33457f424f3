"""DistilBERT: a trained teacher, every other one of its layers, soft targets (Sanh et al. 2019)."""
import dataclasses
from pathlib import Path

import torch

from minibert.config import DistillConfig, parse_flags
from minibert.corpus import prepare
from minibert.errors import UserError, run_cli
from minibert.finetune import finetune_tasks
from minibert.hub import load_pretrained
from minibert.losses import cosine_loss, mlm_loss, soft_target_loss
from minibert.masking import IGNORE, DynamicMasker, StaticMasker
from minibert.model import MaskedLM, gather
from minibert.run_folder import finished
from minibert.tasks import load_tasks
from minibert.tokenizer import load_tokenizer
from minibert.training import Training, mask_settings

# Paper: section 3, "best practices for training BERT model recently proposed in Liu et al.", and
# the released training command: no weight decay, gradients clipped to 5.
# Departure: that command hides rare tokens more often than frequent ones; here all are equal.
RECIPE = dict(input_format="full-sentences", nsp=False, masking="dynamic",
              adam_beta2=0.98, weight_decay=0.0, max_grad_norm=5.0)
STEPS = {"tiny": 800, "small": 10_000, "base": 250_000}


def main() -> None:
    run, chosen = parse_flags(__doc__, RECIPE, STEPS, DistillConfig, without=("nsp", "tokenizer"))
    distill = DistillConfig(**chosen)
    tokenizer = load_tokenizer(Path(distill.teacher) / "tokenizer.json")
    tokenizer, text, held_out, corpus = prepare(run.corpus, "", 0, tokenizer)
    about = {"corpus": corpus, "distill": dataclasses.asdict(distill)}
    if finished(run, about):
        return
    tasks = load_tasks(run.tasks, run.task_dir, run.task_rows)
    teacher, _ = load_pretrained(distill.teacher)
    student, layers = make_student(teacher, distill, run.seed)
    about |= {"model": dataclasses.asdict(student.config), "teacher_layers": layers}
    masker = StaticMasker(run.static_masks) if run.masking == "static" else DynamicMasker()
    training = Training(run, student, tokenizer, text, held_out, masker, about)
    print(f"{run.out}: student layers 0..{len(layers) - 1} are like the teacher's {layers}, "
          f"weights from {distill.init}")
    settings = mask_settings(run, tokenizer, training.device)
    teacher.to(training.device).eval()
    # Departure: the released code compares at all tokens that are no padding; the default here,
    # its option `restrict_ce_to_mask`, compares at the predictions only, which is much cheaper.
    everywhere = distill.distill_positions == "all"

    for batch in training:
        inputs, positions, labels = masker(batch.input_ids, batch.index, epoch=batch.epoch,
                                           **settings)
        training.show_examples(inputs, positions, labels)
        predictions = (labels != IGNORE).sum()
        compared = batch.attention_mask.sum() if everywhere else predictions
        for ids, mask, where, words in training.parts(
                inputs, batch.attention_mask, positions, labels):
            read, real = (None, mask.bool()) if everywhere else (where, words != IGNORE)
            with training.autocast():
                output = training.model(ids, attention_mask=mask, positions=read)
                logits = gather(output.mlm_logits, where) if everywhere else output.mlm_logits
                losses = {"mlm": mlm_loss(logits, words, predictions)}
                loss = distill.alpha_mlm * losses["mlm"]
                if distill.alpha_kl or distill.alpha_cos:
                    with torch.no_grad():  # the teacher reads the same hidden tokens
                        taught = teacher(ids, attention_mask=mask, positions=read)
                    losses["kl"] = soft_target_loss(output.mlm_logits, taught.mlm_logits,
                                                    distill.temperature, real, compared)
                    losses["cos"] = cosine_loss(output.hidden, taught.hidden, real, compared)
                    loss = loss + distill.alpha_kl * losses["kl"]
                    loss = loss + distill.alpha_cos * losses["cos"]
            training.backward(loss, **losses)
        training.update(batch, predictions)
    training.save()
    training.finish(finetune_tasks(run, tasks), teacher)


def layer_map(teacher_layers: int, student_layers: int) -> list[int]:
    """The teacher's layers that a student starts from: evenly spaced, first and last included.

    For 12 to 6 that is the published list.
    >>> layer_map(12, 6), layer_map(8, 4), layer_map(4, 2), layer_map(4, 1)
    ([0, 2, 4, 7, 9, 11], [0, 2, 5, 7], [0, 3], [0])
    """
    gaps = max(1, student_layers - 1)
    return [round(i * (teacher_layers - 1) / gaps) for i in range(student_layers)]


def make_student(teacher: MaskedLM, distill: DistillConfig, seed: int
                 ) -> tuple[MaskedLM, list[int]]:
    """A model of the teacher's width and fewer layers, and which layers they are.

    No pooler, no NSP head and, for BERT, no token types: Hugging Face's DistilBERT. Raises
    UserError when it would be deeper than the teacher, or have no layer.
    """
    config = teacher.config
    depth = distill.student_layers or config.num_hidden_layers // 2
    if not 1 <= depth <= config.num_hidden_layers:
        raise UserError(f"a student of {depth} layers cannot be made of a teacher with "
                        f"{config.num_hidden_layers}; choose --student-layers between 1 and that")
    student_config = dataclasses.replace(config, num_hidden_layers=depth, next_sentence=False)
    if config.model_type == "bert":
        student_config = dataclasses.replace(student_config, model_type="distilbert",
                                             type_vocab_size=0)
    student = MaskedLM(student_config, seed)
    layers = layer_map(config.num_hidden_layers, depth)
    if distill.init == "teacher":
        weights = teacher.state_dict()
        if config.model_type == "bert":
            # Departure: the released code drops the token types; every input of the student is
            # segment A, so its row is a constant that belongs to the positions.
            weights["encoder.embeddings.position.weight"] = (
                teacher.encoder.embeddings.position.weight.detach()
                + teacher.encoder.embeddings.token_type.weight[0].detach())
        for name, parameter in student.state_dict().items():
            part = name.split(".")
            if name.startswith("encoder.layers."):
                part[2] = str(layers[int(part[2])])
            parameter.copy_(weights[".".join(part)])
    return student, layers


if __name__ == "__main__":
    run_cli(main)
