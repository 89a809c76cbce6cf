"""The local page of ``pnf app``: ``models`` computes, ``page`` shows, ``server`` serves."""
