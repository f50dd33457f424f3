"""The claims of the BERT family as one table: the arms of each, the measure, and the margin.

An arm is a script with the flags that one would type. The two arms of a contrast differ in what
the claim is about and in nothing else, and claims share arms.

Everything here was fixed before the runs that are published: arms, margins, budgets, and the rule
that chooses the students' budget (see `Grid.student`); only MORE_SEEDS came later. Short trials of
one seed had come first, because a comparison of models that have not learned anything yet says
nothing. They chose the shape, the learning rate, and sequences that are long enough for next
sentences to be learned.
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """One way to train; whatever it does not mention is as the grid says."""
    name: str
    script: str = "train_roberta"
    flags: str = ""  # {layers} and {half} stand for the grid's depth and for half of it
    # Non-padding tokens that it reads: in units of the grid's tokens, or of a student's share of
    # them where the arm has a teacher.
    budget: float = 1.0
    teacher: "Arm | None" = None
    tasks: bool = False  # whether it is scored on the grid's tasks, too
    text: float = 0.0  # tokens of text that it reads again and again, in the same units; 0: all
    # An arm that may stand for it where results were measured before the two parted.
    stand_in: "Arm | None" = None


@dataclass(frozen=True)
class Contrast:
    """A question about two arms: is the first better than the second, or at least no worse?"""
    first: Arm
    second: Arm
    question: str  # "better" or "no worse"
    margin: float = 0.05  # in units of the measure; a smaller effect is too small to matter
    measure: str = "full-sentences.mlm_loss"  # one of MEASURES
    apart: str = ""  # "tokens", where the budget is what differs
    name: str = ""  # shown in the report instead of the arms' names


@dataclass(frozen=True)
class Claim:
    """What is claimed, the contrasts that test it, and what was published."""
    id: str
    says: str
    contrasts: tuple[Contrast, ...]
    published: str
    differs: str  # why our effect and the published one may differ in size
    besides: tuple[Arm, ...] = ()  # arms that are reported for reference but are in no contrast
    # How much of the gap in loss between the first and the last arm does the second close?
    gap: tuple[Arm, Arm, Arm] | None = None
    # The last arm of the gap, trained on: was it done, or would any more steps close the gap, too?
    trained_on: Arm | None = None
    decides: int = 1  # how many contrasts, from the first on, give the verdict
    # Whether the deciding contrasts stand in the order of their published effects, largest first.
    ranked: bool = False
    # An arm that must have learned next sentences before the claim can be judged.
    learns_nsp: Arm | None = None
    # Two arms of which the first should keep this share of the second's scores above the floor.
    retains: tuple[Arm, Arm, float] | None = None
    # An arm whose scores should beat every rule that needs no model.
    beats_floors: Arm | None = None
    # For a row of the README: the claim as a question, and what was published in a few words, of
    # scores in points in favour of the claim.
    asks: str = ""
    paper: str = ""


def arms_of(claim: Claim) -> list[Arm]:
    """Return the arms of a claim, each once, in the order in which it names them."""
    contrasts = [arm for contrast in claim.contrasts for arm in (contrast.first, contrast.second)]
    return list(dict.fromkeys([*contrasts, *claim.besides, *(claim.gap or ())]))


@dataclass(frozen=True)
class Grid:
    """The size of all runs; a student has half the layers."""
    preset: str
    layers: int
    tokens: int  # a teacher's budget: non-padding tokens that it reads
    # A student's budget as a share of its teacher's, by a rule: the smallest of 1/5, 1/4, 1/3 and
    # 1/2 at which an untaught student from random weights has left the plateau by a tenth of a nat
    # (in a trial of one seed). In a shorter run one compares students that know only how frequent
    # words are; in a longer one a student that starts from its teacher's layers passes a teacher
    # that could itself still learn.
    student: float
    shape: str = ""  # flags that give a model its shape; students take their teacher's
    flags: str = ""
    more_seeds: int = 0  # beyond those that are asked for, of the arms in MORE_SEEDS
    tasks: str = ""  # of pydocs, with commas between them, for the arms with tasks
    task_seeds: int = 1  # fine-tunings of each run on each task; the score is their mean


GRIDS = {
    # `make all`: the same claims on a laptop. A small vocabulary, very short sequences and a wide
    # initialisation make short runs leave the plateau. The task `halves` is left out: models of
    # this size hardly beat chance there, and filling its blanks would take four minutes.
    "quick": Grid("tiny", layers=2, tokens=1_600_000, student=1 / 3,
                  shape="--vocab-size 2048 --initializer-range 0.08", flags="--seq-length 24 "
                  "--batch-size 32 --eval-targets 10000", tasks="library,word-order"),
    # `make all GRID=full`: the published run. A teacher of four layers is clearly better than one
    # of two here, so a student has something to lose; 10 million tokens are five epochs of pydocs.
    "full": Grid("tiny", layers=4, tokens=10_000_000, student=1 / 4, more_seeds=2,
                 flags="--seq-length 64 --batch-size 32 --learning-rate 0.002",
                 tasks="library,word-order,halves", task_seeds=2),
}

PAIRS_LOSS = "segment-pair.mlm_loss"
KL_TO_TEACHER = "full-sentences.kl_to_teacher"
TASKS = "tasks"  # the mean score above the floor, in points of 0 to 1
MEASURES = {"full-sentences.mlm_loss": "loss in full sentences", PAIRS_LOSS: "loss in pairs",
            KL_TO_TEACHER: "distance from the teacher (KL)", TASKS: "scores of the tasks"}

# The family, each by its script's defaults. BERT had 16 of RoBERTa's 160 GB. Here both read the
# same text, so that they differ in the recipe alone. (In a trial with a tenth of it, BERT hardly
# got beyond the frequency of words; a student of such a teacher would have nothing to learn.)
ROBERTA = Arm("RoBERTa", tasks=True)
BERT = Arm("BERT", "train_bert", tasks=True)
# What the same networks score on a task without any pretraining.
UNTRAINED = Arm("random weights", budget=0.0, tasks=True)
UNTRAINED_HALF = Arm("random weights, half the layers", flags="--num-hidden-layers {half}",
                     budget=0.0, tasks=True)
HALF_DEPTH = Arm("RoBERTa, half the layers", flags="--num-hidden-layers {half}", tasks=True)

# Segment pairs as BERT has them, but nothing to learn from them except the masked words.
WITHOUT_NSP = Arm("BERT without the NSP loss", "train_bert", "--no-nsp", tasks=True)
HALF_STEPS = Arm("RoBERTa, half the steps", budget=0.5)
QUARTER_STEPS = Arm("RoBERTa, a quarter of the steps", budget=0.25)

# RoBERTa's recipe by BERT's script, which has the switches that train_roberta.py does without. Such
# a network has BERT's two token types, so these arms are compared with each other only. The arms
# that were published come from a time when train_roberta.py had the switches, too.
_SENTENCES = ("--input-format full-sentences --no-nsp --masking dynamic --adam-beta2 0.98 "
              "--max-grad-norm 0")
SENTENCES = Arm("full sentences", "train_bert", _SENTENCES, budget=0.5, stand_in=HALF_STEPS)
DOCUMENTS = Arm("document sentences", "train_bert", f"{_SENTENCES} --input-format doc-sentences",
                budget=0.5)

# Slices are given in tokens and not in shares, so that they are read equally often on any corpus.
# Paper: Liu et al. 2019, section 4.1: ten masks in 40 epochs, so that each mask is seen four times.
EPOCHS = 40
SLICE = 0.5 / EPOCHS  # for runs of half the budget
_STATIC = f"{_SENTENCES} --masking static --static-masks"
DYNAMIC = Arm("dynamic masks, small slice", "train_bert", _SENTENCES, budget=0.5, text=SLICE)
STATIC_10 = Arm("ten static masks, small slice", "train_bert", f"{_STATIC} 10", budget=0.5,
                text=SLICE)
STATIC_1 = Arm("one static mask, small slice", "train_bert", f"{_STATIC} 1", budget=0.5, text=SLICE)
FOUR_SLICES = Arm("four times the small slice", "train_bert", _SENTENCES, budget=0.5,
                  text=4 * SLICE)

DISTILROBERTA = Arm("DistilRoBERTa", "distill", teacher=ROBERTA, tasks=True)
# Paper: DistilBERT, section 3, is trained on the text that BERT was trained on, as it is here.
DISTILBERT = Arm("DistilBERT", "distill", teacher=BERT, tasks=True)

_RANDOM, _HARD = "--init random --alpha-cos 0", "--alpha-kl 0 --alpha-cos 0"
SOFT = Arm("random weights, soft targets", "distill", _RANDOM, teacher=ROBERTA, tasks=True)
HARD = Arm("random weights, hard labels", "distill", f"--init random {_HARD}", teacher=ROBERTA,
           tasks=True)
HARD_LAYERS = Arm("teacher's layers, hard labels", "distill", _HARD, teacher=ROBERTA, tasks=True)
# A student's own update needs a forward and a backward pass, three units of arithmetic; a teacher
# of twice the depth adds a forward pass of two. So 5/3 of the steps without a teacher cost as
# much. This counts arithmetic and not seconds, so that a rerun makes the same number of steps.
EQUAL_ARITHMETIC = 5 / 3
HARD_LONGER = Arm("random weights, hard labels, equal arithmetic", "distill",
                  f"--init random {_HARD}", EQUAL_ARITHMETIC, ROBERTA)
HARD_LAYERS_LONGER = Arm("teacher's layers, hard labels, equal arithmetic", "distill", _HARD,
                         EQUAL_ARITHMETIC, ROBERTA)
TRAINED_ON = Arm("RoBERTa, trained on for the student's budget", "distill",
                 f"{_HARD} --student-layers {{layers}}", teacher=ROBERTA)

SOFT_ONLY = Arm("soft targets alone, all of the text", "distill", f"{_RANDOM} --alpha-mlm 0",
                teacher=ROBERTA)
# In the full grid this slice is 3 % of pydocs, the share of Hinton et al.
SOFT_SLICE = Arm("soft targets alone, tiny slice", "distill", f"{_RANDOM} --alpha-mlm 0",
                 teacher=ROBERTA, text=1 / EPOCHS)
HARD_SLICE = Arm("hard labels, tiny slice", "distill", f"--init random {_HARD}", teacher=ROBERTA,
                 text=1 / EPOCHS)
NO_KL, NO_COS, NO_MLM = (
    Arm(f"DistilRoBERTa without the {name}", "distill", f"--alpha-{flag} 0", teacher=ROBERTA,
        tasks=True)
    for name, flag in (("soft targets", "kl"), ("cosine", "cos"), ("hard labels", "mlm")))
TERMS = (NO_KL, NO_COS, NO_MLM)  # in the order of their published effects, the largest first

# These arms decide between the recipes and between the depths, where three seeds could not tell,
# because a loss depends on when its run leaves the plateau. The other two were added after three
# had been judged. Such a second look is one more chance to be wrong, so where these arms decide, a
# 95 % interval covers the truth a little less often than its name says.
MORE_SEEDS = (ROBERTA, BERT, WITHOUT_NSP, HALF_DEPTH, DISTILROBERTA, DISTILBERT, UNTRAINED,
              UNTRAINED_HALF)

CLAIMS = (
    Claim("worth", "pretraining pays: a fine-tuned model beats the same network without it", (
        Contrast(ROBERTA, UNTRAINED, "better", 0.03, TASKS, apart="tokens"),),
        "BERT Table 1: 79.6 GLUE against 71.0 of a bidirectional LSTM with ELMo",
        "Their models have 110 million parameters, 3.3 billion words and tasks that people wrote; "
        "ours a hundredth of the parameters, a thousandth of the words, and tasks that are made of "
        "the same text.", beats_floors=ROBERTA,
        asks="Does pretraining pay on a task?", paper="+8.6 points"),
    Claim("capacity", "halving the layers costs something", (
        Contrast(ROBERTA, HALF_DEPTH, "better"),
        Contrast(ROBERTA, HALF_DEPTH, "better", 0.01, TASKS)),
        "DistilBERT Table 1: its six layers have 77.0 GLUE, BERT's twelve 79.5",
        "The published student was taught and its teacher trained far longer; here both networks "
        "are trained alike, from random weights and without a teacher, and differ in depth alone.",
        (UNTRAINED, UNTRAINED_HALF),
        asks="Does halving the layers cost anything?", paper="+2.5 points"),
    Claim("nsp", "dropping NSP loses nothing", (
        Contrast(WITHOUT_NSP, BERT, "no worse", measure=PAIRS_LOSS),
        Contrast(WITHOUT_NSP, BERT, "no worse", 0.01, TASKS),
        Contrast(ROBERTA, BERT, "no worse"),
        Contrast(ROBERTA, BERT, "no worse", measure=PAIRS_LOSS),
        Contrast(ROBERTA, WITHOUT_NSP, "no worse"),
        Contrast(ROBERTA, WITHOUT_NSP, "no worse", measure=PAIRS_LOSS),
        Contrast(DOCUMENTS, SENTENCES, "no worse")),
        "RoBERTa Table 2, full sentences against NSP: +0.4 SQuAD 2.0, +0.7 MNLI, -0.4 SST-2",
        "Theirs are scores of fine-tuned tasks after a million steps; ours is first of all the "
        "loss, early in training, when two fragments of text in a short sequence are harder to "
        "learn from than one. Between RoBERTa's full sentences and BERT's pairs Adam's beta 2, the "
        "clipping of gradients and, from the eleventh epoch on, the masks differ, too.",
        learns_nsp=BERT,
        asks="Is a model without NSP as good?", paper="-0.4 to +0.7 points"),
    Claim("masking", "static masks are wasteful, dynamic ones are not", (
        Contrast(DYNAMIC, STATIC_10, "better"), Contrast(DYNAMIC, STATIC_1, "better")),
        "RoBERTa Table 1, ten static masks against dynamic: +0.4 SQuAD 2.0, -0.3 MNLI, +0.4 SST-2",
        "As in RoBERTa's comparison each of ten masks is seen four times. Theirs are scores of "
        "tasks after 40 epochs of 16 GB, ours the loss after 40 epochs of a text so small that a "
        "model can learn it by heart. Nobody published the arm with a single mask.",
        asks="Are dynamic masks better than ten?", paper="-0.3 to +0.4 points"),
    Claim("data", "BERT was undertrained: more text helps", (
        Contrast(SENTENCES, DYNAMIC, "better", name="all of the text against the small slice"),
        Contrast(SENTENCES, FOUR_SLICES, "better",
                 name="all of the text against four times the small slice")),
        "RoBERTa Table 4, ten times the text at equal steps: +0.3 MNLI, +0.3 SST-2, large model",
        "Their smaller text has 16 GB, which a model cannot learn by heart in 100,000 steps; our "
        "smallest slice is read 40 times.",
        asks="Does more text help?", paper="+0.3 points"),
    Claim("steps", "and longer training helps", (
        Contrast(ROBERTA, HALF_STEPS, "better", apart="tokens",
                 name="4 times the fewest steps against 2 times"),
        Contrast(HALF_STEPS, QUARTER_STEPS, "better", apart="tokens",
                 name="2 times the fewest steps against the fewest")),
        "RoBERTa Table 4, five times the steps: +0.9 MNLI, +0.8 SST-2, large model",
        "Their 100,000 steps of 8,000 sequences are far beyond ours, where the loss falls faster, "
        "and scores of tasks move less than the loss.",
        asks="Do more steps help?", paper="+0.8 to +0.9 points"),
    Claim("distill", "soft targets beat the same student without a teacher", (
        Contrast(SOFT, HARD, "better"),
        Contrast(DISTILROBERTA, HARD_LAYERS, "better"),
        Contrast(SOFT, HARD_LONGER, "better", apart="tokens"),
        Contrast(DISTILROBERTA, HARD_LAYERS_LONGER, "better", apart="tokens"),
        Contrast(HARD_LAYERS, HARD, "better")),
        "DistilBERT Table 4: -2.96 GLUE without soft targets, -3.69 from random weights",
        "DistilBERT's students were trained for 90 hours on eight GPUs, where hard labels alone "
        "go far, too; ours are trained briefly, where a teacher's head start is most of the way.",
        (TRAINED_ON, ROBERTA, UNTRAINED_HALF), (HARD, SOFT, ROBERTA), decides=2,
        trained_on=TRAINED_ON,
        asks="Do soft targets help a student?", paper="+3.0 points"),
    Claim("soft", "soft targets contain almost all the knowledge", (
        Contrast(SOFT_SLICE, HARD_SLICE, "better"), Contrast(SOFT_SLICE, SOFT_ONLY, "no worse"),
        Contrast(SOFT_SLICE, HARD, "no worse")),
        "Hinton et al., speech, 3 % of the data: 44.5 % hard, 57.0 % soft; 58.9 % hard on all",
        "Theirs is the accuracy of speech frames after full training, with early stopping for the "
        "hard targets; ours the loss after a fixed and small number of steps. In both, the teacher "
        "saw all of the data.",
        (ROBERTA,), (HARD_SLICE, SOFT_SLICE, ROBERTA),
        asks="Do soft targets help on 3 % of the text?", paper="+12.5 points, in speech"),
    Claim("terms", "every term of DistilBERT's loss helps: soft targets most, hard labels least", (
        *(Contrast(DISTILROBERTA, arm, "better") for arm in TERMS),
        *(Contrast(DISTILROBERTA, arm, "better", measure=KL_TO_TEACHER) for arm in TERMS),
        *(Contrast(DISTILROBERTA, arm, "better", 0.01, TASKS) for arm in TERMS)),
        "DistilBERT Table 4, GLUE without it: -2.96 soft targets, -1.46 cosine, -0.31 hard labels",
        "Our student starts from its teacher's layers and is trained for a short time. Of the "
        "measures, the loss is what the hard labels teach, and the KL to the teacher what the soft "
        "targets teach, so the two favour different terms.", decides=9, ranked=True,
        asks="Does DistilBERT need soft targets?", paper="+3.0 points"),
    Claim("retain", "the student keeps 97 % of what its teacher can, at 60 % of its size", (
        Contrast(DISTILROBERTA, ROBERTA, "no worse", 0.01, TASKS, apart="tokens"),),
        "DistilBERT: 97 % of BERT's GLUE score (77.0 of 79.5), 40 % smaller, 60 % faster",
        "The published share is one of raw scores, which a model that guesses has a good part of; "
        "ours is counted above the score of the most frequent answer.",
        (UNTRAINED, UNTRAINED_HALF), retains=(DISTILROBERTA, ROBERTA, 0.97),
        asks="What share of a score does a student keep?", paper="97 %"),
    Claim("stack", "RoBERTa and DistilBERT solve different problems, so they combine", (
        Contrast(DISTILROBERTA, DISTILBERT, "better"), Contrast(ROBERTA, BERT, "better")),
        "GLUE: BERT 79.5, DistilBERT 77.0; RoBERTa 83.2, DistilRoBERTa 79.0",
        "The published models differ in text, tokenizer and length of training at once; ours in "
        "what the scripts' defaults say, and read the same text.",
        (UNTRAINED, UNTRAINED_HALF),
        asks="Is DistilRoBERTa the better student?", paper="+2.0 points"),
)
