"""What pipelines of diffusers and programs have to do with each other: which calls of a pipeline become programs, and components
that run programs in place of their own code. Needs torch and diffusers (extra ``diffusion``).
"""
