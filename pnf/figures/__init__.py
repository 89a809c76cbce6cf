"""Figures of Progressive Normalizing Flows: sample grids, upscaling, projections, training curves, bits per stage.

Every function returns a ``matplotlib.figure.Figure`` with its own Agg canvas. So none needs a display, touches the
global state of ``pyplot``, or has to be closed. ``save`` writes a figure as a PNG, SVG or PDF file. Flows keep their
mode: call ``flow.eval()`` first if it matters.

Images are floating-point tensors ``[N, C, H, W]`` with one channel (grey) or three (RGB) and values in [0, 1]. Values
outside are clipped. Pixels are enlarged by whole factors with nearest interpolation, so at 100 % a picture shows the
data without resampling.
"""

from pnf.figures._style import FORMATS as FORMATS
from pnf.figures._style import save as save
from pnf.figures.charts import bits_per_stage as bits_per_stage
from pnf.figures.charts import by_resolution as by_resolution
from pnf.figures.charts import likelihoods as likelihoods
from pnf.figures.charts import training_curves as training_curves
from pnf.figures.images import Upscaler as Upscaler
from pnf.figures.images import comparison as comparison
from pnf.figures.images import image_grid as image_grid
from pnf.figures.images import projection as projection
from pnf.figures.images import upscaling_draws as upscaling_draws
from pnf.figures.images import upscaling_pipeline as upscaling_pipeline
