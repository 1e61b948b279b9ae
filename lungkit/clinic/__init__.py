"""Where the models are used: readings with their records, and the people who make and oversee them.

Nothing here imports TensorFlow, Keras or scikit-learn: each clinician's kernel runs this code.
"""
