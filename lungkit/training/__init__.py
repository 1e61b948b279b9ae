"""How it is learned and judged: fit, evaluation, Grad-CAM, figures."""
