"""DistilBERT: half the layers of a trained teacher, and its soft targets (Sanh et al. 2019)."""
import dataclasses

import torch

from minibert.config import DistillConfig, RunConfig, parse_flags
from minibert.errors import run_cli
from minibert.files.corpus import prepare
from minibert.files.hub import fingerprint_of, load_pretrained
from minibert.files.run_folder import finished
from minibert.losses import cosine_loss, mlm_loss, soft_target_loss
from minibert.masking import IGNORE, DynamicMasker
from minibert.student import compared_at, make_student, read_everywhere
from minibert.tokenizer import special_ids
from minibert.training import Training

# Paper: Sanh et al. 2019, section 3, follows RoBERTa ("best practices for training BERT model
# recently proposed in Liu et al."); the numbers are those of the released training command.
RECIPE = dict(
    input_format="full-sentences",  # section 3
    nsp=False,  # section 3
    masking="dynamic",  # section 3
    # Departure: the release masks rare tokens more often than frequent ones; here all are equal.
    mask_rate=0.15,
    # Departure: it leaves out sequences of 11 tokens or fewer, and those that are half [UNK].
    seq_length=512,
    batch_size=2000,  # 5 sequences on each of 8 GPUs, 50 times
    gradient_accumulation_steps=50,
    learning_rate=5e-4,  # released command, as are all below
    warmup=0.05,
    weight_decay=0.0,
    adam_beta2=0.98,
    max_grad_norm=5.0,
)
# The release makes three passes over its text; 32,000 steps are as many sequences as 250,000 of
# BERT's, a quarter of what its teacher saw.
STEPS = {"tiny": 800, "small": 10_000, "base": 32_000}  # by preset


def main() -> None:
    run, distill = read_flags()
    teacher, tokenizer = load_pretrained(distill.teacher)
    tokenizer, corpus, held_out, fingerprint = prepare(run.corpus, tokenizer=tokenizer)
    metadata = {"corpus_fingerprint": fingerprint, "distill": dataclasses.asdict(distill),
                "teacher_weights": fingerprint_of(teacher)}
    if finished(run, metadata):
        return
    student, layers = make_student(teacher, distill, run.seed)
    metadata |= {"model": dataclasses.asdict(student.config), "teacher_layers": layers}
    masker = DynamicMasker(special_ids(tokenizer), tokenizer.get_vocab_size(), run.seed,
                           run.mask_rate)
    training = Training(run, student, tokenizer, corpus, held_out, masker, metadata)
    if layers and training.rank == 0:
        print(f"{run.out}: the student starts from the teacher's layers {layers}")
    teacher.to(training.device).eval()
    # Departure: the released code compares student and teacher at all tokens; an option
    # (`restrict_ce_to_mask`) limits the soft targets to the predictions. Here the soft targets and
    # the cosine are compared at the predictions by default, which is much cheaper.
    everywhere = distill.distill_positions == "all"

    for batch in training:
        batch = masker(batch)
        if everywhere:
            batch = read_everywhere(batch)
        # Micro-batches divide by the whole batch's predictions, so that their gradients add up.
        num_predictions = (batch.labels != IGNORE).sum()
        num_compared = compared_at(batch, everywhere).sum()
        for micro_batch in training.micro_batches(batch):
            inputs = dict(input_ids=micro_batch.input_ids, positions=micro_batch.masked_positions,
                          attention_mask=micro_batch.attention_mask)
            with training.autocast():
                output = training.model(**inputs)
                losses = {"mlm": mlm_loss(output.mlm_logits, micro_batch.labels, num_predictions)}
                loss = distill.alpha_mlm * losses["mlm"]
                if distill.alpha_kl or distill.alpha_cos:
                    with torch.no_grad():  # the teacher reads the same masked text, and is fixed
                        target = teacher(**inputs)
                    valid = compared_at(micro_batch, everywhere)
                    losses["kl"] = soft_target_loss(output.mlm_logits, target.mlm_logits,
                                                    distill.temperature, valid, num_compared)
                    losses["cos"] = cosine_loss(output.hidden, target.hidden, valid, num_compared)
                    loss = loss + distill.alpha_kl * losses["kl"]
                    loss = loss + distill.alpha_cos * losses["cos"]
            training.backward(loss, **losses)
        training.update()
    training.finish(teacher)


def read_flags(argv: list[str] | None = None, saved: dict | None = None
               ) -> tuple[RunConfig, DistillConfig]:
    """The settings of a command line, and what distillation adds; by default this program's.

    saved: the settings of a finished run, as defaults.
    """
    return parse_flags(__doc__, RECIPE, STEPS, DistillConfig,
                       ("tokenizer", "input_format", "nsp", "masking", "static_masks"), argv, saved)


if __name__ == "__main__":
    run_cli(main)
