"""Evaluation of trained flows: likelihood, diagnostics, anomaly detection, upscaling, pictures."""

from pnf.evaluation.diagnostics import Diagnostic as Diagnostic
from pnf.evaluation.diagnostics import diagnose as diagnose
from pnf.evaluation.likelihood import Classification as Classification
from pnf.evaluation.likelihood import Evaluation as Evaluation
from pnf.evaluation.likelihood import RealEvaluation as RealEvaluation
from pnf.evaluation.likelihood import evaluate as evaluate
from pnf.evaluation.likelihood import evaluate_reals as evaluate_reals
from pnf.evaluation.runs import find_runs as find_runs
from pnf.evaluation.runs import load_flow as load_flow
from pnf.evaluation.runs import load_run as load_run
