"""Whole experiments on top of the commands: the demo, the studies, the jobs of a Slurm cluster."""
