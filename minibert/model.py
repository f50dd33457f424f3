"""The encoder and its heads, as BERT has them; RoBERTa and DistilBERT are settings of it.

B batch, S sequence, H hidden, A heads, D head size (H = A * D), V vocabulary, M positions that are
read (in training these are the masked ones).

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
    """An encoder with a head for masked words and, for BERT, one for the next sentence."""

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
        """Predict the masked words and, where the model has that head, whether B is random.

        input_ids, token_type_ids: (B, S) int64. attention_mask: (B, S), 1 = token, 0 = padding.
        positions: (B, M) int64, where predictions are wanted; None means at all S. The numbers are
        the same either way, because positions that nobody asks for are only skipped.
        """
        read_positions = positions
        if positions is not None and self.config.next_sentence:
            read_positions = F.pad(positions, (1, 0))  # the NSP head reads [CLS], at position 0
        hidden = self.encoder(input_ids, attention_mask=attention_mask,
                              token_type_ids=token_type_ids, positions=read_positions)
        nsp_logits = None
        if self.config.next_sentence:
            nsp_logits = self.nsp_head(torch.tanh(self.pooler(hidden[:, 0])))
            hidden = hidden if positions is None else hidden[:, 1:]
        # Why the head transforms first: a hidden state serves every task, but a guess has to lie
        # next to a word's embedding. This layer leads from one to the other, so that the encoder
        # need not; fine-tuning drops it.
        activation = ACTIVATIONS[self.config.hidden_act]
        if self.config.model_type == "roberta":
            activation = F.gelu  # as in `transformers`, whatever hidden_act says
        transformed = self.transform_norm(activation(self.transform(hidden)))
        # Why the decoder is tied: a word's row says what it means as an input and as a guess, so
        # one table learns from both, and BERT-base saves 23 of 133 million weights. The bias, one
        # number a word, can hold how frequent it is. So does google-research/bert.
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
        """Hidden states of the last layer: (B, S, H), or (B, M, H) at `positions` (B, M).

        Raises UserError when the input is longer than the position table.
        """
        if input_ids.shape[1] > self.config.max_length:
            raise UserError(f"{input_ids.shape[1]} tokens are more than this model's "
                            f"{self.config.max_length} positions; cut the input into pieces")
        # Padding is all that attention may not look at. There is no causal mask, and that is
        # BERT's whole point: a model that predicts the next word must not see it, so it reads from
        # left to right only. BERT hides the words to predict in the input itself and can read both
        # what comes before them and what comes after (Devlin et al. 2018, section 1).
        attention_bias = None
        if attention_mask is not None:
            # google-research/bert: -10000 leaves a padded key a weight of exactly 0; unlike -inf,
            # it does not turn a row that is all padding into NaN.
            attention_bias = (1 - attention_mask[:, None, None, :].float()) * -10000  # (B, 1, 1, S)
        hidden = self.embeddings(input_ids, token_type_ids)  # (B, S, H)
        for layer in self.layers[:-1]:
            hidden = layer(hidden, attention_bias)
        # The last layer computes its queries only where its output is read, but keys and values at
        # all positions, because each query looks at all of them. (flash-attention calls this
        # `last_layer_subset`.)
        return self.layers[-1](hidden, attention_bias, positions)


class Embeddings(nn.Module):
    """Word + position + token type, then LayerNorm and dropout.

    Attention treats its input as a set. Only the position's vector tells it where a word stands,
    and only the token type's which of two segments the word belongs to.
    """

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
        """The sum for each token, (B, S, H). input_ids, token_type_ids: (B, S) int64."""
        if self.config.model_type == "roberta":
            # RoBERTa's fairseq counts from pad + 1 and gives all padding the row `pad`:
            #   <s> a b </s> <pad>, where pad is 1, has the positions [2, 3, 4, 5, 1].
            is_token = (input_ids != self.config.pad_token_id).long()
            position_ids = is_token.cumsum(1) * is_token + self.config.pad_token_id  # (B, S)
        else:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)  # (S,)
        total = self.word(input_ids) + self.position(position_ids)
        if self.config.type_vocab_size:
            if token_type_ids is None or self.config.type_vocab_size == 1:
                token_type_ids = torch.zeros_like(input_ids)
            total = total + self.token_type(token_type_ids)
        return self.dropout(self.norm(total))


class Block(nn.Module):
    """Self-attention, then a feed-forward network; each is added to its input and normalised.

    Why after the sum (post-norm): the first Transformer does, and BERT follows it. Later models
    normalise a sublayer's input instead (pre-norm), which trains more easily when it is deep:
    post-norm needs the learning rate to warm up (Xiong et al. 2020, arXiv:2002.04745).
    """

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
        """New hidden states (B, S, H), or (B, M, H) at `positions` (B, M). hidden: (B, S, H)."""
        query_states = hidden if positions is None else gather(hidden, positions)
        # Departure: DistilBERT's released code has no dropout after its attention; here all have.
        attended = self.dropout(self.attention(query_states, hidden, attention_bias))
        attended = self.attention_norm(query_states + attended)
        transformed = self.dropout(self.output(self.activation(self.intermediate(attended))))
        return self.output_norm(attended + transformed)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2).

    Each token asks by a query, answers by a key, and passes on its value: what a token receives
    is the mean of all values, weighted by how well their keys answer its query. Each of the A
    heads asks another question.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.fused = config.attn_implementation == "sdpa"  # the same numbers, faster
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_value = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, query_states: Tensor, hidden: Tensor,
                attention_bias: Tensor | None) -> Tensor:
        """What the tokens of query_states receive from those of hidden, (B, M, H).

        query_states: (B, M, H). hidden: (B, S, H). attention_bias: added to the scores.
        """
        query = self.split_heads(self.query(query_states))  # (B, A, M, D)
        key, value = self.key_value(hidden).chunk(2, dim=-1)
        key, value = self.split_heads(key), self.split_heads(value)  # (B, A, S, D)
        if attention_bias is not None:
            attention_bias = attention_bias.to(query.dtype)
        dropout = self.dropout if self.training else 0.0
        attend = F.scaled_dot_product_attention if self.fused else readable_attention
        mixed = attend(query, key, value, attn_mask=attention_bias, dropout_p=dropout)
        return self.output(mixed.transpose(1, 2).flatten(2))  # (B, A, M, D) -> (B, M, H)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, M, H) -> (B, A, M, D)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def readable_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                       dropout_p: float = 0.0) -> Tensor:
    """What torch's fused `scaled_dot_product_attention` computes: softmax(q k / sqrt(D)) v.

    query: (B, A, M, D). key, value: (B, A, S, D). attn_mask: added to the scores (B, A, M, S).
    Returns (B, A, M, D).
    """
    # Why sqrt(D): a dot product sums D products, so its spread grows with sqrt(D). Without the
    # division the softmax of a wide head would put all weight on one key and pass on next to no
    # gradient (Vaswani et al. 2017, section 3.2.1).
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        scores = scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p) @ value


def gather(hidden: Tensor, positions: Tensor) -> Tensor:
    """The hidden states (B, M, H) of (B, S, H) at `positions` (B, M)."""
    return hidden.gather(1, positions[:, :, None].expand(-1, -1, hidden.shape[-1]))


@torch.no_grad()
def initialize(model: nn.Module, std: float, seed: int) -> None:
    """Draw every weight by (seed, its name), so that models that share a part start it alike.

    Paper: google-research/bert draws matrices and embeddings from a normal distribution that is
    cut off at two standard deviations, and sets biases to 0; LayerNorms start as the identity.
    Departure: RoBERTa does not cut it off; here paired arms start from the same weights.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            generator = torch.Generator().manual_seed(hash_bits(seed, "initial weights", name))
            nn.init.trunc_normal_(parameter, 0, std, -2 * std, 2 * std, generator=generator)
        elif name.endswith("bias"):
            parameter.zero_()
