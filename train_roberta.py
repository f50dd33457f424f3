"""RoBERTa: full sentences, dynamic masks, masked words only (Liu et al. 2019)."""
import dataclasses

from minibert.config import ModelConfig, RunConfig, parse_flags
from minibert.errors import run_cli
from minibert.files.corpus import prepare
from minibert.files.run_folder import finished
from minibert.losses import mlm_loss
from minibert.masking import IGNORE, DynamicMasker
from minibert.model import MaskedLM
from minibert.tokenizer import special_ids
from minibert.training import Training

# Paper: Liu et al. 2019. With the presets tiny and small, RoBERTa has BERT's budget, so that the
# recipe alone differs; with base it has its own.
RECIPE = dict(
    # Departure: the tokenizer is BERT's, so that losses can be compared; RoBERTa's is bpe.
    tokenizer="wordpiece",
    input_format="full-sentences",  # section 4.2
    nsp=False,  # section 4.2
    masking="dynamic",  # section 4.1
    mask_rate=0.15,  # section 2.2
    seq_length=512,  # section 3.1
    # Departure: ten times BERT's text is up to you; --corpus takes what you have.
    batch_size=8192,  # table 9: "8k"
    gradient_accumulation_steps=128,  # parts of 64 sequences, which fit into a GPU's memory
    learning_rate=6e-4,  # table 9
    warmup=0.048,  # table 9: 24,000 of 500,000 steps
    weight_decay=0.01,  # table 9
    adam_beta2=0.98,  # table 9
    max_grad_norm=0.0,  # table 9: gradients are not clipped
    hidden_dropout_prob=0.1,  # table 9
    attention_probs_dropout_prob=0.1,  # table 9
)
STEPS = {"tiny": 3000, "small": 20_000, "base": 500_000}  # by preset


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
    training = Training(run, model, tokenizer, corpus, held_out, masker, metadata)

    for batch in training:
        batch = masker(batch)
        # Micro-batches divide by the whole batch's predictions, so that their gradients add up.
        num_predictions = (batch.labels != IGNORE).sum()
        for micro_batch in training.micro_batches(batch):
            with training.autocast():
                output = training.model(micro_batch.input_ids,
                                        attention_mask=micro_batch.attention_mask,
                                        positions=micro_batch.masked_positions)
                loss = mlm_loss(output.mlm_logits, micro_batch.labels, num_predictions)
            training.backward(loss, mlm=loss)
        training.update()
    training.finish()


def read_flags(argv: list[str] | None = None, saved: dict | None = None
               ) -> tuple[RunConfig, ModelConfig]:
    """The settings of a command line, and the sizes of the model; by default this program's.

    saved: the settings of a finished run, as defaults.
    """
    return parse_flags(__doc__, RECIPE, STEPS, ModelConfig,
                       ("input_format", "nsp", "masking", "static_masks"), argv, saved)


def make_model_config(run: RunConfig, sizes: ModelConfig, pad_token_id: int) -> ModelConfig:
    """RoBERTa of these sizes; pad_token_id: the tokenizer's padding token."""
    # A single token type adds the same row to every token, which tells nothing; it is here because
    # Hugging Face's RoBERTa has it. Positions count from pad + 1, so the table has more rows.
    # Departure: RoBERTa's LayerNorms have an epsilon of 1e-5; here it is BERT's 1e-12, so that the
    # recipe alone differs.
    return dataclasses.replace(
        sizes, model_type="roberta", next_sentence=False, type_vocab_size=1,
        pad_token_id=pad_token_id, max_position_embeddings=(
            max(sizes.max_position_embeddings, run.seq_length) + pad_token_id + 1))


if __name__ == "__main__":
    run_cli(main)
