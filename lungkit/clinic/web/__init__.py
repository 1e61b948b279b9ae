"""The clinic's web server: sign-in, pages, kernels and sockets."""

import lungkit.unneeded  # noqa: F401  # before Jupyter's server
