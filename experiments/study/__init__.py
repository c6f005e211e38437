"""Studies: trainings of several arms, compared on the same test instances, with a written conclusion."""
