"""What a student who made a planted bug should know, by what the bug is called.

One sentence says what is wrong, and the next, where it is not plain, why that matters.
"""
EXPLAINED = {
    # readable_attention
    "no scaling of the scores":
        "The scale sqrt(D) is missing: the wider a head is, the larger its scores are, until one "
        "key gets all the weight.",
    "the scores are divided by D":
        "The scores are divided by D, not by sqrt(D): a sum of D products spreads as sqrt(D).",
    "the softmax is over the queries":
        "The softmax is over the queries. The weights of one query, over all keys, have to add up "
        "to 1.",
    "the mask is multiplied":
        "The mask is multiplied with the scores. It is 0 for a token, and has to be added.",
    "attention has no dropout":
        "The weights are not dropped: dropout belongs between the softmax and the values.",
    # Embeddings
    "rows of a batch mix":
        "The rows of a batch are mixed. No sequence may see another one.",
    "RoBERTa counts from 0":
        "Positions start at 1 for RoBERTa. They start at pad + 1, and padding reads the row pad.",
    "RoBERTa counts padding":
        "RoBERTa's positions count padding, too. Only tokens are counted.",
    "RoBERTa counts as BERT does":
        "Positions start at 0 for RoBERTa, as BERT's do. They start at pad + 1 there.",
    "positions off by one":
        "BERT's positions start at 1. They start at 0: only RoBERTa leaves the first rows out.",
    "token types are not read":
        "The token types are not read: the model cannot tell segment B from A.",
    # Block
    "pre-norm":
        "The norm comes before the sum (pre-norm). BERT normalises the sum (post-norm).",
    "keys only where it is read":
        "The keys and values come from the positions that are read only. Each query has to look at "
        "all of `hidden`, and the bias hides its padding.",
    "attention has no residual":
        "What attention gives is not added to its input, so what a token itself said is lost.",
    # MaskedLM
    "the decoder is not tied":
        "The decoder is not tied: it reads the table of words, but teaches it nothing, because the "
        "table is detached.",
    "the bias is added twice": "The bias of the decoder is added twice.",
    "[CLS] is not read":
        "The NSP head does not read [CLS], at position 0, where `positions` are given.",
    "predictions off by one":
        "The predictions are one place off: [CLS], which was read first, has to go from `hidden`.",
    "the pooler has no tanh": "The pooler has no tanh.",
    # mask_tokens
    "special tokens are hidden": "[CLS], [SEP] or [UNK] are chosen. No special token may be.",
    "padding is predicted": "Padding is chosen, which has nothing to predict.",
    "kept tokens have no label":
        "Kept tokens have no label. All that were chosen are predicted, also the tenth that stays "
        "as it is: else the model would never have to doubt a word that it sees.",
    "random words are .1 of the rest":
        "A tenth of what is not [MASK] becomes a random word, and it should be half of it: 80, 10 "
        "and 10 of a hundred that were chosen, not 80, 2 and 18.",
    "all of them become [MASK]":
        "All of the chosen tokens become [MASK]. A tenth turns into random words, and a tenth "
        "stays.",
    "random words may be special": "A random word may be [PAD] or [MASK]. Draw real words only.",
    "the count is cut, not rounded":
        "The number of predictions is cut off, not rounded: use round, not int.",
    "short sequences predict nothing":
        "A short sequence has no prediction. It has at least one, or its loss would be 0 / 0.",
    "the epoch is no key of the choice":
        "The epoch does not matter for what is chosen, so even dynamic masks come back.",
    "all sequences have one mask":
        "Every sequence has the same positions hidden: the sequence's number has to be a key.",
    "the mask depends on the batch":
        "A mask depends on the row of the batch and not on sequence_ids, so that a sequence in "
        "another place has another mask.",
    "labels are what the model sees":
        "The labels are taken from what the model sees, not from the tokens that stood there.",
    "the caller's tokens are changed":
        "input_ids are changed in place, so each epoch would hide more of the text.",
    "the seed is no key": "The seed does not matter for what is chosen.",
    # StaticMasker and DynamicMasker
    "static masks are drawn again":
        "Static masks change with every epoch. They have to come back after `masks` epochs.",
    "one static mask too many": "There is one mask too many: count from 0 to masks - 1.",
    "there is one static mask": "All epochs have one mask. There are `masks` of them.",
    "dynamic masks stay the same":
        "Dynamic masks stay the same. Each epoch has to have masks of its own.",
    # full_sentences
    "document sentences cross over":
        "Blocks go on into the next document although cross_documents is False.",
    "no block crosses over":
        "Blocks end with their document although cross_documents is True.",
    "a sentence too many": "A block may have one token too many: max_tokens still fit.",
    # segment_pairs
    "the label is turned round": "The labels are turned round: 0 is B follows A, 1 is random.",
    "B is from the same document":
        "A random B may come from A's own document, where it might be the true continuation.",
    "B is always random":
        "B is always random. A coin decides where a chunk has several sentences.",
    "what was not used is lost":
        "The sentences after A are lost where B is random. They go back, and begin the next pair.",
    "cut at the end only":
        "Pairs that are too long are cut at their end only. A coin decides between both ends.",
    "the shorter side is cut": "The shorter of A and B is cut. The longer one has more to give.",
    # the losses
    "unused slots are in the mean":
        "The mean is over all slots, not over the predicted ones.",
    "a sum and no mean": "The loss is a sum. Divide it by the denominator.",
    "nothing predicted gives NaN":
        "Where nothing counts, the loss is 0 / 0, which is NaN. It has to be 0.",
    "the mean of micro-batches' means":
        "The denominator is not read, so the losses of micro-batches do not add up to that of the "
        "batch.",
    "the loss is computed in halves":
        "The loss is computed in bfloat16, which has three digits. Make the logits float32 first.",
    "KL's arguments are swapped":
        "This is KL with its arguments swapped: what weighs log p - log q has to be the teacher's "
        "p.",
    "the student gives probabilities":
        "The student's probabilities stand where their logarithms belong.",
    "cross-entropy in place of KL":
        "This is the cross-entropy. KL is that less the teacher's entropy; the gradient is the "
        "same, but only KL is 0 for a student that is like its teacher.",
    "batchmean of three dimensions":
        "The sum is divided by the size of the first dimension only (as by `batchmean`), so the "
        "loss grows with the length.",
    "the mean over the vocabulary":
        "The mean is over the vocabulary, too. KL is a sum over it.",
    "T² is missing":
        "T² is missing, so the soft targets count for less, the higher T is.",
    "T in place of T²": "T stands in the place of T²: the gradient shrinks as 1 / T².",
    "T on the student only":
        "Only the student's logits are divided by T. Both are compared at one temperature.",
    "positions that do not count do": "Positions that `valid` leaves out are in the sum.",
    # the student
    "the first layers only":
        "These are the first layers. Spread them evenly, from the first to the last.",
    "every second layer":
        "This takes every second layer, and so never the last one. Spread them from the first to "
        "the last.",
    "the map is cut, not rounded":
        "The numbers are cut off, not rounded: use round, not int or //.",
    "token types are dropped":
        "The row of segment A is dropped. BERT adds it to every token of a single text, so the "
        "student's positions have to take it up.",
    "--init is not read":
        "A student with init \"random\" starts from its teacher's layers all the same.",
    # the optimizer
    "LayerNorm is decayed":
        "The scales of the LayerNorms are decayed. They do nothing at 1, not at 0.",
    "biases are decayed": "The biases are decayed.",
    "no warm-up": "There is no warm-up: the rate begins at its peak.",
    "the first step is not at 0":
        "The warm-up is one step ahead: the rate of step 0 is 0.",
    "it does not end at 0": "The rate stays at its peak after the warm-up. It falls to 0.",
    "the rate falls from step 0":
        "The fall is counted from step 0, as in google-research/bert, so the rate drops when the "
        "warm-up ends. Here it is counted from the peak.",
}
