"""The encoder and its heads, as BERT has them; RoBERTa and DistilBERT are settings of it.

B batch, S sequence, H hidden, A heads, D head size (H = A * D), V vocabulary, M positions that are
read (the masked ones, while training).

Departure: GELU is the exact one (`gelu`), as in Hugging Face's configs; the released BERT computes
its tanh approximation (`gelu_new`).
"""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibert.config import ModelConfig
from minibert.errors import UserError
from minibert.masking import hash_bits

ACTIVATIONS = {"gelu": F.gelu, "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
               "relu": F.relu}


class MaskedLMOutput(NamedTuple):
    mlm_logits: Tensor  # (B, S, V), or (B, M, V) at the positions asked for
    nsp_logits: Tensor | None  # (B, 2)
    hidden: Tensor  # (B, S, H), or (B, M, H): the last hidden states there


class MaskedLM(nn.Module):
    """An encoder with the masked language model head and, for BERT, the NSP head."""

    def __init__(self, config: ModelConfig, seed: int = 0):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.transform_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.decoder_bias = nn.Parameter(torch.zeros(config.vocab_size))
        if config.next_sentence:
            self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
            self.nsp_head = nn.Linear(config.hidden_size, 2)
        initialize(self, config.initializer_range, seed)

    def forward(self, input_ids: Tensor, *, attention_mask: Tensor | None = None,
                token_type_ids: Tensor | None = None,
                positions: Tensor | None = None) -> MaskedLMOutput:
        """Logits of the masked tokens, and of "B is random" where the model has that head.

        input_ids, token_type_ids: (B, S) int64. attention_mask: (B, S), 1 = token, 0 = padding.
        positions: (B, M) int64, where predictions are read; None reads all S. Both give the same
        numbers: what is not read is not computed.
        """
        read_positions = positions
        if positions is not None and self.config.next_sentence:
            read_positions = F.pad(positions, (1, 0))  # [CLS], position 0, is read by the NSP head
        hidden = self.encoder(input_ids, attention_mask=attention_mask,
                              token_type_ids=token_type_ids, positions=read_positions)
        nsp_logits = None
        if self.config.next_sentence:
            nsp_logits = self.nsp_head(torch.tanh(self.pooler(hidden[:, 0])))
            hidden = hidden if positions is None else hidden[:, 1:]
        # In `transformers` RoBERTa's head has the exact GELU, whatever hidden_act says.
        roberta = self.config.model_type == "roberta"
        activation = F.gelu if roberta else ACTIVATIONS[self.config.hidden_act]
        transformed = self.transform_norm(activation(self.transform(hidden)))
        # google-research/bert: the decoder is the table of words itself, with a bias of its own.
        words = self.encoder.embeddings.word.weight  # (V, H)
        return MaskedLMOutput(F.linear(transformed, words, self.decoder_bias), nsp_logits, hidden)


class Encoder(nn.Module):
    """Embeddings and a stack of post-norm blocks (Devlin et al. 2018, section 3)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))

    def forward(self, input_ids: Tensor, *, attention_mask: Tensor | None = None,
                token_type_ids: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Hidden states of the last layer: (B, S, H), or (B, M, H) at `positions` (B, M)."""
        if input_ids.shape[1] > self.config.max_length:
            raise UserError(f"{input_ids.shape[1]} tokens are more than this model's "
                            f"{self.config.max_length} positions; cut the input into pieces")
        attention_bias = None
        if attention_mask is not None:
            # google-research/bert: -10000 leaves a padded key a weight of exactly 0; unlike -inf
            # it makes no NaN of a row that is all padding.
            attention_bias = (1 - attention_mask[:, None, None, :].float()) * -10000  # (B, 1, 1, S)
        hidden = self.embeddings(input_ids, token_type_ids)  # (B, S, H)
        for layer in self.layers[:-1]:
            hidden = layer(hidden, attention_bias)
        # The last layer's queries are needed only where its output is read; its keys and values
        # everywhere. Known from flash-attention's `last_layer_subset`.
        return self.layers[-1](hidden, attention_bias, positions)


