"""BERT, RoBERTa and DistilBERT from scratch, short enough to read in an afternoon."""
from minibert.config import ModelConfig
from minibert.files.hub import load_pretrained, save_pretrained
from minibert.model import Encoder, MaskedLM
from minibert.tasks.classifier import SequenceClassifier

__all__ = ["Encoder", "MaskedLM", "ModelConfig", "SequenceClassifier", "load_pretrained",
           "save_pretrained"]
