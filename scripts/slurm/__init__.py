"""The study on a Slurm cluster: what is submitted, and what it costs."""
