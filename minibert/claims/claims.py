"""The lineage's claims as one table: the arms of each, the measure, and the margin.

An arm is a script and the flags that one would type; two arms of a contrast differ in what the
claim is about and in nothing else. Arms are shared between claims.

Margins were written before any run. After a first run of the grid the shares of the text were
trained twice as long, pairs got smaller batches, distilbert its teacher's tenth of the text, and
the gap of `soft` was measured to the teacher. After a second one `masking` got 40 epochs, as in
RoBERTa's paper, where it had 13, in which ten masks hardly come again, and the published contrast
to decide it; `nsp` and `soft` got contrasts that differ in one thing only; and to hold, a gain has
to be above its margin, not above 0, which changed no verdict.
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """One way to train; what it does not say is the grid's."""
    name: str
    script: str = "train_roberta"
    flags: str = ""
    budget: float = 1.0  # tokens that are no padding, in units of the grid's
    teacher: "Arm | None" = None
    tasks: bool = False  # fine-tuned on the preset's tasks, too


@dataclass(frozen=True)
class Contrast:
    """Is the first arm better than the second, or no worse, by more than a margin?"""
    first: Arm
    second: Arm
    question: str  # "better" or "no worse"
    margin: float = 0.05  # in units of the measure; smaller effects are not worth a name
    measure: str = "full-sentences.mlm_loss"  # in metrics.json; less is better
    apart: str = ""  # "tokens", where the budget is what differs
    name: str = ""  # in the report, instead of the arms' names


@dataclass(frozen=True)
class Claim:
    """What is claimed, the contrasts that test it (the first decides), and what was published."""
    id: str
    says: str
    contrasts: tuple[Contrast, ...]
    published: str
    differs: str  # why our effect and the published one differ in size
    besides: tuple[Arm, ...] = ()  # reference lines, in the report but in no contrast
    # Of the gap in loss between the first and the last, how much does the second close?
    gap: tuple[Arm, Arm, Arm] | None = None
    shown: int = 2  # contrasts in the table of verdicts


@dataclass(frozen=True)
class Grid:
    """The size of a preset's runs; a student has half the layers."""
    layers: int
    tokens: int
    shape: str = ""  # flags of every run but students, which take their teacher's
    flags: str = ""


GRIDS = {
    # Chosen so that runs of a minute leave the plateau: a small vocabulary, a wide initialisation.
    # Departure: a feed-forward of H, not BERT's 4 H, which here learns later and at a higher price.
    "tiny": Grid(layers=2, tokens=1_750_000,
                 shape="--vocab-size 2048 --hidden-size 96 --num-attention-heads 3 "
                       "--intermediate-size 96 --initializer-range 0.08",
                 flags="--batch-size 32 --learning-rate 0.003 --eval-every 1000"),
    # For one GPU; about 20 million tokens of text make the same number of epochs as above.
    "small": Grid(layers=12, tokens=16_000_000,
                  flags="--batch-size 64 --eval-every 1000 --task-rows 20000"),
}

PAIRS_LOSS = "segment-pair.mlm_loss"
# The family, each by its script's defaults; BERT also on a tenth of the text, as 16 of 160 GB.
ROBERTA = Arm("roberta", budget=2.0, tasks=True)
BERT = Arm("bert", "train_bert", budget=2.0, tasks=True)
BERT_TENTH = Arm("bert, 1/10 of the text", "train_bert", "--data-fraction 0.1", 2.0, tasks=True)

BASE = Arm("full sentences", tasks=True)
# RoBERTa's recipe otherwise, so that the pairs are what differs.
_PAIRS = "--masking dynamic --adam-beta2 0.98 --max-grad-norm 0"
WITH_NSP = Arm("pairs, NSP", "train_bert", _PAIRS, tasks=True)
WITHOUT_NSP = Arm("pairs, no NSP", "train_bert", f"{_PAIRS} --no-nsp", tasks=True)
DOCUMENTS = Arm("document sentences", flags="--input-format doc-sentences")

