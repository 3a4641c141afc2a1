"""How good samples are, compared with a data set."""

from wgan.evaluation.evaluator import Evaluator, critic_estimate, report_points

__all__ = ["Evaluator", "critic_estimate", "report_points"]
