"""DistilBERT: half the layers of a trained teacher, and its soft targets (Sanh et al. 2019)."""
import dataclasses

import torch

from minibert.config import DistillConfig, parse_flags
from minibert.errors import run_cli
from minibert.files.corpus import prepare
from minibert.files.hub import fingerprint_of, load_pretrained
from minibert.files.run_folder import finished
from minibert.losses import cosine_loss, mlm_loss, soft_target_loss
from minibert.masking import IGNORE, DynamicMasker, StaticMasker
from minibert.model import gather
from minibert.student import make_student
from minibert.tasks.finetune import finetune_tasks
from minibert.tasks.tasks import load_tasks
from minibert.training import Training, mask_settings

# Paper: section 3 follows RoBERTa's recipe ("best practices for training BERT model recently
# proposed in Liu et al."). The released training command has no weight decay and clips at 5.
# Departure: that command masks rare tokens more often than frequent ones; here all are equal.
# Departure: it takes a rate of 5e-4 and a warm-up of 5 %; here both are the preset's.
# Departure: it leaves out sequences of 11 tokens or fewer, and those that are half [UNK].
RECIPE = dict(input_format="full-sentences", nsp=False, masking="dynamic",
              adam_beta2=0.98, weight_decay=0.0, max_grad_norm=5.0)
STEPS = {"tiny": 800, "small": 10_000, "base": 250_000}  # by preset


def main() -> None:
    run, distill = parse_flags(__doc__, RECIPE, STEPS, DistillConfig, without=("nsp", "tokenizer"))
    teacher, tokenizer = load_pretrained(distill.teacher)
    tokenizer, corpus, held_out, fingerprint = prepare(run.corpus, tokenizer=tokenizer)
    metadata = {"corpus_fingerprint": fingerprint, "distill": dataclasses.asdict(distill),
                "teacher_weights": fingerprint_of(teacher)}
    if finished(run, metadata):
        return
    tasks = load_tasks(run.tasks, run.task_dir, run.task_rows)
    student, layers = make_student(teacher, distill, run.seed)
    metadata |= {"model": dataclasses.asdict(student.config), "teacher_layers": layers}
    masker = StaticMasker(run.static_masks) if run.masking == "static" else DynamicMasker()
    training = Training(run, student, tokenizer, corpus, held_out, masker, metadata)
    if layers and training.rank == 0:
        print(f"{run.out}: the student starts from the teacher's layers {layers}")
    settings = mask_settings(run, tokenizer, training.batches.device)
    teacher.to(training.device).eval()
    # Departure: the released code compares student and teacher at all non-padding tokens; an option
    # (`restrict_ce_to_mask`) limits the soft targets to the predictions. Here the soft targets and
    # the cosine are compared at the predictions by default, which is much cheaper.
    all_positions = distill.distill_positions == "all"

    for batch in training:
        inputs, masked_positions, labels = masker(batch.input_ids, batch.sequence_ids,
                                                  epoch=batch.epoch, **settings)
        batch = batch._replace(input_ids=inputs, masked_positions=masked_positions, labels=labels)
        batch = training.on_device(batch)
        # Micro-batches divide by the whole batch's predictions, so that their gradients add up.
        num_predictions = (batch.labels != IGNORE).sum()
        num_distilled = batch.attention_mask.sum() if all_positions else num_predictions
        for micro_batch in training.micro_batches(batch, everywhere=all_positions):
            read_positions, valid = micro_batch.masked_positions, micro_batch.labels != IGNORE
            if all_positions:
                read_positions, valid = None, micro_batch.attention_mask.bool()
            with training.autocast():
                output = training.model(micro_batch.input_ids,
                                        attention_mask=micro_batch.attention_mask,
                                        positions=read_positions)
                logits = output.mlm_logits
                if all_positions:  # hard labels are known at the predictions only
                    logits = gather(logits, micro_batch.masked_positions)
                losses = {"mlm": mlm_loss(logits, micro_batch.labels, num_predictions)}
                loss = distill.alpha_mlm * losses["mlm"]
                if distill.alpha_kl or distill.alpha_cos:
                    with torch.no_grad():  # the teacher reads the same masked text, and is fixed
                        teacher_output = teacher(micro_batch.input_ids,
                                                 attention_mask=micro_batch.attention_mask,
                                                 positions=read_positions)
                    losses["kl"] = soft_target_loss(output.mlm_logits, teacher_output.mlm_logits,
                                                    distill.temperature, valid, num_distilled)
                    losses["cos"] = cosine_loss(output.hidden, teacher_output.hidden, valid,
                                                num_distilled)
                    loss = loss + distill.alpha_kl * losses["kl"]
                    loss = loss + distill.alpha_cos * losses["cos"]
            training.backward(loss, **losses)
        training.optimizer_step(batch, num_predictions)
    training.save()
    training.finish(finetune_tasks(run, tasks), teacher)


if __name__ == "__main__":
    run_cli(main)
