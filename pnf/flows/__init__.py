"""The flows, written once against an op table. :mod:`pnf.reference` and :mod:`pnf.fast` bind them to ops."""

from pnf.flows.couplings import scale_parameters as scale_parameters
from pnf.flows.couplings import weight_matrices as weight_matrices
from pnf.flows.op_table import OpTable as OpTable
from pnf.flows.progressive import ProgressiveFlow as ProgressiveFlow
from pnf.flows.realnvp import RealNVP as RealNVP
from pnf.flows.realnvp import set_network_dtype as set_network_dtype
