"""Triton kernels and their launchers; they know nothing of pnf and import nothing but torch and triton."""

if __name__ != "pnf.kernels":
    raise ImportError(f'the kernels of pnf are imported as "pnf.kernels" and under no other name, got "{__name__}"')
