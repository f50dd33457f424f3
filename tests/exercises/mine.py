"""Yours to write: four functions of the package, each with the package's own tests to tell you.

    make exercise PIECE=soft_target_loss

puts yours in the package's place and runs its tests, which fail until it is right. What each takes
and gives back is in the package's docstring: python -c "import minibert.losses as m;
help(m.soft_target_loss)". The answers are in the package, too: look last.
"""


def readable_attention(query, key, value, attn_mask=None, dropout_p=0.0):
    """minibert/model.py: softmax(q k / sqrt(D)) v, with a mask that is added to the scores."""
    raise NotImplementedError("write readable_attention in tests/exercises/mine.py")


def soft_target_loss(student_logits, teacher_logits, temperature, valid=None, denominator=None):
    """minibert/losses.py: KL from teacher to student at a temperature, times its square."""
    raise NotImplementedError("write soft_target_loss in tests/exercises/mine.py")


def mask_tokens(input_ids, sequence_ids, *, seed, epoch, vocab_size, mask_id, special_ids, pad_id=0,
                rate=0.15, continues=None):
    """minibert/masking.py: which tokens are masked, and how; draw with minibert's hash_bits."""
    raise NotImplementedError("write mask_tokens in tests/exercises/mine.py")


def segment_pairs(corpus, max_tokens, *, seed, dupe, short_seq_prob=0.1):
    """minibert/data.py: BERT's pairs; draw with random.Random as the docstring's example does."""
    raise NotImplementedError("write segment_pairs in tests/exercises/mine.py")
