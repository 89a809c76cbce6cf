"""The paper's experiments, and ours: what ``pnf reproduce`` runs."""
