"""Figures of Progressive Normalizing Flows: sample grids, upscaling, projections, training curves, bits per stage.

Every function returns a `matplotlib.figure.Figure` that carries its own Agg canvas, so nothing here needs a display,
reads or changes `pyplot`'s global state, or has to be closed; `save` writes one as a PNG file. Flows are passed in and
used in the mode that they are in: call `flow.eval()` first where that matters.

Images are floating-point tensors `[N, C, H, W]` with one channel (grey) or three (RGB) and values in [0, 1]; values
outside are clipped. They are drawn with nearest interpolation at whole multiples of their pixels, so what a picture
shows at 100 % is the data and no resampling of it.
"""

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
