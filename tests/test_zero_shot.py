"""Choices without training: the likelihood of words by hand, and how often the right text wins."""
import pytest
import torch

from minibert import MaskedLM, ModelConfig
from minibert.tasks.tasks import Choice, ChoiceData
from minibert.tasks.zero_shot import pseudo_log_likelihood, scored_positions, zero_shot
from minibert.tokenizer import train_tokenizer

WORDS = "ba be bi bo bu da de di do du".split()
TEXTS = [" ".join(WORDS * 9)] * 3 + ["babe dudo bidi"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(lambda: TEXTS, "wordpiece", 30)


@pytest.fixture(scope="module")
def model():
    """Its weights are so large that its guesses differ."""
    return MaskedLM(ModelConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16, initializer_range=0.5,
        next_sentence=False), seed=3).eval()


@torch.no_grad()
def by_hand(model, tokenizer, words, scored):
    """The same sum, one text and one blank at a time, without padding and without positions."""
    ids = tokenizer.encode(" ".join(words)).ids
    total = 0.0
    for place in range(len(words))[scored]:  # every word is one token here, after [CLS]
        blank = list(ids)
        blank[place + 1] = tokenizer.token_to_id("[MASK]")
        logits = model(torch.tensor([blank])).mlm_logits[0, place + 1]
        total += logits.log_softmax(-1)[ids[place + 1]].item()
    return total


def test_sums_over_the_scored_words_by_hand(model, tokenizer):
    """If blanks hid each other, padding was read, or words outside the slice counted, a text would
    be likelier for another reason than its words."""
    texts = [("ba be bi bo bu da".split(), slice(2, 5)), ("du da".split(), slice(0, 2)),
             ("de di do".split(), slice(-1, None))]
    sums = pseudo_log_likelihood(model, [scored_positions(*text, tokenizer) for text in texts],
                                 tokenizer)
    assert sums.tolist() == pytest.approx([by_hand(model, tokenizer, *text) for text in texts],
                                          abs=1e-4)


def score_of(model, tokenizer, *choices):
    return zero_shot(model, tokenizer, ChoiceData("x", list(choices), {}), "cpu")["score"]


def test_the_score_is_the_share_of_choices_that_are_won(model, tokenizer):
    """With right and wrong exchanged, or a tie that is won, a model that knows nothing could seem
    to know all."""
    texts = ["ba be bi".split(), "du do di".split(), "da bo be".split()]
    unlikely, _, likely = sorted(texts, key=lambda text: by_hand(model, tokenizer, text, slice(3)))
    won, lost = Choice(likely, unlikely, slice(3)), Choice(unlikely, likely, slice(3))
    tie = Choice(likely, likely, slice(3))
    assert [score_of(model, tokenizer, choice) for choice in (won, lost, tie)] == [1, 0, 0.5]
    many = [won] * 30 + [lost] * 10  # more than are scored at a time
    metrics = zero_shot(model.train(), tokenizer, ChoiceData("x", many, {"majority": 0.5}), "cpu")
    assert metrics == {"task": "x", "metric": "accuracy", "score": 0.75, "dev_rows": 40,
                       "majority": 0.5}
    assert not model.training


def test_scores_belong_to_their_texts(model, tokenizer):
    """Texts of one length are read together; if their scores then changed places, each choice would
    be decided by the texts of others."""
    choices = [Choice(WORDS[:first], WORDS[::-1][:second], slice(2))
               for first, second in ((6, 2), (2, 5), (3, 4), (5, 3), (2, 6)) * 4]
    alone = [score_of(model, tokenizer, choice) for choice in choices]
    assert 0 < sum(alone) < len(choices)
    for number in range(1, len(choices) + 1):
        assert score_of(model, tokenizer, *choices[:number]) == pytest.approx(
            sum(alone[:number]) / number)


def test_a_word_of_several_pieces_is_scored_whole(tokenizer):
    """If a slice of words was taken for one of tokens, half a word would decide."""
    ids, positions = scored_positions(["ba", "bebe", "du"], slice(1, 2), tokenizer)
    pieces = [tokenizer.id_to_token(ids[position]) for position in positions]
    assert len(pieces) > 1 and "".join(pieces).replace("##", "") == "bebe"


@pytest.mark.parametrize("kind, size", [("wordpiece", 30), ("bpe", 275)])
def test_words_are_read_as_in_their_text(kind, size):
    """A word without its space is another token to byte-level BPE, which no text of the pretraining
    has there."""
    tokenizer = train_tokenizer(lambda: TEXTS, kind, size)
    ids, positions = scored_positions(WORDS[:4], slice(1, 3), tokenizer)
    assert ids == tokenizer.encode(" ".join(WORDS[:4])).ids
    assert tokenizer.decode([ids[at] for at in positions]).split() == WORDS[1:3]


def test_special_tokens_in_a_choice_are_text(model, tokenizer, monkeypatch):
    """A "[MASK]" in a text would be a blank that nobody asked about."""
    read = []
    monkeypatch.setattr("minibert.tasks.zero_shot.pseudo_log_likelihood", lambda _, texts, __: (
        read.extend(texts), torch.zeros(len(texts)))[1])
    words = ["ba", "[MASK]", "be"]
    score_of(model, tokenizer, Choice(words, words, slice(1, 2)))
    for ids, positions in read:
        assert tokenizer.token_to_id("[MASK]") not in ids and len(positions) > 1
