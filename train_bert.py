"""BERT: segment pairs, static masks, masked words and the next sentence (Devlin et al. 2018)."""
import dataclasses

from minibert.config import ModelConfig, RunConfig, parse_flags
from minibert.errors import run_cli
from minibert.files.corpus import prepare
from minibert.files.run_folder import finished
from minibert.losses import mlm_loss, nsp_loss
from minibert.masking import IGNORE, DynamicMasker, StaticMasker
from minibert.model import MaskedLM
from minibert.tasks.finetune import finetune_tasks
from minibert.tasks.tasks import load_tasks
from minibert.tokenizer import special_ids
from minibert.training import Training, mask_settings

# Paper: section 3.1 and appendix A.2. The ten masks for each sequence and the gradients clipped to
# 1 are those of google-research/bert.
RECIPE = dict(input_format="segment-pair", nsp=True, masking="static", static_masks=10,
              adam_beta2=0.999, weight_decay=0.01, max_grad_norm=1.0)
STEPS = {"tiny": 3000, "small": 20_000, "base": 1_000_000}  # by preset


def main() -> None:
    run, base_config = parse_flags(__doc__, RECIPE, STEPS, ModelConfig)
    tokenizer, corpus, held_out, fingerprint = prepare(run.corpus, run.tokenizer,
                                                       base_config.vocab_size)
    config = make_model_config(run, base_config, special_ids(tokenizer).pad)
    metadata = {"corpus_fingerprint": fingerprint, "model": dataclasses.asdict(config)}
    if finished(run, metadata):
        return
    tasks = load_tasks(run.tasks, run.task_dir, run.task_rows)
    model = MaskedLM(config, run.seed)
    masker = StaticMasker(run.static_masks) if run.masking == "static" else DynamicMasker()
    training = Training(run, model, tokenizer, corpus, held_out, masker, metadata)
    settings = mask_settings(run, tokenizer, training.batches.device)

    for batch in training:
        inputs, masked_positions, labels = masker(batch.input_ids, batch.sequence_ids,
                                                  epoch=batch.epoch, **settings)
        batch = batch._replace(input_ids=inputs, masked_positions=masked_positions, labels=labels)
        batch = training.on_device(batch)
        # Micro-batches divide by the whole batch's predictions, so that their gradients add up.
        num_predictions = (batch.labels != IGNORE).sum()
        for micro_batch in training.micro_batches(batch):
            with training.autocast():
                output = training.model(micro_batch.input_ids,
                                        attention_mask=micro_batch.attention_mask,
                                        token_type_ids=micro_batch.token_type_ids,
                                        positions=micro_batch.masked_positions)
                losses = {"mlm": mlm_loss(output.mlm_logits, micro_batch.labels, num_predictions)}
                if run.nsp:
                    losses["nsp"] = nsp_loss(output.nsp_logits, micro_batch.is_random_next,
                                             run.batch_size)
            training.backward(sum(losses.values()), **losses)
        training.optimizer_step(batch, num_predictions)
    training.save()
    training.finish(finetune_tasks(run, tasks))


def make_model_config(run: RunConfig, base_config: ModelConfig, pad_token_id: int) -> ModelConfig:
    """BERT with the sizes of base_config; pad_token_id: the tokenizer's padding token."""
    return dataclasses.replace(base_config, model_type="bert", next_sentence=run.nsp,
                               type_vocab_size=2, pad_token_id=pad_token_id)


if __name__ == "__main__":
    run_cli(main)
