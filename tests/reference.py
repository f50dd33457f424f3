"""BERT, RoBERTa and DistilBERT a second time, in plain NumPy: the tests hold the package to it.

This file was written from the papers and imports nothing of the package, so that a mistake would
have to be made twice. It may also be read as a second explanation of the architecture: where
`minibert/model.py` lets one tensor operation do the work, loops and slices spell it out here.

`weights` holds NumPy arrays under the names of the package's `state_dict`. B batch, S sequence,
H hidden, A heads, D head size, V vocabulary, M positions that are read.
"""
import math

import numpy as np


def no_dropout(x, rate):
    """Dropout as evaluation has it: everything stays."""
    return x


# ---- the two heads: what is asked of the encoder


def masked_lm(weights, config, input_ids, attention_mask=None, token_type_ids=None,
              positions=None, dropout=no_dropout):
    """Scores for the masked words (B, M, V), for the next sentence (B, 2) or None, hidden states.

    input_ids, token_type_ids: (B, S) integers. attention_mask: (B, S), 1 = token, 0 = padding.
    positions: (B, M), where words are predicted; None means everywhere, so that M = S. dropout: a
    function of an array and a rate.
    """
    B, S = input_ids.shape
    everywhere = np.tile(np.arange(S), (B, 1))
    if positions is None:
        read = everywhere
    elif config.next_sentence:
        read = np.hstack([np.zeros((B, 1), int), positions])  # [CLS] comes first
    else:
        read = positions
    hidden = encoder(weights, config, input_ids, attention_mask, token_type_ids, read, dropout)

    # Devlin et al. 2018, section 3.1, task 2: the state of [CLS] says whether B follows A.
    nsp_logits = None
    if config.next_sentence:
        pooled = np.tanh(linear(weights, "pooler", hidden[:, 0]))
        nsp_logits = linear(weights, "nsp_head", pooled)
        hidden = hidden if positions is None else hidden[:, 1:]

    # Task 1, as in google-research/bert: one more layer, and then a dot product with the row of
    # each word in the table of the embeddings. In RoBERTa, that layer always has the exact GELU.
    activation = "gelu" if config.model_type == "roberta" else config.hidden_act
    guess = ACTIVATIONS[activation](linear(weights, "transform", hidden))
    guess = layer_norm(weights, "transform_norm", guess, config)
    mlm_logits = guess @ weights["encoder.embeddings.word.weight"].T + weights["decoder_bias"]
    return mlm_logits, nsp_logits, hidden


# ---- the encoder


def encoder(weights, config, input_ids, attention_mask, token_type_ids, read, dropout):
    """The last hidden states (B, M, H) at the positions `read` (B, M)."""
    hidden = embeddings(weights, config, input_ids, token_type_ids, dropout)
    for number in range(config.num_hidden_layers):
        asking = hidden
        if number == config.num_hidden_layers - 1:  # nobody reads the other positions any more
            asking = np.stack([row[where] for row, where in zip(hidden, read)])
        hidden = block(weights, f"encoder.layers.{number}", config, asking, hidden,
                       attention_mask, dropout)
    return hidden


def embeddings(weights, config, input_ids, token_type_ids, dropout):
    """The sum of what a word, its place and its segment say: (B, S, H)."""
    name = "encoder.embeddings"
    total = weights[f"{name}.word.weight"][input_ids]
    total = total + weights[f"{name}.position.weight"][position_ids(config, input_ids)]
    if config.type_vocab_size == 2:  # BERT; without segments, all of the input is segment A
        types = np.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        total = total + weights[f"{name}.token_type.weight"][types]
    elif config.type_vocab_size == 1:  # Hugging Face's RoBERTa adds one row to all tokens
        total = total + weights[f"{name}.token_type.weight"][0]
    return dropout(layer_norm(weights, f"{name}.norm", total, config), config.hidden_dropout_prob)


def position_ids(config, input_ids):
    """Which row of the position table each token reads, (B, S).

    BERT counts places from 0. RoBERTa's fairseq counts tokens, from pad + 1; padding reads the row
    pad.
    """
    rows = []
    for ids in input_ids.tolist():
        row, tokens = [], 0
        for place, token in enumerate(ids):
            is_padding = token == config.pad_token_id
            tokens += not is_padding
            counted = config.pad_token_id + (0 if is_padding else tokens)
            row.append(counted if config.model_type == "roberta" else place)
        rows.append(row)
    return np.array(rows)


def block(weights, name, config, asking, hidden, attention_mask, dropout):
    """One layer: (B, M, H) for the tokens that ask. Its two sublayers end alike.

    "We apply dropout to the output of each sub-layer, before it is added to the sub-layer input and
    normalized" (Vaswani et al. 2017, section 5.4).
    """
    rate = config.hidden_dropout_prob
    heard = attention(weights, f"{name}.attention", config, asking, hidden, attention_mask, dropout)
    asking = layer_norm(weights, f"{name}.attention_norm", asking + dropout(heard, rate), config)
    thought = ACTIVATIONS[config.hidden_act](linear(weights, f"{name}.intermediate", asking))
    thought = linear(weights, f"{name}.output", thought)
    return layer_norm(weights, f"{name}.output_norm", asking + dropout(thought, rate), config)


def attention(weights, name, config, asking, hidden, attention_mask, dropout):
    """What the tokens that ask (B, M, H) hear from all tokens (B, S, H), head by head.

    Vaswani et al. 2017, section 3.2: softmax(Q K^T / sqrt(D)) V in each head. One matrix holds the
    rows that make keys, and then those that make values.
    """
    H = config.hidden_size
    D = H // config.num_attention_heads
    both, shift = weights[f"{name}.key_value.weight"], weights[f"{name}.key_value.bias"]
    query = linear(weights, f"{name}.query", asking)  # (B, M, H)
    key, value = hidden @ both[:H].T + shift[:H], hidden @ both[H:].T + shift[H:]  # (B, S, H)
    heads = [slice(start, start + D) for start in range(0, H, D)]
    scores = [query[:, :, head] @ key[:, :, head].transpose(0, 2, 1) for head in heads]
    scores = np.stack(scores, axis=1) / math.sqrt(D)  # (B, A, M, S)
    if attention_mask is not None:  # google-research/bert: padding is out of reach
        scores = scores - 10_000 * (1 - attention_mask[:, None, None, :])
    # google-research/bert drops whole tokens to listen to here, and does not share out their part.
    shares = dropout(softmax(scores), config.attention_probs_dropout_prob)
    heard = [shares[:, number] @ value[:, :, head] for number, head in enumerate(heads)]
    return linear(weights, f"{name}.output", np.concatenate(heard, axis=-1))


# ---- the small parts


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(weights, name, x, config):
    """Mean 0 and variance 1 for each token, then a scale and a shift (Ba et al. 2016)."""
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    normal = centred / np.sqrt(variance + config.layer_norm_eps)
    return normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def softmax(x):
    return np.exp(log_softmax(x))


def log_softmax(x):
    x = x - x.real.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def erf(x):
    """The error function, which NumPy lacks; `slope` says what its derivative is."""
    value = np.vectorize(math.erf)(x.real)
    if np.iscomplexobj(x):
        value = value + 1j * x.imag * 2 / math.sqrt(math.pi) * np.exp(-x.real**2)
    return value


# Hendrycks and Gimpel 2016: x, times the probability that a normal draw is smaller than x; and the
# approximation of it that the released BERT computes.
ACTIVATIONS = {
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "gelu_new": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.where(x.real > 0, x, 0),
}
