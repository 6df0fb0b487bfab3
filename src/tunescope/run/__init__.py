"""How a plan is done: store, states, workers, executors. Imports `study`; knows nothing of machine learning."""
