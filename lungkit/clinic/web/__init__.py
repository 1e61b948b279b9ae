"""The clinic's web server: sign-in, pages, kernels and sockets."""