# A fortieth of the text, so that the same few sequences come again and again.
# Paper: Liu et al. 2019, section 4.1: ten masks in 40 epochs, each of them seen four times.
_SLICE = "--data-fraction 0.025 --eval-every 250"
STATIC_1 = Arm("static x1", flags=f"{_SLICE} --masking static --static-masks 1", budget=1.5)
STATIC_10 = Arm("static x10", flags=f"{_SLICE} --masking static --static-masks 10", budget=1.5)
DYNAMIC = Arm("dynamic", flags=_SLICE, budget=1.5)

SIXTEENTH = Arm("1/16 of the text", flags="--data-fraction 0.0625", budget=2.0)
QUARTER = Arm("1/4 of the text", flags="--data-fraction 0.25", budget=2.0)
HALF = Arm("full sentences, half the steps", budget=0.5)

_SHORT = 0.6  # a student's budget
DISTILROBERTA = Arm("distilroberta", "distill", "", _SHORT, ROBERTA, tasks=True)
# Paper: DistilBERT, section 3, is trained on the text that BERT was trained on.
DISTILBERT = Arm("distilbert", "distill", "--data-fraction 0.1", _SHORT, BERT_TENTH, tasks=True)

_RANDOM, _HARD = "--init random --alpha-cos 0", "--alpha-kl 0 --alpha-cos 0"
SOFT = Arm("soft, random", "distill", _RANDOM, _SHORT, ROBERTA, tasks=True)
SOFT_ONLY = Arm("soft only, random", "distill", f"{_RANDOM} --alpha-mlm 0", _SHORT, ROBERTA)
HARD = Arm("hard, random", "distill", f"--init random {_HARD}", _SHORT, ROBERTA, tasks=True)
HARD_LAYERS = Arm("hard, teacher's layers", "distill", _HARD, _SHORT, ROBERTA)
# A forward pass of a teacher of twice the depth, beside forward and backward of the student:
# 1 + 2/3 of its arithmetic. In arithmetic, not in seconds, so that a rerun has the same steps.
HARD_LONGER = Arm("hard, random, longer", "distill", f"--init random {_HARD}", _SHORT * 5 / 3,
                  ROBERTA)
TRAINED_ON = Arm("roberta, trained on", "distill", f"{_HARD} --student-layers {{layers}}", _SHORT,
                 ROBERTA)
SOFT_3 = Arm("soft only, 3 % of the text", "distill",
             f"{_RANDOM} --alpha-mlm 0 --data-fraction 0.03", _SHORT, ROBERTA)
HARD_3 = Arm("hard, 3 % of the text", "distill", f"--init random {_HARD} --data-fraction 0.03",
             _SHORT, ROBERTA)
NO_KL, NO_MLM, NO_COS = (Arm(f"distilroberta, no {name}", "distill", f"--alpha-{name} 0", _SHORT,
                             ROBERTA) for name in ("kl", "mlm", "cos"))

