"""Does it pay here? Measures the link, a model and mechanisms, and predicts the time of a training step."""

from laconic.training.advice.advisor import DEFAULTS, Bench, advise
from laconic.training.advice.candidates import candidate_of
from laconic.training.advice.link import Link
from laconic.training.advice.predict import Prediction
from laconic.training.advice.verdict import Advice

__all__ = ["DEFAULTS", "Advice", "Bench", "Link", "Prediction", "advise", "candidate_of"]
