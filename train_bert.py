"""BERT: segment pairs, static masks, masked words and the next sentence (Devlin et al. 2018)."""
import dataclasses

from minibert.config import ModelConfig, RunConfig, parse_flags
from minibert.errors import run_cli
from minibert.files.corpus import prepare
from minibert.files.run_folder import finished
from minibert.losses import mlm_loss, nsp_loss
from minibert.masking import IGNORE, DynamicMasker, StaticMasker
from minibert.model import MaskedLM
from minibert.tokenizer import special_ids
from minibert.training import Training

# Paper: Devlin et al. 2018; where it gives no number, google-research/bert does.
RECIPE = dict(
    input_format="segment-pair",  # section 3.1, task 2
    short_seq_prob=0.1,  # google-research/bert, create_pretraining_data.py
    nsp=True,  # section 3.1, task 2
    masking="static",  # google-research/bert: masks are made once, with the data
    static_masks=10,  # google-research/bert: dupe_factor
    mask_rate=0.15,  # section 3.1, task 1
    # Departure: all steps have sequences of 512 tokens; BERT's first nine tenths have 128.
    seq_length=512,  # appendix A.2
    batch_size=256,  # appendix A.2
    gradient_accumulation_steps=4,  # parts of 64 sequences, which fit into a GPU's memory
    learning_rate=1e-4,  # appendix A.2
    warmup=0.01,  # appendix A.2: 10,000 of 1,000,000 steps
    weight_decay=0.01,  # appendix A.2
    adam_beta2=0.999,  # appendix A.2
    max_grad_norm=1.0,  # google-research/bert, optimization.py
    hidden_dropout_prob=0.1,  # appendix A.2
    attention_probs_dropout_prob=0.1,  # appendix A.2
)
STEPS = {"tiny": 3000, "small": 20_000, "base": 1_000_000}  # by preset


def main() -> None:
    run, sizes = read_flags()
    tokenizer, corpus, held_out, fingerprint = prepare(run.corpus, run.tokenizer, sizes.vocab_size)
    config = make_model_config(run, sizes, special_ids(tokenizer).pad)
    metadata = {"corpus_fingerprint": fingerprint, "model": dataclasses.asdict(config)}
    if finished(run, metadata):
        return
    model = MaskedLM(config, run.seed)
    masker = DynamicMasker(special_ids(tokenizer), tokenizer.get_vocab_size(), run.seed,
                           run.mask_rate)
    if run.masking == "static":
        masker = StaticMasker(special_ids(tokenizer), tokenizer.get_vocab_size(), run.seed,
                              run.mask_rate, run.static_masks)
    training = Training(run, model, tokenizer, corpus, held_out, masker, metadata)

    for batch in training:
        batch = masker(batch)
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
        training.update()
    training.finish()


def read_flags(argv: list[str] | None = None, saved: dict | None = None
               ) -> tuple[RunConfig, ModelConfig]:
    """The settings of a command line, and the sizes of the model; by default this program's.

    saved: the settings of a finished run, as defaults.
    """
    return parse_flags(__doc__, RECIPE, STEPS, ModelConfig, ("tokenizer",), argv, saved)


def make_model_config(run: RunConfig, sizes: ModelConfig, pad_token_id: int) -> ModelConfig:
    """BERT of these sizes; pad_token_id: the tokenizer's padding token."""
    return dataclasses.replace(
        sizes, model_type="bert", next_sentence=run.nsp, type_vocab_size=2,
        pad_token_id=pad_token_id,
        max_position_embeddings=max(sizes.max_position_embeddings, run.seq_length))


if __name__ == "__main__":
    run_cli(main)
