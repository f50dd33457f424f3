"""BERT, RoBERTa and DistilBERT from scratch, short enough to read in an afternoon."""
from minibert.config import ModelConfig
from minibert.finetune import SequenceClassifier
from minibert.hub import load_pretrained, save_pretrained
from minibert.model import Encoder, MaskedLM

__all__ = ["Encoder", "MaskedLM", "ModelConfig", "SequenceClassifier", "load_pretrained",
           "save_pretrained"]