class Embeddings(nn.Module):
    """Word + position + token type, then LayerNorm and dropout; no scaling by sqrt(H)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        if config.type_vocab_size:
            self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        if self.config.model_type == "roberta":
            # RoBERTa's fairseq counts from pad + 1 and gives every pad the row `pad` itself.
            token = (input_ids != self.config.pad_token_id).long()
            position_ids = token.cumsum(1) * token + self.config.pad_token_id  # (B, S)
        else:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)  # (S,)
        total = self.word(input_ids) + self.position(position_ids)
        if self.config.type_vocab_size:
            if token_type_ids is None or self.config.type_vocab_size == 1:
                token_type_ids = torch.zeros_like(input_ids)
            total = total + self.token_type(token_type_ids)
        return self.dropout(self.norm(total))


class Block(nn.Module):
    """Self-attention, then a feed-forward network; each added to its input, then normalised."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, attention_bias: Tensor | None,
                positions: Tensor | None = None) -> Tensor:
        query_states = hidden if positions is None else gather(hidden, positions)
        attended = self.dropout(self.attention(query_states, hidden, attention_bias))
        # Post-norm: the sum is normalised.
        query_states = self.attention_norm(query_states + attended)
        transformed = self.dropout(self.output(self.activation(self.intermediate(query_states))))
        return self.output_norm(query_states + transformed)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.fused = config.attn_implementation == "sdpa"
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_value = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, query_states: Tensor, hidden: Tensor,
                attention_bias: Tensor | None) -> Tensor:
        """query_states: (B, M, H), which ask by queries. hidden: (B, S, H), which answers by keys
        and values. attention_bias: added to the scores. Returns (B, M, H)."""
        query = self.split_heads(self.query(query_states))  # (B, A, M, D)
        key, value = map(self.split_heads, self.key_value(hidden).chunk(2, dim=-1))  # (B, A, S, D)
        attention_bias = None if attention_bias is None else attention_bias.to(query.dtype)
        dropout = self.dropout if self.training else 0.0
        attend = F.scaled_dot_product_attention if self.fused else readable_attention
        mixed = attend(query, key, value, attn_mask=attention_bias, dropout_p=dropout)
        return self.output(mixed.transpose(1, 2).flatten(2))  # (B, A, M, D) -> (B, M, H)

    def split_heads(self, x: Tensor) -> Tensor:  # (B, M, H) -> (B, A, M, D)
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def readable_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                       dropout_p: float = 0.0) -> Tensor:
    """What torch's fused `scaled_dot_product_attention` computes: softmax(q k / sqrt(D)) v.

    query: (B, A, M, D). key, value: (B, A, S, D). attn_mask: added to the scores (B, A, M, S).
    Returns (B, A, M, D).
    """
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        scores = scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p) @ value


def gather(hidden: Tensor, positions: Tensor) -> Tensor:
    """The hidden states (B, M, H) of (B, S, H) at `positions` (B, M)."""
    return hidden.gather(1, positions[:, :, None].expand(-1, -1, hidden.shape[-1]))


@torch.no_grad()
def initialize(model: nn.Module, std: float, seed: int) -> None:
    """Draw every weight by (seed, its name), so that models with a part in common share it.

    Paper: google-research/bert draws matrices and embeddings from a normal distribution cut off
    at two standard deviations, and sets biases to 0; LayerNorms start as the identity.
    Departure: RoBERTa does not cut it off; here paired arms start from the same weights.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            generator = torch.Generator().manual_seed(hash_bits(seed, "initial weights", name))
            nn.init.trunc_normal_(parameter, 0, std, -2 * std, 2 * std, generator=generator)
        elif name.endswith("bias"):
            parameter.zero_()
