"""`tunescope check`: does training do what it must, does every kind of step run here? Small runs of the real steps in a temporary store."""
