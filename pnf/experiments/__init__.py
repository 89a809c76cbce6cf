"""The experiments of ``pnf reproduce``: the paper's and ours."""
