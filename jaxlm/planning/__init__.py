"""What a step would cost on machines that are not here: compiled, measured, priced.

``devices``, ``topology``, ``hlo`` and all that reads a program are plain Python, so a
wrong flag is answered at once and what was compiled before is read without jax; only
``meshes`` and ``compiling`` reach it.
"""
