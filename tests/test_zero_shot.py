"""Choices without training: pseudo-log-likelihoods, and which of two texts a run finds likelier."""
import pytest
import torch

from minibert.config import ModelConfig
from minibert.files.hub import load_pretrained, save_pretrained
from minibert.model import MaskedLM
from minibert.tasks.tasks import Choice, ChoiceData
from minibert.tasks.zero_shot import pseudo_log_likelihood, scored_positions, zero_shot
from minibert.tokenizer import train_tokenizer

WORDS = "ba be bi bo bu da de di do du".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model with weights that are large enough for its guesses to differ."""
    folder = tmp_path_factory.mktemp("run")
    texts = [" ".join(WORDS * 9)] * 3 + ["babe dudo bidi"]
    tokenizer = train_tokenizer(lambda: texts, "wordpiece", 30)
    config = ModelConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=32, max_position_embeddings=16, initializer_range=0.5,
                         next_sentence=False)
    save_pretrained(MaskedLM(config, seed=3), tokenizer, folder)
    return str(folder)


def by_hand(run, words, scored):
    """The same sum, one text and one blank at a time, without padding and without positions."""
    model, tokenizer = load_pretrained(run)
    ids = tokenizer.encode(" ".join(words)).ids
    total = 0.0
    with torch.no_grad():
        for place in range(len(words))[scored]:  # every word is one token here, after [CLS]
            blank = list(ids)
            blank[place + 1] = tokenizer.token_to_id("[MASK]")
            logits = model.eval()(torch.tensor([blank])).mlm_logits[0, place + 1]
            total += logits.log_softmax(-1)[ids[place + 1]].item()
    return total


def test_scores_are_sums_over_the_scored_words_alone(run):
    """Catches blanks that are all masked at once, padding that is read, a score that goes to
    another text, and words outside the slice that are counted."""
    model, tokenizer = load_pretrained(run)
    texts = [("ba be bi bo bu da".split(), slice(2, 5)), ("du da".split(), slice(0, 2)),
             ("de di do".split(), slice(-1, None))]
    sums = pseudo_log_likelihood(model.eval(), [scored_positions(*text, tokenizer)
                                                 for text in texts], tokenizer)
    assert sums.tolist() == pytest.approx([by_hand(run, *text) for text in texts], abs=1e-4)


def test_a_word_of_several_pieces_is_scored_whole(run):
    """Catches a slice of words that is taken for one of tokens."""
    tokenizer = load_pretrained(run)[1]
    ids, positions = scored_positions(["ba", "bebe", "du"], slice(1, 2), tokenizer)
    pieces = [tokenizer.id_to_token(ids[position]) for position in positions]
    assert len(pieces) > 1 and "".join(pieces).replace("##", "") == "bebe"


def test_score_is_the_share_of_choices_that_are_won(run):
    """Catches right and wrong exchanged, and a tie that is won or lost."""
    texts = ["ba be bi".split(), "du do di".split(), "da bo be".split()]
    scores = [by_hand(run, text, slice(0, 3)) for text in texts]
    likely, unlikely = texts[scores.index(max(scores))], texts[scores.index(min(scores))]
    won = Choice(likely, unlikely, slice(0, 3))
    lost, tie = Choice(unlikely, likely, slice(0, 3)), Choice(likely, likely, slice(0, 3))
    score = lambda *choices: zero_shot(
        *load_pretrained(run), ChoiceData("x", list(choices), {"majority": 0.5}), "cpu")
    assert score(won)["score"] == 1 and score(lost)["score"] == 0 and score(tie)["score"] == 0.5
    many = score(*[won] * 20, *[lost] * 20)  # more than are scored at a time
    assert many == {"task": "x", "metric": "accuracy", "score": 0.5, "dev_rows": 40,
                    "majority": 0.5}


def test_scores_belong_to_their_texts(run):
    """Catches scores that change places when texts of one length are brought together."""
    choices = [Choice(WORDS[:first], WORDS[::-1][:second], slice(0, 2))
               for first, second in ((6, 2), (2, 5), (3, 4), (5, 3), (2, 6))]
    score = lambda *choices: zero_shot(
        *load_pretrained(run), ChoiceData("x", list(choices), {}), "cpu")["score"]
    alone = [score(choice) for choice in choices]
    for first in range(len(choices)):
        assert score(*choices[:first + 1]) == pytest.approx(sum(alone[:first + 1]) / (first + 1))


@pytest.mark.parametrize("kind, size", [("wordpiece", 30), ("bpe", 275)])
def test_words_are_read_as_in_their_text(kind, size):
    """Catches words that byte-level BPE glues together, because each is read without its space."""
    texts = [" ".join(WORDS * 9)] * 3 + ["babe dudo bidi"]
    tokenizer = train_tokenizer(lambda: texts, kind, size)
    ids, positions = scored_positions(WORDS[:4], slice(1, 3), tokenizer)
    assert ids == tokenizer.encode(" ".join(WORDS[:4])).ids
    assert tokenizer.decode([ids[at] for at in positions]).split() == WORDS[1:3]


def test_special_tokens_in_a_choice_are_text(run, monkeypatch):
    """Catches a "[MASK]" of a task's text that becomes a blank, as in no text of pretraining."""
    seen = []
    monkeypatch.setattr("minibert.tasks.zero_shot.pseudo_log_likelihood", lambda model, texts, _: (
        seen.extend(texts), torch.zeros(len(texts)))[1])
    words = ["ba", "[MASK]", "be"]
    choices = ChoiceData("halves", [Choice(words, words, slice(1, 2))], {})
    zero_shot(*load_pretrained(run), choices, "cpu")
    for ids, positions in seen:
        assert ids.count(4) == 0 and len(positions) > 1
