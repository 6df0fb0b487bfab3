"""The embedded sample, in the form of the official files (so that one reader reads both), and the programs that made it."""