CLAIMS = (
    Claim("nsp", "dropping NSP loses nothing", (
        Contrast(WITHOUT_NSP, WITH_NSP, "no worse", measure=PAIRS_LOSS),
        Contrast(BASE, WITH_NSP, "no worse"),
        Contrast(BASE, WITH_NSP, "no worse", measure=PAIRS_LOSS),
        Contrast(BASE, WITHOUT_NSP, "no worse"),
        Contrast(BASE, WITHOUT_NSP, "no worse", measure=PAIRS_LOSS),
        Contrast(DOCUMENTS, BASE, "no worse")),
        "RoBERTa Table 2, full sentences against pairs with NSP: +0.4 SQuAD 2.0, +0.7 MNLI, -0.4 "
        "SST-2",
        "Theirs are scores of fine-tuned tasks after a million steps; ours is the loss itself, "
        "early in training, when fragments of two texts in a short sequence are harder to learn "
        "from than one text, and before next sentences are told apart any better than by the "
        "majority or by length."),
    Claim("masking", "static masks are wasteful, dynamic ones are not", (
        Contrast(DYNAMIC, STATIC_10, "better"), Contrast(DYNAMIC, STATIC_1, "better")),
        "RoBERTa Table 1, ten static masks against dynamic: +0.4 SQuAD 2.0, -0.3 MNLI, +0.4 SST-2",
        "Ten masks, each seen four times, as in RoBERTa's comparison; theirs are scores of tasks "
        "after 40 epochs of 16 GB, ours the loss after 40 of a text so small that a model can "
        "learn it by heart. One mask for each sequence is an arm that nobody published."),
    Claim("data", "BERT was undertrained: more text helps", (
        Contrast(ROBERTA, SIXTEENTH, "better", name="all of the text against 1/16"),
        Contrast(ROBERTA, QUARTER, "better", name="all of the text against 1/4")),
        "RoBERTa Table 4, ten times the text at equal steps: +0.3 MNLI, +0.3 SST-2, large model",
        "Their smaller text has 16 GB, which a model cannot learn by heart in 100,000 steps; our "
        "smallest is a thousandth or less of that, and is read some twenty times."),
    Claim("steps", "and longer training helps", (
        Contrast(ROBERTA, BASE, "better", apart="tokens", name="4x the fewest steps against 2x"),
        Contrast(BASE, HALF, "better", apart="tokens", name="2x the fewest steps against 1x")),
        "RoBERTa Table 4, five times the steps: +0.9 MNLI, +0.8 SST-2, large model",
        "Our runs end where the loss still falls steeply; their 100,000 steps of 8,000 sequences "
        "are far beyond that, and scores of tasks move less than the loss."),
    Claim("distill", "soft targets beat the same student without a teacher", (
        Contrast(SOFT, HARD, "better"), Contrast(DISTILROBERTA, HARD, "better"),
        Contrast(SOFT, HARD_LONGER, "better", apart="tokens"),
        Contrast(DISTILROBERTA, HARD_LAYERS, "better"),
        Contrast(HARD_LAYERS, HARD, "better")),
        "DistilBERT Table 4: -2.96 GLUE without soft targets, -3.69 from random weights",
        "DistilBERT's students were trained for 90 hours on eight GPUs, where hard labels alone "
        "go far, too; ours briefly, where a teacher's head start is most of the way. And a "
        "teacher that could still learn much is passed by a student that starts from its layers.",
        (TRAINED_ON, ROBERTA), (HARD, SOFT, ROBERTA)),
    Claim("soft", "soft targets contain almost all the knowledge", (
        Contrast(SOFT_3, HARD_3, "better"), Contrast(SOFT_3, SOFT_ONLY, "no worse"),
        Contrast(SOFT_3, HARD, "no worse")),
        "Hinton et al., speech, 3 % of the data: 44.5 % hard, 57.0 % soft; 58.9 % hard on all",
        "Theirs is the accuracy of speech frames after full training, with early stopping for the "
        "hard targets; ours the loss after a fixed number of steps, so few that hard labels on all "
        "of the text have not got far, either. In both the teacher saw all of the data.",
        (ROBERTA,), (HARD_3, SOFT_3, ROBERTA)),
    Claim("terms", "soft targets and the cosine carry DistilBERT, its hard labels little", (
        Contrast(DISTILROBERTA, NO_KL, "better"), Contrast(DISTILROBERTA, NO_COS, "better"),
        Contrast(DISTILROBERTA, NO_MLM, "better")),
        "DistilBERT Table 4, without a term: -2.96 GLUE soft targets, -1.46 cosine, -0.31 hard "
        "labels",
        "The student starts from its teacher's layers and is trained for a short time, towards a "
        "teacher that is itself short of what its text could teach; the loss that is compared is "
        "the hard labels' own.", shown=3),
    Claim("stack", "RoBERTa and DistilBERT are no rivals: they stack", (
        Contrast(DISTILROBERTA, DISTILBERT, "better"), Contrast(ROBERTA, BERT_TENTH, "better"),
        Contrast(ROBERTA, BERT, "better")),
        "GLUE: BERT 79.5, DistilBERT 77.0; RoBERTa 83.2, DistilRoBERTa 79.0",
        "The published models differ in text, tokenizer and length of training at once; ours in "
        "what the scripts' defaults say and in BERT's tenth of the text.", (BERT,)),
)
